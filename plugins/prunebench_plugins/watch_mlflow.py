"""Send every finished cell to MLflow, as a run: `prunebench run SUITE --watch mlflow`.

Needs `pip install 'prunebench[mlflow]'`. MLflow's own variables say where runs go:
MLFLOW_TRACKING_URI (default: the folder or database that MLflow chooses) and
MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

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

NAME = "mlflow"
LONGEST = 6000
"""Characters of a parameter that MLflow accepts."""


@hookimpl
def prunebench_cell_finished(cell: Cell, record: Record) -> None:
    if not is_wanted(NAME):
        return
    from mlflow import MlflowClient

    # The client, not `mlflow.start_run`: the user's own active run stays as it is.
    client = MlflowClient()
    run = client.create_run(
        _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)),
        start_time=_milliseconds(record.started),
        run_name=run_name(cell),
        tags={"status": record.status, "method": cell.method.name, "cell": cell.id},
    )
    name = run.info.run_id
    for key, value in settings(cell).items():
        client.log_param(name, _key(key), str(value)[:LONGEST])
    for key, figure in figures(record).items():
        client.log_metric(name, _key(key), figure)
    if (error := failure(record)) is not None:
        client.set_tag(name, "error", error)
    client.set_terminated(
        name,
        status="FINISHED" if record.status == "ok" else "FAILED",
        end_time=_milliseconds(record.finished),
    )


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _key(text: str) -> str:
    """``text`` in the characters that MLflow allows in names."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in text)


def _milliseconds(moment: str) -> int:
    """A record's time as milliseconds since 1970."""
    return round(1000 * datetime.fromisoformat(moment).timestamp())
