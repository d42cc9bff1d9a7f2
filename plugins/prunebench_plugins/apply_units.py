"""The units that `apply` removes, and the files that name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, ValidationError, ValidationInfo, model_serializer

import prunebench
from prunebench import Field, KeptUnits, index_text, indices_of, option_file

OLD = "it was written before units were recorded, and tells only how many stayed; prune again"


MOST = 10_000_000
"""Units that a model may have of a kind: a typing error must not fill the memory."""

PORTS = ("attention_reads", "attention_writes", "mlp_reads", "mlp_writes")
"""Channels of the residual stream that a sub-block of its own does not read or write."""

Index = Annotated[int, Field(ge=0, lt=MOST)]


def _indices(value: Any) -> Any:
    """A list of numbers, or a text such as '0-3,7', as text in one form. Raises ValueError."""
    if isinstance(value, str):
        return index_text(*indices_of(value))
    if isinstance(value, list) and all(type(index) is int and 0 <= index < MOST for index in value):
        if len(set(value)) < len(value):
            raise ValueError("a number appears twice")
        return index_text(sorted(value))
    raise ValueError("write numbers from 0, as a list [0, 3] or as a text '0-3,7'")


Indices = Annotated[str, BeforeValidator(_indices, json_schema_input_type=str | list[Index])]


class Units(prunebench.Options):
    """Units to remove, by their numbers in the model before anything is removed."""

    layers: Indices = Field("none", description="decoder layers")
    attention: Indices = Field("none", description="layers that lose their attention")
    mlp: Indices = Field("none", description="layers that lose their MLP")
    kv_groups: dict[Index, Indices] = Field(
        default_factory=dict, description="KV groups with their query heads, by layer"
    )
    mlp_channels: dict[Index, Indices] = Field(
        default_factory=dict, description="MLP channels, by layer"
    )
    hidden: Indices = Field("none", description="channels of the residual stream")
    experts: dict[Index, Indices] = Field(
        default_factory=dict, description="routed experts, by layer; as many in each"
    )

    attention_reads: dict[Index, Indices] = Field(
        default_factory=dict,
        description="channels of the residual stream that the attention does not read, by layer",
    )
    attention_writes: dict[Index, Indices] = Field(
        default_factory=dict, description="channels that the attention does not add to, by layer"
    )
    mlp_reads: dict[Index, Indices] = Field(
        default_factory=dict, description="channels that the MLP does not read, by layer"
    )
    mlp_writes: dict[Index, Indices] = Field(
        default_factory=dict, description="channels that the MLP does not add to, by layer"
    )

    @model_serializer(mode="wrap")
    def _without_new_fields(self, serialize: Any) -> Any:
        """Leave out what is empty and new: cells that older versions ran keep their ids."""
        written = serialize(self)
        for name in ("experts", *PORTS):
            if not getattr(self, name):
                written.pop(name, None)
        return written


def read_units(value: Any, info: ValidationInfo) -> Any:
    """The units in a file, or in what such a file holds. Raises ValueError."""
    if isinstance(value, str):
        path = option_file(value, info)
        try:
            return units_of(_parsed(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}: {key}: {first['msg']}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Units.model_validate(value) if isinstance(value, Mapping) else value


def units_of(data: Any) -> Units:
    """The units that ``data`` names: the content of a pruning.json, of a record, or units.

    Raises ValueError, of which pydantic's ValidationError is one.
    """
    if not isinstance(data, Mapping):
        raise ValueError("no mapping of keys such as `layers: [3]`")
    if "schema" in data:
        audit = data.get("audit")
        if not isinstance(audit, Mapping):
            raise ValueError("the record of a cell that has no pruned model")
        return _removed(audit["kept"]) if audit.get("kept") else _of_old_record(audit)
    if "shape" in data:
        if data.get("kept") is None:
            raise ValueError(OLD)
        return _removed(data["kept"])
    return Units.model_validate(data)


def _removed(data: Any) -> Units:
    """All units but those that stayed."""
    kept = KeptUnits.model_validate(data)
    layers = _others(kept.layers)
    if kept.hidden is None:
        raise ValueError("which channels of the residual stream stayed is not known")
    removed: dict[str, list[int]] = {}
    narrower: dict[str, dict[int, str]] = {}
    for kind, units in (("attention", kept.attention), ("mlp", kept.mlp)):
        for layer, text in units.items():
            if text is None:
                raise ValueError(f"which units of {layer}.{kind} stayed is not known")
            if indices_of(text)[0]:
                narrower.setdefault(kind, {})[layer] = _others(text)
            else:
                removed.setdefault(kind, []).append(layer)
    experts = {}
    for layer, text in kept.experts.items():
        if text is None:
            raise ValueError(f"which experts of layer {layer} stayed is not known")
        experts[layer] = _others(text)
    total = indices_of(kept.layers)[1]
    return Units(
        layers=layers,
        attention=index_text(sorted(removed.get("attention", [])), total),
        mlp=index_text(sorted(removed.get("mlp", [])), total),
        kv_groups=narrower.get("attention", {}),
        mlp_channels=narrower.get("mlp", {}),
        hidden=_others(kept.hidden),
        experts=experts,
        **{
            name: {layer: _others(text) for layer, text in getattr(kept, name).items()}
            for name in PORTS
        },
    )


def _others(text: str) -> str:
    """The set of all indices that are not in ``text``, which says how many there are."""
    indices, total = indices_of(text)
    if total is None:
        raise ValueError(f"'{text}' does not say of how many")
    kept = set(indices)
    return index_text([index for index in range(total) if index not in kept], total)


def _of_old_record(audit: Mapping[str, Any]) -> Units:
    """Layers and blocks of a record without `kept`; widths were not recorded then."""
    if audit.get("widths") or audit.get("hidden") != audit.get("hidden_dense"):
        raise ValueError(OLD)
    blocks = [str(block).split(".") for block in audit.get("removed_blocks", [])]
    return Units.model_validate(
        {
            "layers": audit.get("removed_layers"),
            "attention": [int(layer) for layer, kind in blocks if kind == "attention"],
            "mlp": [int(layer) for layer, kind in blocks if kind == "mlp"],
        }
    )


def _parsed(path: Path) -> Any:
    """The content of a JSON or YAML file. Raises ValueError."""
    try:
        # "-sig": editors on Windows begin a file with a byte order mark.
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"not {'JSON' if path.suffix == '.json' else 'YAML'}: {first}") from error
