"""What transformers reports after loading: faults that it only warns about, and what it left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError

_SAME = "take config and weights from the same checkpoint"
_MERGE = "merge the adapter into its base model first (merge_and_unload), and save that"


def check_loaded(source: Path, report: Mapping[str, Any]) -> None:
    """Raise PrunebenchError if transformers' ``report`` on loading ``source`` lists faults.

    transformers only warns about them: it initialises missing weights at random and goes on.
    """
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if faults := report.get(kind):
            names = ", ".join(sorted(map(_fault, faults))[:3])
            raise PrunebenchError(
                f"{source}: the weights do not fit the config: "
                f"{len(faults)} {kind.replace('_', ' ')}: {names}{_instead(report)}",
                hint=_hint(report),
            )


def unused_tensors(report: Mapping[str, Any]) -> list[str]:
    """The names of the stored tensors that the model has no place for."""
    return sorted(map(str, report.get("unexpected_keys") or ()))


def _fault(entry: Any) -> str:
    """One entry of the report: a key, or a key with its shapes in the file and in the model."""
    if not isinstance(entry, tuple):
        return str(entry)
    key, stored, expected = entry
    return f"{key} is {list(stored)} instead of {list(expected)}"


def _instead(report: Mapping[str, Any]) -> str:
    """What the weights hold in place of the missing ones."""
    if not report.get("missing_keys") or not (unused := unused_tensors(report)):
        return ""
    return f"; instead it holds {', '.join(unused[:2])}{' ...' if len(unused) > 2 else ''}"


def _hint(report: Mapping[str, Any]) -> str:
    missing, unused = report.get("missing_keys") or (), unused_tensors(report)
    for name in missing:
        for stored in unused:
            prefix = stored.removesuffix(f".{name}")
            if prefix.startswith("base_model.model"):
                return _MERGE
            if prefix != stored:
                return f"save the weights again without '{prefix}.' in front of their names"
    if any(".lora_" in name for name in unused):
        return _MERGE
    return _SAME
