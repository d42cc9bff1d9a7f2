"""DSnoT: refine the mask of another method without training (arXiv:2310.08915)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import BeforeValidator, ValidationError, model_validator

from prunebench import (
    Field,
    LayerwiseMethod,
    LayerwiseOptions,
    LinearMethod,
    Method,
    OnlyIf,
    PrunebenchError,
    Reference,
    anatomy,
    hookimpl,
    is_share,
    lowest,
    pattern_of,
    registered_method,
    set_to_zero,
)
from prunebench_plugins.c4_text import C4
from prunebench_plugins.dsnot_refine import Exchange, Limits, SequenceMoments, exchange

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

OURS = ("sparsity", "layers", "linears")
"""Options of DSnoT that the initial method has as well, and gets from it."""


def _named(value: Any) -> Any:
    """A method as suites write it: its name, or its name and options, without those at defaults."""
    name: Any = value
    options: Any = {}
    if isinstance(value, Mapping) and len(value) == 1:
        [(name, options)] = value.items()
    if not isinstance(name, str) or not isinstance(options or {}, Mapping):
        raise ValueError("write a method's name, or {wanda: {use_variant: true}}")
    method = registered_method(name)
    if not issubclass(method, LayerwiseMethod) or method.name == DSnoT.name:
        raise ValueError(f"'{name}' does not prune the weights of linears layer by layer")
    for wrong in set(options or {}) & set(OURS):
        raise ValueError(f"give `{wrong}` beside initial_method, which gets it from there")
    read = method.Options.model_validate(dict(options or {}))
    given = read.model_dump(mode="json", exclude_defaults=True)
    return {name: given} if given else name


class DSnoT(LayerwiseMethod):
    """Prune by another method, then exchange weights of every row to correct its mean output.

    The error of an output is what its dense weights add to it, on average over the windows, and
    the present ones do not. In every cycle each row brings back the pruned weight that lowers its
    error most, divided by the variance of its input, and prunes the present weight with the lowest
    Wanda score that lowers the error too. Rows end at a small error or after `max_cycle_time`
    cycles, so each keeps its number of zeros. For N:M both weights are of one group, and the error
    keeps its sign.

    `initial_method` is any method that prunes linears layer by layer, with the same sparsity,
    allocation, layers and linears. If it updates weights, as SparseGPT does, those that stay keep
    its values, and those that come back are dense again. By default only attentions are refined
    (`skip_layer: mlp`), as in the released code. With `mode=reference` the initial mask is that of
    the released code, which takes the lowest scores of each row, also for magnitude; N:M groups
    then lose the weight with the lowest initial score. The release fails for SparseGPT.

    One exchange decides the next, so rounding of the inputs, as another device or batch has it,
    changes some of the weights that are exchanged in deep layers: in layer 14 of SmolLM2-135M 2.5 %
    of the mask. No row's count changes.
    """

    name = "dsnot"
    reference = Reference(
        title="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
        arxiv="2310.08915",
        code="https://github.com/zyxxmu/DSnoT",
    )
    published_calibration: ClassVar = C4
    statistics: ClassVar = frozenset({"input_norm", SequenceMoments})

    class Options(LayerwiseOptions):
        initial_method: Annotated[str | dict[str, dict[str, Any]], BeforeValidator(_named)] = Field(
            "wanda",
            description="the method whose mask is refined: its name, or its name and options such"
            " as {sparsegpt: {damping: 0.1}}",
        )
        max_cycle_time: int = Field(50, ge=1, description="exchanges of a row at most")
        update_threshold: float = Field(
            0.1, ge=0, description="a row is done if its absolute error is at most this"
        )
        pow_of_var_regrowing: float = Field(
            1.0,
            ge=0,
            description="power of the input's variance that divides what a weight brings back",
        )
        without_same_sign: Annotated[bool, OnlyIf(sparsity=is_share)] = Field(
            default=True, description="false: a row is done before its error changes its sign"
        )
        skip_layer: Literal["mlp", "self_attn", "no_skip"] = Field(
            "mlp", description="sub-blocks whose initial mask stays as it is"
        )
        skip_sub_layer: str | None = Field(
            None, description="a linear, such as o_proj, whose initial mask stays as it is"
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="initial mask as its method makes it, or as released"
        )

        @model_validator(mode="after")
        def _fits(self) -> Self:
            name, method = _method(self.initial_method)
            try:
                options = method.Options.model_validate(self.initial_options())
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors()[0]['msg']}") from error
            if reason := method.refuses_allocation(options.model_copy(update=_ALL)):
                raise ValueError(f"'{name}' with these options cannot be refined: {reason}")
            if self.mode == "reference" and not issubclass(method, LinearMethod):
                raise ValueError(
                    f"`mode: reference` ranks scores in each row, and '{name}' has none"
                )
            return self

        def initial_options(self) -> dict[str, Any]:
            """The options of the initial method."""
            given = self.initial_method
            own = next(iter(given.values())) if isinstance(given, dict) else {}
            return {**own, **{name: getattr(self, name) for name in OURS}}

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        _, method = _method(options.initial_method)
        self.initial: Any = method(method.Options.model_validate(options.initial_options()))
        # What the initial method needs depends on the options.
        wanted = {*self.initial.statistics, *type(self).statistics}
        self.statistics = frozenset(wanted)  # type: ignore[misc]
        self.errors: list[tuple[float, float]] = []
        self.exchanged = self.refined = 0

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        _, method = _method(options.initial_method)
        return method.uses_seed_for(method.Options.model_validate(options.initial_options()))

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        _, method = _method(options.initial_method)
        return method.refuses_streaming(method.Options.model_validate(options.initial_options()))

    @property
    def true_sequential(self) -> bool:
        return bool(self.initial.true_sequential)

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``exchanged`` and ``error``, if any linear was refined.

        The first is the share of the refined linears' weights that came back. The second is the
        mean absolute error of an output, before and after the exchanges.
        """
        parts = anatomy(model)
        if any(parts.experts(layer) for layer in parts.layers):
            raise PrunebenchError(
                "dsnot: its statistics are those of whole windows, and an expert of a mixture reads"
                " some tokens of each",
                hint="prune by wanda or sparsegpt, or name another model",
            )
        super().prune(model, context)
        if self.errors:
            before, after = torch.tensor(self.errors).mean(dim=0).tolist()
            context.notes["error"] = {"before": before, "after": after}
            context.notes["exchanged"] = self.exchanged / self.refined

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        dense = [weight.clone() for weight in weights]
        own = [replace(each, sparsity=self.sparsity_of(each)) for each in stats]
        if self.options.mode == "reference":
            for weight, each in zip(weights, own, strict=True):
                score = self.initial.score(weight, each)
                with each.naming():
                    set_to_zero(weight, lowest(score, self.sparsity_of(each), group="row"))
        else:
            self.initial.prune_group(weights, own)
        for weight, before, each in zip(weights, dense, own, strict=True):
            if not self._skips(each.name):
                self._refine(weight, before, each)

    def _skips(self, name: str) -> bool:
        # 'self_attn.q_proj', 'attention.dense': every family calls its attention something like it.
        block = "self_attn" if "att" in name else "mlp"
        last = name.rpartition(".")[2]
        return block == self.options.skip_layer or bool(last == self.options.skip_sub_layer)

    def _refine(self, weight: torch.Tensor, dense: torch.Tensor, stats: LinearStats) -> None:
        """Exchange weights of ``weight`` [out, in], pruned in place from ``dense``."""
        options, sums, variance = self.options, *stats["sequence_moments"]
        pattern = pattern_of(self.sparsity_of(stats))
        gain = dense.float() * sums  # [out, in]
        cost = dense.abs().float() * stats.input_norm
        if pattern is not None and options.mode == "reference":
            cost = self.initial.score(dense, stats)
        rows = Exchange(
            gone=weight == 0,
            gain=gain,
            rank=gain / variance**options.pow_of_var_regrowing,
            loss=weight.float() * sums,
            cost=cost,
        )
        error = (gain - rows.loss).sum(dim=1)  # [out]
        limits = Limits(
            options.max_cycle_time,
            options.update_threshold,
            same_sign=pattern is not None or not options.without_same_sign,
        )
        mask, after = exchange(rows, error, limits, None if pattern is None else pattern.of)
        back = rows.gone & ~mask
        weight.copy_(set_to_zero(torch.where(back, dense, weight), mask))
        self.errors.append((float(error.abs().mean()), float(after.abs().mean())))
        self.exchanged += int(back.sum())
        self.refined += weight.numel()


_ALL = {"layers": None, "linears": None}
"""An allocation counts all linears, and a refinement need not."""


def _method(initial: str | Mapping[str, Any]) -> tuple[str, type[LayerwiseMethod]]:
    """The initial method by what `initial_method` says."""
    name = initial if isinstance(initial, str) else next(iter(initial))
    return name, cast("type[LayerwiseMethod]", registered_method(name))  # `_named` looked


@hookimpl
def prunebench_register_method() -> type[Method]:
    return DSnoT
