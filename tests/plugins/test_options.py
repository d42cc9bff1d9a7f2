"""The defaults of all built-in plugins, as the papers and their released code give them.

A cell's id contains the options of `FIRST`. An option that comes later is marked with `AddedLater`
and is left out of the id at its default; it belongs in `LATER`.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from prunebench.plugin.host import load_plugins
from prunebench.schema import AddedLater

TRAINING = {
    "epochs": 1,
    "max_steps": None,
    "batch_size": 8,
    "micro_batch_size": 4,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "schedule": "linear",
    "max_grad_norm": 1.0,
}
FIRST: dict[tuple[str, str], dict[str, Any]] = {
    ("method", "dense"): {},
    ("method", "random"): {"sparsity": 0.5},
    ("method", "magnitude"): {
        "sparsity": 0.5,
        "mode": "clean",
        "scope": "layer",
        "min_density": 0.01,
    },
    ("method", "wanda"): {"sparsity": 0.5},
    ("method", "sparsegpt"): {
        "sparsity": 0.5,
        "block_size": 128,
        "damping": 0.01,
        "true_sequential": False,
        "mode": "clean",
    },
    ("method", "imp"): {
        **TRAINING,
        "learning_rate": 1e-5,
        "sparsity": 0.5,
        "rounds": 3,
        "scope": "layer",
        "min_density": 0.01,
        "after_round": "finetune",
        "finetune_after": None,
        "penalty": None,
        "strength": 1e-5,
    },
    ("method", "llm-pruner"): {
        "ratio": None,
        "target_parameters": None,
        "importance": "taylor",
        "taylor": "param_first",
        "reduction": None,
        "protect_first": None,
        "protect_last": None,
        "iterative_steps": 1,
        "global_pruning": False,
        "granularity": "block",
        "mode": "clean",
    },
    ("method", "blockpruner"): {"blocks": "mix", "count": None, "ratio": None, "mode": "clean"},
    ("method", "shortgpt"): {"ratio": None, "count": None, "metric": "cosine", "tokens": None},
    ("method", "apply"): {"units": PydanticUndefined},
    ("allocation", "uniform"): {},
    ("allocation", "owl"): {"threshold": 5.0, "spread": 0.08},
    # LLM-Pruner's recipe (arXiv:2305.11627, section 4.1 and the released script).
    ("recovery", "lora"): {
        **TRAINING,
        "learning_rate": 1e-4,
        "epochs": 2,
        "batch_size": 64,
        "warmup_steps": 100,
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.05,
        "targets": None,
    },
    ("recovery", "finetune"): {**TRAINING, "learning_rate": 1e-5, "scope": "linears"},
    ("metric", "kl-divergence"): {"chunk": 64},
}
CHOICE = {"layers": None, "linears": None}
VALIDATION = {"val_windows": None, "val_share": None, "eval_steps": 100}
LATER: dict[tuple[str, str], dict[str, Any]] = {
    ("allocation", "owl"): {"mode": "clean"},
    ("method", "random"): CHOICE,
    ("method", "magnitude"): CHOICE,
    ("method", "wanda"): {**CHOICE, "use_variant": False},
    ("method", "sparsegpt"): CHOICE,
    ("method", "imp"): {**VALIDATION, "quality": None, "rewind_step": 0},
    # The released code: 12 layers; attentions and MLPs together unless their ranges are given.
    ("method", "llm-pruner"): {
        "attention_layers": None,
        "mlp_layers": None,
        "fresh_windows": None,
        "keep_layers": 12,
    },
    ("recovery", "lora"): {**VALIDATION, "merge": True},
    ("recovery", "finetune"): {**VALIDATION},
}
"""Options that came after the first run folders, with the default that keeps old behaviour."""
KINDS = ("method", "allocation", "recovery")


def options(kind: str, name: str, *, later: bool) -> dict[str, Any]:
    fields = load_plugins()[kind][name].value.Options.model_fields
    return {
        key: field.get_default(call_default_factory=True, validated_data={})
        for key, field in fields.items()
        if any(isinstance(mark, AddedLater) for mark in field.metadata) == later
    }


def test_every_method_allocation_and_recovery_is_listed() -> None:
    registry = load_plugins()
    found = {
        (kind, name)
        for kind in KINDS
        for name, entry in registry[kind].items()
        if entry.distribution == "prunebench"
    }
    assert found == {plugin for plugin in FIRST if plugin[0] in KINDS}


@pytest.mark.parametrize(("kind", "name"), FIRST)
def test_defaults_are_those_of_the_papers(kind: str, name: str) -> None:
    assert options(kind, name, later=False) == FIRST[kind, name]


@pytest.mark.parametrize(("kind", "name"), FIRST)
def test_options_that_came_later_are_marked_and_have_these_defaults(kind: str, name: str) -> None:
    assert options(kind, name, later=True) == LATER.get((kind, name), {})
