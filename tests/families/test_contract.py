"""Methods keep their contract on types that `plugins check` takes besides the first eight."""

from __future__ import annotations

from typing import Any

import pytest

from prunebench.plugin.host import load_plugins
from prunebench.testing.check import check

TYPES = ("bloom", "deepseek_v3", "gemma3", "gpt_oss", "phi3", "qwen3_5")
# What cannot be cut counts as asked for: experts, and the linear attentions of Qwen3.5.
LESS = {"llm-pruner": {"gpt_oss", "deepseek_v3"}, "flap": {"qwen3_5"}}
PLUGINS: list[tuple[Any, str, dict[str, Any]]] = [
    ("method", "wanda", {"sparsity": 0.5}),
    ("method", "sparsegpt", {"sparsity": 0.5}),
    ("method", "llm-pruner", {"ratio": 0.5, "protect_first": 0, "protect_last": 0}),
    ("method", "flap", {"ratio": 0.4}),
    ("method", "blockpruner", {"count": 1}),
    ("method", "shortgpt", {"count": 1}),
    ("recovery", "lora", {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}),
]


@pytest.mark.families
@pytest.mark.filterwarnings("default")  # of transformers' own code, for some types
@pytest.mark.parametrize(("kind", "name", "options"), PLUGINS, ids=lambda one: str(one)[:20])
def test_other_types_keep_the_contract(kind: Any, name: str, options: dict[str, Any]) -> None:
    types = [each for each in TYPES if each not in LESS.get(name, ())]
    verdicts = list(check(load_plugins()[kind][name], options, types))
    broken = [
        f"{each.promise.says}: {each.details}" for each in verdicts if each.status == "broken"
    ]
    assert not broken
    assert sum(each.status == "kept" for each in verdicts) > 5
