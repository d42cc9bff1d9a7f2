"""From a local folder to a model that is ready to be pruned: quickly, offline, safetensors only."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError

from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.model import Placement
from prunebench.model.anatomy import FAMILIES
from prunebench.model.folder import Checkpoint, check_loaded, read_checkpoint
from prunebench.model.placement import max_memory
from prunebench.model.pruning_json import VARIANT, apply_shape, read_pruning_file
from prunebench.model.quiet import quiet


@dataclass(frozen=True)
class TransferTimes:
    """The two ways that weights go: from the files into host memory, and on to the device."""

    host_s: float
    device_s: float | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in eval mode without gradients, and what loading it took."""

    model: Any
    tokenizer: Any
    weight_bytes: int
    """Size of the weight files read."""
    seconds: float
    """Weights and config from disk to device; imports and tokenizer apart."""
    transfers: TransferTimes | None = None
    """None where the weights went to the device as they were read."""


def load(folder: Path, *, dtype: str, device: str, trust_remote_code: bool = False) -> LoadedModel:
    """Load the checkpoint in ``folder``. No network, no pickle; ``dtype`` is 'float32', 'bfloat16' or 'float16'.

    Raises PrunebenchError where the folder is incomplete or damaged, the weights do not fit the config, or
    transformers does not know the architecture.
    """
    import_libraries()
    checkpoint = read_checkpoint(folder)
    torch.empty((), device=device)  # starts the device; that is not loading
    with quiet():
        started = time.perf_counter()
        apart = device == "cpu" or _fits(checkpoint.weight_bytes)
        first = "cpu" if apart else device
        model = _load_model(
            checkpoint,
            dtype=getattr(torch, dtype),
            device=first,
            trust_remote_code=trust_remote_code,
        )
        transfers = _onwards(model, device, time.perf_counter() - started) if apart else None
        _finish(device)
        seconds = time.perf_counter() - started
        tokenizer = _load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return LoadedModel(model, tokenizer, checkpoint.weight_bytes, seconds, transfers)


def load_dispatched(
    folder: Path, *, dtype: str, device: str, placement: Placement, trust_remote_code: bool = False
) -> LoadedModel:
    """As `load`, over the places of ``placement``: what fits nowhere else stays in its files and is read when it is needed."""
    import_libraries()
    checkpoint = read_checkpoint(folder)
    memory = max_memory(placement, device)
    with quiet():
        started = time.perf_counter()
        model = _load_model(
            checkpoint,
            dtype=getattr(torch, dtype),
            device="auto",
            trust_remote_code=trust_remote_code,
            memory=memory,
        )
        _finish(device)
        seconds = time.perf_counter() - started
        tokenizer = _load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return LoadedModel(model, tokenizer, checkpoint.weight_bytes, seconds)


def load_bare(folder: Path, *, dtype: str, device: str) -> LoadedModel:
    """The model in ``folder`` without its weights, which stay on the meta device; buffers that no file holds are real.

    For going through it piece by piece (see `streamed`). Checked and refused as by `load`, and where the
    weights are packed, or narrower than the config says.
    """
    checkpoint = read_checkpoint(folder)
    plan = read_pruning_file(folder)
    if checkpoint.parameters is None or (plan is not None and not plan.plain):
        kind = "are packed" if plan is None else "are narrower than config.json says"
        raise PrunebenchError(
            f"{folder}: the weights {kind}, so they cannot be read layer by layer",
            hint="prune it without --stream, or name the checkpoint that it was made from",
        )
    with quiet():
        started = time.perf_counter()
        model = _load_model(
            checkpoint, dtype=getattr(torch, dtype), device="meta", trust_remote_code=False
        )
        _make_buffers(model, device)
        seconds = time.perf_counter() - started
        tokenizer = _load_tokenizer(folder, trust_remote_code=False)
    return LoadedModel(model, tokenizer, checkpoint.weight_bytes, seconds)


@torch.no_grad()
def _make_buffers(model: Any, device: str) -> None:
    """Compute the buffers that are in no file, such as rotary frequencies, as transformers does after loading."""
    for module in model.modules():
        names = [
            name for name in module._non_persistent_buffers_set if module._buffers[name] is not None
        ]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if names:
            model._init_weights(module)
        for name in names:
            module._buffers[name] = module._buffers[name].to(device)


def _load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise PrunebenchError(
            f"{folder}: transformers cannot read the tokenizer: {first_line(error)}",
            hint="save it there anew with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        ) from error


def _fits(weight_bytes: int) -> bool:
    """Whether the host has room for the weights on their way, with half as much again for the larger of two dtypes."""
    return psutil.virtual_memory().available > 2.5 * weight_bytes


def _onwards(model: Any, device: str, host_s: float) -> TransferTimes:
    """Move a model from host memory to the ``device``; what both legs took."""
    if device == "cpu":
        return TransferTimes(host_s)
    started = time.perf_counter()
    moved = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    model.to(device)
    _finish(device)
    return TransferTimes(host_s, time.perf_counter() - started, sum(moved.values()))


def _finish(device: str) -> None:
    """Wait for what was queued on the device."""
    if device != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def load_pruned(folder: str | Path, *, dtype: str | None = None, device: str = "cpu") -> Any:
    """Load a model that `prunebench prune` or `prunebench.prune` saved, whatever its layers look like.

    Gives the transformers causal LM in eval mode, its logits those of the model that was saved. ``dtype`` is 'float32',
    'bfloat16' or 'float16', the saved one where absent. Raises PrunebenchError as `load` does.
    """
    checkpoint = read_checkpoint(Path(folder), tokenizer=False)
    with quiet():
        return _load_model(
            checkpoint,
            dtype="auto" if dtype is None else getattr(torch, dtype),
            device=device,
            trust_remote_code=False,
        )


def _load_model(
    checkpoint: Checkpoint,
    *,
    dtype: Any,
    device: str,
    trust_remote_code: bool,
    memory: dict[int | str, int] | None = None,
) -> Any:
    """``device`` 'auto' spreads the model over several, each with as many bytes as ``memory`` says."""
    folder = checkpoint.folder
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        loader, more = _loader(folder, common)
        model, report = loader.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"cpu": None, "auto": "auto"}.get(device, {"": device}),
            max_memory=memory,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported then, with their names
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
        raise _unloadable(checkpoint, error) from error
    check_loaded(folder, report)
    if isinstance(model, _Narrowed):
        model.__class__ = type(model).__mro__[2]  # nothing of ours stays on it
    model.eval().requires_grad_(requires_grad=False)
    _into_memory(model)
    return model


class _Narrowed:
    """Marks a class made by `_loader`."""


def _loader(folder: Path, common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What loads the folder: transformers' own class, made narrower by the plan where the config cannot say it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plan = read_pruning_file(folder)
    if plan is None or plan.plain:
        return AutoModelForCausalLM, {}
    config = AutoConfig.from_pretrained(folder, **common)
    plain = AutoModelForCausalLM._model_mapping[type(config)]

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        plain.__init__(self, config, *args, **kwargs)
        apply_shape(self, plan.shape)

    named = {"__init__": build, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (_Narrowed, plain), named), {"config": config, "variant": VARIANT}


def import_libraries() -> None:
    """Import what loading any model needs: seconds the first time, which are no part of loading."""
    for name in (
        "modeling_utils",
        "generation",
        *(f"models.{family}.modeling_{family}" for family, _ in FAMILIES),
    ):
        importlib.import_module(f"transformers.{name}")


def _into_memory(model: torch.nn.Module) -> None:
    """Copy what still lies in the mapped file.

    Left there, it would be read during the first forward instead of now, and dense weights would run from file pages
    while those that a method wrote to run from memory: two speeds for one model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _unloadable(checkpoint: Checkpoint, error: Exception) -> PrunebenchError:
    kind = checkpoint.config.get("model_type", "no model_type")
    return PrunebenchError(
        f"{checkpoint.folder}: transformers cannot load this checkpoint ({kind}): {first_line(error)}",
        hint="name a causal language model that the installed transformers knows",
    )
