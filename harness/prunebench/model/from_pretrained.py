"""Call transformers' loaders on a local checkpoint: offline, safetensors only, plain errors."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prunebench.errors import PrunebenchError
from prunebench.model.biases import make_biases
from prunebench.model.coupling.find import attach, coupling_of
from prunebench.model.folder import Checkpoint
from prunebench.model.load_errors import config_error, load_error, tokenizer_error
from prunebench.model.loading_folder import LoadingFolder
from prunebench.model.loading_report import check_loaded, unused_tensors
from prunebench.model.pruning_json import VARIANT, apply_shape, read_pruning_file


@dataclass(frozen=True)
class LoadedWeights:
    """A causal LM in eval mode without gradients."""

    model: Any
    unused: list[str]
    """Names of stored tensors that it has no place for."""


def import_libraries(*model_types: object) -> None:
    """Import what loading any model needs: seconds once, which must not count as loading.

    Also the code of these ``model_types``; transformers may not know one of them.
    """
    for name in ("modeling_utils", "generation"):
        importlib.import_module(f"transformers.{name}")
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for model_type in model_types:
        if model_type in CONFIG_MAPPING:
            with suppress(KeyError):  # no causal language model: `_config` says so
                AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[model_type]]
    with suppress(ImportError):  # another version may have no such table
        # transformers makes it when the first model is loaded, and keeps it.
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")


def load_model(
    checkpoint: Checkpoint,
    source: LoadingFolder,
    *,
    dtype: Any,
    device: str,
    trust_remote_code: bool,
    max_memory: dict[int | str, int] | None = None,
) -> LoadedWeights:
    """Load the causal LM of ``checkpoint`` from ``source``, the folder that was made for it.

    ``device`` 'auto' dispatches it over several devices with ``max_memory`` bytes each. Raises
    PrunebenchError if transformers cannot load it or the weights do not fit the config.
    """
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = _config(checkpoint, source, common)
    try:
        loader, more = _loader(checkpoint.folder, config)
        model, report = loader.from_pretrained(
            source.path,
            config=config,
            dtype=dtype,
            device_map={"cpu": None, "auto": "auto"}.get(device, {"": device}),
            max_memory=max_memory,
            use_safetensors=True,
            # Do not stop at the first wrong shape: the report then names all of them.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **common,
            **more,
        )
    except (MemoryError, torch.OutOfMemoryError, PrunebenchError):
        raise
    except SafetensorError as error:
        names = ", ".join(path.name for path in checkpoint.weights[:3])
        raise load_error(
            checkpoint, source.path, error, f"the weights in {names} are damaged"
        ) from error
    except Exception as error:
        raise load_error(checkpoint, source.path, error) from error
    check_loaded(checkpoint.folder, report)
    if isinstance(model, _Narrowed):
        # Give the model transformers' own class back, so that it can be pickled and saved as usual.
        model.__class__ = type(model).__mro__[2]
    model.eval().requires_grad_(requires_grad=False)
    _copy_into_memory(model)
    return LoadedWeights(model, unused_tensors(report))


def load_tokenizer(folder: Path, source: LoadingFolder, *, trust_remote_code: bool) -> Any:
    """The tokenizer of ``folder``, from ``source``.

    Raises PrunebenchError if transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise tokenizer_error(folder, source.path, error) from error


class _Narrowed:
    """Marks a class that `_loader` made."""


def _config(checkpoint: Checkpoint, source: LoadingFolder, common: dict[str, Any]) -> Any:
    """The config as an object of transformers. Raises PrunebenchError if it is no causal LM's."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.path, **common)
    except Exception as error:
        raise config_error(checkpoint, source.path, error) from error
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own_code and _causal_class(config) is None:
        raise PrunebenchError(
            f"{checkpoint.folder}: a {config.model_type} model is no causal language model",
            hint="name a causal language model",
        )
    return config


def _causal_class(config: Any) -> Any:
    """The causal language model of a config; None if transformers has none."""
    import transformers

    mapping = transformers.AutoModelForCausalLM._model_mapping
    if type(config) in mapping:
        return mapping[type(config)]
    # The text decoder of a larger model, saved alone, is in no mapping: its config names the class.
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if name.endswith("ForCausalLM") and getattr(found, "config_class", None) is type(config):
            return found
    return None


def _loader(folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """The class to load the folder with, and its extra arguments.

    `from_pretrained` builds a model from the config and then fills in the weights. If the config
    cannot describe the pruned layers, a subclass makes the new model narrower in between.
    """
    from transformers import AutoModelForCausalLM

    plain = _causal_class(config)
    if plain is None or type(config) in AutoModelForCausalLM._model_mapping:
        loader = AutoModelForCausalLM
    else:
        loader = plain
    pruning = read_pruning_file(folder)
    if pruning is None or pruning.plain:
        return loader, {}

    if plain is None:  # the folder's own code, which the caller trusts
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        plain = get_class_from_dynamic_module(config.auto_map["AutoModelForCausalLM"], folder)
    # Proved here, because `build` runs while transformers makes all tensors without memory.
    coupling = coupling_of(plain, config)

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        plain.__init__(self, config, *args, **kwargs)
        attach(self, coupling)
        apply_shape(self, pruning.shape)
        make_biases(self, pruning.biases)

    named = {"__init__": build, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (_Narrowed, plain), named), {"variant": VARIANT}


def _copy_into_memory(model: torch.nn.Module) -> None:
    """Copy weights that are still mapped from their file.

    Otherwise the first forward pass would read them, and dense weights would run from file pages
    while weights that a method wrote run from memory: two speeds for one model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
