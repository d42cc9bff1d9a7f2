"""The two pydantic base classes: `Frozen` for what is asked, `Part` for what is found."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(BaseModel):
    """A part of a record, filled in step by step; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
