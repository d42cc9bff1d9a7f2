"""From a local folder to a model that is ready to be pruned, on one device or on several."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import Placement
from prunebench.model.adapter import read_adapter
from prunebench.model.folder import Checkpoint, read_checkpoint
from prunebench.model.from_pretrained import (
    LoadedWeights,
    import_libraries,
    load_model,
    load_tokenizer,
)
from prunebench.model.loading_folder import LoadingFolder, loading_folder
from prunebench.model.placement import max_memory
from prunebench.model.pruning_json import read_pruning_file
from prunebench.model.quiet import quiet


@dataclass(frozen=True)
class TransferTimes:
    """How long the weights took from the files to host memory, and from there to the device."""

    host_s: float
    device_s: float | None = None
    """None on the CPU, which needs no second transfer."""
    device_bytes: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in eval mode without gradients, and what loading it took."""

    model: Any
    tokenizer: Any
    weight_bytes: int
    """Size of the weight files read."""
    seconds: float
    """Weights and config from disk to device, without imports and tokenizer."""
    transfers: TransferTimes | None = None
    """None if the weights went to the device while they were read."""
    notes: tuple[str, ...] = ()
    """What the checkpoint holds and the model does not use; each the end of a sentence."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the model is run, and what the checkpoint says otherwise; for provenance."""


def load(folder: Path, *, dtype: str, device: str, trust_remote_code: bool = False) -> LoadedModel:
    """Load the checkpoint in ``folder``: no network, no pickle.

    ``dtype`` is 'float32', 'bfloat16' or 'float16'. Raises PrunebenchError if the folder is
    incomplete or damaged, the weights do not fit the config, or transformers does not know the
    architecture.
    """
    checkpoint, source = _prepare(folder, trust_remote_code=trust_remote_code)
    import_libraries(checkpoint.config.get("model_type"))
    torch.empty((), device=device)  # starts the device now, so that it does not count as loading
    with quiet():
        started = time.perf_counter()
        # Two separate transfers can be timed; a model too large for host memory cannot.
        separate = device == "cpu" or _fits(checkpoint.weight_bytes)
        found = load_model(
            checkpoint,
            source,
            dtype=getattr(torch, dtype),
            device="cpu" if separate else device,
            trust_remote_code=trust_remote_code,
        )
        host_s = time.perf_counter() - started
        transfers = _move(found.model, device, host_s) if separate else None
        _synchronise(device)
        seconds = time.perf_counter() - started
        tokenizer = load_tokenizer(folder, source, trust_remote_code=trust_remote_code)
    return LoadedModel(
        found.model,
        tokenizer,
        checkpoint.weight_bytes,
        seconds,
        transfers,
        **_described(found, source),
    )


def load_dispatched(
    folder: Path, *, dtype: str, device: str, placement: Placement, trust_remote_code: bool = False
) -> LoadedModel:
    """As `load`, on the devices of ``placement``.

    Layers that fit on no other device stay in their files and are read for every forward pass.
    """
    checkpoint, source = _prepare(folder, trust_remote_code=trust_remote_code)
    import_libraries(checkpoint.config.get("model_type"))
    memory = max_memory(placement, device)
    with quiet():
        started = time.perf_counter()
        found = load_model(
            checkpoint,
            source,
            dtype=getattr(torch, dtype),
            device="auto",
            trust_remote_code=trust_remote_code,
            max_memory=memory,
        )
        _synchronise(device)
        seconds = time.perf_counter() - started
        tokenizer = load_tokenizer(folder, source, trust_remote_code=trust_remote_code)
    return LoadedModel(
        found.model,
        tokenizer,
        checkpoint.weight_bytes,
        seconds,
        **_described(found, source),
    )


def load_bare(
    folder: Path, *, dtype: str, device: str, trust_remote_code: bool = False
) -> LoadedModel:
    """The model in ``folder`` on the meta device, without its weights, to go through it by layers.

    Buffers that no file holds are real and on ``device``. Raises PrunebenchError as `load` does,
    and if the weights are narrower than the config says.
    """
    checkpoint, source = _prepare(folder, trust_remote_code=trust_remote_code)
    pruning = read_pruning_file(folder)
    if pruning is not None and not pruning.plain:
        raise PrunebenchError(
            f"{folder}: the weights are narrower than config.json says, "
            "so they cannot be read layer by layer",
            hint="prune it without --stream, or name the checkpoint that it was made from",
        )
    with quiet():
        started = time.perf_counter()
        found = load_model(
            checkpoint,
            source,
            dtype=getattr(torch, dtype),
            device="meta",
            trust_remote_code=trust_remote_code,
        )
        _make_buffers(found.model, device)
        seconds = time.perf_counter() - started
        tokenizer = load_tokenizer(folder, source, trust_remote_code=trust_remote_code)
    return LoadedModel(
        found.model,
        tokenizer,
        checkpoint.weight_bytes,
        seconds,
        **_described(found, source),
    )


def load_pruned(
    folder: str | Path,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    adapter: bool = True,
    trust_remote_code: bool = False,
) -> Any:
    """Load a model that `prunebench prune` or `prunebench.prune` saved, whatever its shape.

    Returns the transformers causal LM in eval mode; its logits are those of the saved model.
    ``dtype`` is 'float32', 'bfloat16' or 'float16'; by default the saved one. ``adapter=False``
    leaves out a LoRA adapter that was kept beside the weights, so that PEFT can load it from the
    subfolder `adapter`. ``trust_remote_code`` runs the code that comes with the model. Raises
    PrunebenchError if the folder is incomplete or damaged.
    """
    checkpoint, source = _prepare(
        Path(folder), tokenizer=False, trust_remote_code=trust_remote_code
    )
    beside = read_adapter(Path(folder)) if adapter else None
    with quiet():
        model = load_model(
            checkpoint,
            source,
            dtype="auto" if dtype is None else getattr(torch, dtype),
            device=device,
            trust_remote_code=trust_remote_code,
        ).model
    if beside is not None:
        beside.attach(model)
    return model


def _prepare(
    folder: Path, *, tokenizer: bool = True, trust_remote_code: bool = False
) -> tuple[Checkpoint, LoadingFolder]:
    """Check a folder, and make the one that transformers loads from."""
    checkpoint = read_checkpoint(folder, tokenizer=tokenizer)
    with quiet():
        return checkpoint, loading_folder(checkpoint, code=trust_remote_code)


def _described(found: LoadedWeights, source: LoadingFolder) -> dict[str, Any]:
    """The fields of `LoadedModel` for what the checkpoint holds besides the model."""
    notes = list(source.notes)
    if found.unused:
        shown = ", ".join(found.unused[:3]) + (" ..." if len(found.unused) > 3 else "")
        notes.append(f"holds {len(found.unused)} tensors that the model does not use: {shown}")
    settings = {"attention": getattr(found.model.config, "_attn_implementation", None)}
    if source.ignored:
        settings["ignored"] = dict(source.ignored)
    return {"notes": tuple(notes), "settings": settings}


@torch.no_grad()
def _make_buffers(model: Any, device: str) -> None:
    """Compute the buffers that no file holds, such as rotary frequencies.

    transformers does this after loading weights, in the `_init_weights` of the innermost model that
    a module is in, so do it the same way.
    """
    owners = {path: each for path, each in model.named_modules() if hasattr(each, "_init_weights")}
    for path, module in model.named_modules():
        names = [
            name for name in module._non_persistent_buffers_set if module._buffers[name] is not None
        ]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if names:
            steps = path.split(".")
            above = (".".join(steps[:depth]) for depth in range(len(steps), -1, -1))
            next(owners[each] for each in above if each in owners)._init_weights(module)
        for name in names:
            module._buffers[name] = module._buffers[name].to(device)


def _fits(weight_bytes: int) -> bool:
    """Whether host memory can hold the weights while they are read.

    A factor of 2 for 2-byte files that become float32, and a quarter of that as a reserve.
    """
    return psutil.virtual_memory().available > 2.5 * weight_bytes


def _move(model: Any, device: str, host_s: float) -> TransferTimes:
    """Move a model from host memory to ``device``."""
    if device == "cpu":
        return TransferTimes(host_s)
    started = time.perf_counter()
    # By address, because tied tensors are moved once.
    moved = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    model.to(device)
    _synchronise(device)
    return TransferTimes(host_s, time.perf_counter() - started, sum(moved.values()))


def _synchronise(device: str) -> None:
    """Wait for transfers that are queued on the device."""
    if device != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize()
