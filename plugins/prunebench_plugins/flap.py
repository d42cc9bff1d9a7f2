"""FLAP: remove channels whose inputs fluctuate least, and add their mean as a bias (2312.11983)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

import prunebench
from prunebench import (
    AddedLater,
    Block,
    Field,
    Method,
    OnlyIf,
    PrunebenchError,
    Reference,
    anatomy,
    hookimpl,
)
from prunebench_plugins.flap_choice import Amount, Gone, Structure, chosen, released
from prunebench_plugins.flap_inputs import observe, reader_of, removed_mean
from prunebench_plugins.flap_scores import Metric, group_scores
from prunebench_plugins.llm_pruner_groups import Pool, cuttable, note_uncut, pool_of
from prunebench_plugins.not_both import check_not_both

if TYPE_CHECKING:
    from prunebench import Anatomy, Context

MANUAL = ("AL-MM", "UL-MM")


class FLAP(Method):
    """Remove the KV groups and MLP channels that a constant replaces best; matrices get smaller.

    A channel of the output projection's or down projection's input matters as much as it
    fluctuates: the variance of the input times the squared norm of the weight's column (WIFV). The
    metric of attentions is squared once more. What removed channels add on average becomes a bias
    of the same linear.

    With `structure: AL-AM` the metric is standardised by the mean and deviation of each attention
    and MLP, a KV group has the mean of its channels, and all groups and channels compete by their
    score until `ratio` of the parameters are gone; a group counts as many parameters as it has.
    `AL-MM` removes `remove_heads` KV groups from the whole model and the rest from MLPs, `UL-MM`
    does the same in every layer, and `UL-UM` removes the same share from every attention and MLP.
    Of each at least one group stays.

    `mode=reference` repeats the released code: its variance, in which the mean before a window is
    that after it; heads of 128 channels that count 170 MLP channels; thresholds that remove the
    group at them too. It refuses models with other heads or with grouped queries, as that code
    fails on them.
    """

    name = "flap"
    reference = Reference(
        title="Fluctuation-based Adaptive Structured Pruning for Large Language Models",
        arxiv="2312.11983",
        code="https://github.com/CASIA-IVA-Lab/FLAP",
    )
    structure: ClassVar = frozenset({"width"})
    needs_calibration = True
    published_calibration: ClassVar = {
        "corpus": "wikitext2",
        "sampler": "space-joined-random",
        "windows": 1024,
        "length": 128,
    }

    class Options(prunebench.Options):
        ratio: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the parameters of attentions and MLPs to remove; 0.2 if neither"
            " ratio nor target_parameters is given",
        )
        target_parameters: float | None = Field(
            None, ge=0, lt=1, description="share of the whole model's parameters to remove instead"
        )
        metrics: Metric = Field(
            "WIFV",
            description="fluctuation of the input times weight (WIFV) or alone (IFV), or Wanda's"
            " score (WIFN)",
        )
        structure: Structure = Field(
            "AL-AM",
            description="what competes: all (AL-AM); attentions, and MLPs (AL-MM); the groups of"
            " each block (UL-MM, UL-UM)",
        )
        remove_heads: Annotated[int, OnlyIf(structure=MANUAL)] = Field(
            8, ge=0, description="KV groups (heads, without grouped queries) to remove in the model"
        )
        bias: bool = Field(
            default=True, description="add what the removed channels add on average as a bias"
        )
        multiple_of: Annotated[int, OnlyIf(mode="clean"), AddedLater()] = Field(
            1,
            ge=1,
            description="MLPs that lose channels keep a multiple of this; 256 suits --format decilm"
            " and the k-quants of GGUF",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="exact variance, sizes and counts, or those of the released code"
        )

        @model_validator(mode="after")
        def _one_amount(self) -> Self:
            check_not_both(self, ("ratio", "target_parameters"))
            return self

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``ratio``, ``parameters_removed``, ``groups_removed`` and ``biases``.

        The first is of attentions and MLPs, the second of the whole model. The last is the norm of
        what was added to the bias of each linear. ``uncut`` says which attentions and MLPs cannot
        lose groups, if there are any.
        """
        parts = anatomy(model)
        note_uncut(parts, parts.blocks, context)
        multiple = self.options.multiple_of
        pools = [pool_of(parts, block, {}, multiple) for block in cuttable(parts, parts.blocks)]
        total = sum(parameter.numel() for parameter in model.parameters())
        ratio = self._ratio(pools, total)
        metrics, means = observe(
            parts,
            pools,
            context,
            self.options.metrics,
            released=self.options.mode == "reference",
        )
        standardised = self.options.structure.startswith("AL")
        scores = [
            group_scores(metric, pool.present, standardised=standardised)
            for pool, metric in zip(pools, metrics, strict=True)
        ]
        amount = Amount(self.options.structure, ratio, self.options.remove_heads)
        gone = (
            released(pools, scores, amount, parts.embeddings.weight.shape[1])
            if self.options.mode == "reference"
            else chosen(pools, scores, amount)
        )
        kept = _kept(pools, gone)
        if self.options.bias:
            biases = self._biases(parts, pools, gone, means)
            context.add_biases(model, biases)
            context.notes["biases"] = {path: float(bias.norm()) for path, bias in biases.items()}
        context.keep_groups(model, kept)
        removed = [int(some.sum()) for some in gone]
        share = sum(p.cost * count for p, count in zip(pools, removed, strict=True)) / total
        context.notes |= {
            "ratio": ratio,
            "parameters_removed": share,
            "groups_removed": {p.key: count for p, count in zip(pools, removed, strict=True)},
        }

    def _ratio(self, pools: Sequence[Pool], total: int) -> float:
        """The share of the pools' parameters to remove."""
        target = self.options.target_parameters
        if target is None:
            return 0.2 if self.options.ratio is None else float(self.options.ratio)
        removable = sum(pool.cost * pool.present for pool in pools)
        if target * total >= removable:
            raise PrunebenchError(
                f"attentions and MLPs have {removable:,} of {total:,} parameters, fewer than the"
                f" {target:.0%} to remove",
                hint="lower `target_parameters`",
            )
        return float(target * total / removable)

    def _biases(
        self, parts: Anatomy, pools: Sequence[Pool], gone: Gone, means: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the channels to remove add on average to the linear that reads them, [out]."""
        found = {}
        for pool, some, mean in zip(pools, gone, means, strict=True):
            if pool.block is None or not bool(some.any()):
                continue
            name = reader_of(parts, pool.block)
            linear = parts.linears(parts.layers[pool.block.layer])[name]
            path = f"{parts.layers_path}.{pool.block.layer}.{name}"
            found[path] = removed_mean(linear, mean, some)
        return found


def _kept(pools: Sequence[Pool], gone: Gone) -> dict[Block, list[int]]:
    """The groups that stay, of the blocks that lose some. Raises PrunebenchError if none would."""
    found = {}
    for pool, some in zip(pools, gone, strict=True):
        if bool(some.all()):
            raise PrunebenchError(
                f"{pool.name}: all {pool.present} would be removed",
                hint="lower the amount to remove, or leave out `mode: reference`",
            )
        if bool(some.any()) and pool.block is not None:
            found[pool.block] = (~some).nonzero().flatten().tolist()
    return found


@hookimpl
def prunebench_register_method() -> type[Method]:
    return FLAP
