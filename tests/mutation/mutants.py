"""Mutants of a source file: the same program with one small mistake.

A mistake is one that people make: a comparison off by one, the wrong reduction, a constant that is
not the paper's, a sign, a line left out. Types, messages, docstrings and logging are left alone.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
CALLS = {
    "sum": "max",
    "max": "min",
    "min": "max",
    "mean": "sum",
    "amax": "amin",
    "norm": "sum",
    "sqrt": "abs",
    "abs": "sign",
    "square": "abs",
    "argmin": "argmax",
    "argmax": "argmin",
    "ceil": "floor",
    "floor": "ceil",
    "any": "all",
    "all": "any",
    "randint": "randrange",
}
# What a mistake in them breaks is prose, or checks of what the program never does.
IGNORED_CALLS = {"warning", "info", "debug", "Field", "Reference", "PrunebenchError", "ValueError"}


@dataclass(frozen=True)
class Mutant:
    """One mistake at one place."""

    line: int
    words: str
    """What was changed into what."""
    source: str
    """The whole program with the mistake."""


def mutants(source: str, count: int, seed: int = 0) -> list[Mutant]:
    """``count`` mutants, or all if there are fewer, spread over the file; the same every time."""
    tree = ast.parse(source)
    places = list(_places(tree))
    draw = random.Random(seed)
    # One of every function before a second of any: a long function must not get them all.
    order: list[tuple[int, float, int]] = []
    seen: dict[str, int] = {}
    for index in draw.sample(range(len(places)), len(places)):
        function = places[index][1]
        order.append((seen.setdefault(function, 0), draw.random(), index))
        seen[function] += 1
    chosen = sorted(index for _, _, index in sorted(order)[:count])
    return [_mutant(tree, index) for index in chosen]


def _mutant(tree: ast.Module, index: int) -> Mutant:
    changed = copy.deepcopy(tree)
    node, _, mutate = list(_places(changed))[index]
    before = ast.unparse(node)
    mutate(node)
    ast.fix_missing_locations(changed)
    words = f"{before[:60]}  ->  {ast.unparse(node)[:60]}"
    return Mutant(node.lineno, " ".join(words.split()), ast.unparse(changed))


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, object]]:
    """Every place with the function that it is in, and what makes the mistake there."""
    for node, function in _walk(tree, ""):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
            yield node, function, _swap_operator
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, function, _swap_comparison
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            yield node, function, _drop_sign
        elif isinstance(node, ast.Call) and _called(node) in CALLS:
            yield node, function, _swap_call
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, function, _change_number
        elif isinstance(node, ast.BoolOp):
            yield node, function, _swap_boolean
        elif isinstance(node, ast.AugAssign):
            yield node, function, _forget_update


def _walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """All nodes that count, each with the function or class that it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inside = f"{function}.{child.name}"
            for part in child.body:
                yield from _walk_part(part, inside)
            if isinstance(child, ast.FunctionDef):
                for default in (*child.args.defaults, *filter(None, child.args.kw_defaults)):
                    yield from _walk_part(default, inside)
        else:
            yield from _walk_part(child, function)


def _walk_part(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield from _walk(ast.Module(body=[node], type_ignores=[]), function)
        return
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr | ast.Assert):
        return
    if isinstance(node, ast.Call) and _called(node) in IGNORED_CALLS:
        if _called(node) == "Field" and node.args:  # the default of an option
            yield from _walk_part(node.args[0], function)
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _walk_part(node.value, function)
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node, function
    yield from _walk(node, function)


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(one, ast.JoinedStr) or isinstance(getattr(one, "value", None), str)
        for one in sides
    )


def _swap_operator(node: ast.BinOp) -> None:
    node.op = OPERATORS[type(node.op)]()


def _swap_comparison(node: ast.Compare) -> None:
    node.ops[0] = COMPARISONS[type(node.ops[0])]()


def _drop_sign(node: ast.UnaryOp) -> None:
    node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
    if isinstance(node.op, ast.Not):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _swap_call(node: ast.Call) -> None:
    other = CALLS[_called(node)]
    if isinstance(node.func, ast.Attribute):
        node.func.attr = other
    elif isinstance(node.func, ast.Name):
        node.func.id = other


def _change_number(node: ast.Constant) -> None:
    assert isinstance(node.value, int | float)
    node.value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.01


def _swap_boolean(node: ast.BoolOp) -> None:
    node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()


def _forget_update(node: ast.AugAssign) -> None:
    node.value = node.target if isinstance(node.target, ast.Name) else node.value
    node.op = OPERATORS.get(type(node.op), ast.Add)()
