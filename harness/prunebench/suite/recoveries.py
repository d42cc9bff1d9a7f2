"""`recovery:` beside a method's options: looked up, fanned out, each with its training windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunebench.experiment.plugins import RecoveryRef
from prunebench.experiment.text import CalibrationSpec
from prunebench.plugin.suite_keys import DATA
from prunebench.suite.lookup import Lookup, NamedPlugin
from prunebench.suite.texts import Texts
from prunebench.training.settings import TrainingSettings

if TYPE_CHECKING:
    from prunebench.suite.yaml import KeyPath


def expand(
    written: Any, path: KeyPath, lookup: Lookup, texts: Texts
) -> Iterator[RecoveryRef | None]:
    """The recoveries that ``written`` at ``path`` names; None for null, which means none."""
    for named in lookup.each_or_none(written, path, "recovery"):
        if named is None:
            yield None
            continue
        data = _data(named, lookup, texts)
        # The options are checked even if the text is wrong, so that all errors come at once.
        for fields in lookup.combinations(named, DATA):
            if data is not None:
                ref = RecoveryRef(**fields, data=data)
                _check_windows(named, ref, lookup)
                yield ref


def _check_windows(named: NamedPlugin, ref: RecoveryRef, lookup: Lookup) -> None:
    """Note a validation that leaves no windows to train on."""
    options = named.entry.value.Options.model_validate(ref.options)
    if isinstance(options, TrainingSettings) and ref.data.windows is not None:
        reason = options.refuses_windows(ref.data.windows)
        if reason is not None:
            lookup.problems.add(
                named.path, reason, "lower `val_windows` or `val_share`, or add windows"
            )


def _data(named: NamedPlugin, lookup: Lookup, texts: Texts) -> CalibrationSpec | None:
    """The windows that it trains on: its own, else the first calibration of the suite."""
    if named.options.get(DATA) is not None:
        return texts.training(named.options[DATA], (*named.path, DATA))
    if not texts.has_calibration:
        lookup.problems.add(
            named.path,
            f"'{named.name}' needs text to train on, "
            "and neither it nor the suite's calibration names one",
            "add for example data: {corpus: boolq-passages, windows: 64, length: 256} "
            f"to the options of {named.name}",
        )
    return next(iter(texts.calibration), None)
