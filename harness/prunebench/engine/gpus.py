"""The GPUs of this machine, how many a cell asks for, and how cells that run side by side divide them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.measure.devices.gpu_lookup import all_gpus
from prunebench.measure.devices.nvml import Nvml

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
COUNT_WITHIN_S = 120


@dataclass(frozen=True)
class Slot:
    """What one of the cells that run at once may see; ``environment`` is added to its own."""

    environment: Mapping[str, str] = field(default_factory=dict)


def gpus_of(cell: Cell, all_of_them: int) -> int:
    """How many GPUs ``cell`` runs on, on a machine that has so many: what its suite says, else one.

    A model that its suite spreads over devices has those that it names, else all. None where the suite wants the CPU.
    """
    if cell.device not in {"auto", "cuda"} or not all_of_them:
        return 0
    if cell.gpus is not None or cell.model.placement is None:
        return cell.gpus or 1
    named = cell.model.placement.max_memory
    return (
        max((int(place) + 1 for place, _ in named if place.isdecimal()), default=1)
        if named
        else all_of_them
    )


def visible_gpus() -> list[str]:
    """Names, as CUDA_VISIBLE_DEVICES would have them, of the GPUs that torch sees here, in its order.

    torch is asked, in a process of its own, only where there may be several: that takes seconds. Empty where NVML is
    not available.
    """
    shown = os.environ.get(VARIABLE)
    named = None if shown is None else [name.strip() for name in shown.split(",") if name.strip()]
    with Nvml() as nvml:
        names = [str(number) for number in range(len(all_gpus(nvml)))] if named is None else named
        if len(names) < 2 or not nvml.available:
            return names if nvml.available else []
    try:
        asked = subprocess.run(
            [sys.executable, "-c", COUNT],
            capture_output=True,
            text=True,
            timeout=COUNT_WITHIN_S,
            check=True,
        )
        return names[: int(asked.stdout.split()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return names[:1]


def slots_for(
    cells: Sequence[Cell], wanted: int | None, visible: Callable[[], Sequence[str]] = visible_gpus
) -> list[Slot]:
    """A slot for each cell that may run at once: as many as the GPUs allow, one without GPUs; ``wanted`` says otherwise.

    Raises PrunebenchError where a cell asks for more GPUs than there are, or ``wanted`` is too many.
    """
    alike = all(cell.device in {"auto", "cuda"} for cell in cells)
    names = list(visible()) if cells and alike else []
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
            f"{wanted} slots want {wanted * needed} GPUs, and {len(names)} can be seen here",
            hint=f"at most {number} cells of this suite fit at once; leave `slots` out for that",
        )
    if needed == len(names):
        return [Slot()]
    # numbers of our own are NVML's, whose order CUDA takes over only if it is told to
    order = {} if VARIABLE in os.environ else {ORDER: os.environ.get(ORDER, "PCI_BUS_ID")}
    return [
        Slot({VARIABLE: ",".join(names[place * needed : (place + 1) * needed]), **order})
        for place in range(min(wanted or number, len(cells)))
    ]
