"""Parameter counts of published pruned models: real configurations on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prunebench import Block, Context, anatomy
from prunebench.model.checkpoint import parameter_count
from prunebench.plugin.host import load_plugins
from prunebench_plugins.llm_pruner_groups import local_counts, pool_of

LLAMA_7B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
}
LLAMA_3_8B = LLAMA_7B | {"vocab_size": 128256, "num_key_value_heads": 8, "intermediate_size": 14336}
TINYLLAMA = {
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
}


def meta_model(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**config, tie_word_embeddings=False), dtype=torch.float16
        )


def context(config: dict[str, Any]) -> Context:
    return Context(None, 0, list(range(config["num_hidden_layers"])))


def test_the_dense_model_has_its_published_size() -> None:
    assert parameter_count(meta_model(LLAMA_7B)) == 6_738_415_616


@pytest.mark.parametrize(
    ("config", "first", "last", "ratio", "removed", "expected"),
    [
        (LLAMA_7B, 4, 2, 0.25, {"attention": 8, "mlp": 2752}, 5_422_977_024),
        (LLAMA_7B, 3, 1, 0.6, {"attention": 19, "mlp": 6605}, 3_350_188_032),
        (LLAMA_3_8B, 4, 2, 0.25, {"attention": 2, "mlp": 3584}, 6_612_586_496),
        (TINYLLAMA, 4, 4, 0.25, {"attention": 1, "mlp": 1408}, 945_907_712),
    ],
    ids=["LLaMA-7B 0.25", "LLaMA-7B 0.6", "Llama-3-8B 0.25", "TinyLlama-1.1B 0.25"],
)
def test_llm_pruner_reaches_the_published_size(
    config, first, last, ratio, removed, expected
) -> None:
    cls = load_plugins()["method"]["llm-pruner"].value
    options = cls.Options(ratio=ratio, protect_first=first, protect_last=last)
    depth = config["num_hidden_layers"]
    model, around = meta_model(config), context(config)
    parts = anatomy(model)
    pools = [
        pool_of(parts, block, {})
        for block in parts.blocks
        if block.layer in options.layers(depth, block.kind)
    ]
    for pool, count in zip(pools, local_counts(pools)(ratio), strict=True):
        assert count == removed[pool.block.kind]
        around.keep_groups(model, {pool.block: range(count, pool.present)})
    assert parameter_count(model) == expected


def test_the_published_recipe_is_the_default_for_32_layers() -> None:
    options = load_plugins()["method"]["llm-pruner"].value.Options()
    for kind in ("attention", "mlp"):
        assert options.layers(32, kind) == range(4, 30)
        assert options.layers(8, kind) == range(2, 7)
        assert options.layers(1, kind) == range(1)


@pytest.mark.parametrize(
    "option",
    [{"ratio": 0.25}, {"target_parameters": 1 - 5_422_977_024 / 6_738_415_616}],
    ids=["ratio", "parameters"],
)
def test_the_whole_method_reaches_it_too(option: dict[str, float]) -> None:
    """Random scores need no weights, so that the method itself runs on the meta device."""
    cls = load_plugins()["method"]["llm-pruner"].value
    model, around = meta_model(LLAMA_7B), context(LLAMA_7B)
    cls(cls.Options(importance="random", **option)).prune(model, around)
    assert parameter_count(model) == 5_422_977_024
    assert around.notes["ratio"] == pytest.approx(0.25, abs=1e-4)
    assert around.notes["parameters_removed"] == pytest.approx(0.1952, abs=1e-4)


def test_removed_layers_leave_the_published_size() -> None:
    model, around = meta_model(LLAMA_7B), context(LLAMA_7B)
    around.remove_layers(model, range(20, 26))
    assert parameter_count(model) == 5_524_115_456
    around.remove_layers(model, [20])
    share = 1 - parameter_count(model) / 6_738_415_616
    assert f"{share:.2%}" == "21.02%"


def test_removed_blocks_leave_the_published_size() -> None:
    model, around = meta_model(LLAMA_7B), context(LLAMA_7B)
    around.remove_blocks(model, [Block(layer, "attention") for layer in range(15, 27)])
    around.remove_blocks(model, [Block(layer, "mlp") for layer in range(5, 10)])
    share = 1 - parameter_count(model) / 6_738_415_616
    assert f"{share:.2%}" == "21.99%"
