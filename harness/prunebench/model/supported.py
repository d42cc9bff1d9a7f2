"""What a config alone tells about whether its model can be pruned; needs neither torch nor weights.

Nothing is refused because its name is missing from a table of ours: transformers' own list of
causal language models decides, and what its config says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, did_you_mean

_STATE_SPACE = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
_SHARED = frozenset({"zamba", "zamba2"})
_TWO_SIDED = frozenset(
    [
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
"""Types that are decoders only if their config says so."""
_DIFFUSION = re.compile(r"diffusion|llada|dream|sdar", re.IGNORECASE)
_PAIR = re.compile(r'"([\w.-]+)", "(\w+)"')
_KEY = re.compile(r'^    "([\w.-]+)": {', re.MULTILINE)


@cache
def _causal_pairs() -> list[tuple[str, str]]:
    """(model type, class) of every causal language model."""
    text = _section("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ", "\n)")
    return _PAIR.findall(text)


@cache
def causal_types() -> tuple[str, ...]:
    """Every `model_type` that the installed transformers has a causal language model for."""
    return tuple(sorted({name for name, _ in _causal_pairs()}))


@cache
def _causal_classes() -> frozenset[str]:
    return frozenset(name for _, name in _causal_pairs())


def _is_part(config: Mapping[str, Any], model_type: str) -> bool:
    """Whether this is the text decoder of a larger model, saved alone: 'emu3_text_model'."""
    names = config.get("architectures")
    return any(
        name in _causal_classes()
        and model_type.endswith(("text_model", "_text"))
        and model_type.startswith(name.removesuffix("ForCausalLM").lower())
        for name in (names if isinstance(names, list) else ())
    )


@cache
def _gguf_types() -> tuple[str, ...]:
    """The architectures of llama.cpp whose files transformers can read."""
    text = _section("integrations/ggml.py", "GGUF_CONFIG_MAPPING = ", "\n}")
    return tuple(name for name in _KEY.findall(text) if name not in {"general", "tokenizer"})


def check_family(config: Mapping[str, Any], source: object) -> None:
    """Raise PrunebenchError, in one sentence, if a model with this config cannot be pruned.

    ``source`` begins the message. What the config does not tell is found when the model is loaded.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise PrunebenchError(
            f"{source} does not name its family (model_type)",
            hint="take the config.json that belongs to the weights",
        )
    article = "an" if model_type[:1] in "aeio" else "a"
    hint = "name a model that writes its text token by token with attention"
    if _DIFFUSION.search(model_type):
        raise PrunebenchError(
            f"{source}: {article} {model_type} model makes its text by diffusion,"
            " not token by token",
            hint=hint,
        )
    if model_type in _STATE_SPACE:
        raise PrunebenchError(
            f"{source}: {article} {model_type} model is a pure state-space model,"
            " without attention",
            hint=hint,
        )
    if model_type in _SHARED:
        raise PrunebenchError(
            f"{source}: layers of {article} {model_type} model share one attention,"
            " so nothing can be pruned in one of them alone",
            hint="name a model whose layers have weights of their own",
        )
    if config.get("is_encoder_decoder") is True:
        raise PrunebenchError(
            f"{source}: {article} {model_type} model is an encoder-decoder;"
            " only decoders can be pruned",
            hint=hint,
        )
    if model_type in _TWO_SIDED and not config.get("is_decoder"):
        raise PrunebenchError(
            f"{source}: this {model_type} model is an encoder: its tokens see those behind them",
            hint="name a decoder; if this is one, its config says `is_decoder: true`",
        )
    own_code = config.get("auto_map")
    if isinstance(own_code, Mapping) and "AutoModelForCausalLM" in own_code:
        return
    if model_type not in causal_types() and not _is_part(config, model_type):
        near = did_you_mean(model_type, causal_types())
        raise PrunebenchError(
            f"{source}: transformers has no causal language model called '{model_type}'",
            hint=near
            if near.startswith("did you mean")
            else "`prunebench families` lists them all",
        )


def no_depth(config: Mapping[str, Any]) -> str | None:
    """Why no layer of a model with this config can be removed; None if the config does not tell."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        shared = part.get("num_kv_shared_layers")
        if isinstance(shared, int) and shared > 0:
            return (
                f"its last {shared} layers read the keys and values of other layers"
                " (num_kv_shared_layers), so no layer can be removed"
            )
    return None


def check_gguf(architecture: str | None, source: object) -> None:
    """Raise PrunebenchError if transformers cannot read a GGUF file of this architecture."""
    known = {re.sub("[-_]", "", name): name for name in _gguf_types()}
    found = known.get(re.sub("[-_]", "", architecture or ""))
    if found in {"t5", "umt5"}:
        check_family({"model_type": found, "is_encoder_decoder": True}, source)
    elif found is not None:
        check_family({"model_type": "llama" if found == "deci" else found}, source)
    else:
        raise PrunebenchError(
            f"{source}: transformers cannot read GGUF files of the family '{architecture}'",
            hint="convert its safetensors, or name the checkpoint that it was made from",
        )


def _section(file: str, start: str, end: str) -> str:
    """The source text of transformers between two marks; importing it would take seconds."""
    spec = find_spec("transformers")
    assert spec is not None and spec.origin is not None, "prunebench depends on transformers"
    text = (Path(spec.origin).parent / file).read_text(encoding="utf-8")
    return text.split(start, 1)[1].split(end, 1)[0]
