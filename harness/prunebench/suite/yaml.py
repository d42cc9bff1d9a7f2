"""YAML by the 1.2 core schema, with the line of every key.

PyYAML's own loaders follow YAML 1.1: `2:4` is 124, `no` is False, `1e-4` is text, and a
date is an object. Here everything is text apart from null, true, false, integers (0x and 0o, too)
and floats. `1e400`, which no float can hold, is an error. Keys are text, as in JSON: `0:` is the
key "0". There are no merge keys: `<<` is a key like any other.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from yaml.composer import Composer
from yaml.error import MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from prunebench.byte_path import is_utf8, path_text
from prunebench.errors import PrunebenchError, one_line

KeyPath = tuple[str | int, ...]
"""The keys of mappings and indices of lists that lead to a value, from the top."""

_TAG = "tag:yaml.org,2002:"
# Aliases of aliases grow exponentially: a few lines could fill the memory.
_MOST_NODES = 100_000
_PATTERNS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
}


@dataclass(frozen=True)
class Document:
    """The data of a YAML text, and the line (from 1) of every key and list item."""

    data: Any
    lines: dict[KeyPath, int]


class _CoreLoader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's parser with the core schema's tags."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        if kind is ScalarNode and implicit[0]:  # plain, without an explicit tag
            for name, pattern in _PATTERNS.items():
                if pattern.fullmatch(value):
                    return _TAG + name
        return {ScalarNode: f"{_TAG}str", SequenceNode: f"{_TAG}seq", MappingNode: f"{_TAG}map"}[
            kind
        ]


def parse(text: str, source: str) -> Document:
    """Read one YAML document. ``source`` is the name of the file in errors.

    Raises PrunebenchError with file and line for anything that is not YAML, and for duplicate keys.
    """
    # Nodes, not values: they have line numbers, and tags that the builder checks.
    try:
        node = _CoreLoader(text).get_single_node()
        builder = _Builder(source)
        return Document(None if node is None else builder.build(node, ()), builder.lines)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PrunebenchError(
            f"{source}:{line}: YAML: {error.reason}", hint="remove that character"
        ) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{source}:{mark.line + 1 if mark else 1}"
        context = f" ({error.context})" if error.context else ""
        raise PrunebenchError(
            one_line(f"{location}: YAML: {error.problem}{context}"), hint=_syntax_hint(error)
        ) from error
    except (YAMLError, RecursionError) as error:
        what = (
            "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        )
        raise PrunebenchError(f"{source}:1: YAML: {what}") from error


def parse_value(text: str, source: str) -> Any:
    """A single value, as `--set key=VALUE` gives it.

    A text that is not UTF-8 can only be the path of a file, and becomes its `file:` URI.
    """
    if is_utf8(text):
        return parse(text, source).data
    if not os.path.lexists(text):
        raise PrunebenchError(
            f"{source}: it is not UTF-8, and there is no such file",
            hint="write a path in a list as a URI, file:///tmp/caf%E9, with %E9 for the byte E9",
        )
    return path_text(text)


def _syntax_hint(error: MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "'\\t'" in problem or "tab" in problem:
        return "indent with spaces, not tabs"
    if "single document" in (error.context or ""):
        return "a file holds one suite: remove the `---` that begins a second one"
    return "check the indentation, the brackets and the quotes around that line"


@dataclass
class _Builder:
    """Turns nodes into plain values; ``open`` has the ids of the nodes around the current one."""

    source: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    count: int = 0

    def build(self, node: Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > _MOST_NODES:
            raise self.error(node, f"more than {_MOST_NODES} values")
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        # An alias of a node around it would make an endless value.
        if id(node) in self.open:
            raise self.error(node, "a value that contains itself")
        self.open.add(id(node))
        value = (
            self.sequence(node, path)
            if isinstance(node, SequenceNode)
            else self.mapping(node, path)
        )
        self.open.discard(id(node))
        return value

    def sequence(self, node: SequenceNode, path: KeyPath) -> list[Any]:
        if node.tag != f"{_TAG}seq":
            raise self.error(node, f"unknown tag {node.tag}")
        items: list[Any] = []
        for index, item in enumerate(node.value):
            self.lines[*path, index] = item.start_mark.line + 1
            items.append(self.build(item, (*path, index)))
        return items

    def mapping(self, node: Node, path: KeyPath) -> dict[str, Any]:
        if node.tag != f"{_TAG}map":
            raise self.error(node, f"unknown tag {node.tag}")
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.error(
                    key_node, "a key that is not text", hint="put it in quotes if it is meant so"
                )
            self.scalar(key_node)  # its tag may be wrong
            key = self.text(key_node)
            if key in values:
                first = self.lines[*path, key]
                raise self.error(
                    key_node,
                    f"the key '{key}' appears twice, first in line {first}",
                    hint="remove one",
                )
            self.lines[*path, key] = key_node.start_mark.line + 1
            values[key] = self.build(value_node, (*path, key))
        return values

    def scalar(self, node: ScalarNode) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return self.text(node)
        text: str = node.value
        pattern = _PATTERNS.get(kind)
        if pattern is None or not (
            pattern.fullmatch(text) or (kind == "float" and _PATTERNS["int"].fullmatch(text))
        ):
            raise self.error(node, f"'{text}' cannot have the tag {node.tag}")
        try:
            return _value(kind, text)
        except ValueError as error:
            # Python refuses to read integers of more than 4300 digits.
            raise self.error(node, f"a number of {len(text)} digits") from error
        except OverflowError as error:
            raise self.error(node, f"the number {text} is too large") from error

    def text(self, node: ScalarNode) -> str:
        """The text of a key or a value."""
        text: str = node.value
        if is_utf8(text):
            return text
        # PyYAML reads "\ud83d\ude00" as two halves; JSON, which YAML includes, as one sign.
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self.error(node, "half of a surrogate pair", hint="write both halves") from error

    def error(self, node: Node, message: str, hint: str | None = None) -> PrunebenchError:
        return PrunebenchError(
            f"{self.source}:{node.start_mark.line + 1}: {one_line(message)}", hint=hint
        )


def _value(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" or text[:2] in {"0x", "0o"}:
        number = int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
        return float(number) if kind == "float" else number
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(value) and not text.lower().endswith("inf"):
        raise OverflowError(text)
    return value
