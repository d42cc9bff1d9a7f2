"""The two pydantic bases: values that go in (frozen) and values that come out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(BaseModel):
    """A part of a record; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
