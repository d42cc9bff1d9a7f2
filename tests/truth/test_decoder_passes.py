"""What each method computes, in passes of the decoder: the column of plugins/README.md.

The multiplications of all matrix products of the method, those of gradients and of the vocabulary
head too, divided by those of one run of all decoder layers over its calibration windows. They are
counted, not timed, so that they are the same on every machine. LAPACK's decompositions (SVD,
Cholesky) and sorting are not among them. The options are those of the suite `seeds`: about a fifth
of SmolLM2 goes.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from prunebench import Context, anatomy
from prunebench.experiment.cell import Cell
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from prunebench.testing import tiny_calibration, tiny_model
from prunebench.text.windows import calibration_windows
from readmes import named, table
from smollm2 import smollm2

pytestmark = pytest.mark.truth

FEW, MANY = (2, 16), (4, 384)
"""Windows and their length. The cost of methods grows with the tokens, as that of a pass does."""
BY_WEIGHTS = {"slicegpt", "sparsegpt"}
"""Their products of the weights among themselves do not, and with few tokens would be all: these
methods get as many as the suite gives them."""
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "reap": ("qwen3_moe", {"ratio": 0.5}),
    "apply": ("llama", {"units": {"layers": [1]}}),
}
"""Methods that `seeds` does not have, on a small model of a family."""
TRAINED = {"imp", "disp-llm"}
"""They cost what their training costs."""


class Products(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        # `addmm_` is the product of `addmm`.
        name = func.overloadpacket.__name__.rstrip("_")
        known = flop_registry.get(getattr(torch.ops.aten, name, None))
        if known is None and func is not torch.ops.prim.device.default:
            with self:  # such as `linear` in inference mode: count what it consists of
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        # On the meta device nothing is computed: the harness looks there at how a model is built.
        if known is not None and not result.is_meta:
            self.count += known(*args, **kwargs, out_val=result)
        return result


@cache
def cells() -> dict[str, Cell]:
    """The first cell of each method in `seeds`."""
    registry = load_plugins()
    found: dict[str, Cell] = {}
    for cell in plan(load_suite("seeds", registry=registry), registry).cells:
        found.setdefault(cell.method.name, cell)
    return found


@cache
def real() -> Any:
    return smollm2()


def passes(model: Any, tokens: torch.Tensor, name: str, options: dict[str, Any]) -> float:
    with torch.no_grad(), Products() as one:
        anatomy(model).decoder(tokens, use_cache=False)
    kind = load_plugins()["method"][name].value
    pruned = copy.deepcopy(model)
    context = Context(tokens, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad(), Products() as all_of_it:
        kind(kind.Options.model_validate(options)).prune(pruned, context)
    return all_of_it.count / one.count


def written(value: float) -> str:
    """As in the table."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


@pytest.mark.parametrize("name", [*cells(), *SMALL])
def test_the_table_has_the_passes_of_each_method(name: str) -> None:
    if name in SMALL:
        family, options = SMALL[name]
        value = passes(tiny_model(family), tiny_calibration(), name, options)
    else:
        loaded = real()
        size = MANY if name in BY_WEIGHTS else FEW
        its = cells()["wanda"].calibration
        assert its is not None
        spec = its.model_copy(update=dict(zip(("windows", "length"), size, strict=True)))
        corpora = load_plugins().registered("corpus")
        tokens = calibration_windows(spec, loaded.tokenizer, 49152, 0, corpora).tokens
        value = passes(loaded.model, tokens, name, cells()[name].method.options)
    print(f"\n{name}: {written(value)} decoder passes")
    rows = {named(row[0])[0]: row for row in table("plugins/README.md", "dense")}
    assert rows[name][3] == written(value)


def test_every_method_of_the_table_is_measured_or_trains() -> None:
    methods = {named(row[0])[0] for row in table("plugins/README.md", "dense")}
    assert methods == {*cells(), *SMALL, *TRAINED}
