"""Runs from Python: a suite in, a table out, as a notebook wants it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from prunebench.plugin.registry import Registry
    from prunebench.suite.load import Suite


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    report: bool = True,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Run a suite as `prunebench run` does, each cell in a process of its own, and give its table, a row a cell.

    ``suite`` is a file, the name of a shipped one, or its content as a dict; ``out`` the run folder (`runs/NAME`), in which
    ``report`` writes report.html; ``plugins`` are single files; ``overrides`` ('calibration.windows=8'), ``only`` and ``skip``
    as on the command line, ``engine`` ('ray' with {'address': 'auto'}) too. Cells with a result are not run again; a cell that fails is a row whose `status` says so.
    The columns are those of `prunebench export`; seconds, bytes and joules stand in their names.
    Raises PrunebenchError where the suite or the folder is wrong.
    """
    from prunebench.app.progress import show
    from prunebench.engine.launcher import launcher
    from prunebench.engine.select import choose
    from prunebench.engine.session import Session
    from prunebench.plugin.files import with_files
    from prunebench.plugin.host import load_plugins
    from prunebench.store.run_folder import RunStore
    from prunebench.suite.plan import plan

    with with_files(plugins), closing(launcher()) as starter:
        registry = load_plugins()
        loaded = _load(suite, registry, overrides)
        chosen, whole = plan(loaded, registry, only, skip), plan(loaded, registry)
        where = choose(engine, engine_options or {}, registry)
        folder = Path("runs") / loaded.name if out is None else Path(out)
        with RunStore.check(folder, whole.suite).lock(starter.mark):
            store = RunStore.create(folder, whole, loaded.text)
            todo = [cell for cell in chosen.cells if not store.finished(cell)]
            with show(len(todo)) as watcher:
                for _ in Session(store, registry, watcher, starter).run(where, todo):
                    pass
            if report:
                from prunebench_report import write_report

                write_report(folder, sections=list(registry.registered("section").values()))
    return load_run(folder)


def load_run(folder: str | Path) -> pd.DataFrame:
    """The table of a run, a row a cell that has a record, as `run` gives it. Raises PrunebenchError where there is none."""
    from prunebench.store.run_folder import RunStore
    from prunebench_report.data.table import table

    store = RunStore.open(Path(folder))
    planned = store.read_plan()
    records, _ = store.records(planned.cells)
    return table(records, planned.gate, planned.expect)


def _load(
    suite: str | Path | Mapping[str, Any], registry: Registry, overrides: Sequence[str]
) -> Suite:
    from prunebench.suite.load import check_suite, load_suite
    from prunebench.suite.overrides import override
    from prunebench.suite.source import Source

    if not isinstance(suite, Mapping):
        return load_suite(suite, registry=registry, overrides=overrides)
    text = json.dumps(suite, indent=1, default=str)  # JSON is YAML
    data = json.loads(text)
    return check_suite(
        override(Source("suite", Path.cwd(), text + "\n", data, {}), overrides), registry
    )
