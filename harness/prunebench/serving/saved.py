"""Reads from a folder or a GGUF file what the rules need."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prunebench.errors import PrunebenchError
from prunebench.model.folder import TOKENIZER_FILES, read_config
from prunebench.model.safetensors_header import StoredTensor
from prunebench.model.weight_files import PRUNED, weight_files
from prunebench.serving.trial import trial

Kind = Literal["plain", "uneven", "decilm", "gguf"]
"""`uneven`: weights that only prunebench finds, because its layers differ."""


class Layer(NamedTuple):
    """Rows of the matrices of one layer with the names of a Llama; 0 if one is not there."""

    queries: int
    keys: int
    channels: int


@dataclass(frozen=True)
class Saved:
    """A saved model, from its config and the headers of its files."""

    path: Path
    kind: Kind
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    gguf: Mapping[str, Any] = field(default_factory=dict)
    """Of a GGUF file: the architecture, and numbers of heads and channels by layer."""

    @property
    def folder(self) -> bool:
        return self.kind != "gguf"

    @property
    def quoted(self) -> str:
        """The path as a shell takes it."""
        return shlex.quote(str(self.path))

    @property
    def dtype(self) -> str:
        """The precision of the weights, as `prunebench prune` names it."""
        said = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
        return said if said in {"bfloat16", "float16"} else "float32"

    @property
    def architecture(self) -> str:
        """The class of the model as its config names it; '' if it names none."""
        # Engines look at the first name only.
        names = self.config.get("architectures") or [""]
        return str(names[0])

    @property
    def has_tokenizer(self) -> bool:
        return any((self.path / name).is_file() for name in TOKENIZER_FILES)

    @property
    def quantised(self) -> Mapping[str, Any] | None:
        """How the weights are quantised, as the config says it."""
        found = self.config.get("quantization_config") or self.config.get("compression_config")
        return found if isinstance(found, Mapping) else None

    @cached_property
    def layers(self) -> list[Layer]:
        """Rows of each layer's matrices; all zeros for families with other names."""
        ends = {
            "queries": "self_attn.q_proj.weight",
            "keys": "self_attn.k_proj.weight",
            "channels": "mlp.gate_proj.weight",
        }
        found = []
        for index in range(int(self.config.get("num_hidden_layers") or 0)):
            rows = {
                name: self.tensors.get(f"model.layers.{index}.{end}") for name, end in ends.items()
            }
            found.append(Layer(**{name: t.shape[0] if t else 0 for name, t in rows.items()}))
        return found

    @property
    def blocks(self) -> list[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
        """Of a DeciLM folder: (layer, its attention's entry, its MLP's entry)."""
        entries = self.config.get("block_configs") or []
        return [(i, e.get("attention", {}), e.get("ffn", {})) for i, e in enumerate(entries)]

    @cached_property
    def transformers_says(self) -> str | None:
        """Why transformers does not load the folder as it is; None if it does."""
        return trial(self.path)


def read_saved(path: Path) -> Saved:
    """Read what a path holds. Raises PrunebenchError if it is no model, or not all of it."""
    if path.is_file() and path.suffix.lower() == ".gguf":
        return Saved(path, "gguf", gguf=_gguf(path))
    if not path.is_dir():
        raise PrunebenchError(
            f"{path} {'is no GGUF file' if path.exists() else 'does not exist'}",
            hint="name a folder that `prunebench prune` or save_pretrained wrote, or a .gguf file",
        )
    # A folder as `--format gguf` writes it. Beside a config the file is an extra.
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not (path / "config.json").exists():
        return read_saved(ggufs[0])
    config = read_config(path)
    files = weight_files(path)
    # Whatever wrote it: readers decide by this key, too.
    if "block_configs" in config:
        return Saved(path, "decilm", config, files.tensors())
    # By the files that a loader finds: a plain model may have been saved over an uneven one.
    uneven = (files.index or files.paths[0]).name in PRUNED
    return Saved(path, "uneven" if uneven else "plain", config, files.tensors())


def _gguf(path: Path) -> dict[str, Any]:
    import gguf

    from prunebench.model.gguf_header import read_gguf_header

    header = read_gguf_header(path)
    reader = gguf.GGUFReader(path)
    found: dict[str, Any] = {"architecture": header.architecture}
    depth = reader.get_field(f"{header.architecture}.block_count")
    layers = int(depth.contents()) if depth is not None else 0
    for name, key in (
        ("heads", "attention.head_count"),
        ("channels", "feed_forward_length"),
    ):
        entry = reader.get_field(f"{header.architecture}.{key}")
        if entry is not None:
            # A number that is the same in all layers is written once.
            value = entry.contents()
            found[name] = value if isinstance(value, list) else [value] * layers
    return found
