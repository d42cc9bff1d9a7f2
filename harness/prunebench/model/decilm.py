"""Writing a Llama whose layers differ in the format that vLLM reads for DeciLM and Nemotron-NAS models.

There every layer of the config says for itself whether it has an attention and an MLP and how wide the MLP is. The number
of query heads is one for the whole model, so KV groups that went from some layers only cannot be said. Written after
vLLM's model code (vllm/model_executor/models/nemotron_nas.py); the folder has not been served by a vLLM here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, anatomy, width
from prunebench.model.checkpoint import save_into
from prunebench.model.pruning_json import is_plain

_CONFIG_MODULE = "configuration_decilm"
_CONFIG_CODE = '''"""Config of a model whose layers differ, as vLLM's DeciLMForCausalLM reads it. Written by prunebench."""

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
    """Save ``model`` so that ``folder`` is either as before or complete; load it with `vllm serve --trust-remote-code`.

    Raises PrunebenchError for what the format cannot say: another family than Llama, query heads that differ from layer
    to layer, a first layer without attention.
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
    config = parts.model.config
    if parts.model_type != "llama":
        raise PrunebenchError(
            f"a {parts.model_type} model cannot be written in the DeciLM format, which is Llama's",
            hint="save it in prunebench's own format and load it with prunebench.load_pruned",
        )
    if is_plain(parts.model):
        raise PrunebenchError(
            "all layers of this model are alike, so it needs no DeciLM format",
            hint="leave --format out: vLLM reads the folder as the Llama that it is",
        )
    if not parts.has(parts.layers[0], "attention"):
        raise PrunebenchError(
            "vLLM's DeciLM model cannot begin with a layer without attention",
            hint="protect the first layer's attention, or load the model with prunebench.load_pruned",
        )
    blocks: list[dict[str, Any]] = []
    for index, layer in enumerate(parts.layers):
        groups, channels = parts.groups(layer, "attention"), parts.groups(layer, "mlp")
        heads = (
            width(layer.get_submodule("self_attn.q_proj"), 0) // parts.head_dim(layer)
            if groups
            else 0
        )
        if groups and heads != config.num_attention_heads:
            raise PrunebenchError(
                f"layer {index} has {heads} query heads and the model {config.num_attention_heads}: "
                "the DeciLM format knows one number for all layers",
                hint="prune MLP channels or whole blocks only, or load the model with prunebench.load_pruned",
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
