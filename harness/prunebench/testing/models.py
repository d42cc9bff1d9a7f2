"""Seeded models of less than a million weights, a small tokenizer and token windows.

Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prunebench.testing import any_type
from prunebench.testing.any_type import LAYERS, VOCABULARY

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "opt", "gpt_neox", "phi")
MIXTURES = ("qwen3_moe", "mixtral")
"""Mixtures of experts: a token goes to two of four in each layer."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GATED = _COMMON | {"intermediate_size": 80, "num_key_value_heads": 2, "tie_word_embeddings": False}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GATED | {"tie_word_embeddings": True},
    "mistral": _GATED | {"sliding_window": 16},
    # Only the two upper layers have a window, so that the config has a list with a type per layer.
    "qwen2": _GATED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": _GATED | {"head_dim": 16},  # hidden_size / heads is 12
    "gemma": _GATED | {"head_dim": 16, "tie_word_embeddings": True},
    "opt": _COMMON | {"ffn_dim": 80, "word_embed_proj_dim": 48, "dropout": 0.0},  # tied, biased
    "gpt_neox": _COMMON
    | {"intermediate_size": 80, "tie_word_embeddings": False},  # parallel residual
    "phi": _GATED,  # parallel residual, one norm for both
    "qwen3_moe": _GATED
    | {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "mixtral": _GATED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def tiny_model(family: str, seed: int = 0, **config_overrides: Any) -> Any:
    """A causal LM in evaluation mode, with random weights.

    ``family``: one of ``FAMILIES`` or ``MIXTURES``, or any other type of causal LM that
    transformers has, by its `model_type`. ``config_overrides`` are fields of its config.
    """
    if family not in _CONFIGS:
        return any_type.tiny_model(family, seed, **config_overrides)
    config = CONFIG_MAPPING[family](**{**_CONFIGS[family], **config_overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Norms and biases are random too: code that forgets one then gives other logits.
                if parameter.dim() == 1:
                    centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                    parameter.normal_(centre, 0.1)
                else:
                    parameter.normal_(0.0, 0.08)
    return model.requires_grad_(requires_grad=False)


def tiny_calibration(windows: int = 4, length: int = 24, seed: int = 5) -> torch.Tensor:
    """Token ids in the vocabulary of every tiny model, int64 [windows, length]."""
    return torch.randint(
        2, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed)
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 320 tokens, trained on a few sentences.

    Decoding gives exactly the text that was encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [
        "the quick brown fox jumps over the lazy dog",
        "a tall man was sitting in the shade of an old tree",
    ]
    tokenizer.train_from_iterator(
        [f"{line}, then {other}" for line in text for other in text], trainer
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_checkpoint(
    folder: Path, family: str = "llama", seed: int = 0, **config_overrides: Any
) -> Path:
    """Save a tiny model and its tokenizer in ``folder``, as `from_pretrained` reads them."""
    tiny_model(family, seed, **config_overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
