"""Perplexity beside dense, as columns of the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row, numbered
from prunebench_report.text import finite

if TYPE_CHECKING:
    from prunebench.record.quality import Perplexity
    from prunebench.record.record import Record

# Half the width of a 95 % interval, in standard errors.
_Z = 1.96
# exp of more than this overflows a float.
_LARGEST_EXPONENT = 700.0


def perplexities(record: Record | None) -> list[Perplexity]:
    return record.quality.perplexity if record and record.quality else []


def perplexity_columns(record: Record, dense: Record | None) -> Row:
    """One numbered set for each protocol; only perplexities of the same tokens are compared."""
    row: Row = {}
    for index, one in enumerate(perplexities(record)):
        # The hash of the tokens also differs if a tokenizer or a data set changed between cells.
        same = (d for d in perplexities(dense) if d.tokens_sha256 == one.tokens_sha256)
        low, high = _interval(one)
        values = {
            "perplexity": one.perplexity,
            "perplexity_low": low,
            "perplexity_high": high,
            "nll_nats": one.nll,
            "nll_stderr_nats": one.nll_stderr,
            "recovery_percent": _recovery(one, next(same, None)),
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


def _interval(one: Perplexity) -> tuple[float | None, float | None]:
    """exp(nll - 1.96 stderr) to exp(nll + 1.96 stderr): the 95 % interval over windows."""
    if one.nll_stderr is None or not math.isfinite(one.nll):
        return None, None
    margin = _Z * one.nll_stderr
    if one.nll + margin > _LARGEST_EXPONENT:
        return None, None
    return math.exp(one.nll - margin), math.exp(one.nll + margin)
