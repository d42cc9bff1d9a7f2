"""ShortGPT: remove the decoder layers that change their input least (arXiv:2403.03853, equation 1).

With `metric: angular` it removes the run of consecutive layers over which the hidden states turn
least (arXiv:2403.17887, equation 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from prunebench import Field, Method, PrunebenchError, Reference, hookimpl
from prunebench_plugins.depth_options import DepthOptions, share_of_layers
from prunebench_plugins.layer_spans import cosine, observe_spans

if TYPE_CHECKING:
    from prunebench import Context


class ShortGPT(Method):
    """Remove the layers with the lowest Block Influence, in one shot.

    Block Influence is 1 - cos(input, output), averaged over tokens. `metric=angular` removes
    `count` consecutive layers instead: those with the smallest arccos(cos) / pi between the first
    one's input and the last one's output at the last token of each window, averaged over windows.
    """

    name = "shortgpt"
    reference = Reference(
        title="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        arxiv="2403.03853",
        code="https://github.com/icip-cas/ShortGPT",
    )
    structure: ClassVar = frozenset({"layers"})
    # The released code reads all windows of this split; these are the first of them.
    published_calibration: ClassVar = {
        "corpus": "pg19",
        "sampler": "consecutive",
        "windows": 512,
        "length": 256,
    }
    needs_calibration = True

    class Options(DepthOptions):
        usual_ratio: ClassVar[float] = 0.25
        ratio: float | None = share_of_layers(0.25)
        metric: Literal["cosine", "angular"] = Field(
            "cosine",
            description="single layers by Block Influence, or consecutive ones by angular distance",
        )
        tokens: Literal["all", "last"] | None = Field(
            None,
            description="tokens of each window that count; null: all for cosine, last for angular",
        )

        def last_token_only(self) -> bool:
            return (self.tokens or ("all" if self.metric == "cosine" else "last")) == "last"

    def prune(self, model: Any, context: Context) -> None:
        layers = len(context.kept_layers)
        count = self.options.layers(layers)
        if self.options.metric == "cosine":
            influence = self._mean(1, model, context)
            removed = influence.argsort(stable=True)[:count].tolist()
            context.notes["block_influence"] = influence.tolist()
        else:
            span = max(1, count)
            distance = self._mean(span, model, context)[: layers - span + 1]
            first = int(distance.argmin())
            removed = list(range(first, first + count))
            context.notes["angular_distance"] = distance.tolist()
        context.notes["removed_in_order"] = removed
        context.remove_layers(model, removed)

    def _mean(self, span: int, model: Any, context: Context) -> torch.Tensor:
        """How far the output of ``span`` consecutive layers is from their input.

        float64 [layers], by the first layer of the run. Raises PrunebenchError if it is not finite.
        """
        layers = len(context.kept_layers)
        last, angular = self.options.last_token_only(), self.options.metric == "angular"
        # At least float32: the norms of massive activations overflow in half precision. Angles
        # between nearly parallel states need more: arccos turns an error of 1e-7 into one of 1e-4.
        dtype = torch.float64 if angular else torch.float32
        totals = torch.zeros(layers, dtype=torch.float64)

        def see(first: int, before: torch.Tensor, after: torch.Tensor) -> None:
            found = cosine(before.to(dtype), after.to(dtype))
            totals[first] += (found.arccos() / torch.pi if angular else 1 - found).sum().item()

        observe_spans(model, context, span, see, last_token=last)
        bad = (~torch.isfinite(totals)).nonzero().flatten().tolist()
        if bad:
            raise PrunebenchError(
                f"layer {bad[0]}: input and output have no finite cosine on the calibration"
                " windows",
                hint="use float32 or bfloat16, or look for a damaged checkpoint",
            )
        return totals / (len(context.windows) if last else context.windows.numel())


@hookimpl
def prunebench_register_method() -> type[Method]:
    return ShortGPT
