"""Perplexity beside dense, as columns of the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.gate import PERPLEXITY_RECOVERY
from prunebench_report.data.uncertainty import (
    LARGEST_EXPONENT,
    UNKNOWN,
    Interval,
    Z,
    percentage,
    perplexity_recovery_interval,
)
from prunebench_report.text import finite

if TYPE_CHECKING:
    from prunebench.record.quality import Perplexity
    from prunebench.record.record import Record


def perplexities(record: Record | None) -> list[Perplexity]:
    return record.quality.perplexity if record and record.quality else []


def perplexity_columns(record: Record, dense: Record | None) -> Row:
    """One numbered set for each protocol; only perplexities of the same tokens are compared."""
    row: Row = {}
    is_dense = dense is not None and dense.id == record.id
    for index, one in enumerate(perplexities(record)):
        # The hash of the tokens also differs if a tokenizer or a data set changed between cells.
        same = (d for d in perplexities(dense) if d.tokens_sha256 == one.tokens_sha256)
        reference = next(same, None)
        low, high = _interval(one)
        recovery = _recovery(one, reference)
        kept = UNKNOWN
        if recovery is not None and reference is not None and not is_dense:
            kept = perplexity_recovery_interval(one, reference)
        values = {
            "perplexity": one.perplexity,
            "perplexity_low": low,
            "perplexity_high": high,
            "nll_nats": one.nll,
            "nll_stderr_nats": one.nll_stderr,
            PERPLEXITY_RECOVERY: recovery,
            f"{PERPLEXITY_RECOVERY}_low": percentage(kept.low),
            f"{PERPLEXITY_RECOVERY}_high": percentage(kept.high),
            "perplexity_protocol": protocol(one),
        }
        row |= {numbered(key, index): value for key, value in values.items()}
    return row


def protocol(one: Perplexity) -> str:
    """Everything that identifies a perplexity, in one line."""
    tail = f"the last of {one.tail_tokens}, " if one.tail_tokens else ""
    return (
        f"{one.corpus} {one.split}, {one.windows} windows of {one.window} tokens, "
        f"{tail}stride {one.stride}, {one.tokens_scored} tokens scored, BOS {one.bos}, "
        f"{one.protocol} protocol"
    )


def _recovery(one: Perplexity, dense: Perplexity | None) -> float | None:
    """Dense perplexity / perplexity, in per cent; None if either is not finite."""
    if dense is None or not finite(one.perplexity) or not finite(dense.perplexity):
        return None
    return 100 * dense.perplexity / one.perplexity


def _interval(one: Perplexity) -> Interval:
    """exp(nll - 1.96 stderr) to exp(nll + 1.96 stderr): the 95 % interval over windows."""
    if one.nll_stderr is None or not math.isfinite(one.nll):
        return UNKNOWN
    margin = Z * one.nll_stderr
    if one.nll + margin > LARGEST_EXPONENT:
        return UNKNOWN
    return Interval(math.exp(one.nll - margin), math.exp(one.nll + margin))
