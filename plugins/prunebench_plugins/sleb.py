"""SLEB: remove decoder layers one by one, each time the one that is missed least.

arXiv:2402.09025, algorithm 1. The search is in `removal_search`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prunebench import Field, Method, PrunebenchError, Reference, hookimpl
from prunebench_plugins.depth_options import DepthOptions
from prunebench_plugins.removal_search import WHOLE, Result, Search, Unit

if TYPE_CHECKING:
    from prunebench import Context


class SLEB(Method):
    """Remove the layer whose absence gives the lowest calibration loss, again and again.

    Of equal layers the lower one goes. `mode=reference` is the released search: every variant in
    full, softmax in the model's dtype, so that in half precision near-ties fall by rounding as they
    do there; the loss of every variant is on the record.
    """

    name = "sleb"
    reference = Reference(
        title="SLEB: Streamlining LLMs through Redundancy Verification and Elimination of"
        " Transformer Blocks",
        arxiv="2402.09025",
        code="https://github.com/jiwonsong-dev/SLEB",
    )
    structure: ClassVar = frozenset({"layers"})
    # 128 lines of WikiText-2, many of them empty: a few windows.
    published_calibration: ClassVar = {
        "corpus": "wikitext2",
        "sampler": "joined-rows",
        "rows": 128,
        "length": 2048,
    }
    needs_calibration = True

    class Options(DepthOptions):
        early_barrier: int = Field(1, ge=0, description="first layers that are never removed")
        latter_barrier: int = Field(1, ge=0, description="last layers that are never removed")
        mode: Literal["clean", "reference"] = Field(
            "clean", description="fast and exact, or the released search"
        )

    def prune(self, model: Any, context: Context) -> None:
        depth = len(context.kept_layers)
        count = self.options.layers(depth)
        units = self._candidates(depth, count)
        # Each step compares the candidates that are left.
        planned = sum(range(len(units) - count + 1, len(units) + 1))
        search = Search(model, context, units, lambda done: context.progress(done, planned))
        removed = [self._step(search, context) for _ in range(count)]
        gone = [result.unit.layer for result in removed]
        context.notes |= {
            "removed_in_order": [context.kept_layers[layer] for layer in gone],
            "perplexity_after_each": [search.perplexity(result) for result in removed],
            **search.cost(),
        }
        context.remove_layers(model, gone)

    def _candidates(self, depth: int, count: int) -> list[Unit]:
        """The layers between the barriers. Raises PrunebenchError if they are too few."""
        first, last = self.options.early_barrier, self.options.latter_barrier
        found = [Unit(WHOLE, layer) for layer in range(first, depth - last)]
        if count > len(found):
            raise PrunebenchError(
                f"{count} layers cannot be removed: of {depth} layers the first {first} and the"
                f" last {last} always stay",
                hint="remove fewer layers, or lower `early_barrier` and `latter_barrier`",
            )
        return found

    def _step(self, search: Search, context: Context) -> Result:
        """Remove the layer whose absence gives the lowest loss."""
        if self.options.mode == "clean":
            return search.step()
        found = search.every_as_released()
        losses = [result.loss / search.forward.targets for result in found]
        context.notes.setdefault("losses_per_step", []).append(losses)
        # `min` takes the first of equal losses, as the released loop does.
        return search.remove(min(found, key=lambda result: result.loss))


@hookimpl
def prunebench_register_method() -> type[Method]:
    return SLEB
