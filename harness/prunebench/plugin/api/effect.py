"""Which options change nothing beside which others. No torch: suites are checked with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class OnlyIf:
    """Marks an option that has an effect only beside certain values of others.

    ``min_density: Annotated[float, OnlyIf(scope="global")] = Field(0.01, ...)``. A condition is a
    value, a tuple of values, or a function that says whether a value fits. All conditions of one
    mark must hold. If an option has several marks, one of them is enough.

    A suite that gives such an option another value where it has no effect is refused.
    """

    def __init__(self, **conditions: Any) -> None:
        self.conditions = conditions

    @property
    def text(self) -> str:
        """The conditions as a suite would write them: 'scope: global'; functions are left out."""
        values = {
            name: fits if isinstance(fits, tuple) else (fits,)
            for name, fits in self.conditions.items()
            if not callable(fits)
        }
        return " and ".join(
            f"{name}: {' or '.join(map(_written, several))}" for name, several in values.items()
        )

    def broken(self, options: Any) -> NoEffect | None:
        """The first condition that does not hold; None if all hold."""
        for name, fits in self.conditions.items():
            value = getattr(options, name)
            if not _holds(fits, value):
                return NoEffect(f"{name}: {_written(value)}", _fix(name, fits))
        return None


class NoEffect(NamedTuple):
    """Why an option changes nothing, both as a suite writes it."""

    because: str
    """The other option: 'scope: layer'."""
    instead: str | None = None
    """What would give it an effect: 'scope: global'; None if it is not one value."""


def ineffective(options: BaseModel) -> dict[str, NoEffect]:
    """The options that are marked with `OnlyIf` and have no effect, by the names of a suite."""
    found = {}
    for name, field in type(options).model_fields.items():
        broken = [mark.broken(options) for mark in marks_of(field)]
        if broken and all(broken):
            found[field.alias or name] = broken[0]
    return {name: reason for name, reason in found.items() if reason is not None}


def check_marks(options: type[BaseModel]) -> None:
    """Raise TypeError if a mark names an option that does not exist."""
    for name, field in options.model_fields.items():
        for mark in marks_of(field):
            for other in mark.conditions:
                if other not in options.model_fields:
                    raise TypeError(f"{name}: OnlyIf names '{other}', which is no option")


def marks_of(field: FieldInfo) -> Iterator[OnlyIf]:
    return (mark for mark in field.metadata if isinstance(mark, OnlyIf))


def _holds(fits: Any, value: Any) -> bool:
    if callable(fits):
        return bool(fits(value))
    return value in fits if isinstance(fits, tuple) else bool(value == fits)


def _fix(name: str, fits: Any) -> str | None:
    if callable(fits):
        return None
    return f"{name}: {_written(fits[0] if isinstance(fits, tuple) else fits)}"


def _written(value: Any) -> str:
    """A value as a suite writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
