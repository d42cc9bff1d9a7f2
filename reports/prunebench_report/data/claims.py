"""Which speed-ups can be claimed: lower bounds that hold for all cells of a model together.

A verdict picks the best of many cells. If each of eight intervals misses with 5 %, the best of them
is a false winner in every third run. So the risk is divided by the number of cells (Bonferroni):
with 95 % probability not one of the bounds exceeds the true speed-up of its cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from prunebench.measure.speed.intervals import CONFIDENCE, fewest_samples, lower_bound
from prunebench.measure.speed.summary import round_ratios
from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.speed import AS_STORED, Shape, contended, shape_of

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench.record.speed import LatencySamples

BOUND = "inter_token_speedup_bound"
NEEDED = "bound_rounds"


def bound_columns(records: Sequence[Record]) -> Mapping[str, Row]:
    """For each record the lower bounds of its speed-ups and the rounds they take, by shape."""
    ratios = {record.id: _ratios(record) for record in records}
    group = {record.id: (record.cell.model.name, record.cell.device) for record in records}
    # How many cells of a model are compared at one shape: the verdict chooses among them.
    compared = Counter(
        (group[cell], shape)
        for cell, shapes in ratios.items()
        for shape, values in shapes
        if values
    )
    found: dict[str, Row] = {}
    for cell, shapes in ratios.items():
        found[cell] = {}
        for index, (shape, values) in enumerate(shapes):
            miss = (1 - CONFIDENCE) / max(1, compared[group[cell], shape])
            found[cell] |= {
                numbered(BOUND, index): lower_bound(values, miss),
                numbered(NEEDED, index): fewest_samples(miss) if values else None,
            }
    return found


def sure_speedup(row: Mapping[str, object]) -> float | None:
    """The speed-up that the verdict may claim: 1 if no gain is sure; None if it was not measured.

    No gain can be sure if the kernels and the bytes that a token reads are those of dense.
    """
    if row.get("inter_token_speedup") is None or contended(row):
        return None
    bound = row.get(BOUND)
    if not isinstance(bound, float) or measuring_fault(row):
        return 1.0
    return max(1.0, bound)


def too_few_rounds(row: Mapping[str, object]) -> bool:
    """Whether a gain may be there, and no bound because the cell was timed too few times for one.

    The more cells there are to choose among, the more rounds it takes.
    """
    return (
        sure_speedup(row) is not None
        and row.get(BOUND) is None
        and row.get(NEEDED) is not None
        and row.get("speedup_expected") is not False
    )


def measuring_fault(row: Mapping[str, object]) -> bool:
    """Whether the measured speed-up cannot be: it is surely above 1 without anything to cause it."""
    bound = row.get(BOUND)
    return row.get("speedup_expected") is False and isinstance(bound, float) and bound > 1


def _ratios(record: Record) -> list[tuple[Shape, list[float]]]:
    """For each shape of the model as stored, dense / pruned of every undisturbed round."""
    if record.speed is None or record.samples is None:
        return []
    timed = zip(record.speed.latency, record.samples.latency, strict=False)
    return [(shape_of(one), _of_rounds(raw)) for one, raw in timed if one.weights == AS_STORED]


def _of_rounds(raw: LatencySamples) -> list[float]:
    if raw.dense_inter_token_s is None:
        return []
    disturbed = raw.disturbed or [None] * len(raw.inter_token_s)
    clean = [number for number, reason in enumerate(disturbed) if reason is None]
    dense = [median(raw.dense_inter_token_s[number]) for number in clean]
    pruned = [median(raw.inter_token_s[number]) for number in clean]
    return round_ratios(dense, pruned) if clean and min(dense) > 0 and min(pruned) > 0 else []
