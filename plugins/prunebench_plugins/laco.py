"""LaCo: merge neighbouring decoder layers into one while the model's output stays similar.

arXiv:2402.11187, equation 1 and algorithm 1. The search is in `laco_merges`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import prunebench
from prunebench import Field, Method, OnlyIf, PrunebenchError, Reference, hookimpl
from prunebench_plugins.laco_merges import Merger, Space, Trial, Walk, bisected

if TYPE_CHECKING:
    from prunebench import Context


class LaCo(Method):
    """Merge C layers into one, from the top down, if the last hidden states keep their direction.

    A merge is kept if the cosine between the last hidden states of the merged and the dense model,
    after the final norm and as a mean over the calibration windows, is above ``threshold``. The
    sentences of the paper are the calibration windows; a handful of short ones is enough.

    With ``merge=paper`` layer l becomes theta_l + sum over k of (theta_{l+k} - theta_l). The
    released notebooks subtract the sum so far instead of theta_l, so that layer l gets the weights
    of the last layer; that is ``merge=code``, done exactly instead of by differences that round.
    Both merge the weights of linears, as the notebooks do. Norms and biases are those of layer l.
    """

    name = "laco"
    reference = Reference(
        title="LaCo: Large Language Model Pruning via Layer Collapse",
        arxiv="2402.11187",
        code="https://github.com/yangyifei729/LaCo",
    )
    structure: ClassVar = frozenset({"layers"})
    updates_kept_weights = True
    # The notebooks have five beginnings of Wikipedia articles, which are about as long.
    published_calibration: ClassVar = {"corpus": "wikitext2", "windows": 5, "length": 16}
    needs_calibration = True

    class Options(prunebench.Options):
        merge: Literal["code", "paper"] = Field(
            "code", description="as in the released notebooks, or as in the paper"
        )
        C: int = Field(7, ge=1, description="layers that a merge makes one (MERGE_LAYERS)")
        interval: int = Field(
            1, ge=1, description="layers to go down after a merge that was kept (INTERVAL)"
        )
        range: tuple[int | None, int | None] | None = Field(
            None,
            description="[LOWEST, HIGHEST]: the lowest layer that others are merged into, and the"
            " layer that the search begins C layers below; null for the first and the last one",
        )
        threshold: Annotated[float, OnlyIf(target=None)] = Field(
            0.45, description="cosine that a merge must exceed to be kept (THRESHOLD)"
        )
        target: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the decoder layers to remove instead, as closely as a threshold"
            " can; it is found by bisection",
        )

    def prune(self, model: Any, context: Context) -> None:
        depth = len(context.kept_layers)
        space = self._space(depth)
        wanted = None if self.options.target is None else int(depth * self.options.target + 0.5)
        if space.layers == 1 or wanted == 0:
            return  # a merge of one layer is nothing, and no threshold is needed for none
        # One search tries each layer at most once; how many searches a target takes nobody knows.
        once = space.highest - space.layers - space.lowest + 1
        merger = Merger(
            model, context, self.options.merge, lambda done: context.progress(done, max(done, once))
        )
        if wanted is None:
            found = merger.walk(self.options.threshold, space)
            self._check(found)
        else:
            found = bisected(lambda threshold: merger.walk(threshold, space), wanted)
        # A merged layer takes the place of its lowest one; those above it are gone.
        left = {layer.origin for layer in found.layers}
        removed = [layer for layer in range(depth) if layer not in left]
        context.notes |= {
            "threshold": found.threshold,
            "removed_in_order": [context.kept_layers[layer] for layer in removed],
            "merges": [[trial.lay, trial.number] for trial in found.accepted],
            "cosine": found.accepted[-1].cosine if found.accepted else 1.0,
            "trials": [_noted(trial) for trial in found.trials],
            "naive_evaluations": 2 * merger.trials,
            "decoder_evaluations": round(merger.forward.decoder_passes, 3),
        }
        merger.commit(found.layers)
        context.remove_layers(model, removed)

    def _space(self, depth: int) -> Space:
        """The merges to try. Raises PrunebenchError if there are none."""
        size = self.options.C
        lowest, highest = self.options.range or (None, None)
        lowest = 0 if lowest is None else lowest
        highest = depth - 1 if highest is None else highest
        if not 0 <= lowest <= highest < depth:
            raise PrunebenchError(
                f"range: [{lowest}, {highest}] is not inside the model: it has layers 0 to"
                f" {depth - 1}",
                hint="count from 0, and write the lower layer first",
            )
        if size > highest - lowest:
            raise PrunebenchError(
                f"merges of C = {size} layers do not fit: the search begins {size} layers below"
                f" layer {highest}, and layer {lowest} is the lowest",
                hint=f"set `C` to {highest - lowest} or less",
            )
        return Space(size, self.options.interval, lowest, highest)

    def _check(self, found: Walk) -> None:
        """Raise PrunebenchError if no merge was kept."""
        if found.accepted:
            return
        best = max(
            (trial for trial in found.trials if not math.isnan(trial.cosine)),
            key=lambda trial: trial.cosine,
            default=None,
        )
        if best is None:
            raise PrunebenchError(
                "no merged model gives finite hidden states",
                hint="use float32 or bfloat16, or set `merge: code`",
            )
        raise PrunebenchError(
            f"no merge has a cosine above the threshold {found.threshold:g}: the highest is"
            f" {best.cosine:.4f}, of {best.number + 1} layers from layer {best.lay}",
            hint="lower `threshold`, or set `target` to the share of layers to remove",
        )


def _noted(trial: Trial) -> dict[str, Any]:
    """For the record; JSON has no NaN."""
    cosine = None if math.isnan(trial.cosine) else trial.cosine
    return {**trial._asdict(), "cosine": cosine}


@hookimpl
def prunebench_register_method() -> type[Method]:
    return LaCo
