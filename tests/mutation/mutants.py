"""Mutants of a source file: the same program with one small mistake.

A mistake is one that people make: a comparison off by one, the wrong reduction, a constant that is
not the paper's, a sign, a flag, a line left out, a random number without its generator. Types,
messages, docstrings and logging are left alone, and so are constants that only decide how long a
computation takes: the caller names them.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

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
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
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
# Arguments that change no result: checks of what never happens, and torch's choice between a fast
# and a slow way. On a CPU its sort is always stable.
IGNORED_KEYWORDS = {"strict", "use_cache", "sorted", "stable", "set_to_none"}
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


def mutants(
    source: str, count: int, seed: int = 0, speed_only: Collection[str] = ()
) -> list[Mutant]:
    """``count`` mutants, or all if there are fewer, spread over the file; the same every time.

    ``speed_only``: names of module constants that change no result. Neither their values nor the
    comparisons with them are changed.
    """
    tree = ast.parse(source)
    places = list(_places(tree, speed_only))
    draw = random.Random(seed)
    # One of every function before a second of any: a long function must not get them all.
    order: list[tuple[int, float, int]] = []
    seen: dict[str, int] = {}
    for index in draw.sample(range(len(places)), len(places)):
        function = places[index][1]
        order.append((seen.setdefault(function, 0), draw.random(), index))
        seen[function] += 1
    chosen = sorted(index for _, _, index in sorted(order)[:count])
    return [_mutant(tree, index, speed_only) for index in chosen]


def _mutant(tree: ast.Module, index: int, speed_only: Collection[str]) -> Mutant:
    changed = copy.deepcopy(tree)
    node, _, mutate = list(_places(changed, speed_only))[index]
    before = ast.unparse(node)
    mutate(node)
    ast.fix_missing_locations(changed)
    words = f"{before[:60]}  ->  {ast.unparse(node)[:60]}"
    return Mutant(node.lineno, " ".join(words.split()), ast.unparse(changed))


def _places(
    tree: ast.Module, speed_only: Collection[str]
) -> Iterator[tuple[ast.AST, str, Callable[[Any], None]]]:
    """Every place with the function that it is in, and what makes the mistake there."""
    body = [one for one in tree.body if not _defines(one, speed_only)]
    for node, function in _walk(ast.Module(body, []), ""):
        if (mutate := _mistake(node)) is not None and not _compares(node, speed_only):
            yield node, function, mutate


def _mistake(node: ast.AST) -> Callable[[Any], None] | None:
    """What makes the mistake at this node, if there is one."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        return _swap_operator
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        return _swap_comparison
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        return _drop_sign
    if isinstance(node, ast.Call) and _called(node) in CALLS:
        return _swap_call
    if isinstance(node, ast.Call) and any(word.arg == "generator" for word in node.keywords):
        return _forget_generator
    if isinstance(node, ast.Constant):
        return _mistake_of_constant(node)
    if isinstance(node, ast.BoolOp):
        return _swap_boolean
    if isinstance(node, ast.AugAssign):
        return _forget_update
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = _called(node.value)  # in place, such as `add_`
        return _forget_line if called.endswith("_") and not called.endswith("__") else None
    return None


def _mistake_of_constant(node: ast.Constant) -> Callable[[Any], None] | None:
    if type(node.value) is bool:
        return _flip
    if type(node.value) in {int, float}:
        return _change_number
    # Text between documents: a space or a blank line.
    return _shorten if isinstance(node.value, str) and node.value.isspace() else None


def _defines(node: ast.AST, names: Collection[str]) -> bool:
    """Whether this line gives one of these constants its value."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if isinstance(node, ast.AugAssign):
        return False
    return isinstance(target, ast.Name) and target.id in names


def _compares(node: ast.AST, names: Collection[str]) -> bool:
    """Whether the place compares with one of these constants."""
    if not isinstance(node, ast.Compare):
        return False
    return any(isinstance(one, ast.Name) and one.id in names for one in ast.walk(node))


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
        if _called(node) == "Field":  # the default of an option
            words = [word.value for word in node.keywords if word.arg == "default"]
            for default in (*node.args[:1], *words):
                yield from _walk_part(default, function)
        return
    if isinstance(node, ast.keyword) and node.arg in IGNORED_KEYWORDS:
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


def _flip(node: ast.Constant) -> None:
    node.value = not node.value


def _shorten(node: ast.Constant) -> None:
    assert isinstance(node.value, str)
    node.value = node.value[1:]


def _forget_generator(node: ast.Call) -> None:
    node.keywords = [word for word in node.keywords if word.arg != "generator"]


def _forget_line(node: ast.Expr) -> None:
    node.value = ast.Constant(None)


def _swap_boolean(node: ast.BoolOp) -> None:
    node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()


def _forget_update(node: ast.AugAssign) -> None:
    node.value = node.target if isinstance(node.target, ast.Name) else node.value
    node.op = OPERATORS.get(type(node.op), ast.Add)()
