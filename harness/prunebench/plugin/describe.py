"""Describe a plugin's options for people: types, bounds, defaults and what they mean."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from prunebench.plugin.api.effect import marks_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from prunebench.plugin.api.options import Options

# The constraints that pydantic keeps among a field's metadata, and how they are written.
_SIGNS = {
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "multiple_of": "a multiple of",
    "min_length": "length >=",
}


@dataclass(frozen=True)
class OptionFacts:
    """One option in words."""

    name: str
    type: str
    bounds: str
    """E.g. '>= 0, < 1'; empty if there are none."""
    default: str
    """As a suite would write it; 'required' if there is none."""
    description: str
    only_with: str = ""
    """Values of other options beside which it has an effect, 'scope: global'; empty: always."""


def options_of(options: type[Options]) -> list[OptionFacts]:
    """The options of a plugin, in the order in which its class defines them."""
    return [_facts(field.alias or name, field) for name, field in options.model_fields.items()]


def text_of(value: Any) -> str:
    """What the author wrote about a plugin: its summary, or else its docstring."""
    return str(getattr(value, "summary", None) or getattr(value, "__doc__", None) or "").strip()


def _facts(name: str, field: FieldInfo) -> OptionFacts:
    default = field.get_default(call_default_factory=True, validated_data={})
    return OptionFacts(
        name=name,
        type=_type(field.annotation),
        bounds=", ".join(_bounds(field.metadata)),
        # JSON writes null, true and [1, 2] as YAML does; a word has no quotes there.
        default="required"
        if default is PydanticUndefined
        else json.dumps(default, default=str).strip('"'),
        description=field.description or "",
        only_with=" or ".join(filter(None, (mark.text for mark in marks_of(field)))),
    )


def _type(annotation: Any) -> str:
    """E.g. 'clean | reference', 'int | null', 'list[text]'."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in {
        Union,
        types.UnionType,
    }:  # Optional[int] has the first origin, int | None the other
        return " | ".join(_type(argument) for argument in arguments)
    if origin is not None:
        inner = ", ".join(_type(argument) for argument in arguments if argument is not Ellipsis)
        return f"{origin.__name__}[{inner}]"
    return {type(None): "null", str: "text"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def _bounds(metadata: list[Any]) -> list[str]:
    found = []
    for constraint in metadata:
        for attribute, sign in _SIGNS.items():
            if (limit := getattr(constraint, attribute, None)) is not None:
                found.append(f"{sign} {limit:g}" if isinstance(limit, float) else f"{sign} {limit}")
    return found
