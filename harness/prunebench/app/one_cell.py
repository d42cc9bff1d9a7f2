"""The cell of one model and one method, for the use cases that need no suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunebench.app.default_calibration import OFFLINE
from prunebench.errors import PrunebenchError
from prunebench.suite.load import check_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import source_of

if TYPE_CHECKING:
    import torch

    from prunebench.experiment.cell import Cell
    from prunebench.plugin.registry import Registry


def one_cell(
    model: str,
    method: Mapping[str, Mapping[str, Any]],
    registry: Registry,
    *,
    command: str,
    calibration: Mapping[str, Any] | torch.Tensor | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
) -> Cell:
    """Check a model and a method exactly as a suite is checked, and return their only cell.

    ``method`` maps its name to its options. ``calibration`` has the keys of a suite's
    `calibration:` section. ``command`` names the command in errors, as a file would be named.

    Raises PrunebenchError for what a suite would be refused for, and if the options make several
    cells.
    """
    ((name, options),) = method.items()
    if calibration is not None and not isinstance(calibration, Mapping):
        raise PrunebenchError(
            "calibration is a tensor, which is for a model in memory; this model is not loaded yet",
            hint="save the tokens with numpy.save and give "
            "{'corpus': 'tokens.npy', 'windows': ..., 'length': ...}",
        )
    data = {
        "name": "prune",
        "models": [{"model": model, "dtype": dtype}],
        "methods": [{name: dict(options)}],
        "calibration": dict(calibration or OFFLINE),
        "profile": None,
        "seeds": [seed],
        "device": device,
    }
    suite = check_suite(source_of(data, command), registry)
    # Every suite gets a dense cell as well.
    cells = [cell for cell in plan(suite, registry).cells if cell.method.name == name]
    if len(cells) != 1:
        raise PrunebenchError(
            f"these options make {len(cells)} settings of {name}",
            hint="give one value for each option; `prunebench run` takes lists",
        )
    return cells[0]
