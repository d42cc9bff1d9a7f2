"""Call transformers' loaders on a local checkpoint: offline, safetensors only, plain errors."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.families import FAMILIES
from prunebench.model.folder import Checkpoint, check_loaded
from prunebench.model.pruning_json import VARIANT, apply_shape, read_pruning_file


def import_libraries() -> None:
    """Import what loading any model needs: seconds once, which must not count as loading."""
    for name in (
        "modeling_utils",
        "generation",
        *(f"models.{family}.modeling_{family}" for family in FAMILIES),
    ):
        importlib.import_module(f"transformers.{name}")


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: Any,
    device: str,
    trust_remote_code: bool,
    max_memory: dict[int | str, int] | None = None,
) -> Any:
    """The causal LM of ``checkpoint``, in eval mode without gradients.

    ``device`` 'auto' dispatches it over several devices with ``max_memory`` bytes each. Raises
    PrunebenchError if transformers cannot load it or the weights do not fit the config.
    """
    folder = checkpoint.folder
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        loader, more = _loader(folder, common)
        model, report = loader.from_pretrained(
            folder,
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
        raise PrunebenchError(
            f"{folder}: the weights in {names} are damaged: {first_line(error)}",
            hint="copy or download the files again",
        ) from error
    except Exception as error:
        kind = checkpoint.config.get("model_type", "no model_type")
        raise PrunebenchError(
            f"{folder}: transformers cannot load this checkpoint ({kind}): {first_line(error)}",
            hint="name a causal language model that the installed transformers knows",
        ) from error
    check_loaded(folder, report)
    if isinstance(model, _Narrowed):
        # Give the model transformers' own class back, so that it can be pickled and saved as usual.
        model.__class__ = type(model).__mro__[2]
    model.eval().requires_grad_(requires_grad=False)
    _copy_into_memory(model)
    return model


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The tokenizer in ``folder``. Raises PrunebenchError if transformers cannot read it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise PrunebenchError(
            f"{folder}: transformers cannot read the tokenizer: {first_line(error)}",
            hint="save it again: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        ) from error


class _Narrowed:
    """Marks a class that `_loader` made."""


def _loader(folder: Path, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class to load the folder with, and its extra arguments.

    `from_pretrained` builds a model from the config and then fills in the weights. If the config
    cannot describe the pruned layers, a subclass makes the new model narrower in between.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    pruning = read_pruning_file(folder)
    if pruning is None or pruning.plain:
        return AutoModelForCausalLM, {}
    config = AutoConfig.from_pretrained(folder, **common)
    plain = AutoModelForCausalLM._model_mapping[type(config)]

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        plain.__init__(self, config, *args, **kwargs)
        apply_shape(self, pruning.shape)

    named = {"__init__": build, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (_Narrowed, plain), named), {"config": config, "variant": VARIANT}


def _copy_into_memory(model: torch.nn.Module) -> None:
    """Copy weights that are still mapped from their file.

    Otherwise the first forward pass would read them, and dense weights would run from file pages
    while weights that a method wrote run from memory: two speeds for one model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
