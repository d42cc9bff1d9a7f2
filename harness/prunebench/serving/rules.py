"""The rules of readers: what breaks each, in which engine, where that was read, and what to do.

A rule `looks` at what was saved and says what breaks it, or None. Its effect is one of

    refuses   the engine stops with an error
    wrong     it loads the model and computes another one, silently
    note      it loads the model; somebody should know this all the same

To add a rule, write its function and its line in `RULES`; tests/serving asks that something breaks
each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prunebench.serving.engines import Engine
from prunebench.serving.saved import Saved

Effect = Literal["refuses", "wrong", "note"]

_PLAIN_READERS: tuple[Engine, ...] = ("transformers", "vllm", "sglang", "onnxruntime", "openvino")
_NAS_VLLM = "vllm/model_executor/models/nemotron_nas.py at 00bd1493"
_NAS_SGLANG = "python/sglang/srt/models/nemotron_nas.py at 15a024d"
_DECI = "llama.cpp's conversion/deci.py at 2bbcf7fc"
_DECI_CODE = "llama.cpp's src/models/deci.cpp at 75dc8f64"
_OWN_CODE = "transformers 5.23; measured"
_CONVERT = "`prunebench prune {folder} dense{dtype} --out NEW"
"""The method `dense` prunes nothing: the model is only saved in another way."""
_UNIFORM = f"fill its narrower layers up with zeros: {_CONVERT} --uniform`"
_DECILM = f"{_CONVERT} --uniform`; for a Llama also `--format decilm`, which pads less"
_GGUF = "prune the model again, with `--format gguf`"
_AGAIN = "write it again with `--format decilm` of this version"
_BLOCK, _K_BLOCK = 32, 256


@dataclass(frozen=True)
class Rule:
    """One rule of some readers."""

    name: str
    says: str
    """The rule itself, in one sentence."""
    effect: Effect
    sources: Mapping[Engine, str]
    """The engines that have this rule, with the file or the version in which it was read."""
    look: Callable[[Saved], str | None]
    """What of the saved model breaks it; None if nothing does."""
    fix: str
    fixes: Mapping[Engine, str] | None = None
    """Another advice for some engines."""

    def fix_for(self, engine: Engine, saved: Saved) -> str:
        dtype = saved.dtype
        return (
            (self.fixes or {})
            .get(engine, self.fix)
            .format(folder=saved.quoted, dtype=f" --dtype {dtype}" * (dtype != "float32"))
        )


def _same(engines: Sequence[Engine], source: str) -> dict[Engine, str]:
    return dict.fromkeys(engines, source)


def _uneven(saved: Saved) -> str | None:
    if saved.kind != "uneven":
        return None
    return "its layers differ, so its weights have names that only prunebench.load_pruned looks for"


def _does_not_load(saved: Saved) -> str | None:
    # Of other kinds it is known already, and remote code is not run to find out.
    if saved.kind != "plain" or saved.quantised or saved.config.get("auto_map"):
        return None
    return saved.transformers_says


def _own_code(saved: Saved) -> str | None:
    if saved.kind != "plain" or not saved.config.get("auto_map"):
        return None
    return "the model comes with its own code, which was not run here"


def _decilm_class(saved: Saved) -> str | None:
    return "it is in the DeciLM format, a class that it does not know" * _is_decilm(saved) or None


def _is_decilm(saved: Saved) -> bool:
    return saved.kind == "decilm"


def _decilm_code(saved: Saved) -> str | None:
    if not _is_decilm(saved):
        return None
    return "the config of the DeciLM format is a class that comes with the folder"


def _no_factor(saved: Saved) -> str | None:
    for layer, _, ffn in saved.blocks:
        # An integer would do for SGLang, but llama.cpp's converter asserts that it is none.
        if not ffn.get("no_op") and not isinstance(ffn.get("ffn_mult"), float):
            return f"the MLP of layer {layer} has no `ffn_mult`"
    return None


def _other_width(saved: Saved) -> str | None:
    # Here, because it imports torch.
    from prunebench.model.decilm import MULTIPLE, ffn_width

    hidden = int(saved.config.get("hidden_size") or 0)
    for layer, _, ffn in saved.blocks:
        if ffn.get("no_op"):
            continue
        factor = ffn.get("ffn_mult")
        stored = saved.layers[layer].channels
        # Only vLLM looks for `intermediate_size`, and only if there is no factor.
        wanted = ffn.get("intermediate_size") if factor is None else ffn_width(factor, hidden)
        if wanted != stored:
            return (
                f"the MLP of layer {layer} has {stored} channels in its weights, and readers make"
                f" {wanted} of its entry: they round up to a multiple of {MULTIPLE}"
            )
    return None


def _other_heads(saved: Saved) -> str | None:
    heads = int(saved.config.get("num_attention_heads") or 0)
    size = int(saved.config.get("head_dim") or 0)
    for layer, attention, _ in saved.blocks:
        group = attention.get("n_heads_in_group")
        if attention.get("no_op") or not group or not size:
            continue
        # KV heads may differ from layer to layer, since each entry has its own group size.
        stored = saved.layers[layer]
        if (stored.queries, stored.keys) != (heads * size, heads // group * size):
            return (
                f"layer {layer} has {stored.queries // size} query heads and {stored.keys // size}"
                f" KV heads in its weights; its entry says {heads} and {heads // group}"
            )
    return None


def _first_attention(saved: Saved) -> str | None:
    # Both pass states and residual separately, and only an attention makes the first residual.
    if any(layer == 0 and attention.get("no_op") for layer, attention, _ in saved.blocks):
        return "layer 0 has no attention, and the first attention begins the residual stream there"
    return None


def _no_linear_key(saved: Saved) -> str | None:
    for layer, attention, _ in saved.blocks:
        # The converter reads the key without looking whether it is there.
        if attention.get("n_heads_in_group") is None and "replace_with_linear" not in attention:
            return f"the attention of layer {layer} is gone, and no `replace_with_linear` says how"
    return None


def _lost_attention(saved: Saved) -> str | None:
    for layer, attention, ffn in saved.blocks:
        # `if (n_ff == 0) continue;` comes before the attention's output is added to the stream.
        if not attention.get("no_op") and (ffn.get("no_op") or ffn.get("ffn_mult") == 0):
            return f"layer {layer} has an attention and no MLP: its attention is left out"
    return None


def _head_size(saved: Saved) -> str | None:
    heads = int(saved.config.get("num_attention_heads") or 0)
    size, hidden = saved.config.get("head_dim"), saved.config.get("hidden_size")
    # It ignores head_dim for the length of keys, and the graph then asserts that both agree.
    if not _is_decilm(saved) or not heads or size in {None, (hidden or 0) // heads}:
        return None
    return f"a head has {size} channels; the converter writes {hidden} / {heads}"


def _vocabulary(saved: Saved) -> str | None:
    """Llama 3's vocabulary, or one with sentencepiece's byte tokens, is all that deci.py reads."""
    if not _is_decilm(saved) or saved.config.get("vocab_size") == 128_256:
        return None
    from prunebench.model.wrong_file import read_json

    file = saved.path / "tokenizer.json"
    model = read_json(file).get("model", {}) if file.is_file() else {}
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return None
    return "its tokenizer is neither Llama 3's nor one of sentencepiece's kind"


def _mlp_biases(saved: Saved) -> str | None:
    if saved.architecture not in {"LlamaForCausalLM", "MistralForCausalLM"}:
        return None
    # Its loader skips every bias that the model has no parameter for, without a word.
    names = (name for name in saved.tensors if ".mlp." in name and name.endswith(".bias"))
    return next((f"{name} is left out" for name in names), None)


def _sparse24(saved: Saved) -> str | None:
    sparsity = (saved.quantised or {}).get("sparsity_config") or {}
    if sparsity.get("sparsity_structure") == "2:4":
        return "its weights are packed as 2:4 by compressed-tensors"
    return None


def _no_tokenizer(saved: Saved) -> str | None:
    if not saved.folder or saved.has_tokenizer:
        return None
    return "the folder has no tokenizer"


def _rope_theta(saved: Saved) -> str | None:
    rope = saved.config.get("rope_parameters")
    if not isinstance(rope, Mapping) or "rope_theta" in saved.config:
        return None
    theta = rope.get("rope_theta")
    # 10000 is what such a reader takes if it finds none, so that it does no harm.
    if theta is None or float(theta) == 10_000:
        return None
    return (
        f"config.json has the base of the rotary positions, {theta:g}, where transformers 5 looks"
        " for it; a reader on transformers 4 takes 10000 and computes something else"
    )


def _adapter(saved: Saved) -> str | None:
    from prunebench.model.adapter import FOLDER

    if not saved.folder or not (saved.path / FOLDER).is_dir():
        return None
    return f"the adapter in {FOLDER}/ is not put on top of the weights"


def _rows(saved: Saved, block: int) -> Iterator[tuple[str, int]]:
    for name, tensor in saved.tensors.items():
        if len(tensor.shape) == 2 and name.endswith("_proj.weight") and tensor.shape[1] % block:
            yield name, tensor.shape[1]


def _odd_rows(saved: Saved) -> str | None:
    # llama-quantize falls back to another type for such a matrix, and says so in its log only.
    for block, what in ((_BLOCK, "q8_0 and smaller types"), (_K_BLOCK, "k-quants")):
        found = next(_rows(saved, block), None)
        if found is not None:
            name, columns = found
            return (
                f"{name} has {columns} columns, no multiple of {block}: {what} skip such a matrix"
            )
    return None


def _odd_heads(saved: Saved) -> str | None:
    heads = int(saved.config.get("num_attention_heads") or 0)
    size = saved.config.get("head_dim") or int(saved.config.get("hidden_size") or 0) // max(
        heads, 1
    )
    if not saved.folder or not size or size % 16 == 0:
        return None
    return f"its heads have {size} channels"


def _gguf_lost_attention(saved: Saved) -> str | None:
    if saved.gguf.get("architecture") != "deci":
        return None
    both = zip(saved.gguf.get("heads", []), saved.gguf.get("channels", []), strict=False)
    lost = [layer for layer, (heads, channels) in enumerate(both) if heads and not channels]
    if not lost:
        return None
    return f"layer {lost[0]} has an attention and no MLP: its attention is left out"


def _gguf_first_attention(saved: Saved) -> str | None:
    heads = saved.gguf.get("heads", [])
    if saved.gguf.get("architecture") != "deci" or not heads or heads[0]:
        return None
    return "layer 0 has no attention, and the size of a head is that of layer 0"


def _gguf_class(saved: Saved) -> str | None:
    if saved.folder:
        return None
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # `deci` is in its list, but it has no class of models for it.
    found = saved.gguf.get("architecture")
    if found in GGUF_SUPPORTED_ARCHITECTURES and found != "deci":
        return None
    return f"the file has the architecture `{found}`, of which it makes no model"


def _gguf(saved: Saved) -> str | None:
    return None if saved.folder else "it is a GGUF file"


RULES: tuple[Rule, ...] = (
    Rule(
        "uneven",
        "All layers have the widths that config.json gives once.",
        "refuses",
        _same(_PLAIN_READERS, f"{_OWN_CODE}: no file named model.safetensors"),
        _uneven,
        _UNIFORM,
        {
            "transformers": f"load it with prunebench.load_pruned, or {_UNIFORM}",
            "vllm": _DECILM,
            "sglang": _DECILM,
            "onnxruntime": f"{_UNIFORM}; the runtime `onnxruntime` of suites takes it as it is",
        },
    ),
    Rule(
        "config-and-weights",
        "Every weight that the config asks for is there, in this shape.",
        "refuses",
        _same(_PLAIN_READERS, "the installed transformers; the others read the same config"),
        _does_not_load,
        "take config and weights from the same checkpoint, or save it again",
    ),
    Rule(
        "own-code",
        "Code that comes with a model runs only if it is trusted.",
        "note",
        _same(_PLAIN_READERS, _OWN_CODE),
        _own_code,
        "read the code, then add --trust-remote-code",
    ),
    Rule(
        "decilm-class",
        "The class of the model must be known.",
        "refuses",
        _same(("transformers", "onnxruntime", "openvino"), f"{_OWN_CODE}: no DeciLMForCausalLM"),
        _decilm_class,
        "prune the model again, with --uniform",
    ),
    Rule(
        "decilm-code",
        "The config class `nemotron-nas` is no part of transformers.",
        "note",
        _same(("vllm", "sglang"), "the config registries of both know no nemotron-nas"),
        _decilm_code,
        "add --trust-remote-code, which runs configuration_decilm.py of the folder",
    ),
    Rule(
        "decilm-factor",
        "The width of an MLP is read from `ffn_mult` alone, a number with a point.",
        "refuses",
        {"sglang": _NAS_SGLANG, "llama.cpp": _DECI},
        _no_factor,
        _AGAIN,
    ),
    Rule(
        "decilm-width",
        "The width of an MLP is int(2 * ffn_mult * hidden / 3), rounded up to 256.",
        "refuses",
        {"vllm": _NAS_VLLM, "sglang": _NAS_SGLANG, "llama.cpp": _DECI},
        _other_width,
        f"{_AGAIN}, which adds zeros; `multiple_of: 256` of a method spares them",
    ),
    Rule(
        "decilm-heads",
        "All attentions have the number of query heads that the config gives once.",
        "refuses",
        {"vllm": _NAS_VLLM, "sglang": _NAS_SGLANG, "llama.cpp": _DECI},
        _other_heads,
        _AGAIN,
    ),
    Rule(
        "decilm-first-attention",
        "The first layer has an attention.",
        "refuses",
        {"vllm": _NAS_VLLM, "sglang": _NAS_SGLANG},
        _first_attention,
        _AGAIN,
    ),
    Rule(
        "decilm-linear-key",
        "An attention that is gone says whether a linear replaces it.",
        "refuses",
        {"llama.cpp": _DECI},
        _no_linear_key,
        _AGAIN,
    ),
    Rule(
        "decilm-lost-attention",
        "A layer without an MLP ends before its attention is added.",
        "wrong",
        {"llama.cpp": _DECI_CODE},
        _lost_attention,
        f"{_AGAIN}, which puts an MLP of zeros there",
    ),
    Rule(
        "decilm-head-size",
        "A head has hidden_size / num_attention_heads channels.",
        "refuses",
        {"llama.cpp": f"{_DECI}, add_key_length"},
        _head_size,
        _GGUF,
    ),
    Rule(
        "decilm-vocabulary",
        "The tokenizer of a DeciLM is Llama 3's, or one with sentencepiece's byte tokens.",
        "refuses",
        {"llama.cpp": f"{_DECI}, set_vocab"},
        _vocabulary,
        _GGUF,
    ),
    Rule(
        "mlp-biases",
        "The MLPs of a Llama have no biases.",
        "wrong",
        {"sglang": "python/sglang/srt/models/llama.py at 00239548, class LlamaMLP"},
        _mlp_biases,
        "prune without `bias` (flap), or serve it with vLLM or llama.cpp",
    ),
    Rule(
        "sparse24",
        "2:4 weights of compressed-tensors are no longer read.",
        "refuses",
        _same(("vllm",), "vLLM 0.19.1, pull request 36799"),
        _sparse24,
        "save dense tensors, zeros included; kernels for 2:4 are in torch.sparse alone",
    ),
    Rule(
        "tokenizer",
        "The folder has a tokenizer.",
        "refuses",
        _same(("vllm", "sglang", "llama.cpp", "onnxruntime"), "their converters and servers"),
        _no_tokenizer,
        "save one there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
    ),
    Rule(
        "rope-theta",
        "Rotary positions are where the installed transformers writes them.",
        "note",
        _same(
            ("vllm", "sglang", "onnxruntime", "openvino"),
            "transformers 4: LlamaConfig has rope_theta and no rope_parameters",
        ),
        _rope_theta,
        "serve it where transformers 5 is installed, or write `rope_theta` into config.json, too",
    ),
    Rule(
        "adapter",
        "Only the weights of the model itself are read.",
        "note",
        _same((*_PLAIN_READERS, "llama.cpp"), _OWN_CODE),
        _adapter,
        "merge it (`lora: {{merge: true}}`); vLLM and SGLang can load it besides (--enable-lora)",
    ),
    Rule(
        "row-length",
        "A row of a quantised matrix is cut into blocks.",
        "note",
        {"llama.cpp": "src/llama-quant.cpp: blocks of 32 values, of k-quants 256"},
        _odd_rows,
        f"nothing for f32, f16, bf16; else prune with `multiple_of: {_K_BLOCK}`",
    ),
    Rule(
        "head-multiple",
        "Heads have multiples of 16 channels.",
        "refuses",
        {"onnxruntime": "GroupQueryAttention of onnxruntime 1.32; measured"},
        _odd_heads,
        "serve it with another engine",
    ),
    Rule(
        "gguf-lost-attention",
        "A layer without an MLP ends before its attention is added.",
        "wrong",
        {"llama.cpp": _DECI_CODE},
        _gguf_lost_attention,
        "write it with `prunebench prune MODEL METHOD --format gguf`, which puts zeros there",
    ),
    Rule(
        "gguf-first-attention",
        "The size of a head is that of layer 0.",
        "refuses",
        {"llama.cpp": _DECI_CODE},
        _gguf_first_attention,
        "write it with `prunebench prune MODEL METHOD --format gguf`, which puts zeros there",
    ),
    Rule(
        "gguf-class",
        "transformers makes a model of its own classes of a GGUF file.",
        "refuses",
        _same(("transformers",), f"{_OWN_CODE}"),
        _gguf_class,
        "keep the folder that the file was made from",
    ),
    Rule(
        "gguf-file",
        "A model is a folder of safetensors.",
        "refuses",
        _same(("onnxruntime", "openvino"), "their exporters, as described in `engines`"),
        _gguf,
        "give it the folder that the file was made from",
    ),
)
