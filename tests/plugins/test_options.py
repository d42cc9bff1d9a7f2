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
# The flags of the released code that its shell script does not set.
BESA = {
    "metric": "wanda",
    "sparsity_step": 0.01,
    "sigmoid_smooth": True,
    "epochs": 1,
    "prune_batch_size": 1,
    "l2_alpha": 1.0,
    "sparsity_beta": 5.0,
    "norm_all": False,
    "fix_layers": None,
    "optimizer": "adamw",
    "learning_rate": None,
    "weight_decay": 0.0,
    "d_coef": 5.0,
    "decouple": True,
    "use_bias_correction": False,
    "safeguard_warmup": False,
    "use_cos_sche": False,
    "clip_grad": None,
    "clip_mode": "norm",
    "mode": "clean",
    "trim": True,
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
    ("method", "ria"): {
        "sparsity": 0.5,
        "a": 0.5,
        "per_outneuron": False,
        "reconstruction": False,
        "reallocation": False,
        "importance_score": "sum",
        "lsa": False,
        "fast": False,
        "mode": "clean",
    },
    ("method", "dsnot"): {
        "sparsity": 0.5,
        "initial_method": "wanda",
        "max_cycle_time": 50,
        "update_threshold": 0.1,
        "pow_of_var_regrowing": 1.0,
        "without_same_sign": True,
        "skip_layer": "mlp",
        "skip_sub_layer": None,
        "mode": "clean",
    },
    ("method", "flap"): {
        "ratio": None,
        "target_parameters": None,
        "metrics": "WIFV",
        "structure": "AL-AM",
        "remove_heads": 8,
        "bias": True,
        "mode": "clean",
    },
    ("method", "besa"): {
        **BESA,
        "sparsity": 0.5,
        "blocksize": 1,
        "wise_dim": "row",
        "prune_dense": False,
    },
    ("allocation", "besa"): {**BESA, "prune_dense": True},
    ("method", "slicegpt"): {
        "ratio": 0.25,
        "round_interval": 8,
        "final_orientation": "pca",
        "do_slice_head": False,
        "mode": "clean",
    },
    # The released code, whose `lam` is not the paper's 6.
    ("method", "disp-llm"): {
        "ratio": None,
        "target_parameters": None,
        "lam": 16.0,
        "total_n_step": 10_000,
        "batch_size": 1,
        "hn_lr": 1e-3,
        "use_sch": False,
        "min_hn_lr": 1e-3,
        "weight_decay": 0.05,
        "T": 0.4,
        "base": 3.0,
        "hidden_size": 32,
        "train_inputs": True,
        "gates": "soft",
        "noise": "gumbel",
        "masks": "deterministic",
    },
    ("method", "reap"): {
        "ratio": 0.5,
        "criterion": "reap",
        "gates": "model",
        "preserve_super_experts": False,
        "preserve_outliers": False,
    },
    ("method", "hywia"): {
        "fusion": "mean",
        "taylor": "vec_fuse",
        "fisher_decay": None,
        "ratio": None,
        "target_parameters": None,
        "reduction": None,
        "protect_first": None,
        "protect_last": None,
        "attention_layers": None,
        "mlp_layers": None,
        "iterative_steps": 1,
        "fresh_windows": True,
        "global_pruning": False,
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
    # The defaults of the released args.py, here and in the recovery.
    ("method", "llm-streamline"): {
        "layer_intervals": 8,
        "ratio": None,
        "keep_first": True,
        "mode": "clean",
    },
    ("method", "shortened-llama"): {
        "ratio": None,
        "count": None,
        "criterion": "ppl",
        "plus_heuristic": True,
        "norm_power": 1,
        "weight_reduction": "sum",
        "block_reduction": "sum",
        "batch_size": 10,
        "mode": "clean",
    },
    ("method", "sleb"): {
        "ratio": None,
        "count": None,
        "early_barrier": 1,
        "latter_barrier": 1,
        "mode": "clean",
    },
    # The notebook for LLaMA-13B.
    ("method", "laco"): {
        "merge": "code",
        "C": 7,
        "interval": 1,
        "range": None,
        "threshold": 0.45,
        "target": None,
    },
    ("method", "layer-similarity"): {
        "ratio": None,
        "count": None,
        "similarity": "cosine",
        "contribution": "taylor",
        "tokens": 512,
    },
    ("method", "minitron"): {
        "ratio": None,
        "hidden_size": None,
        "intermediate_size": None,
        "num_key_value_heads": None,
        "num_hidden_layers": None,
        "multiple_of": 64,
    },
    ("method", "budget-search"): {
        "target_parameters": None,
        "target_memory": None,
        "target_latency": None,
        "attention": [0.75, 0.5, 0.25],
        "mlp": [0.75, 0.5, 0.25],
        "multiple_of": 32,
        "cost": "kl",
        "importance": "WIFV",
        "bias": True,
        "rounds": 3,
        "resolution": 1000,
        "prompt": 128,
        "new_tokens": 8,
        "batch_size": 1,
    },
    ("method", "apply"): {"units": PydanticUndefined},
    ("allocation", "uniform"): {},
    ("allocation", "owl"): {"threshold": 5.0, "spread": 0.08},
    # The released code's command line: main.py and net_esd_estimator.
    ("allocation", "alphapruning"): {
        "metric": "alpha_peak",
        "mapping_type": "block_wise",
        "epsilon": 0.3,
        "bins": 100,
        "xmin_pos": 2.0,
        "filter_zeros": False,
        "mode": "clean",
    },
    # The released script for LLaMA, ecoflap_zero.sh: 0.6 with a limit of 0.7, 32 windows.
    ("allocation", "ecoflap"): {
        "use_mezo": True,
        "score_method": "GradOnly",
        "aggregate_method": "sum",
        "approach_for_sparsity": "block",
        "max_sparsity_per_layer": None,
        "num_samples": None,
        "num_noise": 1,
        "noise_eps": 1e-3,
        "mode": "clean",
    },
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
    # Minitron's recipe (arXiv:2407.14679; the guide of its code): 1e-4 to 1e-5 along a cosine.
    ("recovery", "distill"): {
        **TRAINING,
        "schedule": "cosine",
        "learning_rate": 1e-4,
        "min_learning_rate": 1e-5,
        "temperature": 1.0,
        "next_token_weight": 0.0,
        "states_weight": 0.0,
        "gradient_checkpointing": False,
        "bfloat16": False,
    },
    ("recovery", "streamline"): {
        "replacement": "layer",
        "intermediate_size": None,
        "absorb": True,
        "loss": "mse",
        "lr": 2e-4,
        "min_lr": 5e-5,
        "wd": 1e-3,
        "epoches": 1,
        "batch_size": 8,
        "gradient_accumulation_step": 16,
        "max_norm": 5.0,
        "val_share": 0.03,
        "eval_steps": None,
        "mode": "clean",
    },
    ("metric", "kl-divergence"): {"chunk": 64},
    ("metric", "stability"): {},
    ("metric", "arithmetic-and-copy"): {
        "questions": 48,
        "examples": 6,
        "largest": 20,
        "words": 4,
        "question_seed": 0,
        "new_tokens": 24,
        "batch_size": 16,
    },
    ("metric", "draft-acceptance"): {"prompt": 64, "new_tokens": 64, "batch_size": 16},
    ("metric", "generation-health"): {
        "prompts": 16,
        "prompt": 32,
        "prompt_seed": 0,
        "new_tokens": 96,
        "ngram": 4,
        "repeats": 3,
        "loop_tokens": 16,
        "least_tokens": 16,
        "batch_size": 16,
    },
}
CHOICE = {"layers": None, "linears": None}
VALIDATION = {"val_windows": None, "val_share": None, "eval_steps": 100}
LATER: dict[tuple[str, str], dict[str, Any]] = {
    ("allocation", "owl"): {"mode": "clean"},
    # Exact perplexities of all layers do not change which of them go.
    ("method", "shortened-llama"): {"whole_order": False},
    ("method", "random"): CHOICE,
    ("method", "magnitude"): CHOICE,
    ("method", "wanda"): {**CHOICE, "use_variant": False},
    ("method", "sparsegpt"): CHOICE,
    ("method", "ria"): CHOICE,
    ("method", "dsnot"): CHOICE,
    ("method", "besa"): CHOICE,
    ("method", "imp"): {**VALIDATION, "quality": None, "rewind_step": 0},
    # The released code: 12 layers; attentions and MLPs together unless their ranges are given.
    ("method", "llm-pruner"): {
        "attention_layers": None,
        "mlp_layers": None,
        "fresh_windows": None,
        "keep_layers": 12,
        "multiple_of": 1,
    },
    ("method", "hywia"): {"multiple_of": 1},
    ("method", "flap"): {"multiple_of": 1},
    ("recovery", "lora"): {**VALIDATION, "merge": True},
    ("recovery", "finetune"): {**VALIDATION},
    ("recovery", "distill"): {**VALIDATION},
}
"""Options that came after the first run folders, with the default that keeps old behaviour."""
KINDS = ("method", "allocation", "recovery", "metric")
C4 = {"corpus": "c4", "sampler": "c4-gptq", "windows": 128, "length": 2048}
# The corpora, samplers and sizes of the papers and of their released code; ShortGPT's reads all
# windows of the split.
CALIBRATION: dict[str, dict[str, Any]] = {
    "wanda": C4,
    "sparsegpt": C4,
    "ria": C4,
    "dsnot": C4,
    "besa": C4,
    "slicegpt": {"corpus": "wikitext2", "windows": 128, "length": 2048},
    "disp-llm": {"corpus": "wikitext2", "windows": 1024, "length": 2048},
    "owl": C4,
    "ecoflap": C4,
    "shortgpt": {"corpus": "pg19", "sampler": "consecutive", "windows": 512, "length": 256},
    "blockpruner": {"corpus": "alpaca", "sampler": "joined-rows", "rows": 256, "length": 2048},
    "llm-streamline": {"corpus": "c4", "sampler": "joined-rows", "windows": 50, "length": 2048},
    "llm-pruner": {"corpus": "bookcorpus", "sampler": "distinct", "windows": 10, "length": 64},
    "hywia": {"corpus": "bookcorpus", "sampler": "distinct", "windows": 10, "length": 64},
    "flap": {
        "corpus": "wikitext2",
        "sampler": "space-joined-random",
        "windows": 1024,
        "length": 128,
    },
    "shortened-llama": {
        "corpus": "bookcorpus",
        "sampler": "distinct",
        "windows": 10,
        "length": 128,
    },
    "sleb": {"corpus": "wikitext2", "sampler": "joined-rows", "rows": 128, "length": 2048},
    "laco": {"corpus": "wikitext2", "windows": 5, "length": 16},
}
# What methods and allocations need or do at their defaults.
NATURE: dict[str, set[str]] = {
    "dense": set(),
    "random": {"seed"},
    "magnitude": set(),
    "wanda": {"calibration"},
    "sparsegpt": {"calibration"},
    "ria": {"calibration"},
    "dsnot": {"calibration"},
    "besa": {"calibration"},
    "slicegpt": {"calibration"},
    "reap": {"calibration"},
    "flap": {"calibration"},
    "disp-llm": {"calibration", "seed"},
    "hywia": {"calibration"},
    "imp": {"calibration", "seed", "training"},
    "llm-pruner": {"calibration"},
    "blockpruner": {"calibration"},
    "minitron": {"calibration"},
    "budget-search": {"calibration"},
    "shortgpt": {"calibration"},
    "llm-streamline": {"calibration"},
    "shortened-llama": {"calibration"},
    "sleb": {"calibration"},
    "laco": {"calibration"},
    "layer-similarity": {"calibration"},
    "apply": set(),
    "uniform": set(),
    "owl": {"calibration"},
    "alphapruning": set(),
    "ecoflap": {"calibration", "seed"},
}
# Unit, whether higher is better, and the same of a metric's other figures.
FIGURES: dict[str, dict[str, tuple[str, bool]]] = {
    "stability": {"": ("share", True)},
    "kl-divergence": {"": ("nats", False), "top1-agreement": ("share", True)},
    "arithmetic-and-copy": {
        "": ("share", True),
        "arithmetic": ("share", True),
        "copy": ("share", True),
    },
    "draft-acceptance": {
        "": ("share", True),
        **{f"accepted-{k}": ("tokens", True) for k in range(1, 9)},
    },
    "generation-health": {
        "": ("share", True),
        "repetition": ("share", False),
        "loops": ("share", False),
        "premature-ends": ("share", False),
    },
}
GENERATIVE = {"arithmetic-and-copy", "generation-health"}
WITHOUT_TEXT = {"arithmetic-and-copy", "stability"}


def options(kind: str, name: str, *, later: bool) -> dict[str, Any]:
    fields = load_plugins()[kind][name].value.Options.model_fields
    return {
        key: field.get_default(call_default_factory=True, validated_data={})
        for key, field in fields.items()
        if any(isinstance(mark, AddedLater) for mark in field.metadata) == later
    }


def test_every_plugin_with_options_is_listed() -> None:
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


def built_in(kind: str) -> dict[str, Any]:
    return {
        name: entry.value
        for name, entry in load_plugins()[kind].items()
        if entry.distribution == "prunebench"
    }


def test_published_calibrations_are_those_of_the_papers() -> None:
    found = {
        name: dict(value.published_calibration)
        for kind in ("method", "allocation")
        for name, value in built_in(kind).items()
        if value.published_calibration is not None
    }
    assert found == CALIBRATION


def test_methods_and_allocations_need_what_they_use() -> None:
    found = {}
    for name, value in (built_in("method") | built_in("allocation")).items():
        options = None if name == "apply" else value.Options()  # it has no defaults
        needs = {
            "calibration": value.needs_calibration and value.needs_calibration_for(options),
            "seed": value.uses_seed and value.uses_seed_for(options),
            "training": getattr(value, "trains", False),
        }
        found[name] = {what for what, needed in needs.items() if needed}
    assert found == NATURE


def test_a_metric_says_what_its_figures_are() -> None:
    metrics = built_in("metric")
    found = {
        name: {"": (value.unit, value.higher_is_better)}
        | {key: (figure.unit, figure.higher_is_better) for key, figure in value.figures.items()}
        for name, value in metrics.items()
    }
    assert found == FIGURES
    assert {name for name, value in metrics.items() if value.generative} == GENERATIVE
    assert {name for name, value in metrics.items() if not value.needs_text} == WITHOUT_TEXT
