"""Recoveries on one type: weights move, and what was pruned stays zero."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from families.levels import WORKS, level
from families.weights import TOKENS, check_saved, logits, planned, prune, refused
from prunebench import Context, PrunebenchError
from prunebench.plugin.host import load_plugins

STEPS = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}


def recover(model: Any, name: str) -> None:
    kind = load_plugins()["recovery"][name].value
    context = Context(TOKENS, 0, list(range(4)))
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind(kind.Options.model_validate(STEPS | {"learning_rate": 0.01})).recover(model, context)


@level("training")
def training(model_type: str) -> str:
    for name in ("finetune", "lora"):
        try:
            model = planned(model_type)
            linears = Context(None, 0, []).linears(model)
            prune(model, "magnitude", {"sparsity": "2:4"})
            zeros = {path: each.weight == 0 for path, each in linears.items()}
            before = logits(model)
            recover(model, name)
        except PrunebenchError as error:
            return refused(error)
        for path, linear in Context(None, 0, []).linears(model).items():
            assert bool((linear.weight[zeros[path]] == 0).all()), f"{name}: {path} is not sparse"
        found = logits(model)
        assert not torch.equal(found, before), f"{name} changed nothing"
        check_saved(model, found)
    return WORKS
