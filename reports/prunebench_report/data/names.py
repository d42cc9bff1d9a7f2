"""Names for cells that are as short as the run allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.text import clean, short_label

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CalibrationSpec


def unique_names(cells: Sequence[Cell], runs: Mapping[str, str] | None = None) -> dict[str, str]:
    """A name for each cell id.

    The name is the cell's label. The model is added if the cells have several; then, to labels that
    still repeat, the run, what differs in the calibration, the seed and at last the beginning of
    the id. ``runs`` has the run of each cell id if there is more than one run.
    """
    by_id = {cell.id: cell for cell in cells}  # an id is a hash: compute it once
    result = {key: clean(cell.label) for key, cell in by_id.items()}
    if len({cell.model.name for cell in cells}) > 1:
        result = {key: f"{name} · {clean(by_id[key].model.name)}" for key, name in result.items()}
    suffixes: tuple[Callable[[Sequence[str]], Sequence[str]], ...] = (
        lambda keys: [(runs or {}).get(key, "") for key in keys],
        lambda keys: calibration_names([by_id[key].calibration for key in keys]),
        lambda keys: [f"seed {by_id[key].seed}" for key in keys],
        lambda keys: [key[:6] for key in keys],
    )
    for suffix_of in suffixes:
        groups: dict[str, list[str]] = {}
        for key, name in result.items():
            groups.setdefault(name, []).append(key)
        for members in groups.values():
            found = suffix_of(members)
            # A suffix that all members share would lengthen their names and tell nothing apart.
            if len(set(found)) > 1:
                result |= {
                    key: f"{result[key]} · {suffix}"
                    for key, suffix in zip(members, found, strict=True)
                }
    return result


def short_name(row: Mapping[str, Any]) -> str:
    """The name of a row for a small space beside others of the same model."""
    return short_label(name_in_model(row))


def name_in_model(row: Mapping[str, Any]) -> str:
    """The name of a row beside others of the same model, which it need not name."""
    return str(row["name"]).replace(f" · {row['model']}", "", 1)


def calibration_names(specs: Sequence[CalibrationSpec | None]) -> list[str]:
    """What tells each calibration from the others, in words; equal ones have the same name.

    Corpus, number of windows and length are named if they differ; split, sampler and version only
    if the names would be the same without them.
    """
    known = [spec for spec in specs if spec is not None]
    names = [""] * len(known)
    for part, always in _PARTS:
        words = [part(spec) for spec in known]
        longer = [", ".join(filter(None, pair)) for pair in zip(names, words, strict=True)]
        if len(set(words)) > 1 if always else len(set(longer)) > len(set(names)):
            names = longer
    named = iter(names)
    return ["no calibration" if spec is None else clean(next(named)) for spec in specs]


# In the order of the name, each with whether it is named whenever it differs.
_PARTS: tuple[tuple[Callable[[CalibrationSpec], str], bool], ...] = (
    (lambda spec: spec.corpus.name, True),
    (lambda spec: spec.split, False),
    (lambda spec: f"field {spec.corpus.field}", False),
    (lambda spec: spec.sampler, False),
    (lambda spec: (spec.corpus.sha256 or spec.corpus.revision or "")[:8], False),
    (lambda spec: f"{spec.rows} rows" if spec.rows else f"{spec.windows} windows", True),
    (lambda spec: f"{spec.length} tokens", True),
)
