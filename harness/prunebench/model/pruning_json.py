"""`pruning.json`: the shape of a pruned model, in a small file beside the weights.

A transformers config has one width for all layers, and cannot say that a layer lost its attention.
The file holds what the config cannot:

    format    1
    plain     true if config.json alone describes the model, so that any loader can read the folder
    shape     hidden: channels of the residual stream
              layers: one {kv_groups, mlp_channels} per decoder layer; 0 means removed;
                  replacement: {network, width} if a network is in the layer's place
              rotated: how wide the residual stream is at each place, if its basis changes
              indexed: how many channels of it each attention and MLP reads and writes, if not all
    biases    linears that have a bias although the config says that they have none
    kept      which layers, KV groups and channels of the model before pruning these are
    made_by   method, options and kept layers; for people, never read back

To load such a folder, build the model from the config, make it as narrow as `shape` says, and fill
in the weights. Which channels were kept does not matter then: the weights hold only those. The
method `apply` reads `kept`, to cut another copy of the same model in the same way.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Anatomy, Block, anatomy
from prunebench.model.indexed import is_indexed, narrow_indexed, sizes_of_layer
from prunebench.model.replacement import Replacement, ReplacementLayer, replace_layer
from prunebench.model.rotated import epsilon_of, is_rotated, narrow_rotated, sizes_of
from prunebench.model.surgery import remove_blocks
from prunebench.model.weight_files import PRUNING_FILE
from prunebench.model.width import hidden_size, keep_groups, keep_hidden
from prunebench.record.kept_units import KeptUnits
from prunebench.schema import Part

VARIANT = "pruned"
"""Infix of the weight files' names if ``plain`` is false.

Plain loaders then fail with missing weights instead of initialising them at random.
"""

LOAD_PRUNED = "load the model with prunebench.load_pruned"


class RotatedShape(Part):
    """Channels of a residual stream that has another basis behind every sub-block."""

    layers: list[tuple[int, int, int]] = Field(
        description="before the attention, between the sub-blocks, and behind the MLP"
    )
    epsilon: float = Field(ge=0, description="what the norms add to the mean square")


class LayerShape(Part):
    """Widths of one decoder layer; 0 if the attention or the MLP was removed."""

    kv_groups: int = Field(ge=0)
    mlp_channels: int = Field(ge=0)
    replacement: Replacement | None = Field(
        None, description="the network in this layer's place; null if it is a decoder layer"
    )


class Shape(Part):
    hidden: int = Field(gt=0, description="channels of the residual stream")
    layers: list[LayerShape]
    rotated: RotatedShape | None = Field(
        None, description="the residual stream, if each sub-block has a matrix that rotates it"
    )
    indexed: list[tuple[int, int, int, int]] | None = Field(
        None,
        description="for each layer, how many channels of the residual stream its attention reads"
        " and writes, and its MLP; null if all do all. The indices are tensors of the layers",
    )

    def has_narrower_stream_than(self, other: Self) -> bool:
        """Whether there are fewer residual channels, or blocks read and write some of them only."""
        return self.hidden < other.hidden or self.indexed != other.indexed


class PruningFile(Part):
    """What `pruning.json` holds."""

    format: Literal[1] = 1
    plain: bool = Field(
        description="whether config.json alone describes the model, so that from_pretrained works"
    )
    shape: Shape
    biases: list[str] = Field(
        default_factory=list, description="paths of the linears that got a bias by pruning"
    )
    kept: KeptUnits | None = Field(
        None,
        description="which units of the model before pruning stayed; null in older files",
    )
    made_by: dict[str, Any] = Field(
        default_factory=dict, description="method, options, kept layers; for people"
    )


def shape_of(model: Any) -> Shape:
    """The shape of a model, read off its weight matrices."""
    parts = anatomy(model)
    layers = [
        LayerShape(
            kv_groups=parts.groups(layer, "attention"),
            mlp_channels=parts.groups(layer, "mlp"),
            replacement=layer.replacement if isinstance(layer, ReplacementLayer) else None,
        )
        for layer in parts.layers
    ]
    indexed = [sizes_of_layer(layer) for layer in parts.layers if is_indexed(layer)]
    return Shape(
        hidden=hidden_size(parts),
        layers=layers,
        rotated=_rotated_shape(parts),
        indexed=indexed or None,
    )


def refuse_changed_layers(shape: Shape, cannot: str) -> None:
    """Raise PrunebenchError for layers that compute what no engine's own code does.

    ``cannot`` says who lacks it: 'the DeciLM format cannot describe'.
    """
    if shape.rotated is not None:
        raise PrunebenchError(
            f"the residual stream of this model is rotated, which {cannot}", hint=LOAD_PRUNED
        )
    if shape.indexed is not None:
        raise PrunebenchError(
            "the sub-blocks of this model have channels of the residual stream of their own, which"
            f" {cannot}",
            hint=LOAD_PRUNED,
        )
    for index, layer in enumerate(shape.layers):
        if layer.replacement is not None:
            raise PrunebenchError(
                f"a trained network is in the place of layer {index}, which {cannot}",
                hint=f"train a decoder layer (`replacement: layer`), or {LOAD_PRUNED}",
            )


def _rotated_shape(parts: Anatomy) -> RotatedShape | None:
    sizes = [sizes_of(layer) for layer in parts.layers if is_rotated(layer)]
    if not sizes:
        return None
    return RotatedShape(layers=sizes, epsilon=epsilon_of(parts.final_norm))


def apply_shape(model: Any, shape: Shape) -> None:
    """Make a model that was just built from the config as narrow as ``shape`` says, in place.

    Its weights are filled in later, so any channels may be dropped. Raises PrunebenchError if the
    shape does not fit the config.
    """
    parts = anatomy(model)
    if len(parts.layers) != len(shape.layers):
        raise PrunebenchError(
            f"{PRUNING_FILE} describes {len(shape.layers)} layers, config.json {len(parts.layers)}",
            hint="take both files from the same folder",
        )
    if shape.rotated is None:
        keep_hidden(model, range(shape.hidden))
    else:
        narrow_rotated(model, shape.rotated.layers, shape.rotated.epsilon)
    if shape.indexed is not None:
        narrow_indexed(model, shape.indexed)
    widths: dict[Block, int] = {}
    for index, layer in enumerate(shape.layers):
        if layer.replacement is not None:
            replace_layer(parts, index, layer.replacement)
            continue
        widths[Block(index, "attention")] = layer.kv_groups
        widths[Block(index, "mlp")] = layer.mlp_channels
    present = parts.blocks  # some layers never had an attention or an MLP
    remove_blocks(model, [block for block in present if widths[block] == 0])
    keep_groups(model, {block: range(width) for block, width in widths.items() if width})


def is_plain(model: Any) -> bool:
    """Whether a model built from the config alone has tensors of the same names and shapes."""
    try:
        built = _built(model)
    except Exception:  # some families refuse a number of heads that does not divide the width
        return False
    tensors = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if tensors != {name: tensor.shape for name, tensor in built.state_dict().items()}:
        return False
    # Equal matrices may still be cut into heads of another size.
    parts = anatomy(model)
    paths = [
        f"{parts.layers_path}.{index}.{block.modules[-1]}"
        for index, layer in enumerate(parts.layers)
        if parts.has(layer, "attention")
        and (block := parts.sub_block(layer, "attention")) is not None
    ]
    return all(
        _numbers(model.get_submodule(path)) == _numbers(built.get_submodule(path)) for path in paths
    )


def _numbers(attention: torch.nn.Module) -> dict[str, Any]:
    """The numbers by which an attention cuts its matrices into heads."""
    return {
        name: value
        for name, value in vars(attention).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "hidden" not in name
    }


def added_biases(model: Any) -> list[str]:
    """Paths of the modules that have a bias, and have none in a model built from the config."""
    try:
        built = _built(model)
    except Exception:  # as in `is_plain`
        return []
    names = {name for name, _ in built.named_parameters(remove_duplicate=False)}
    ours = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found = [name.removesuffix(".bias") for name in ours if name.endswith(".bias")]
    # Modules that are not there at all are those of a network in a layer's place.
    return [path for path in found if f"{path}.bias" not in names and f"{path}.weight" in names]


def _built(model: Any) -> Any:
    """A model of the same config, on the meta device."""
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        return type(model)(config)


def write_pruning_file(folder: Path, pruning: PruningFile) -> None:
    (folder / PRUNING_FILE).write_text(
        json.dumps(pruning.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8"
    )


def read_pruning_file(folder: Path) -> PruningFile | None:
    """The folder's pruning file, or None. Raises PrunebenchError if it cannot be read."""
    path = folder / PRUNING_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return PruningFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise PrunebenchError(
            f"{path}: {key}: {first['msg']}",
            hint="save the model again with this version of prunebench",
        ) from error
