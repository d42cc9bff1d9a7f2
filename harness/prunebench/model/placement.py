"""One model over several places: GPUs, host memory and disk, each layer on one of them, by accelerate's hooks.

What lies on disk is read from the checkpoint's own files for every forward pass; nothing is copied.
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
    """Bytes that each place may hold, keys as accelerate has them; None leaves it to accelerate: all that is free.

    ``device`` is the cell's: 'cpu' takes no GPU, 'cuda:1' no other. Raises PrunebenchError for a GPU that is not there.
    """
    gpus = [] if device == "cpu" else list(range(torch.cuda.device_count()))
    if device.startswith("cuda:"):
        gpus = [int(device.removeprefix("cuda:"))]
    if placement.max_memory:
        found: dict[int | str, int] = {
            int(place) if place.isdecimal() else place: size for place, size in placement.max_memory
        }
        missing = [place for place in found if place != "cpu" and place not in gpus]
        if missing:
            raise PrunebenchError(
                f"max_memory names GPU {missing[0]}; there are {len(gpus)} for this cell",
                hint="name GPUs that torch sees, or 'cpu'; the disk takes what is left",
            )
        return found
    if gpus == list(range(torch.cuda.device_count())):
        return None
    return {
        **{gpu: torch.cuda.mem_get_info(gpu)[0] * 9 // 10 for gpu in gpus},
        "cpu": psutil.virtual_memory().available,
    }


def dispatch(model: Any, placement: Placement, device: str) -> None:
    """Move a model that lies in host memory to its places, in place: GPUs first, the rest stays. One that does not stays."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if is_dispatched(model) or input_device(model).type != "cpu":
        return
    whole = model._no_split_modules
    memory = get_balanced_memory(
        model, max_memory(placement, device), no_split_module_classes=whole
    )
    if all(place == "cpu" for place, size in memory.items() if size):
        return
    memory["cpu"] = max(
        memory.get("cpu", 0), sum(tensor.nbytes for tensor in model.parameters())
    )  # never to disk
    model.tie_weights()
    chosen = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    dispatch_model(model, chosen, skip_keys=model._skip_keys_device_placement)


def layers_by_device(model: Any) -> dict[str, int]:
    """How many decoder layers lie where: 'cuda:0', 'cpu' or 'disk'."""
    chosen: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    parts = anatomy(model)
    if not chosen:
        return {str(input_device(model)): len(parts.layers)}
    found = Counter(
        _place(chosen, f"{parts.layers_path}.{index}") for index in range(len(parts.layers))
    )
    return dict(sorted(found.items()))


def is_dispatched(model: Any) -> bool:
    """Whether the parts of the model lie at different places, or on disk, so that hooks move weights or states."""
    chosen = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(chosen) > 1 or DISK in chosen


def is_offloaded(model: Any) -> bool:
    """Whether some weights come to the model only while it runs."""
    return any(parameter.is_meta for parameter in model.parameters())


def input_device(model: Any) -> torch.device:
    """Where token ids belong: where the embeddings lie or, if they are offloaded, compute."""
    embeddings = model.get_input_embeddings()
    place = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    device: torch.device = embeddings.weight.device if place is None else torch.device(place)
    return device


def _place(chosen: dict[str, Any], path: str) -> str:
    """The entry for the module at ``path``, or for the nearest one around it."""
    while path and path not in chosen:
        path = path.rpartition(".")[0]
    place = chosen.get(path, "cpu")
    return f"cuda:{place}" if isinstance(place, int) else str(place)
