"""Print how big files and functions are and how much is commented, room by room.

`python .ci/house.py` prints a table and lists the functions that are too long or take too many
parameters; `--check` also exits with 1 if a figure misses its target.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("harness", "plugins", "reports", "tests")

LONGEST_FUNCTION = 60  # lines from `def` to the last one, docstring included
MOST_PARAMETERS = 8  # `self` counts; click commands are exempt, their options are parameters
WIDEST_LINE = 100  # columns
WIDE_SHARE = 0.03  # wanted: a smaller share of lines than this is wider
COMMENT_SHARE = 0.03  # wanted: at least this share of source lines carries a comment

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Room:
    name: str
    lengths: list[int] = field(default_factory=list)
    source_lines: int = 0
    comment_lines: int = 0
    wide_lines: int = 0
    long_functions: list[str] = field(default_factory=list)
    crowded_functions: list[str] = field(default_factory=list)

    @property
    def lines(self) -> int:
        return sum(self.lengths)

    def percentile(self, share: float) -> int:
        return sorted(self.lengths)[min(len(self.lengths) - 1, int(share * len(self.lengths)))]


def read_room(name: str) -> Room:
    room = Room(name)
    for path in sorted((ROOT / name).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if not lines:
            continue  # an empty __init__.py would only pull the median down
        room.lengths.append(len(lines))
        room.source_lines += sum(1 for line in lines if line.strip())
        room.wide_lines += sum(1 for line in lines if len(line) > WIDEST_LINE)
        room.comment_lines += len(commented_lines(text))
        for function, qualified in functions(ast.parse(text)):
            place = f"{path.relative_to(ROOT)}:{function.lineno} {qualified}"
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > LONGEST_FUNCTION:
                room.long_functions.append(f"{place}: {length} lines")
            count = parameters(function)
            if count > MOST_PARAMETERS and not is_click_command(function):
                room.crowded_functions.append(f"{place}: {count} parameters")
    return room


def commented_lines(text: str) -> set[int]:
    """Lines with a comment; instructions to linters and type checkers do not count."""
    return {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
        and not token.string.lstrip("# ").startswith(("noqa", "type:", "pragma", "fmt:"))
    }


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[FunctionNode, str]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, FunctionNode | ast.ClassDef):
            inner = f"{prefix}{child.name}."
        if isinstance(child, FunctionNode):
            yield child, inner.rstrip(".")
        yield from functions(child, inner)


def parameters(function: FunctionNode) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len(named) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def is_click_command(function: FunctionNode) -> bool:
    """Whether a decorator is `click.command`, `click.group` or a group's `command`."""
    called = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(isinstance(d, ast.Attribute) and d.attr in {"command", "group"} for d in called)


def print_table(rooms: list[Room]) -> None:
    print(
        f"{'room':<9}{'files':>6}{'lines':>8}{'median':>8}{'90 %':>6}{'most':>6}"
        f"{f'> {LONGEST_FUNCTION} lines':>12}{f'> {MOST_PARAMETERS} params':>12}"
        f"{f'> {WIDEST_LINE} cols':>12}{'comments':>10}"
    )
    for room in rooms:
        print(
            f"{room.name:<9}{len(room.lengths):>6}{room.lines:>8}"
            f"{statistics.median(room.lengths):>8.0f}{room.percentile(0.9):>6}"
            f"{max(room.lengths):>6}"
            f"{len(room.long_functions):>12}{len(room.crowded_functions):>12}"
            f"{room.wide_lines / room.lines:>12.1%}{room.comment_lines / room.source_lines:>10.1%}"
        )


def missed(rooms: list[Room]) -> Iterator[str]:
    for room in rooms:
        if room.long_functions:
            yield f"{room.name}: functions above {LONGEST_FUNCTION} lines"
        if room.crowded_functions:
            yield f"{room.name}: functions above {MOST_PARAMETERS} parameters"
        if room.wide_lines / room.lines >= WIDE_SHARE:
            yield f"{room.name}: {WIDE_SHARE:.0%} or more of the lines exceed {WIDEST_LINE} columns"
        # Tests explain themselves by their names, so comments are asked of the source alone.
        share = room.comment_lines / room.source_lines
        if room.name != "tests" and share < COMMENT_SHARE:
            yield f"{room.name}: {share:.1%} of the lines have a comment, not {COMMENT_SHARE:.0%}"


def main(arguments: list[str]) -> int:
    rooms = [read_room(name) for name in ROOMS]
    print_table(rooms)
    *source, tests = rooms
    total = sum(room.lines for room in source)
    comments = sum(r.comment_lines for r in source) / sum(r.source_lines for r in source)
    print(f"\nsource {total} lines, {comments:.1%} with a comment")
    print(f"tests/source {tests.lines / total:.2f}")
    for room in rooms:
        for entry in [*room.long_functions, *room.crowded_functions]:
            print(f"  {entry}")
    failures = list(missed(rooms))
    for failure in failures:
        print(f"wanted otherwise: {failure}")
    return 1 if failures and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
