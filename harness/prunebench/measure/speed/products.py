"""The fastest way to multiply a weight by the few rows of one decode step on this processor.

torch's general product is made for many rows. For one token it may read the weight at a third of
the memory's bandwidth, and it repacks half-precision weights at every call. So each product can run
in several kernels. Some read the weight as it is; others read a second copy in another layout,
which takes memory. The kernels are timed once for each shape, and the times are kept in the user's
cache folder by processor, torch version, threads, shape and dtype.

MKL's packed weights are not among the kernels: they take two to five times the bytes of the weight
and were never the fastest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from prunebench.errors import PrunebenchError
from prunebench.measure.devices.provenance import cpu_model
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.measure.speed.weight_pages import SideBySide
from prunebench.model.cache import cache_dir
from prunebench.model.files import atomic_replace

Product = Callable[[Tensor], Tensor]
"""[batch, 1, in] -> [batch, 1, out]."""
Kernel = Callable[[Tensor, Tensor | None, int], Product]
"""(weight [out, in], bias [out] or None, batch) -> its product. What it copies, it copies here."""

_SMALL = 1 << 16
"""Bytes. Below this size the call takes longer than the weight, so nothing is timed or copied."""
_PIECE, _TIMED, _PIECES = 16 << 20, 64 << 20, 16
"""Bytes of one matrix that is timed, bytes of all of them, and how many there are at most. As in a
decode step, weights should come from memory and not from a cache."""
_WARMUP, _ROUNDS = 3, 15
_VECTOR_BONUS = 0.9
_WORTH = 0.95
"""A second copy must save 5 % of the time, so that noise does not double the memory."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
_SPARE = 0.05
"""The share of the machine's memory that second copies leave free."""


class Products:
    """Makes the products of one model for ``batch`` sequences, and counts what they copy.

    With ``packed``, kernels that read a second copy of the weight are used if they are faster.
    """

    def __init__(self, batch: int, *, packed: bool) -> None:
        self._batch = batch
        self._packed = packed
        self.copied_bytes = 0
        """Bytes of all second copies."""
        self.kernels: dict[str, str] = {}
        """The kernel by shape: '960 x 576' -> 'transposed'."""
        self._copies = SideBySide()

    def of(self, weight: Tensor, bias: Tensor | None) -> Product:
        """The product of ``weight``, [out, in].

        Raises UnavailableError if a second copy would fill the memory.
        """
        if weight.device.type != "cpu":
            return _general(weight, bias, self._batch)
        name = fastest(weight, self._batch, packed=self._packed)
        self.kernels[f"{weight.shape[0]} x {weight.shape[1]}"] = name
        if name in PACKED:
            _check_room(weight)
            self.copied_bytes += weight.nbytes
        if name == "transposed":
            return _transposed(weight, bias, self._batch, self._copies.copy)
        return KERNELS[name](weight, bias, self._batch)


def _general(weight: Tensor, bias: Tensor | None, _batch: int) -> Product:
    return lambda inputs: functional.linear(inputs, weight, bias)


def _vector(weight: Tensor, bias: Tensor | None, _batch: int) -> Product:
    """The matrix-vector kernel, for one sequence: less overhead, and no repacking."""
    if bias is None:
        return lambda inputs: torch.mv(weight, inputs.view(-1)).view(1, 1, -1)
    return lambda inputs: torch.addmv(bias, weight, inputs.view(-1)).view(1, 1, -1)


def _transposed(
    weight: Tensor,
    bias: Tensor | None,
    batch: int,
    copy: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Product:
    """Reads a copy of the weight that is stored column by column, [in, out]."""
    inner, outer = weight.shape[1], weight.shape[0]
    turned = copy(weight.t())
    if bias is None:
        return lambda inputs: torch.mm(inputs.view(batch, inner), turned).view(batch, 1, outer)
    return lambda inputs: torch.addmm(bias, inputs.view(batch, inner), turned).view(batch, 1, outer)


def _onednn(weight: Tensor, bias: Tensor | None, batch: int) -> Product:
    """The linear of oneDNN on a copy in the layout that it prefers on this processor."""
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), batch)
    linear = ops._linear_pointwise
    return lambda inputs: linear(inputs, packed, bias, "none", [], "")


PLAIN: dict[str, Kernel] = {"general": _general, "vector": _vector}
PACKED: dict[str, Kernel] = {"transposed": _transposed, "onednn": _onednn}
KERNELS = PLAIN | PACKED


def fastest(weight: Tensor, batch: int, *, packed: bool) -> str:
    """The name of the fastest kernel for a weight of this shape; ``packed`` allows second copies.

    A kernel that fails, or gives other numbers, is left out.
    """
    if weight.nbytes < _SMALL:
        return "general" if batch > 1 else "vector"
    seconds = seconds_of(weight, batch)
    # 10 % in favour of the vector kernel, so that noise does not choose.
    weighted = {
        name: seconds[name] * (_VECTOR_BONUS if name == "vector" else 1)
        for name in PLAIN
        if name in seconds
    }
    # Only then the copies: they have to beat what costs no memory.
    plain = min(weighted, key=weighted.__getitem__)
    copying = {name: seconds[name] for name in PACKED if name in seconds}
    if packed and copying:
        best = min(copying, key=copying.__getitem__)
        if copying[best] < _WORTH * seconds[plain]:
            return best
    return plain


_known: dict[str, dict[str, float]] = {}


def seconds_of(weight: Tensor, batch: int) -> dict[str, float]:
    """Median seconds of one product by kernel; timed if no earlier process on this machine did."""
    key = _key(tuple(weight.shape), weight.dtype, batch)
    if key not in _known:
        found = _read(key)
        if found is None:
            found = _timed(weight, batch)
            _write(key, found)
        _known[key] = found
    return _known[key]


@torch.no_grad()
def _timed(weight: Tensor, batch: int) -> dict[str, float]:
    """Time all kernels in turn, on copies of ``weight``, or on some of its rows if it is large."""
    rows = max(1, min(len(weight), _PIECE * len(weight) // weight.nbytes))
    # Other rows of a large weight are as good as copies, and take no memory.
    pieces = list(torch.split(weight.detach(), rows))[: max(1, len(weight) // rows)]
    count = max(1, min(_PIECES, _TIMED // pieces[0].nbytes))
    weights = [*pieces[:count], *(pieces[0].clone() for _ in range(count - len(pieces)))]
    # Not ones: a kernel that mixes up rows or columns must show it.
    inputs = torch.linspace(-1, 1, batch * weight.shape[1]).to(weight.dtype)
    inputs = inputs.view(batch, 1, weight.shape[1])
    expected = functional.linear(inputs, weights[0])
    runs: dict[str, list[Product]] = {}
    for name, kernel in KERNELS.items():
        if name == "vector" and batch > 1:
            continue
        # This build of torch or this processor may not have the operator of a kernel.
        with contextlib.suppress(RuntimeError, AttributeError):
            made = [kernel(each, None, batch) for each in weights]
            if _close(made[0](inputs), expected):
                runs[name] = made
    # Time that the thread computed is not time that others took from it. With several threads
    # there is no such clock.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_WARMUP + _ROUNDS):
        for place, (name, products) in enumerate(runs.items()):
            # No two kernels read one matrix in a round, so that none finds it in the cache.
            product = products[(number + place * count // len(runs)) % count]
            before = clock()
            product(inputs)
            times[name].append(clock() - before)
    return {name: median(each[_WARMUP:]) for name, each in times.items()}


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max())
    tolerance = _TOLERANCE.get(expected.dtype, 2e-2) * scale
    return found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance


def _check_room(weight: Tensor) -> None:
    memory = psutil.virtual_memory()
    if memory.available - weight.nbytes < _SPARE * memory.total:
        raise UnavailableError(
            f"{memory.available / 1e9:.1f} GB of memory are free, "
            "too little for second copies of the weights"
        )


def _key(shape: tuple[int, ...], dtype: torch.dtype, batch: int) -> str:
    said = [*_machine(), torch.get_num_threads(), list(shape), str(dtype), batch, *KERNELS]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@cache
def _machine() -> tuple[str, ...]:
    # Virtual machines give several processors one name, so what they can do counts, too.
    able: Any = getattr(torch.cpu, "get_capabilities", dict)
    return (str(cpu_model()), json.dumps(able(), sort_keys=True, default=str), torch.__version__)


def _read(key: str) -> dict[str, float] | None:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, PrunebenchError):
        found = json.loads((cache_dir() / "products" / f"{key}.json").read_bytes())
        times = {str(name): float(seconds) for name, seconds in found.items() if name in KERNELS}
        return times if "general" in times else None
    return None


def _write(key: str, found: dict[str, float]) -> None:
    # Without a cache that can be written they are timed again next time; that is no error.
    target = cache_dir() / "products" / f"{key}.json"
    with contextlib.suppress(OSError, PrunebenchError), atomic_replace(target) as aside:
        aside.write_text(json.dumps(found), encoding="utf-8")
