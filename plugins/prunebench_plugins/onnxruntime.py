"""ONNX Runtime GenAI on the CPU; its own model builder converts.

The builder walks over a transformers model and writes a graph layer by layer, with one number of
heads and channels for all. `Layers` gives it the layers of a pruned model instead: MLPs of any
width, attentions and MLPs that are gone. The runtime keeps one KV cache for each layer of its
config, all of one size. So layers with an attention are counted, what follows without one belongs
to the layer before, and KV heads that differ are refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from prunebench import (
    Field,
    PrunebenchError,
    Reference,
    Runtime,
    RuntimeOptions,
    Session,
    anatomy,
    hookimpl,
)

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers the builder writes by the code that `Layers` replaces."""


class OnnxRuntime(Runtime):
    """ONNX Runtime GenAI on the CPU."""

    name = "onnxruntime"
    packages = ("onnxruntime-genai", "onnxruntime", "onnx-ir")
    reference = Reference(
        "ONNX Runtime GenAI", code="https://github.com/microsoft/onnxruntime-genai"
    )

    class Options(RuntimeOptions):
        precision: Literal["fp32", "int8", "int4"] = Field(
            "fp32", description="what matrices are stored as; int8 and int4 in blocks of 32"
        )

    def refuses(self, folder: Path) -> str | None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
        if family not in FAMILIES:
            return f"a {family} model is not converted here: known are {', '.join(FAMILIES)}"
        if config.get("sliding_window") and config.get("use_sliding_window", True):
            return "some of its layers read only a window, whose cache is not written here"
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if head % 16:
            return f"its heads have {head} channels, and GroupQueryAttention takes multiples of 16"
        return _other_network(folder)

    def convert(self, folder: Path, out: Path, precision: str) -> Path:
        from onnxruntime_genai.models import builder  # type: ignore[import-not-found,unused-ignore]

        # Here, because it imports torch: plugins are listed without it.
        from prunebench import load_pruned

        layers = Layers(load_pruned(folder, dtype="float32"))
        cache = str(out / "cache")
        options = builder.parse_extra_options(
            None, str(folder), str(out), precision, "cpu", cache, layers.options
        )
        logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
        with layers.given_to(builder.Model):
            builder.create_model(None, str(folder), str(out), precision, "cpu", cache, **options)
        config = out / "genai_config.json"
        told = json.loads(config.read_text(encoding="utf-8"))
        # No token ends a text: every model generates as many as it is asked for.
        told["model"]["eos_token_id"] = []
        config.write_text(json.dumps(told, indent=1), encoding="utf-8")
        return out

    def open(self, path: Path, threads: int, length: int) -> Session:
        return Generators(path, threads, length)


def _other_network(folder: Path) -> str | None:
    """Why the layers of a pruned model are no decoder layers; None if they are."""
    pruned = folder / "pruning.json"
    if not pruned.is_file():
        return None
    shape = json.loads(pruned.read_text(encoding="utf-8"))["shape"]
    if shape.get("rotated"):
        return "its residual stream is rotated, which the builder cannot write"
    if any(layer.get("replacement") for layer in shape["layers"]):
        return "a trained network is in the place of a layer, which the builder cannot write"
    return None


class Generators(Session):
    """A model; every prompt has a generator of its own."""

    def __init__(self, path: Path, threads: int, length: int) -> None:
        import onnxruntime_genai

        self._library: Any = onnxruntime_genai
        config = self._library.Config(str(path))
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = self._library.Model(config)
        self._length = length

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._length, do_sample=False)
        generator = self._library.Generator(self._model, parameters)
        generator.append_tokens(list(prompt))
        for _ in range(self._length - len(prompt)):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def close(self) -> None:
        self._model = None


class Layers:
    """A model as the builder walks over it: embeddings, groups of layers, last norm, head."""

    def __init__(self, model: Any) -> None:
        self.model, self.lm_head = model.model, model.lm_head
        self._parts = anatomy(model)
        config = model.config
        head = getattr(config, "head_dim", None)
        self._head = head or config.hidden_size // config.num_attention_heads
        self._groups = self._grouped()

    @property
    def options(self) -> list[str]:
        """The builder's options, KEY=VALUE."""
        return [f"num_hidden_layers={len(self._groups)}"]

    def modules(self) -> Iterator[Any]:
        """What the builder asks for, in its order."""
        yield self._parts.embeddings
        yield from self._groups
        yield self._parts.final_norm
        yield self._parts.head

    def _grouped(self) -> list[GroupDecoderLayer]:
        """Layers by their attention: each group has one, and the MLPs around it."""
        groups = [GroupDecoderLayer()]
        for index, layer in enumerate(self._parts.layers):
            attention, mlp = (self._parts.has(layer, kind) for kind in ("attention", "mlp"))
            if attention and groups[-1].attention is not None:
                groups.append(GroupDecoderLayer())
            if attention:
                groups[-1].attention = layer
                groups[-1].steps.append(("attention", index, layer))
            if mlp:
                groups[-1].steps.append(("mlp", index, layer))
        attentions = [one.attention.self_attn for one in groups if one.attention is not None]
        if len(attentions) < len(groups):
            raise PrunebenchError("no layer has an attention, and the builder needs one")
        heads = {
            tuple(getattr(one, name).weight.shape[0] // self._head for name in ("q_proj", "k_proj"))
            for one in attentions
        }
        if len(heads) > 1:
            raise PrunebenchError(
                "KV heads differ between layers, and ONNX Runtime GenAI has one number of them for"
                " the caches of all",
                hint="prune MLP channels or whole blocks, or pad the widths"
                " (`prunebench prune --uniform`)",
            )
        return groups

    @contextmanager
    def given_to(self, base: Any) -> Iterator[None]:
        """Let the builder, whose base class this is, take this model and write it with `_write`."""
        own = base.load_weights, base.make_layer
        base.load_weights = lambda *_: self

        def write(builder: Any, number: int, group: GroupDecoderLayer) -> None:
            self._write(builder, number, group)

        base.make_layer = write
        try:
            yield
        finally:
            base.load_weights, base.make_layer = own

    def _write(self, builder: Any, number: int, group: GroupDecoderLayer) -> None:
        """Write one group of layers; the residual stream is that of the builder's own layers.

        Before each step comes its norm, which also adds what the step before gave.
        """
        norms = builder.layernorm_attrs
        for kind, index, layer in group.steps:
            attention = kind == "attention"
            norm = layer.input_layernorm if attention else layer.post_attention_layernorm
            builder.make_layernorm(
                # Names must differ between layers: only attentions are counted by the builder.
                number if attention else f"{index}.mlp",
                norm,
                skip=not norms["first_layernorm"],
                simple=norms["simple"],
                location="input" if attention else "post_attention",
            )
            norms["first_layernorm"] = False
            if attention:
                builder.make_attention(number, layer.self_attn, root_input=norms["output_0"])
            else:
                builder.intermediate_size = layer.mlp.up_proj.weight.shape[0]
                builder.make_mlp(f"{index}.mlp", layer.mlp, root_input=norms["output_0"])
        norms["last_layernorm"] = number == len(self._groups) - 1


class GroupDecoderLayer:
    """Steps between two attentions. The builder knows a layer by the end of its class's name."""

    def __init__(self) -> None:
        self.attention: Any = None
        """The layer whose attention is in it."""
        self.steps: list[tuple[str, int, Any]] = []
        """('attention' or 'mlp', index of the layer, the layer), in forward order."""


@hookimpl
def prunebench_register_runtime() -> type[Runtime]:
    return OnnxRuntime
