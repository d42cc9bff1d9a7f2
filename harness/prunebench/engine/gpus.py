"""Divide the GPUs of this machine among cells that run side by side."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.isolation.interpreter import code_command
from prunebench.measure.devices.gpu_lookup import all_gpus
from prunebench.measure.devices.nvml import Nvml

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
COUNT_PROGRAM = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
COUNT_TIMEOUT_S = 120


@dataclass(frozen=True)
class Slot:
    """Room for one cell at a time; ``environment`` tells it which GPUs it may use."""

    environment: Mapping[str, str] = field(default_factory=dict)


def gpus_of(cell: Cell, available: int) -> int:
    """How many of the ``available`` GPUs ``cell`` uses: what the suite says, by default one.

    A model with a `device_map` uses the GPUs that its `max_memory` names, by default all. 0 if the
    cell runs on the CPU or names a GPU itself.
    """
    if cell.device not in {"auto", "cuda"} or not available:
        return 0
    if cell.gpus is not None or cell.model.placement is None:
        return cell.gpus or 1
    named = cell.model.placement.max_memory
    if not named:
        return available
    # GPU 2 in `max_memory` needs three visible GPUs, 0 to 2.
    return max((int(device) + 1 for device, _ in named if device.isdecimal()), default=1)


def visible_gpus() -> list[str]:
    """The GPUs that torch sees here, in its order, as CUDA_VISIBLE_DEVICES names them.

    Empty if NVML is not available.
    """
    shown = os.environ.get(VISIBLE)
    named = None if shown is None else [name.strip() for name in shown.split(",") if name.strip()]
    with Nvml() as nvml:
        names = [str(number) for number in range(len(all_gpus(nvml)))] if named is None else named
        if len(names) < 2 or not nvml.available:
            return names if nvml.available else []
    # torch may see fewer than NVML. Asking it takes seconds and initialises CUDA, so it is asked in
    # another process, and only if the number matters.
    try:
        asked = subprocess.run(
            code_command(COUNT_PROGRAM),
            capture_output=True,
            text=True,
            timeout=COUNT_TIMEOUT_S,
            check=True,
        )
        return names[: int(asked.stdout.split()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return names[:1]


def slots_for(
    cells: Sequence[Cell], wanted: int | None, visible: Callable[[], Sequence[str]] = visible_gpus
) -> list[Slot]:
    """One slot for each cell that may run at once.

    ``wanted`` is the number of slots; by default as many as the GPUs allow, and one without GPUs.
    Raises PrunebenchError if a cell or ``wanted`` asks for more GPUs than there are.
    """
    any_gpu = all(cell.device in {"auto", "cuda"} for cell in cells)
    names = list(visible()) if cells and any_gpu else []
    needed = max((gpus_of(cell, len(names)) for cell in cells), default=0)
    if needed > len(names):
        raise PrunebenchError(
            f"a cell asks for {needed} GPUs, and {len(names)} can be seen here",
            hint="`gpus:` in the suite says how many; `--engine ray` finds them on other machines",
        )
    if not needed:
        return [Slot()] * min(wanted or 1, max(1, len(cells)))
    number = len(names) // needed
    if wanted is not None and wanted > number:
        raise PrunebenchError(
            f"{wanted} slots need {wanted * needed} GPUs, and {len(names)} can be seen here",
            hint=f"at most {number} cells of this suite fit at once; leave out `slots` to use that",
        )
    if needed == len(names):
        return [Slot()]
    # Numbers that we made up are NVML's, by bus id; CUDA's own order is by speed unless it is told.
    order = {} if VISIBLE in os.environ else {ORDER: os.environ.get(ORDER, "PCI_BUS_ID")}
    return [
        Slot({VISIBLE: ",".join(names[slot * needed : (slot + 1) * needed]), **order})
        for slot in range(min(wanted or number, len(cells)))
    ]
