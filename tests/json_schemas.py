"""JSON Schema in small: whether a value fits, and strategies that give values that fit.

Only the words that our schema uses; an unknown one is an error, so that nothing is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

Json = dict[str, Any]
NOTES = {"description", "title", "default", "examples", "$defs", "$schema"}
CHECKED = {
    *("$ref", "anyOf", "enum", "const", "type", "if", "then"),
    *("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    *(
        "pattern",
        "minLength",
        "maxLength",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "contains",
    ),
    *("properties", "patternProperties", "propertyNames", "additionalProperties", "required"),
}
TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value == int(value)
    ),
}


def fits(value: Any, schema: Json | bool, root: Json) -> bool:
    """Whether ``value`` is valid by ``schema``, a part of ``root``."""
    if isinstance(schema, bool):
        return schema
    unknown = schema.keys() - NOTES - CHECKED
    assert not unknown, unknown
    if "$ref" in schema and not fits(value, resolved(schema, root), root):
        return False
    if "anyOf" in schema and not any(fits(value, one, root) for one in schema["anyOf"]):
        return False
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    if "type" in schema and not TYPES[schema["type"]](value):
        return False
    if "if" in schema and fits(value, schema["if"], root) and not fits(value, schema["then"], root):
        return False
    return _parts_fit(value, schema, root)


def same(one: Any, other: Any) -> bool:
    """Equality of JSON: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def resolved(schema: Json, root: Json) -> Json:
    """The definition that ``schema`` refers to."""
    return root["$defs"][schema["$ref"].removeprefix("#/$defs/")]


def _parts_fit(value: Any, schema: Json, root: Json) -> bool:
    if isinstance(value, dict):
        return _object_fits(value, schema, root)
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        each = [*first, *[rest] * (len(value) - len(first))]
        if "contains" in schema and not any(fits(one, schema["contains"], root) for one in value):
            return False
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf) and all(
            fits(one, inside, root) for one, inside in zip(value, each, strict=False)
        )
    if isinstance(value, str):
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
            # ECMA's $ is the end of the text, not of its last line.
            and re.search(schema.get("pattern", "").replace("$", r"\Z"), value, re.ASCII)
            is not None
        )
    if TYPES["number"](value):
        return (
            schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
            and value > schema.get("exclusiveMinimum", -math.inf)
            and value < schema.get("exclusiveMaximum", math.inf)
        )
    return True


def _object_fits(value: dict[str, Any], schema: Json, root: Json) -> bool:
    if any(key not in value for key in schema.get("required", [])):
        return False
    for key, inside in value.items():
        if "propertyNames" in schema and not fits(key, schema["propertyNames"], root):
            return False
        known = [schema["properties"][key]] if key in schema.get("properties", {}) else []
        known += [
            one
            for pattern, one in schema.get("patternProperties", {}).items()
            if re.search(pattern, key)
        ]
        if not all(
            fits(inside, one, root) for one in known or [schema.get("additionalProperties", True)]
        ):
            return False
    return True


class Generator:
    """Draws values that fit a schema.

    ``special`` has the values of texts by their key, whatever the schema says: names that exist.
    """

    def __init__(
        self, root: Json, special: dict[str, st.SearchStrategy[Any]], draw: Callable[..., Any]
    ) -> None:
        self.root = root
        self.special = special
        self.draw = draw

    def value(self, schema: Json | bool, key: str = "") -> Any:
        """A value that fits ``schema``; ``key`` is what it is called."""
        if isinstance(schema, bool):
            assert schema
            return self.draw(ANYTHING)
        if "$ref" in schema:
            return self.value(resolved(schema, self.root), key)
        if "anyOf" in schema:
            return self.value(self.draw(st.sampled_from(schema["anyOf"])), key)
        if "enum" in schema:
            return self.draw(st.sampled_from(schema["enum"]))
        if "const" in schema:
            return schema["const"]
        kind = schema["type"]
        if kind == "object":
            return self._object(schema, key)
        if kind == "array":
            return self._array(schema, key)
        if kind == "string" and key in self.special:
            return self.draw(self.special[key])
        return self.draw(SCALARS[kind](schema))

    def _array(self, schema: Json, key: str) -> list[Any]:
        if "prefixItems" in schema:
            return [self.value(one, key) for one in schema["prefixItems"]]
        least = schema.get("minItems", 0)
        count = self.draw(st.integers(least, least + 1))
        made = [self.value(schema.get("items", True), key) for _ in range(count)]
        assume(fits(made, schema, self.root))  # `contains`
        return made

    def _object(self, schema: Json, key: str) -> dict[str, Any]:
        known, required = schema.get("properties", {}), schema.get("required", [])
        optional = [name for name in known if name not in required]
        count = self.draw(st.integers(0, min(3, len(optional))))
        names = self.draw(st.permutations(optional))[:count]
        made = {name: self.value(known[name], name) for name in [*required, *names]}
        for pattern, one in schema.get("patternProperties", {}).items():
            for name in self.draw(st.lists(_matching(pattern), max_size=2)):
                made[name] = self.value(one, key)
        others = schema.get("additionalProperties", True)
        if others is not False and not known:
            texts = schema.get("propertyNames", {"type": "string", "minLength": 1})
            for _ in range(self.draw(st.integers(0, 2))):
                made[self.value(texts)] = self.value(others, key)
        if "if" in schema and fits(made, schema["if"], self.root):
            then = schema["then"]
            made |= {name: self.value(one) for name, one in then.get("properties", {}).items()}
        return made


def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(re.compile(pattern.replace("$", r"\Z"), re.ASCII))


def _integers(schema: Json) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
    small = st.integers(max(low, min(high, 0)), min(high, max(low, 0) + 40))
    return st.one_of(small, small, small, st.sampled_from([low, high]), small.map(float))


def _numbers(schema: Json) -> st.SearchStrategy[Any]:
    return st.floats(
        max(-1e15, schema.get("minimum", schema.get("exclusiveMinimum"))),
        min(1e15, schema.get("maximum", schema.get("exclusiveMaximum"))),
        exclude_min="exclusiveMinimum" in schema,
        exclude_max="exclusiveMaximum" in schema,
        allow_subnormal=False,
    )


def _strings(schema: Json) -> st.SearchStrategy[Any]:
    if "pattern" in schema:
        return _matching(schema["pattern"])
    return st.text("abc/.-é ", min_size=schema.get("minLength", 0), max_size=6)


SCALARS: dict[str, Callable[[Json], st.SearchStrategy[Any]]] = {
    "null": lambda _: st.none(),
    "boolean": lambda _: st.booleans(),
    "integer": _integers,
    "number": _numbers,
    "string": _strings,
}
ANYTHING = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
