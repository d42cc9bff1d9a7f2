"""Save a Llama whose layers differ in the format of DeciLM and Nemotron-NAS models.

It is a Llama with a list `block_configs` in its config: one entry per layer says whether the layer
has an attention and an MLP, and how wide the MLP is. vLLM, SGLang and the converter of llama.cpp
read it, by these rules together:

- The number of query heads is one for the whole model.
- The width of an MLP is a factor `ffn_mult`, of which readers make int(2 * ffn_mult * hidden / 3),
  rounded up to a multiple of 256. So no other width can be written.
- llama.cpp drops the attention of a layer whose MLP is gone.
- vLLM and SGLang cannot begin with a layer that has no attention.
- The first entry's `ffn_mult` is no null for llama.cpp, and all have `replace_with_linear`.

What they cannot read is filled up with zeros, which changes no logit. transformers does not know
the model type, so the folder brings its own config class, which is why vLLM and SGLang need
`--trust-remote-code`.

Written after vLLM's model code (vllm/model_executor/models/nemotron_nas.py at 00bd1493), SGLang's
(python/sglang/srt/models/nemotron_nas.py at 15a024d) and llama.cpp's (conversion/deci.py at
2bbcf7fc, src/models/deci.cpp at 75dc8f64). tests/model/test_decilm.py has a reader by their rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.checkpoint import save_into
from prunebench.model.pruning_json import (
    LOAD_PRUNED,
    added_biases,
    is_plain,
    refuse_changed_layers,
    shape_of,
)
from prunebench.model.uniform import pad, told, without_empty_layers

MULTIPLE = 256
"""Readers round the widths of MLPs up to a multiple of this."""
_CONFIG_MODULE = "configuration_decilm"
_CONFIG_CODE = '''"""Config of a model whose layers differ, for DeciLMForCausalLM of vLLM and SGLang.

Written by prunebench.
"""

from transformers import LlamaConfig


class Section(dict):
    """A mapping whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def sections(value):
    if isinstance(value, dict):
        return Section({key: sections(item) for key, item in value.items()})
    return [sections(item) for item in value] if isinstance(value, list) else value


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **kwargs):
        theta = kwargs.get("rope_theta")
        super().__init__(**kwargs)
        self.block_configs = sections(block_configs or [])
        # transformers 5 keeps it elsewhere only, and SGLang looks for it here.
        if theta is not None:
            self.rope_theta = theta
'''


def ffn_width(ffn_mult: float, hidden: int) -> int:
    """The width that all readers make of the factor in the config."""
    return -(-int(2 * ffn_mult * hidden / 3) // MULTIPLE) * MULTIPLE


def save_decilm(model: Any, tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """Save ``model``; load it with `vllm serve FOLDER --trust-remote-code`.

    Returns what was filled up with zeros in the files; ``model`` stays as it is. ``folder`` is
    afterwards complete or, on an error, unchanged. Raises PrunebenchError for a model that needs no
    such format, or that it cannot describe: another family than Llama, biases that pruning added, a
    rotated residual stream, a network in a layer's place.
    """
    _check(anatomy(model))
    padded = without_empty_layers(model)
    parts = anatomy(padded)
    notes = pad(padded, _widths(parts))
    blocks = _block_configs(parts)
    with save_into(padded, tokenizer, folder) as aside:
        path = aside / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["architectures"] = ["DeciLMForCausalLM"]
        config["model_type"] = "nemotron-nas"
        config["auto_map"] = {"AutoConfig": f"{_CONFIG_MODULE}.DeciLMConfig"}
        config |= _heads(parts) | _rope(config)
        config["block_configs"] = blocks
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (aside / f"{_CONFIG_MODULE}.py").write_text(_CONFIG_CODE, encoding="utf-8")
    return told(notes, model, padded)


def _widths(parts: Anatomy) -> dict[Block, int]:
    """KV groups and channels that all readers can read, for the sub-blocks that they need."""
    groups = max(1, *(parts.groups(layer, "attention") for layer in parts.layers))
    # The config of a Llama refuses a number of heads that does not divide the width. That of the
    # dense model does.
    while parts.embeddings.weight.shape[1] % (groups * _ratio(parts)):
        groups += 1
    found: dict[Block, int] = {}
    for index, layer in enumerate(parts.layers):
        # One that is gone may stay gone, except the first: readers begin the residual there.
        attention = parts.has(layer, "attention")
        if attention or index == 0:
            found[Block(index, "attention")] = groups
        # One that is gone comes back with the least width: llama.cpp would drop the attention.
        channels = parts.groups(layer, "mlp")
        found[Block(index, "mlp")] = max(1, -(-channels // MULTIPLE)) * MULTIPLE
    return found


def _block_configs(parts: Anatomy) -> list[dict[str, Any]]:
    """One entry per layer: {"attention": {"no_op", "n_heads_in_group"}, "ffn": {"no_op", ...}}."""
    hidden = parts.embeddings.weight.shape[1]
    blocks: list[dict[str, Any]] = []
    for layer in parts.layers:
        groups, channels = parts.groups(layer, "attention"), parts.groups(layer, "mlp")
        ffn_mult = 1.5 * channels / hidden
        assert ffn_width(ffn_mult, hidden) == channels, "readers would take another width"
        blocks.append(
            {
                "attention": {
                    "no_op": groups == 0,
                    "n_heads_in_group": _ratio(parts) if groups else None,
                    "replace_with_linear": False,
                },
                "ffn": {
                    "no_op": False,
                    "ffn_mult": ffn_mult,
                    "intermediate_size": channels,
                    "replace_with_linear": False,
                },
            }
        )
    return blocks


def _ratio(parts: Anatomy) -> int:
    """Query heads of a KV group."""
    block = parts.sub_block(parts.layers[0], "attention")
    assert block is not None and block.heads is not None
    return block.heads.query // block.heads.keys


def _heads(parts: Anatomy) -> dict[str, int]:
    """The numbers of heads of all attentions, which the config may not have yet."""
    groups = parts.groups(parts.layers[0], "attention")
    return {
        "num_attention_heads": groups * _ratio(parts),
        "num_key_value_heads": groups,
        "head_dim": parts.head_dim(parts.layers[0]),
    }


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary positions also where SGLang and llama.cpp look for them."""
    rope = dict(config.get("rope_parameters") or {})
    found: dict[str, Any] = {}
    if "rope_theta" in rope:
        found["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = rope
    return found


def _check(parts: Anatomy) -> None:
    if parts.model_type != "llama":
        raise PrunebenchError(
            f"a {parts.model_type} model cannot be written in the DeciLM format, which is Llama's",
            hint=f"pad its layers to one width with --uniform, or {LOAD_PRUNED}",
        )
    if biases := added_biases(parts.model):
        raise PrunebenchError(
            f"{biases[0]} got a bias by pruning, which the DeciLM format cannot describe",
            hint=f"prune without `bias`, use --uniform instead, or {LOAD_PRUNED}",
        )
    if is_plain(parts.model):
        raise PrunebenchError(
            "all layers of this model have the same shape, so it needs no DeciLM format",
            hint="leave out --format: engines read the folder as a plain Llama",
        )
    refuse_changed_layers(shape_of(parts.model), "the DeciLM format cannot describe")
