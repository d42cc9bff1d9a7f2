"""LLM-Streamline: remove the consecutive layers over which the states turn least (2403.19135).

What replaces them is trained by the recovery `streamline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

import prunebench
from prunebench import Field, Method, OnlyIf, PrunebenchError, Reference, anatomy, hookimpl
from prunebench_plugins.layer_spans import cosine, observe_spans

if TYPE_CHECKING:
    from prunebench import Context

REFERENCE = Reference(
    title="Streamlining Redundant Layers to Compress Large Language Models",
    arxiv="2403.19135",
    code="https://github.com/RUCKBReasoning/LLM-Streamline",
)


class LLMStreamline(Method):
    """Remove the consecutive layers whose input and output have the highest mean cosine.

    The mean is over tokens, then over windows (arXiv:2403.19135, section 3.1). To remove n layers,
    the released code compares states that are n + 1 layers apart, removes the last n of these
    layers, and trains the first to do what all of them did. So it is by default here; the recovery
    `streamline` does the training. With `keep_first: false` it compares states that are n layers
    apart, as the paper defines it, and removes all of them; `streamline` then adds a layer.

    The released code reads the output of the last layer behind the final norm, so that the last
    window is almost never chosen. `mode: reference` does this, too.
    """

    name = "llm-streamline"
    reference = REFERENCE
    structure: ClassVar = frozenset({"layers"})
    # 50 blocks of packed text. The released code draws them from SlimPajama-6B, most of which is
    # C4 and the crawl that C4 comes from.
    published_calibration: ClassVar = {
        "corpus": "c4",
        "sampler": "joined-rows",
        "windows": 50,
        "length": 2048,
    }
    needs_calibration = True

    class Options(prunebench.Options):
        layer_intervals: Annotated[int, OnlyIf(ratio=None)] = Field(
            8, ge=0, description="number of decoder layers to remove"
        )
        ratio: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the decoder layers to remove, rounded to whole layers, instead"
            " of their number",
        )
        keep_first: bool = Field(
            default=True,
            description="compare states one layer further apart, and keep the first of these"
            " layers, to be trained in the place of all of them; false: remove them all",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean",
            description="reference: as in the released code, the last window ends behind the"
            " final norm",
        )

        def layers(self, total: int) -> int:
            """How many of ``total`` layers to remove."""
            return self.layer_intervals if self.ratio is None else int(total * self.ratio + 0.5)

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        del options
        return "it removes whole layers, and streaming keeps all of them"

    def prune(self, model: Any, context: Context) -> None:
        layers = len(context.kept_layers)
        count = self.options.layers(layers)
        span = count + self.options.keep_first
        if span > layers or count == layers:
            kept = " and keeps one to train in their place" if self.options.keep_first else ""
            raise PrunebenchError(
                f"a window of {span} layers is longer than the model, which has {layers}"
                if span > layers
                else f"all {layers} layers would be removed",
                hint=f"the method removes {count} consecutive layers{kept}: lower"
                " `layer_intervals` or `ratio`",
            )
        if count == 0:
            context.notes |= {"similarity": [], "removed_layers": []}
            return
        similarity = self._similarity(span, model, context)
        # Of equal cosines the first window wins, as in the released code.
        best = int(similarity.argmax())
        removed = list(range(best + span - count, best + span))
        context.notes |= {
            "similarity": similarity.tolist(),
            "window": [context.kept_layers[best], context.kept_layers[best + span - 1]],
            "removed_layers": [context.kept_layers[layer] for layer in removed],
        }
        context.remove_layers(model, removed)

    def _similarity(self, span: int, model: Any, context: Context) -> torch.Tensor:
        """0.5 + 0.5 cos of the states before and after ``span`` layers, mean over all tokens.

        float64 [windows of layers], by the first layer. Raises PrunebenchError if one is not
        finite.
        """
        layers = len(context.kept_layers)
        totals = torch.zeros(layers - span + 1, dtype=torch.float64)
        norm = anatomy(model).final_norm if self.options.mode == "reference" else None

        def see(first: int, before: torch.Tensor, after: torch.Tensor) -> None:
            if norm is not None and first == layers - span:
                after = norm(after)
            # At least float32: the norms of massive activations overflow in half precision.
            found = cosine(before.float(), after.float())  # [windows, length]
            totals[first] += found.sum(dtype=torch.float64).item()

        observe_spans(model, context, span, see)
        similarity = 0.5 + 0.5 * totals / context.windows.numel()
        bad = (~torch.isfinite(similarity)).nonzero().flatten().tolist()
        if bad:
            raise PrunebenchError(
                f"layers {bad[0]} to {bad[0] + span - 1}: their input and output have no finite"
                " cosine on the calibration windows",
                hint="use float32 or bfloat16, or look for a damaged checkpoint",
            )
        return similarity


@hookimpl
def prunebench_register_method() -> type[Method]:
    return LLMStreamline
