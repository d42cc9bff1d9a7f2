"""Save a Llama whose layers have different shapes in the format that vLLM reads for DeciLM models.

DeciLM (also Nemotron-NAS) is a Llama with a list `block_configs` in its config: one entry per layer
says whether the layer has an attention and an MLP, and how wide the MLP is. The number of query
heads is one for the whole model, so the format cannot describe KV groups that were removed from
some layers only. transformers does not know the model type, so the folder brings its own config
class, which is why vLLM needs `--trust-remote-code`.

Written after vLLM's model code (vllm/model_executor/models/nemotron_nas.py). No vLLM has served
such a folder here yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, anatomy
from prunebench.model.checkpoint import save_into
from prunebench.model.coupling.slices import width
from prunebench.model.indexed import is_indexed
from prunebench.model.pruning_json import added_biases, is_plain
from prunebench.model.replacement import is_replaced
from prunebench.model.rotated import is_rotated

_LOAD_PRUNED = "load the model with prunebench.load_pruned"
_CONFIG_MODULE = "configuration_decilm"
_CONFIG_CODE = '''"""Config of a model whose layers differ, as vLLM's DeciLMForCausalLM reads it.

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
        super().__init__(**kwargs)
        self.block_configs = sections(block_configs or [])
'''


def save_decilm(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save ``model``; load it with `vllm serve FOLDER --trust-remote-code`.

    ``folder`` is afterwards complete or, on an error, unchanged. Raises PrunebenchError for a model
    that the format cannot describe: another family than Llama, numbers of query heads that differ
    between layers, a first layer without attention.
    """
    blocks = _block_configs(anatomy(model))
    with save_into(model, tokenizer, folder) as aside:
        path = aside / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["architectures"] = ["DeciLMForCausalLM"]
        config["model_type"] = "nemotron-nas"
        config["auto_map"] = {"AutoConfig": f"{_CONFIG_MODULE}.DeciLMConfig"}
        config["block_configs"] = blocks
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (aside / f"{_CONFIG_MODULE}.py").write_text(_CONFIG_CODE, encoding="utf-8")


def _block_configs(parts: Anatomy) -> list[dict[str, Any]]:
    """One entry per layer: {"attention": {"no_op", "n_heads_in_group"}, "ffn": {"no_op", ...}}."""
    _check(parts)
    query_heads = parts.model.config.num_attention_heads
    blocks: list[dict[str, Any]] = []
    for index, layer in enumerate(parts.layers):
        groups, channels = parts.groups(layer, "attention"), parts.groups(layer, "mlp")
        heads = 0
        if groups:
            heads = width(layer.get_submodule("self_attn.q_proj"), 0) // parts.head_dim(layer)
        if groups and heads != query_heads:
            raise PrunebenchError(
                f"layer {index} has {heads} query heads and the model {query_heads}: "
                "the DeciLM format has one number for all layers",
                hint=f"prune MLP channels or whole blocks only, or {_LOAD_PRUNED}",
            )
        blocks.append(
            {
                "attention": {
                    "no_op": groups == 0,
                    "n_heads_in_group": heads // groups if groups else None,
                },
                "ffn": {"no_op": channels == 0, "intermediate_size": channels or None},
            }
        )
    return blocks


def _check(parts: Anatomy) -> None:
    if parts.model_type != "llama":
        raise PrunebenchError(
            f"a {parts.model_type} model cannot be written in the DeciLM format, which is Llama's",
            hint=f"save it in prunebench's own format, and {_LOAD_PRUNED}",
        )
    if biases := added_biases(parts.model):
        raise PrunebenchError(
            f"{biases[0]} got a bias by pruning, which the DeciLM format cannot describe",
            hint=f"prune without `bias`, or {_LOAD_PRUNED}",
        )
    if is_plain(parts.model):
        raise PrunebenchError(
            "all layers of this model have the same shape, so it needs no DeciLM format",
            hint="leave out --format: vLLM reads the folder as a plain Llama",
        )
    if any(map(is_rotated, parts.layers)):
        raise PrunebenchError(
            "the residual stream of this model is rotated, which the DeciLM format cannot describe",
            hint=_LOAD_PRUNED,
        )
    if any(map(is_indexed, parts.layers)):
        raise PrunebenchError(
            "the sub-blocks of this model have channels of the residual stream of their own, which"
            " the DeciLM format cannot describe",
            hint=_LOAD_PRUNED,
        )
    for index, layer in enumerate(parts.layers):
        if is_replaced(layer):
            raise PrunebenchError(
                f"a trained network is in the place of layer {index}, which the DeciLM format"
                " cannot describe",
                hint=f"train a decoder layer (`replacement: layer`), or {_LOAD_PRUNED}",
            )
    if not parts.has(parts.layers[0], "attention"):
        # vLLM's layers pass hidden states and residual separately, and only an attention sets the
        # residual for the first time.
        raise PrunebenchError(
            "vLLM's DeciLM model cannot begin with a layer without attention",
            hint=f"protect the first layer's attention, or {_LOAD_PRUNED}",
        )
