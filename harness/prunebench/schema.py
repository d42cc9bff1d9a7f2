"""The two pydantic base classes: `Frozen` for what is asked, `Part` for what is found."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class AddedLater:
    """Marks a field that is newer than its siblings: `Annotated[int, AddedLater()] = Field(0)`.

    A new field with its default must do what the code did before. The identity of a cell leaves
    such a field out at its default, so that the cell keeps the id that it had in older runs.
    """


class Part(BaseModel):
    """A part of a record, filled in step by step; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
