"""What is proved on a small model holds for models of other sizes, and takes seconds.

The configs are those of published models. Their sizes are built on the meta device.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families.coupling import cut, removed
from families.weights import logits
from prunebench import anatomy
from prunebench.app.families import all_levels
from prunebench.model.coupling import find
from prunebench.model.coupling.sub_block import KINDS
from prunebench.testing.any_type import tiny_config, tiny_model

REAL: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32},  # 7.1B
    "deepseek_v3": {},  # 671B
    "falcon": {
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
    },
    "gemma3": {
        "text_config": {  # 4B
            "vocab_size": 262208,
            "hidden_size": 2560,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "intermediate_size": 10240,
            "sliding_window": 1024,
        }
    },
    "glm4_moe": {},  # 4.5 Air
    "gpt_oss": {"num_hidden_layers": 24, "num_local_experts": 32},  # 20b
    "llama": {},  # 7B
    "llama4": {},  # Scout
    "olmo2": {"vocab_size": 100352, "num_hidden_layers": 32},
    "opt": {
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "phi3": {  # Phi-4
        "vocab_size": 100352,
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "intermediate_size": 17920,
    },
    "qwen3_moe": {  # 30B-A3B
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
}
BETWEEN = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "word_embed_proj_dim": 512,
    "num_attention_heads": 16,
    "n_head": 16,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 1536,
    "ffn_dim": 1536,
    "ffn_hidden_size": 2048,
}
"""Sizes of a model that runs here and is too large to be proved as it is."""
DISCOVERY_S, PROOF_S = 2.0, 3.0


@pytest.fixture
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proof of before is found."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(find, "_known", {})
    monkeypatch.setattr(find, "_memory", {})


@pytest.mark.families
@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("family", REAL)
def test_a_model_of_real_size_is_known_within_seconds(family: str) -> None:
    with torch.device("meta"):
        config = CONFIG_MAPPING[family](**REAL[family])
        model = AutoModelForCausalLM.from_config(config).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    # Processor seconds: what else the machine does must not count.
    begun = time.process_time()
    parts = anatomy(model)
    matrices = sum(len(parts.linears(layer)) for layer in parts.layers)
    assert parts.flow.fault is None
    discovery = time.process_time() - begun
    assert parts.coupling.layers
    proof = time.process_time() - begun - discovery
    print(f"{family:12} {size / 1e9:6.1f}B, {matrices:6} matrices in {len(parts.layers)} layers:"
          f" discovery {discovery:.2f} s, proof {proof:.2f} s")  # fmt: skip
    found = [parts.sub_block(parts.layers[block.layer], block.kind) for block in parts.blocks]
    known = all_levels()[family]
    assert any(each is not None and each.no_removal is None for each in found) == (
        not known["blocks"]
    )
    assert any(each is not None and each.no_cut is None for each in found) == (not known["width"])
    if size < 8e9:  # more layers and experts take longer to name
        assert discovery < DISCOVERY_S
    assert proof < PROOF_S


@pytest.mark.families
@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("family", REAL)
def test_what_a_small_model_proves_holds_for_a_larger_one(family: str) -> None:
    inside = "text." if family in {"gemma3", "llama4"} else ""
    config = tiny_config(family).get_text_config(decoder=True)
    sizes = {f"{inside}{name}": size for name, size in BETWEEN.items() if name in vars(config)}
    if family == "deepseek_v3":
        sizes = {**sizes, "num_key_value_heads": 16, "head_dim": 8}
    held = 0
    for kind in KINDS:
        for field, change in (("no_removal", removed), ("no_cut", cut)):
            model = tiny_model(family, **sizes)
            parts = anatomy(model)
            if parts.embeddings.weight.numel() < 1 << 20:
                pytest.fail(f"{family} is as small as before")
            usable = [
                block
                for block in parts.blocks
                if block.kind == kind
                and getattr(parts.sub_block(parts.layers[block.layer], kind), field) is None
            ]
            if not usable:
                continue
            wanted = change(model, usable[-1])
            if wanted is not None:
                difference = float((logits(model) - wanted).abs().max())
                assert difference <= 1e-3 * float(wanted.abs().max()), f"{kind}, {field}"
                held += 1
    assert held, "nothing could be compared"
