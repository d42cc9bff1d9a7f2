"""What a report of run folders shows, before it is drawn."""

from __future__ import annotations

from prunebench_report.data.load_runs import gather
from prunebench_report.output.view import view as _view


def view(*stores, only=(), sections=(), running=False):
    """The view-model of the report of these runs."""
    return _view(gather(stores, only), sections, running=running)
