"""LLM-Pruner: remove the KV groups and MLP channels that matter least (arXiv:2305.11627)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

import prunebench
from prunebench import (
    AddedLater,
    Field,
    Method,
    NoEffect,
    OnlyIf,
    PrunebenchError,
    Reference,
    anatomy,
    hookimpl,
)
from prunebench_plugins.llm_pruner_groups import (
    Counts,
    Pool,
    cuttable,
    emptied,
    global_counts,
    local_counts,
    members,
    note_uncut,
    parameters_removed,
    pool_of,
    ratio_for,
)
from prunebench_plugins.llm_pruner_scores import (
    Member,
    Reduction,
    Taylor,
    Wanted,
    group_scores,
    norm_vectors,
    taylor_vectors,
)
from prunebench_plugins.not_both import check_not_both

if TYPE_CHECKING:
    from prunebench import Anatomy, Block, Context


WIDTHS = ("block", "channel")
SCORED = OnlyIf(granularity=WIDTHS)
BLOCKS = OnlyIf(granularity="block")
LayerRange = tuple[int | None, int | None] | None


def several(steps: Any) -> bool:
    return isinstance(steps, int) and steps > 1


class LLMPruner(Method):
    """Remove coupled groups by first- or second-order Taylor importance; matrices get smaller.

    A group is a KV head with its query heads and their part of the output projection, or an MLP
    channel; with ``granularity: channel`` it is one channel of the residual stream. Ratios and
    counts follow the released code. Its baseline without any scores is ``granularity: layer``: the
    first ``keep_layers`` decoder layers stay, the others go. On models with grouped queries
    ``mode: clean`` scores the query heads that a KV head serves; ``mode: reference`` scores those
    that the released code takes for them, and removes the same whole groups.
    """

    name = "llm-pruner"
    reference = Reference(
        title="LLM-Pruner: On the Structural Pruning of Large Language Models",
        arxiv="2305.11627",
        code="https://github.com/horseee/LLM-Pruner",
    )
    structure: ClassVar = frozenset({"width", "layers"})
    published_calibration: ClassVar = {
        "corpus": "bookcorpus",
        "sampler": "distinct",
        "windows": 10,
        "length": 64,
    }
    needs_calibration = True
    uses_seed = True

    class Options(prunebench.Options):
        ratio: Annotated[float | None, SCORED] = Field(
            None,
            ge=0,
            lt=1,
            description="share of the KV groups and MLP channels to remove from each unprotected"
            " layer; 0.25 if neither ratio nor target_parameters is given",
        )
        target_parameters: Annotated[float | None, SCORED] = Field(
            None,
            ge=0,
            lt=1,
            description="share of the whole model's parameters to remove instead, as close as whole"
            " groups allow",
        )
        importance: Annotated[Literal["taylor", "l1", "l2", "random"], SCORED] = Field(
            "taylor", description="how a weight is scored"
        )
        taylor: Annotated[Taylor, OnlyIf(importance="taylor", granularity=WIDTHS)] = Field(
            "param_first",
            description="score for importance taylor: |sum of w g| (vectorize), sum of |w g|"
            " (param_first), of w F w (param_second), or of |w g - w F w / 2| (param_mix)",
        )
        reduction: Annotated[
            Reduction | None, OnlyIf(importance=("taylor", "l1", "l2"), granularity=WIDTHS)
        ] = Field(
            None,
            description="how the scores of a group's weights are combined; null, as released: sum"
            " for taylor, mean for l1 and l2",
        )
        protect_first: Annotated[int | None, BLOCKS] = Field(
            None,
            ge=0,
            description="first layers to leave as they are; null: 4, but at most a quarter of all",
        )
        protect_last: Annotated[int | None, BLOCKS] = Field(
            None,
            ge=0,
            description="last layers to leave as they are; null: 2, but at most an eighth of all",
        )
        attention_layers: Annotated[LayerRange, BLOCKS, AddedLater()] = Field(
            None,
            description="prune only attentions of the layers from FIRST up to, not including, END:"
            " [FIRST, END], counted from 0, negative numbers from the end, null for no limit; then"
            " protect_first and protect_last are for MLPs (block_attention_layer_start and _end of"
            " the released code)",
        )
        mlp_layers: Annotated[LayerRange, BLOCKS, AddedLater()] = Field(
            None,
            description="the same for MLPs (block_mlp_layer_start and _end)",
        )
        # Norms do not change from step to step: what is left is what one step would leave.
        iterative_steps: Annotated[
            int, OnlyIf(importance=("taylor", "random"), granularity=WIDTHS)
        ] = Field(1, ge=1, description="number of equal steps in which to score and remove")
        fresh_windows: Annotated[
            bool | None,
            AddedLater(),
            OnlyIf(granularity=WIDTHS, importance="taylor", iterative_steps=several),
        ] = Field(
            None,
            description="draw other calibration windows for each of several steps; null: true, as"
            " released",
        )
        global_pruning: Annotated[bool, SCORED] = Field(
            default=False,
            description="rank the groups of all layers together instead of block by block",
        )
        multiple_of: Annotated[int, SCORED, AddedLater()] = Field(
            1,
            ge=1,
            description="MLPs, or the residual stream, that lose channels keep a multiple of this;"
            " 256 suits --format decilm and the k-quants of GGUF",
        )
        granularity: Literal["block", "channel", "layer"] = Field(
            "block",
            description="channel: remove channels of the residual stream from all layers; none is"
            " protected. layer: remove the last layers, without any scores (layer_wise)",
        )
        keep_layers: Annotated[int, OnlyIf(granularity="layer"), AddedLater()] = Field(
            12, ge=1, description="number of first layers to keep with granularity layer"
        )
        mode: Annotated[Literal["clean", "reference"], BLOCKS] = Field(
            "clean",
            description="reference: score query heads and break ties of global_pruning as released",
        )

        @model_validator(mode="before")
        @classmethod
        def _draws_as_released(cls, data: Any) -> Any:
            # Written out, so that the ids of cells with several steps differ from those of the time
            # when all steps had the same windows.
            if isinstance(data, dict) and data.get("fresh_windows") is None:
                more = several(data.get("iterative_steps", 1))
                if more and data.get("importance", "taylor") == "taylor":
                    return {**data, "fresh_windows": True}
            return data

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            check_not_both(self, ("ratio", "target_parameters"))
            if self.granularity == "channel":
                if self.importance == "taylor" and self.taylor in {"param_second", "param_mix"}:
                    raise ValueError(
                        "`granularity: channel` has first-order scores: vectorize or param_first"
                    )
                if self.global_pruning:
                    raise ValueError("`granularity: channel` ranks all channels together already")
            return self

        def without_effect(self) -> dict[str, NoEffect]:
            found = super().without_effect()
            if self.attention_layers and self.mlp_layers:
                for name in ("protect_first", "protect_last"):
                    found.setdefault(name, NoEffect("attention_layers and mlp_layers name them"))
            return found

        def layers(self, depth: int, kind: str) -> range:
            """The layers of ``depth`` whose attentions or MLPs (``kind``) can lose groups.

            The defaults are the published recipe, scaled down for shallow models.
            """
            chosen = self.attention_layers if kind == "attention" else self.mlp_layers
            if chosen is not None:
                return range(depth)[slice(*chosen)]
            first = min(4, depth // 4) if self.protect_first is None else self.protect_first
            last = min(2, depth // 8) if self.protect_last is None else self.protect_last
            return range(first, max(first, depth - last))

        def reduce(self) -> Reduction:
            if self.reduction is not None:
                return self.reduction
            return "mean" if self.importance in {"l1", "l2"} else "sum"

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        """Weight norms and random numbers need no text."""
        return bool(options.importance == "taylor" and options.granularity != "layer")

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        return bool(options.importance == "random" and options.granularity != "layer")

    def prune(self, model: Any, context: Context) -> None:
        if self.options.granularity == "layer":
            self._keep_first_layers(model, context)
        else:
            self._remove_groups(model, context)

    def _keep_first_layers(self, model: Any, context: Context) -> None:
        depth, count = len(context.kept_layers), self.options.keep_layers
        if count > depth:
            raise PrunebenchError(
                f"{count} layers are to stay and the model has {depth}",
                hint=f"set `keep_layers` to {depth} or less",
            )
        context.remove_layers(model, range(count, depth))

    def _remove_groups(self, model: Any, context: Context) -> None:
        steps = self.options.iterative_steps
        total = sum(parameter.numel() for parameter in model.parameters())
        initial: dict[str, int] = {}
        if self.options.granularity == "block":
            # Before the first step, so that nobody waits for gradients to read it.
            parts = anatomy(model)
            note_uncut(parts, self._blocks(parts), context)
        if not self.options.global_pruning:
            # The counts do not depend on the scores: refuse impossible ones before the gradients.
            pools = self._pools(model, initial)
            self._amounts(pools, local_counts(pools), total, 1.0)
        self._check_text(context)
        for step in range(steps):
            pools = self._pools(model, initial)
            scores = self._scores(model, pools, context, step)
            counts = (
                global_counts(pools, scores, released=self.options.mode == "reference")
                if self.options.global_pruning
                else local_counts(pools)
            )
            ratio, gone = self._amounts(pools, counts, total, (step + 1) / steps)
            # The lowest scores go; a stable sort takes the lower index among equals.
            kept = {
                pool.block: sorted(score.argsort(stable=True)[count:].tolist())
                for pool, score, count in zip(pools, scores, gone, strict=True)
            }
            if None in kept:
                context.keep_hidden(model, kept[None])
            else:
                context.keep_groups(
                    model, {block: stay for block, stay in kept.items() if block is not None}
                )
        self._note(context, ratio, parameters_removed(pools, gone) / total, pools, gone)

    def _pools(self, model: Any, initial: dict[str, int]) -> list[Pool]:
        """What to rank: attentions and MLPs of unprotected layers, or the residual channels."""
        parts = anatomy(model)
        if self.options.granularity == "channel":
            return [pool_of(parts, None, initial, self.options.multiple_of)]
        found = [
            pool_of(parts, block, initial, self.options.multiple_of)
            for block in cuttable(parts, self._blocks(parts))
        ]
        if not found:
            raise PrunebenchError(
                f"all {len(parts.layers)} layers are protected",
                hint="lower `protect_first` or `protect_last`, or widen the ranges of layers",
            )
        return found

    def _blocks(self, parts: Anatomy) -> list[Block]:
        """The attentions and MLPs of unprotected layers."""
        depth = len(parts.layers)
        return [
            block for block in parts.blocks if block.layer in self.options.layers(depth, block.kind)
        ]

    def _amounts(
        self, pools: Sequence[Pool], counts: Counts, total: int, part: float
    ) -> tuple[float, list[int]]:
        """The group ratio after ``part`` of all steps, and how many groups each pool loses now."""
        target = self.options.target_parameters
        if target is None:
            ratio = part * (0.25 if self.options.ratio is None else self.options.ratio)
        else:
            # Heads and channels differ in size, so we search for the ratio that fits.
            ratio = ratio_for(part * target * total, pools, counts)
        gone = counts(ratio)
        empty = emptied(pools, gone)
        if empty is not None:
            raise PrunebenchError(
                f"{empty.name}: a ratio of {ratio:.4g} would remove all {empty.initial}",
                hint="lower `ratio`" if target is None else "lower `target_parameters`",
            )
        return ratio, gone

    def _note(
        self,
        context: Context,
        ratio: float,
        share: float,
        pools: Sequence[Pool],
        gone: Sequence[int],
    ) -> None:
        """Note what all steps removed together; ``share``: of the model's parameters."""
        removed = {
            pool.key: pool.initial - pool.present + count
            for pool, count in zip(pools, gone, strict=True)
        }
        context.notes |= {"ratio": ratio, "parameters_removed": share, "groups_removed": removed}
        wanted = self.options.target_parameters
        if wanted is not None:
            context.notes["target_parameters"] = (
                "reached from below" if share <= wanted else "reached from above"
            )
        heads = [
            pool for pool in pools if pool.block is not None and pool.block.kind == "attention"
        ]
        if heads and ratio > 0 and not any(removed[pool.key] for pool in heads):
            groups = max(pool.initial for pool in heads)
            context.notes["attention"] = (
                f"no KV group was removed: a ratio of {ratio:.4g} takes none of {groups} in a layer"
            )
            context.log.warning(context.notes["attention"])

    def _check_text(self, context: Context) -> None:
        """Draw the windows of the last step: too little text is refused before the first one."""
        if not (self.options.fresh_windows and several(self.options.iterative_steps)):
            return
        if context.draw is None:
            context.notes["windows"] = (
                "the same in every step, because they were given as token ids"
            )
            context.log.warning("calibration windows are %s", context.notes["windows"])
            return
        steps = self.options.iterative_steps
        try:
            context.fresh_windows(steps - 1)
        except PrunebenchError as error:
            raise PrunebenchError(
                f"{steps} steps with other windows in each: {error.message}",
                hint="set `fresh_windows: false`, or ask for fewer windows or steps",
            ) from error

    def _windows(self, context: Context, step: int) -> torch.Tensor:
        """The calibration windows of a step, int64 [windows, length]."""
        fresh = self.options.fresh_windows and context.draw is not None
        return context.fresh_windows(step if fresh else 0)

    def _scores(
        self, model: Any, pools: Sequence[Pool], context: Context, step: int
    ) -> list[torch.Tensor]:
        """One score per group of each pool, float64 [groups]; the lowest is removed first."""
        released = self.options.mode == "reference"
        if self.options.importance == "random":
            # The released code draws a number for each channel of a head and adds them up.
            return [
                torch.rand(
                    pool.present, pool.channels if released else 1, generator=context.generator
                )
                .double()
                .sum(1)
                for pool in pools
            ]
        parts = anatomy(model)
        coupled = [list(members(parts, pool.block)) for pool in pools]
        vectors = self.vectors(model, coupled, context, step)
        return [
            group_scores(
                [
                    part
                    for member, vector in zip(each, found, strict=True)
                    for part in member.split(vector)
                ],
                pool.present,
                pool.channels,
                reduction=self.options.reduce(),
                misaligned=released,
            )
            for pool, each, found in zip(pools, coupled, vectors, strict=True)
        ]

    def vectors(
        self, model: Any, coupled: Sequence[Sequence[Member]], context: Context, step: int
    ) -> list[list[torch.Tensor]]:
        """The importance of each row or column of the ``coupled`` weights, as these are nested."""
        if self.options.importance != "taylor":
            power = 1 if self.options.importance == "l1" else 2
            return [norm_vectors(each, power) for each in coupled]
        return self.taylor_vectors(model, coupled, context, step, self.options.taylor)

    def taylor_vectors(
        self,
        model: Any,
        coupled: Sequence[Sequence[Member]],
        context: Context,
        step: int,
        taylor: Wanted,
        decay: float | None = None,
    ) -> list[list[torch.Tensor]]:
        """`vectors` of this kind: see `llm_pruner_scores.taylor_vectors`."""
        windows = self._windows(context, step)
        total = self.options.iterative_steps * len(windows)

        def seen(done: int) -> None:
            context.progress(step * len(windows) + done, total)

        # All members are scored in one sweep over the text, then divided again.
        every = [member for each in coupled for member in each]
        found = iter(taylor_vectors(model, every, windows, taylor, seen, decay=decay))
        return [[next(found) for _ in each] for each in coupled]


@hookimpl
def prunebench_register_method() -> type[Method]:
    return LLMPruner
