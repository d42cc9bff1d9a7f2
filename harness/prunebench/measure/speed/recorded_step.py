"""Record one decode step of any model as a list of torch calls, to run them without its modules.

The model itself runs once, for one token of each sequence. Every call of a torch function is noted,
with where its arguments come from: earlier calls, the token and its position, or constants such as
weights. What does not depend on token or position is computed once. Attention goes through
transformers' attention interface, so it is one call here, and so are norms, and the experts of a
mixture.

A recording is a proof of nothing: a model can branch on numbers, and Python numbers are constants
in it. So the step is recorded twice, with other tokens at another position, and whatever differs
between the two recordings, or reads a number out of a tensor, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunebench.measure.speed.unavailable import UnavailableError

Found = TypeVar("Found")

_READS = frozenset(
    [
        "item",
        "tolist",
        "numpy",
        "equal",
        "allclose",
        "is_nonzero",
        "nonzero",
        "unique",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "__contains__",
        "bincount",
        "masked_select",
        "argwhere",
    ]
)
"""Functions that tell Python a number of a tensor, or give a shape that depends on numbers."""
_RANDOM = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "multinomial",
        "bernoulli",
        "normal",
    ]
)


@dataclass(frozen=True)
class Ref:
    """The result of an earlier call, or an input: 0 is the tokens, 1 the position."""

    number: int


@dataclass(frozen=True)
class Call:
    """One call; its arguments hold a `Ref` for each tensor that is no constant."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: int
    """The number of its result."""
    shape: tuple[int, ...] = ()
    """Of the result, if it is one tensor."""


@dataclass
class Recording:
    """The calls of one step, and which of the results is its output."""

    calls: list[Call] = field(default_factory=list)
    output: Ref = Ref(0)


class Recorder(TorchFunctionMode):
    """Notes the torch calls of a block that depend on ``inputs``.

    Raises UnavailableError in the block for a call that cannot be replayed.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.recording = Recording()
        self._numbers = {id(each): number for number, each in enumerate(inputs)}
        self._alive: list[Any] = list(inputs)  # an id belongs to another tensor after a collection
        self._next = len(inputs)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if (plain := _in_place(_name(func))) is not None and self._depends(args, kwargs):
            return self._changed(func, plain, args, kwargs)
        found = func(*args, **kwargs)
        self._note(func, args, kwargs, found)
        return found

    def _changed(self, func: Any, plain: str, args: Any, kwargs: Any) -> Any:
        """Run a call that changes its first argument, and note one that gives the same anew.

        Raises UnavailableError if another tensor shows the memory that changes.
        """
        name, target = _name(func), args[0]
        same = getattr(Tensor, plain, None)
        # A view of the same memory would have to change, too, and the new tensor does not do that.
        storage = target.untyped_storage().data_ptr()
        others = (each for each in _within(self._alive, Tensor) if each is not target)
        shown = any(each.untyped_storage().data_ptr() == storage for each in others)
        if same is None or shown or id(target) not in self._numbers:
            raise UnavailableError(f"it changes tensors in place ({name})")
        expected = same(*args, **kwargs)
        said = self._said(args), {key: self._said(value) for key, value in kwargs.items()}
        found = func(*args, **kwargs)
        if expected.dtype != found.dtype or not torch.equal(expected, found):
            raise UnavailableError(f"it changes tensors in place ({name})")
        self._alive.append(found)
        self._add(same, *said, found)
        return found

    def _depends(self, args: Any, kwargs: Any) -> bool:
        return any(id(each) in self._numbers for each in _within((args, kwargs), Tensor))

    def ref(self, tensor: Tensor) -> Ref:
        """The result that this tensor is. Raises UnavailableError if it is a constant."""
        number = self._numbers.get(id(tensor))
        if number is None:
            raise UnavailableError("its output does not depend on the token")
        return Ref(number)

    def _note(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        if not self._depends(args, kwargs):
            if _name(func) in _RANDOM:
                raise UnavailableError(f"it draws random numbers ({_name(func)})")
            # Computed from weights alone: a constant. Its id must not be given to another tensor.
            self._alive.append(found)
            return
        name = _name(func)
        if name in _READS:
            raise UnavailableError(f"it reads numbers out of tensors ({name})")
        if _picks(name, args):
            raise UnavailableError(f"the shape of a tensor depends on numbers ({name})")
        if kwargs.get("out") is not None:
            raise UnavailableError(f"it changes tensors in place ({name})")
        if all(id(each) in self._numbers for each in _within(found, Tensor)):
            return  # shapes and types, or what came in
        said = self._said(args), {key: self._said(value) for key, value in kwargs.items()}
        self._alive.append(found)
        whole = self._add(func, *said, found)
        # Each entry of a tuple gets a number of its own, so that unused ones cost nothing.
        if not isinstance(found, Tensor):
            for place, each in enumerate(found):
                if isinstance(each, Tensor) and id(each) not in self._numbers:
                    self._add(operator.getitem, (Ref(whole), place), {}, each)

    def _add(self, func: Any, args: Any, kwargs: Any, found: Any) -> int:
        number, self._next = self._next, self._next + 1
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        if isinstance(found, Tensor):
            self._numbers[id(found)] = number
        self.recording.calls.append(Call(func, args, kwargs, number, shape))
        return number

    def _said(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = self._numbers.get(id(value))
            return value if number is None else Ref(number)
        if isinstance(value, tuple | list):
            said = [self._said(each) for each in value]
            return said if isinstance(value, list) else tuple(said)
        if isinstance(value, slice):
            return slice(*map(self._said, (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return {key: self._said(each) for key, each in value.items()}
        return value


_IN_PLACE = frozenset(
    [
        "__iadd__",
        "__isub__",
        "__imul__",
        "__itruediv__",
        "__iand__",
        "__ior__",
        "__ixor__",
        "__ifloordiv__",
    ]
)


def _in_place(name: str) -> str | None:
    """The method that gives anew what this one writes over its tensor; None for another method."""
    if name in _IN_PLACE:
        return f"__{name[3:]}"
    if name == "__setitem__":
        return "no other method"
    return name[:-1] if name.endswith("_") and not name.startswith("_") else None


def pruned(recording: Recording) -> Recording:
    """Without the calls that the output does not need."""
    # Backwards: whoever needs a result comes after it.
    needed = {recording.output.number}
    kept = []
    for call in reversed(recording.calls):
        if call.result in needed:
            kept.append(call)
            needed |= {each.number for each in _within((call.args, call.kwargs), Ref)}
    return Recording(kept[::-1], recording.output)


def difference(one: Recording, other: Recording) -> str | None:
    """What differs between two recordings, in words; None if nothing does."""
    if len(one.calls) != len(other.calls):
        return f"{len(one.calls)} and {len(other.calls)} calls"
    numbers = {0: 0, 1: 1}  # mine to theirs: useless calls may have been left out before
    for mine, theirs in zip(one.calls, other.calls, strict=True):
        numbers[mine.result] = theirs.result
        if not _same(mine.function, theirs.function, numbers):
            return f"{_name(mine.function)} and {_name(theirs.function)}"
        if not _same((mine.args, mine.kwargs), (theirs.args, theirs.kwargs), numbers):
            return f"the arguments of {_name(mine.function)}"
    return None if numbers.get(one.output.number) == other.output.number else "the output"


def _same(one: Any, other: Any, numbers: dict[int, int]) -> bool:
    if isinstance(one, Ref):
        return isinstance(other, Ref) and numbers.get(one.number) == other.number
    if isinstance(one, Tensor):
        return one is other or (
            isinstance(other, Tensor)
            and (one.shape, one.dtype) == (other.shape, other.dtype)
            and torch.equal(one, other)
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(
            _same(mine, theirs, numbers) for mine, theirs in zip(one, other, strict=True)
        )
    if isinstance(one, slice):
        ours, theirs = (one.start, one.stop, one.step), (other.start, other.stop, other.step)
        return _same(ours, theirs, numbers)
    if isinstance(one, dict):
        return _same(list(one.items()), list(other.items()), numbers)
    return bool(one == other)


def _within(value: Any, kind: type[Found]) -> Iterator[Found]:
    """What arguments have of one kind, however deep in tuples, lists, slices and mappings."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _within(each, kind)
    elif isinstance(value, slice):
        yield from _within([value.start, value.stop, value.step], kind)
    elif isinstance(value, dict):
        yield from _within(list(value.values()), kind)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _picks(name: str, args: Any) -> bool:
    """Whether the shape of the result depends on the numbers in a tensor."""
    if name == "where":
        return len(args) == 1
    masks = name == "__getitem__" and any(
        each.dtype == torch.bool for each in _within(args[1:], Tensor)
    )
    return masks or (name == "repeat_interleave" and isinstance(args[1], Tensor))


def shared(recording: Recording) -> Recording:
    """With equal calls made once: what every layer derives from the position, for example."""
    known: dict[Any, int] = {}
    same: dict[int, int] = {}
    calls = []
    for call in recording.calls:
        args, kwargs = _renamed((call.args, call.kwargs), same)
        # Attention changes its cache, so two calls of it are never equal.
        key = (id(call.function), _key(args), _key(kwargs))
        if key in known and not getattr(call.function, "remembers", False):
            same[call.result] = known[key]
            continue
        known[key] = call.result
        calls.append(Call(call.function, args, kwargs, call.result, call.shape))
    number = recording.output.number
    return Recording(calls, Ref(same.get(number, number)))


def _renamed(value: Any, same: dict[int, int]) -> Any:
    if isinstance(value, Ref):
        return Ref(same.get(value.number, value.number))
    if isinstance(value, tuple | list):
        return type(value)([_renamed(each, same) for each in value])
    if isinstance(value, slice):
        return slice(*(_renamed(each, same) for each in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: _renamed(each, same) for key, each in value.items()}
    return value


def _key(value: Any) -> Any:
    """Equal for equal arguments, and hashable; constants that are no plain values by identity."""
    if isinstance(value, tuple | list):
        return (type(value), *map(_key, value))
    if isinstance(value, slice):
        return (slice, *map(_key, (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return tuple((key, _key(each)) for key, each in value.items())
    if isinstance(value, Ref | int | float | str | bool | None | torch.dtype):
        return (type(value), value)
    return (id(value),)


def program(recording: Recording) -> Callable[[Tensor, Tensor], Tensor]:
    """A Python function (tokens, position) -> output that makes the calls one after the other."""
    # As text: a loop over the calls would build argument lists at every step. Functions and
    # constants come in as names, so the text holds nothing of the model.
    known: dict[str, Any] = {}  # what the text calls by name
    lines = ["def step(v0, v1):"]
    last = {
        each.number: call.result
        for call in recording.calls
        for each in _within((call.args, call.kwargs), Ref)
    }
    last.pop(recording.output.number, None)
    for call in recording.calls:
        name = f"f{call.result}"
        known[name] = call.function
        args = [_text(each, known) for each in call.args]
        args += [f"{key}={_text(each, known)}" for key, each in call.kwargs.items()]
        lines.append(f"    v{call.result} = {name}({', '.join(args)})")
        # Results that nothing reads any more make room, as in the model's own pass.
        gone = [f"v{number}" for number, reader in last.items() if reader == call.result]
        if gone:
            lines.append(f"    {' = '.join(gone)} = None")
    lines.append(f"    return v{recording.output.number}")
    exec(compile("\n".join(lines), "<recorded step>", "exec"), known)  # noqa: S102
    return known["step"]  # type: ignore[no-any-return]


def _text(value: Any, known: dict[str, Any]) -> str:
    if isinstance(value, Ref):
        return f"v{value.number}"
    if next(_within(value, Ref), None) is None:
        name = f"c{len(known)}"
        known[name] = value
        return name
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{key!r}: {_text(each, known)}" for key, each in value.items()) + "}"
        )
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return f"slice({', '.join(_text(each, known) for each in parts)})"
    inside = ", ".join(_text(each, known) for each in value)
    return f"[{inside}]" if isinstance(value, list) else f"({inside},)"
