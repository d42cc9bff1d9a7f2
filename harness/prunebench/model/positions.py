"""The longest sequence that a model has positions for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from prunebench.errors import PrunebenchError

_LEARNED = frozenset({"opt", "gpt2", "gpt_neo", "gpt_bigcode", "xglm", "biogpt", "openai-gpt"})
"""`model_type` of families with a table of positions; others compute them."""


class Positions(NamedTuple):
    """How many positions a model was made for; it has no others if they are ``learned``."""

    limit: int
    learned: bool


def positions_in(config: Mapping[str, Any]) -> Positions | None:
    """What a checkpoint's config.json says; None if it says nothing."""
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if isinstance(limit, bool) or not isinstance(limit, int):
        return None
    return Positions(limit, config.get("model_type") in _LEARNED)


def max_positions(model: Any) -> int:
    """The config's `max_position_embeddings`. Raises PrunebenchError if the config has none."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise PrunebenchError(
            "the model's config names no max_position_embeddings", hint="give the window a `length`"
        )
    return limit


def check_positions(model: Any, tokens: int, what: str) -> None:
    """Raise PrunebenchError if ``tokens`` exceed the model's table of learned positions.

    Rotary models compute any position, so a longer context is the user's choice there.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if (
        limit is not None
        and 0 < limit < tokens  # XLNet says -1: it has none
        and getattr(model.config, "rope_parameters", None) is None
    ):
        raise too_long(what, tokens, limit)


def too_long(what: str, tokens: int, limit: int) -> PrunebenchError:
    """The error for an input with more tokens than the model has positions."""
    return PrunebenchError(
        f"{what} takes {tokens} tokens, but the model has positions for {limit} only",
        hint=f"ask for at most {limit} tokens",
    )
