"""`prunebench.run` and `prunebench.prune`: two use cases, as a notebook calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.app.plan import SuiteRequest
from prunebench.app.results import load_run
from prunebench.app.run import RunStart, run_suite

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from prunebench.app.prune import Progress, Pruned
    from prunebench.engine.session import Watcher


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    report: bool = True,
    engine: str | Mapping[str, Mapping[str, Any] | None] = "local",
) -> pd.DataFrame:
    """Run a suite as `prunebench run` does and return its table, one row per cell, see `load_run`.

    ``suite`` is a file, the name of a shipped suite, or the content of one as a dict. ``out`` is
    the run folder (default: `runs/NAME`); ``report`` says whether report.html is written there.
    ``plugins`` are plugins that are single files. ``overrides`` ('calibration.windows=8'), ``only``
    and ``skip`` are as on the command line. ``engine`` is a name, or a name with its options:
    {'ray': {'address': 'auto'}}.

    Every cell runs in a process of its own. Cells that have a result are not run again; a cell that
    failed is a row whose `status` says so. Raises PrunebenchError if the suite, the engine or the
    folder is wrong.
    """
    from prunebench.plugin.files import with_files

    name, options = _name_and_options(engine)
    request = SuiteRequest(suite, None if out is None else Path(out), overrides, only, skip)
    # The files are in force for this run only, in its cells' processes too.
    with with_files(plugins):
        done = run_suite(request, _Progress(), engine=name, engine_options=options, report=report)
    return load_run(done.folder)


def prune(
    model: Any,
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | torch.Tensor | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Pruned:
    """Prune ``model`` with ``method`` and save it in ``out``, if that is given.

    ``model`` is what a suite calls a model (a registered name, a folder, a .gguf file, a Hub id),
    or a transformers causal LM, which is pruned in place. ``options`` are the method's, for example
    {"sparsity": 0.5}; `allocation` and `recovery` go there too. ``calibration`` is a suite's
    `calibration:` section; for a model in memory it is token ids, int64 [windows, length].
    ``progress`` is called with (phase, done, total).

    ``settings`` are the other fields of `prunebench.app.prune.PruneJob`: seed, dtype, device,
    layer_device, force, format, precision, uniform, stream and shard_size. Raises PrunebenchError
    for anything that the user can mend; ``out`` is then as it was before.
    """
    from prunebench.app.prune import PruneJob, prune_model

    _check_settings(settings)
    job = PruneJob(
        model,
        method,
        options=options or {},
        calibration=calibration,
        out=None if out is None else Path(out),
        **settings,
    )
    return prune_model(job, progress)


def _check_settings(settings: Mapping[str, Any]) -> None:
    from prunebench.app.prune import PruneJob
    from prunebench.errors import PrunebenchError, did_you_mean

    known = {one.name for one in dataclasses.fields(PruneJob)}
    # A dataclass would raise TypeError for it, and could not say where a method's option belongs.
    for name in settings:
        if name not in known:
            raise PrunebenchError(
                f"prune() has no parameter '{name}'",
                hint=f"{did_you_mean(name, known)}; a method's option goes into `options`: "
                f"options={{'{name}': ...}}",
            )


class _Progress:
    """Shows cells as they start and end, and warnings: the table is the result."""

    def begin(self, start: RunStart) -> AbstractContextManager[Watcher]:
        import warnings

        from prunebench.app.progress import show

        for warning in start.warnings:
            warnings.warn(warning, stacklevel=2)
        return show(start.to_run)


def _name_and_options(
    engine: str | Mapping[str, Mapping[str, Any] | None],
) -> tuple[str, Mapping[str, Any]]:
    from prunebench.errors import PrunebenchError

    if isinstance(engine, str):
        return engine, {}
    if len(engine) != 1:
        raise PrunebenchError(
            f"the engine is {dict(engine)!r}",
            hint="give one name, or one name and its options: {'ray': {'address': 'auto'}}",
        )
    [(name, options)] = engine.items()
    return name, options or {}
