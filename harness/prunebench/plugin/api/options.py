"""The options of plugins: their base class, and those that many methods share. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.effect import NoEffect, check_marks, ineffective
from prunebench.plugin.api.sparsity import Sparsity
from prunebench.schema import AddedLater


class Options(BaseModel):
    """Base of a method's options: immutable, unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        check_marks(cls)

    def without_effect(self) -> dict[str, NoEffect]:
        """The options that change nothing beside the others, each with the reason.

        By default those whose `OnlyIf` does not hold. Override it for what no mark can say.
        """
        return ineffective(self)


class SparsityOptions(Options):
    """Options of a method that takes a share of the weights, or N:M."""

    sparsity: Sparsity = 0.5


class LayerwiseOptions(SparsityOptions):
    """How much a layer-wise method removes, and from which linears of which layers."""

    layers: Annotated[tuple[int | None, int | None] | None, AddedLater()] = Field(
        None,
        description="prune only the decoder layers from FIRST up to, not including, END:"
        " [FIRST, END], counted from 0, negative numbers from the end, null for no limit",
    )
    linears: Annotated[list[str] | None, AddedLater()] = Field(
        None,
        min_length=1,
        description="prune only linears with one of these texts in their name, such as q_proj,"
        " self_attn or mlp",
    )

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: tuple[int | None, int | None] | None) -> Any:
        first, end = layers or (None, None)
        if first is not None and end is not None and first >= end and (first < 0) == (end < 0):
            raise ValueError(f"[{first}, {end}] holds no layer: END is the first one after them")
        return layers

    def chosen(self, linears: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        """The linears to prune, by layer; layers without any are left out.

        ``linears`` has the names of all linears of each layer. Raises PrunebenchError if a text
        of `linears` is in no name, or if nothing is left to prune.
        """
        names = list(dict.fromkeys(name for layer in linears.values() for name in layer))
        for text in self.linears or ():
            if not any(text in name for name in names):
                raise PrunebenchError(
                    f"linears: no linear of the layers has '{text}' in its name",
                    hint=f"names in this model: {', '.join(names)}",
                )
        found = {
            layer: [
                name
                for name in linears[layer]
                if self.linears is None or any(text in name for text in self.linears)
            ]
            for layer in sorted(linears)[slice(*(self.layers or (None, None)))]
        }
        found = {layer: some for layer, some in found.items() if some}
        if linears and not found:
            raise PrunebenchError(
                f"layers: {list(self.layers or ())} chooses none of {len(linears)} decoder layers",
                hint="count from 0; END is the first layer that is not pruned",
            )
        return found
