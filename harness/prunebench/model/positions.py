"""The longest sequence that a model has positions for."""

from __future__ import annotations

from typing import Any

from prunebench.errors import PrunebenchError


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
        and tokens > limit
        and getattr(model.config, "rope_parameters", None) is None
    ):
        raise PrunebenchError(
            f"{what} takes {tokens} tokens, but the model has positions for {limit} only",
            hint=f"ask for at most {limit} tokens",
        )
