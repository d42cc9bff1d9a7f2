"""Send every finished cell to Weights & Biases, as a run: `prunebench run SUITE --watch wandb`.

Needs `pip install 'prunebench[wandb]'`. wandb's own variables say where runs go: WANDB_PROJECT,
WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_MODE (offline), WANDB_DIR.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prunebench import hookimpl
from prunebench_plugins.watched_figures import (
    PROJECT,
    failure,
    figures,
    is_wanted,
    run_name,
    settings,
)

if TYPE_CHECKING:
    from prunebench import Cell, Record

NAME = "wandb"


@hookimpl
def prunebench_cell_finished(cell: Cell, record: Record) -> None:
    if not is_wanted(NAME):
        return
    import wandb

    # `reinit`: the process of a run has many cells, and the user may have a run of their own.
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_name(cell),
        config=settings(cell),
        tags=[cell.method.name, record.status],
        reinit="create_new",
    )
    run.summary.update({**figures(record), "status": record.status})
    if (error := failure(record)) is not None:
        run.summary["error"] = error
    # The exit code is what wandb shows as finished or failed.
    run.finish(exit_code=0 if record.status == "ok" else 1)
