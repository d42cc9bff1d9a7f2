"""Minitron: make a model narrower and shallower by activations, the same in every layer.

S. Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation"
(arXiv:2407.14679), section 2.2; the sums over norms are those of the released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import model_validator

import prunebench
from prunebench import Block, Field, Method, PrunebenchError, Reference, anatomy, hookimpl

if TYPE_CHECKING:
    import torch

    from prunebench import Anatomy, Context
    from prunebench_plugins.minitron_importance import Importance
    from prunebench_plugins.minitron_widths import Widths


Kept = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None
"""A number to keep, or a share of what there is."""


class Minitron(Method):
    """Keep the channels, KV groups and layers with the largest activations; all layers alike.

    One forward pass scores everything. With m_j(b) the mean of |x_j| over the tokens of window b,
    a channel's score is sqrt(sum over b of m_j(b)^2). x is what the down projection reads for MLP
    channels and what the output projection reads for heads, whose scores are summed over a KV
    group; for channels of the residual stream it is the output of every norm, and the scores of
    all norms are summed. A layer's score is 1 - cos(input, output), averaged over tokens.

    Every width is a number to keep, or a share of what there is; widths that are not named stay.
    With `ratio` alone, residual and MLP channels shrink by one factor until that share of the
    parameters is gone. All layers keep the same widths, so the result is a plain config that any
    engine loads. `distill` is the recovery that belongs to it.
    """

    name = "minitron"
    reference = Reference(
        title="Compact Language Models via Pruning and Knowledge Distillation",
        arxiv="2407.14679",
        code="https://github.com/NVIDIA/Model-Optimizer",
    )
    structure: ClassVar = frozenset({"width", "layers"})
    needs_calibration = True

    class Options(prunebench.Options):
        ratio: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the model's parameters to remove by narrower residual stream and"
            " MLPs; 0.2 if nothing else is given",
        )
        hidden_size: Kept = Field(None, description="residual channels to keep")
        intermediate_size: Kept = Field(None, description="MLP channels to keep in every layer")
        num_key_value_heads: Kept = Field(
            None, description="KV groups to keep in every layer, with their query heads"
        )
        num_hidden_layers: Kept = Field(None, description="decoder layers to keep")
        multiple_of: int = Field(
            64,
            ge=1,
            description="widths of the residual stream and of MLPs are rounded to a multiple",
        )

        @model_validator(mode="after")
        def _one_way(self) -> Self:
            named = [name for name in _WIDTHS if getattr(self, name) is not None]
            if self.ratio is not None and named:
                raise ValueError(f"give `ratio` or `{named[0]}`, not both")
            return self

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``widths`` before and after, and the ``layers_removed``, lowest score first."""
        # Here, because they import torch.
        from prunebench_plugins.minitron_importance import observe
        from prunebench_plugins.minitron_widths import Widths

        parts = anatomy(model)
        before = Widths.of(parts)
        after = self._widths(parts, before)
        gone: list[int] = []
        if after != before:
            found = observe(parts, context)
            gone = found.layers.argsort(stable=True)[: before.layers - after.layers].tolist()
            _cut(model, found, before, after, context)
            if gone:  # last: until here, indices of layers count in the dense model
                context.remove_layers(model, gone)
        context.notes["widths"] = {"before": before._asdict(), "after": after._asdict()}
        context.notes["layers_removed"] = gone

    def _widths(self, parts: Anatomy, before: Widths) -> Widths:
        """What to keep. Raises PrunebenchError if the model has less."""
        from prunebench_plugins.minitron_widths import shrunk

        options = self.options
        given = {field: getattr(options, name) for name, field in _WIDTHS.items()}
        if all(value is None for value in given.values()):
            ratio = 0.2 if options.ratio is None else options.ratio
            return shrunk(parts, before, ratio, options.multiple_of)
        wanted = {}
        for name, field in _WIDTHS.items():
            there: int = getattr(before, field)
            rounding = options.multiple_of if field in {"hidden", "channels"} else 1
            wanted[field] = _wanted(given[field], there, rounding, name)
        return type(before)(**wanted)


_WIDTHS = {
    "hidden_size": "hidden",
    "intermediate_size": "channels",
    "num_key_value_heads": "groups",
    "num_hidden_layers": "layers",
}
"""Fields of `Widths` by the option that names them."""


def _wanted(given: float | None, there: int, rounding: int, name: str) -> int:
    """How many of ``there`` units to keep."""
    if given is None:
        return there
    if isinstance(given, int):
        if given > there:
            raise PrunebenchError(
                f"`{name}: {given}` is more than the model has: {there}",
                hint="give what is to be kept, or a share of it",
            )
        if given % rounding and given != there:
            raise PrunebenchError(
                f"`{name}: {given}` is no multiple of {rounding}",
                hint="choose a multiple, or set `multiple_of`",
            )
        return given
    return min(there, max(1, round(given * there / rounding)) * rounding)


def _cut(model: Any, found: Importance, before: Widths, after: Widths, context: Context) -> None:
    """Keep the channels and groups that score highest."""
    kept: dict[Block, list[int]] = {}
    for index in range(before.layers):
        if after.groups < before.groups:
            kept[Block(index, "attention")] = _highest(found.groups[index], after.groups)
        if after.channels < before.channels:
            kept[Block(index, "mlp")] = _highest(found.channels[index], after.channels)
    if kept:
        context.keep_groups(model, kept)
    if after.hidden < before.hidden:
        context.keep_hidden(model, _highest(found.hidden, after.hidden))


def _highest(scores: torch.Tensor, count: int) -> list[int]:
    """The indices of the ``count`` highest scores, ascending; of equal ones the earlier."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return sorted(order.tolist())


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Minitron
