"""ShortGPT: remove the decoder layers that change their input least (arXiv:2403.03853, equation 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import model_validator

import prunebench
from prunebench import Field, Method, PrunebenchError, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import Context


class ShortGPT(Method):
    """Remove the layers with the lowest Block Influence, 1 - cos(input, output) averaged over tokens, in one shot."""

    name = "shortgpt"
    reference = Reference(
        title="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        arxiv="2403.03853",
        code="https://github.com/icip-cas/ShortGPT",
    )
    structure: ClassVar = frozenset({"layers"})
    needs_calibration = True

    class Options(prunebench.Options):
        ratio: float | None = Field(
            None, ge=0, lt=1, description="share of the decoder layers to remove, nearest whole number; 0.25 if neither"
        )
        count: int | None = Field(None, ge=0, description="number of decoder layers to remove")

        @model_validator(mode="after")
        def _one_of_them(self) -> Self:
            if self.ratio is not None and self.count is not None:
                raise ValueError("give `ratio` or `count`, not both")
            return self

        def layers(self, total: int) -> int:
            """How many of ``total`` layers go."""
            if self.count is not None:
                return self.count
            return int(total * (0.25 if self.ratio is None else self.ratio) + 0.5)

    def prune(self, model: Any, context: Context) -> None:
        layers = len(context.kept_layers)
        count = self.options.layers(layers)
        influence = torch.zeros(layers, dtype=torch.float64)

        def see(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
            # float32: the norms of massive activations overflow in half precision
            similarity = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            influence[layer] += (1 - similarity).sum().item()

        context.observe_layers(model, see)
        influence /= context.windows.numel()
        if not bool(torch.isfinite(influence).all()):
            raise PrunebenchError("Block Influence is not finite: the model gives NaN on the calibration windows")
        lowest = influence.argsort(stable=True)[:count].tolist()
        context.notes["block_influence"] = influence.tolist()
        context.notes["removed_in_order"] = lowest
        context.remove_layers(model, lowest)


@hookimpl
def prunebench_register_method() -> type[Method]:
    return ShortGPT
