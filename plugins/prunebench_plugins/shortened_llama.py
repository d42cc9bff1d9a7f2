"""Shortened LLaMA: rank the decoder layers once and remove the least important (arXiv:2402.02834).

The perplexities come from `removal_search`, the other scores from `depth_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

from prunebench import (
    AddedLater,
    Field,
    Method,
    OnlyIf,
    PrunebenchError,
    Reference,
    anatomy,
    hookimpl,
)
from prunebench_plugins.depth_options import DepthOptions
from prunebench_plugins.depth_scores import magnitudes, saliences
from prunebench_plugins.removal_ranking import lowest
from prunebench_plugins.removal_search import WHOLE, Search, Unit

if TYPE_CHECKING:
    from prunebench import Context

Reduction = Literal["sum", "mean", "max", "prod"]

PROTECTED_FIRST, PROTECTED_LAST = 4, 2
"""Layers that the heuristic "+" of the released code never removes."""
WEIGHTS = OnlyIf(criterion=("taylor", "magnitude"))


class ShortenedLLaMA(Method):
    """Remove the lowest layers of one ranking: by perplexity, gradients or weights.

    ``ppl`` is the calibration perplexity of the model without the layer. ``taylor`` adds up
    |w * dL/dw|, and ``magnitude`` |w|, over all weights of a layer without biases (section 3.1 of
    the paper). The whole order is on the record; layers that ``plus_heuristic`` protects are in it
    and stay in the model. Of equal layers the lower one goes first.

    For ``ppl`` the perplexities of the layers that go are exact, and so is the choice. Those of
    layers that stay may be lower bounds, which cost less (see `removal_ranking`); ``lower_bounds``
    on the record names these layers, whose places in the order are therefore not certain.
    ``whole_order`` computes all of them.

    ``mode=reference`` repeats what the released code does to the loss and to products: it rounds
    the mean loss to the model's dtype, and multiplies in float32, where products of many scores
    become 0 or infinite. By default losses are float32, and products are compared by their
    logarithms.
    """

    name = "shortened-llama"
    reference = Reference(
        title="Shortened LLaMA: Depth Pruning for Large Language Models with Comparison of"
        " Retraining Methods",
        arxiv="2402.02834",
        code="https://github.com/Nota-NetsPresso/shortened-llm",
    )
    structure: ClassVar = frozenset({"layers"})
    published_calibration: ClassVar = {
        "corpus": "bookcorpus",
        "sampler": "distinct",
        "windows": 10,
        "length": 128,
    }
    needs_calibration = True

    class Options(DepthOptions):
        criterion: Literal["ppl", "taylor", "magnitude"] = Field(
            "ppl", description="what a layer is ranked by"
        )
        plus_heuristic: bool = Field(
            default=True,
            description="never remove the first four and the last two layers (Taylor+, Mag+)",
        )
        norm_power: Annotated[int, WEIGHTS] = Field(
            1, ge=1, le=2, description="power of |w * dL/dw| or |w| before they are added up"
        )
        weight_reduction: Annotated[Reduction, WEIGHTS] = Field(
            "sum", description="how the sums of a matrix's rows become the score of the matrix"
        )
        block_reduction: Annotated[Reduction, WEIGHTS] = Field(
            "sum", description="how the scores of a layer's matrices and norms become its score"
        )
        batch_size: Annotated[int, OnlyIf(criterion="taylor")] = Field(
            10,
            ge=1,
            description="windows whose mean loss gives one gradient; gradients are added up with"
            " their signs, so windows in a smaller last batch count more",
        )
        mode: Annotated[
            Literal["clean", "reference"],
            OnlyIf(criterion="ppl"),
            OnlyIf(criterion=("taylor", "magnitude"), weight_reduction="prod"),
            OnlyIf(criterion=("taylor", "magnitude"), block_reduction="prod"),
        ] = Field("clean", description="reference: round losses and products as released")
        whole_order: Annotated[bool, AddedLater(), OnlyIf(criterion="ppl", mode="clean")] = Field(
            default=False,
            description="exact perplexities of all layers; by default of those that go, and lower"
            " bounds of others",
        )

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        """Weights alone need no text."""
        return bool(options.criterion != "magnitude")

    def prune(self, model: Any, context: Context) -> None:
        depth = len(context.kept_layers)
        count = self.options.layers(depth)
        protected = self._protected(depth, count)
        scores = (
            self._perplexities(model, context, count, protected)
            if self.options.criterion == "ppl"
            else self._sums(model, context)
        )
        order = sorted(range(depth), key=scores.__getitem__)  # stable: the lower of equal layers
        removed = [layer for layer in order if layer not in protected][:count]
        context.notes |= {
            # JSON has no infinity: the logarithm of a product of 0, or a product in float32.
            "score": [score if math.isfinite(score) else None for score in scores],
            "order": [context.kept_layers[layer] for layer in order],
            "removed_in_order": [context.kept_layers[layer] for layer in removed],
        }
        context.remove_layers(model, removed)

    def _protected(self, depth: int, count: int) -> set[int]:
        """The layers that stay. Raises PrunebenchError if ``count`` others do not exist."""
        if not self.options.plus_heuristic:
            return set()
        found = {*range(PROTECTED_FIRST), *range(depth - PROTECTED_LAST, depth)}
        free = depth - len(found & set(range(depth)))
        if count > free:
            raise PrunebenchError(
                f"{count} layers cannot be removed: of {depth} layers the first {PROTECTED_FIRST}"
                f" and the last {PROTECTED_LAST} are protected",
                hint=f"remove {free} layers or less, or set `plus_heuristic: false`",
            )
        return found

    def _perplexities(
        self, model: Any, context: Context, count: int, protected: set[int]
    ) -> list[float]:
        """The perplexity without each layer; for layers that stay, it may be a lower bound."""
        depth = len(context.kept_layers)
        units = [Unit(WHOLE, layer) for layer in range(depth)]
        search = Search(model, context, units, lambda done: context.progress(done, depth))
        if self.options.mode == "reference":
            # The released code averages in the logits' dtype: in half precision many are equal.
            found = search.every_as_released()
            means = torch.tensor([result.loss / search.forward.targets for result in found])
            context.notes |= search.cost()
            return means.to(anatomy(model).head.weight.dtype).double().exp().tolist()
        among = [unit for unit in units if unit.layer not in protected]
        ranking = (
            lowest(search, depth, units)
            if self.options.whole_order
            else lowest(search, count, among)
        )
        bounded = sorted(unit.layer for unit in ranking.bounded)
        context.notes |= search.cost()
        context.notes["lower_bounds"] = [context.kept_layers[layer] for layer in bounded]
        return [search.perplexity(result) for result in ranking.results]

    def _sums(self, model: Any, context: Context) -> list[float]:
        """The score of each layer's weights."""
        options = self.options
        vectors = (
            magnitudes(model, options.norm_power)
            if options.criterion == "magnitude"
            else saliences(model, context, options.norm_power, options.batch_size)
        )
        found = [self._score(of_layer) for of_layer in vectors]
        for layer, score in enumerate(found):
            if math.isnan(score):  # infinity times 0
                raise PrunebenchError(
                    f"layer {layer}: the product of its scores is no number",
                    hint="set `mode: clean`, which compares logarithms",
                )
        return found

    def _score(self, vectors: Sequence[torch.Tensor]) -> float:
        """One layer's score from the sums over the rows of its weights, float32 [rows] each.

        If it is a product, its logarithm, which has the same order.
        """
        of_rows, of_weights = self.options.weight_reduction, self.options.block_reduction
        if "prod" in (of_rows, of_weights) and self.options.mode == "reference":
            # In float32, as there: many factors become 0 or infinite.
            numbers = [getattr(torch, of_rows)(vector.cpu()) for vector in vectors]
            return float(getattr(torch, of_weights)(torch.stack(numbers)))
        logarithms = "prod" in (of_rows, of_weights)
        rows = [vector.to("cpu", torch.float64) for vector in vectors]  # [rows] of each weight
        if logarithms:
            rows = [vector.log() for vector in rows]
        reduced = [_reduce(vector, of_rows, logarithms=logarithms) for vector in rows]
        return float(_reduce(torch.stack(reduced), of_weights, logarithms=logarithms))


def _reduce(values: torch.Tensor, how: Reduction, *, logarithms: bool) -> torch.Tensor:
    """Sum, mean, maximum or product of values [n]; both may be given and returned as logarithms."""
    if how == "max":
        return values.max()
    if not logarithms:
        return values.sum() if how == "sum" else values.mean()
    if how == "prod":
        return values.sum()
    total = values.logsumexp(0)
    return total if how == "sum" else total - math.log(len(values))


@hookimpl
def prunebench_register_method() -> type[Method]:
    return ShortenedLLaMA
