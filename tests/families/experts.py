"""Level 5 on one type: every expert is seen and pruned by its own tokens; experts are removed."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from families.levels import WORKS, level
from families.weights import TOKENS, check_saved, logits, planned, prune, refused
from prunebench import PrunebenchError, anatomy
from prunebench.model.experts import find_experts, observed_experts, unknown_experts
from prunebench.model.routers import masked_experts

NONE = "refused: it has no layer with routed experts in one module"


def has_experts(model: Any) -> bool:
    return bool(find_experts(model) or unknown_experts(model))


def eager(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "has_gate"):
            module.config._experts_implementation_internal = "eager"


@level("experts")
def experts(model_type: str) -> str:
    try:
        model = planned(model_type)
        if not has_experts(model):
            return NONE
        parts = anatomy(model)
        eager(model)
        wanted = logits(model)
        rows: list[int] = []
        modules = [each for layer in parts.layers for each in parts.experts(layer).values()]
        with observed_experts(
            {each: lambda seen: rows.append(len(seen.tokens)) for each in modules}
        ):
            seen = logits(model)
        dense = {id(each): [m.weight.clone() for m in each.matrices().values()] for each in modules}
        prune(model, "wanda", {"sparsity": 0.5})
    except PrunebenchError as error:
        return refused(error)
    assert sum(rows), "no row was seen"
    assert torch.equal(seen, wanted), "the observed forward is another one"
    for each in modules:
        for (name, matrix), before in zip(each.matrices().items(), dense[id(each)], strict=True):
            gone = matrix.weight == 0
            assert bool((gone.sum(dim=1) == matrix.in_features // 2).all()), name
            assert torch.equal(matrix.weight[~gone], before[~gone]), f"{name}: a survivor changed"
    found = logits(model)
    assert bool(torch.isfinite(found).all()), "not finite"
    check_saved(model, found)
    return WORKS


@level("reap")
def reap(model_type: str) -> str:
    try:
        model, masked = planned(model_type), planned(model_type)
        if not has_experts(model):
            return NONE
        before = anatomy(masked).mixture()
        prune(model, "reap", {"ratio": 0.25})
        after = anatomy(model).mixture()
    except PrunebenchError as error:
        return refused(error)
    assert after.count == before.count - before.count // 4
    kept = {
        path: [
            expert
            for expert in range(before.count)
            if any(
                torch.equal(before.experts[path].module.down_proj[expert], left)
                for left in after.experts[path].module.down_proj
            )
        ]
        for path in before.experts
    }
    with masked_experts(masked, before, kept):
        wanted = logits(masked)
    found = logits(model)
    difference = float((found - wanted).abs().max())
    assert difference <= 1e-4 * float(wanted.abs().max()), f"masked and sliced: {difference}"
    check_plain(model, found)
    return WORKS


def check_plain(model: Any, found: torch.Tensor) -> None:
    """Assert that plain transformers loads the folder, and writes the same tokens."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        again, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    assert not any(report.values()), report
    assert torch.equal(logits(again.eval()), found), "the model is another one after loading"
    written = [
        each.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0)
        for each in (model, again)
    ]
    assert torch.equal(*written), "it writes other tokens after loading"
