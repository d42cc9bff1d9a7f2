"""A model on several devices: GPUs, host memory and disk, each layer on one of them.

accelerate dispatches the model: its hooks move states from device to device, and read the weights
that are on disk from the checkpoint's own files for every forward pass. Nothing is copied.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import psutil
import torch

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import Placement
from prunebench.model.anatomy import anatomy

DISK = "disk"


def max_memory(placement: Placement, device: str) -> dict[int | str, int] | None:
    """Bytes that each device may hold, by accelerate's names; None: everything that is free.

    ``device`` is the cell's: 'cpu' uses no GPU, 'cuda:1' no other GPU. Raises PrunebenchError for a
    GPU that is not there.
    """
    gpus = [] if device == "cpu" else list(range(torch.cuda.device_count()))
    if device.startswith("cuda:"):
        gpus = [int(device.removeprefix("cuda:"))]
    if placement.max_memory:
        found: dict[int | str, int] = {
            int(name) if name.isdecimal() else name: size for name, size in placement.max_memory
        }
        missing = [name for name in found if name != "cpu" and name not in gpus]
        if missing:
            raise PrunebenchError(
                f"max_memory names GPU {missing[0]}; there are {len(gpus)} for this cell",
                hint="name GPUs that torch sees, or 'cpu'; the disk takes what is left",
            )
        return found
    if gpus == list(range(torch.cuda.device_count())):
        return None
    # accelerate would use all GPUs, so list the allowed ones. A tenth stays free for activations.
    return {
        **{gpu: torch.cuda.mem_get_info(gpu)[0] * 9 // 10 for gpu in gpus},
        "cpu": psutil.virtual_memory().available,
    }


def dispatch(model: Any, placement: Placement, device: str) -> None:
    """Move a model in host memory to its devices, in place: GPUs first, the rest stays.

    A model that is elsewhere, or is dispatched already, is left alone.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if is_dispatched(model) or input_device(model).type != "cpu":
        return
    whole = model._no_split_modules
    memory = get_balanced_memory(
        model, max_memory(placement, device), no_split_module_classes=whole
    )
    if all(name == "cpu" for name, size in memory.items() if size):
        return
    # The model is in host memory already, so all of it fits there. Without this, accelerate could
    # choose the disk for some layers.
    memory["cpu"] = max(memory.get("cpu", 0), sum(tensor.nbytes for tensor in model.parameters()))
    model.tie_weights()
    chosen = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    dispatch_model(model, chosen, skip_keys=model._skip_keys_device_placement)


def layers_by_device(model: Any) -> dict[str, int]:
    """Number of decoder layers on each device: 'cuda:0', 'cpu' or 'disk'."""
    chosen: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    parts = anatomy(model)
    if not chosen:
        return {str(input_device(model)): len(parts.layers)}
    found = Counter(
        _device_of(chosen, f"{parts.layers_path}.{index}") for index in range(len(parts.layers))
    )
    return dict(sorted(found.items()))


def is_dispatched(model: Any) -> bool:
    """Whether the model is on several devices or on disk, so that hooks move weights or states."""
    chosen = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(chosen) > 1 or DISK in chosen


def is_offloaded(model: Any) -> bool:
    """Whether some weights are loaded only while the model runs."""
    return any(parameter.is_meta for parameter in model.parameters())


def input_device(model: Any) -> torch.device:
    """The device for token ids: that of the embeddings or, if offloaded, where they compute."""
    embeddings = model.get_input_embeddings()
    hook_device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    device: torch.device = (
        embeddings.weight.device if hook_device is None else torch.device(hook_device)
    )
    return device


def _device_of(chosen: dict[str, Any], path: str) -> str:
    """The device of the module at ``path``: its own entry in the map, else its nearest parent's."""
    while path and path not in chosen:
        path = path.rpartition(".")[0]
    device = chosen.get(path, "cpu")
    return f"cuda:{device}" if isinstance(device, int) else str(device)
