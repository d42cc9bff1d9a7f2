"""Level 2 on one type: masks where they belong, nothing else changed, saved and loaded again."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from families.levels import WORKS, level
from prunebench import Context, PrunebenchError, anatomy, load_pruned
from prunebench.model.checkpoint import save
from prunebench.model.supported import check_family
from prunebench.plugin.host import load_plugins
from prunebench.testing.any_type import LAYERS, VOCABULARY, tiny_model

TOKENS = torch.randint(4, VOCABULARY - 10, (2, 12), generator=torch.Generator().manual_seed(1))


def refused(error: PrunebenchError) -> str:
    assert len(error.message.split()) >= 6, f"no sentence: {error.message}"
    return f"refused: {error.message}"


def planned(model_type: str) -> Any:
    """The dense model. Raises PrunebenchError if its config is refused when a suite is planned."""
    model = tiny_model(model_type)
    check_family(model.config.to_dict() | {"model_type": model_type}, model_type)
    return model


def prune(model: Any, name: str, options: dict[str, Any]) -> None:
    kind = load_plugins()["method"][name].value
    context = Context(TOKENS, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        kind(kind.Options.model_validate(options)).prune(model, context)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def check_saved(model: Any, found: torch.Tensor) -> None:
    """Assert that the model is the same after saving and loading."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(model, None, Path(folder) / "saved", made_by={})
        again = load_pruned(Path(folder) / "saved")
    assert torch.equal(logits(again), found), "the model is another one after loading"


@level("layers")
def layers(model_type: str) -> str:
    try:
        assert len(anatomy(planned(model_type)).layers) == LAYERS
    except PrunebenchError as error:
        return refused(error)
    return WORKS


@level("weights")
def weights(model_type: str) -> str:
    try:
        model = planned(model_type)
        parts = anatomy(model)
        linears = Context(None, 0, []).linears(model)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        prune(model, "magnitude", {"sparsity": "2:4"})
    except PrunebenchError as error:
        return refused(error)
    prunable = {id(getattr(each, "owner", each.weight)) for each in linears.values()}
    for path, linear in linears.items():
        rows = linear.weight[:, : linear.weight.shape[1] // 4 * 4].unflatten(1, (-1, 4))
        assert bool(((rows == 0).sum(dim=2) == 2).all()), f"{path} is not 2:4"
    for name, parameter in model.named_parameters():
        if id(parameter) not in prunable:
            assert torch.equal(parameter, before[name]), f"{name} changed and is not prunable"
        elif parameter.dim() == 2:
            assert not torch.equal(parameter, before[name]), f"{name} did not change"
    assert linears, "nothing is prunable"
    for path in linears:
        inside = path.removeprefix(f"{parts.layers_path}.")
        assert not re.search(r"router|\bnorm\b|A_log|dt_proj|x_proj|\bgate$", inside), path
    found = logits(model)
    assert bool(torch.isfinite(found).all()), "not finite"
    check_saved(model, found)
    return WORKS


@level("statistics")
def statistics(model_type: str) -> str:
    try:
        model = planned(model_type)
        linears = Context(None, 0, []).linears(model)
        prune(model, "wanda", {"sparsity": 0.5})
    except PrunebenchError as error:
        return refused(error)
    for path, linear in linears.items():
        zeros = (linear.weight == 0).sum(dim=1)
        expected = int(linear.weight.shape[1] * 0.5)
        assert bool((zeros == expected).all()), f"{path} has rows of another sparsity"
    return WORKS
