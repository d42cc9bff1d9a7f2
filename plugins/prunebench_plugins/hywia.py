"""HyWIA: LLM-Pruner's groups with coarse and fine importance fused (arXiv:2403.10799)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

import prunebench
from prunebench import AddedLater, Field, Method, OnlyIf, Reference, hookimpl
from prunebench_plugins.hywia_fusion import Fusion, draw_order, fused
from prunebench_plugins.llm_pruner import LayerRange, LLMPruner, several
from prunebench_plugins.llm_pruner_scores import Member, Reduction, Taylor
from prunebench_plugins.not_both import check_not_both

if TYPE_CHECKING:
    from prunebench import Context

PLAIN: dict[Fusion, Taylor] = {"coarse": "vectorize", "fine": "param_first"}
"""LLM-Pruner's own names."""
RECONSTRUCTION = (
    "attention: a reconstruction from the paper's abstract; the released code has no attention"
)


def _as_in_llm_pruner(name: str) -> Any:
    """The default, the bounds and the description of LLM-Pruner's option of this name."""
    field = copy.copy(LLMPruner.Options.model_fields[name])
    # Marks name other options of LLM-Pruner, and none of these options came later.
    field.metadata = [
        mark for mark in field.metadata if type(mark).__module__.startswith("annotated_types")
    ]
    return field


class HyWIA(LLMPruner):
    """Remove LLM-Pruner's coupled groups by a blend of coarse and fine first-order importance.

    Of each row or column of a weight, with s = w g, the coarse importance is |sum of s|
    (LLM-Pruner's vectorize) and the fine one sum of |s| (param_first). The score is
    a * fine + (1 - a) * coarse. `fusion` says what a is:

    - mean: 1/2, which the gate of the released code is on average;
    - random-gate, the released code: for every weight tensor a new network of two layers, never
      trained, gives a for each row or column. Its numbers come from the seed;
    - coarse and fine: 0 and 1, so that the result is LLM-Pruner's;
    - attention, a RECONSTRUCTION from the paper's abstract, which speaks of an attention that the
      released code does not have: a softmax over both importances, standardised in their tensor.

    `taylor: param_second` is the older variant of the release: |w F w|, with the squared gradients
    F of the windows weighted by `fisher_decay`. Ratios, counts, protected layers and modes are
    those of `llm-pruner`. Defects of the release are not repeated: two of its modes fail on an
    undefined name, and norms fail too.
    """

    name = "hywia"
    reference = Reference(
        title="Toward Adaptive Large Language Models Structured Pruning via Hybrid-grained Weight"
        " Importance Assessment",
        arxiv="2403.10799",
        code="https://github.com/azuryl/LLM-HWIA",
    )
    structure: ClassVar = frozenset({"width"})

    class Options(prunebench.Options):
        fusion: Annotated[Fusion, OnlyIf(taylor="vec_fuse")] = Field(
            "mean",
            description="how coarse and fine importance are blended; random-gate is the released"
            " code, attention a reconstruction from the paper's abstract",
        )
        taylor: Literal["vec_fuse", "param_second"] = Field(
            "vec_fuse",
            description="blended first-order importance, or the older variant, |w F w|",
        )
        fisher_decay: Annotated[float | None, OnlyIf(taylor="param_second")] = Field(
            None,
            gt=0,
            le=1,
            description="rho: F takes the first window rho times and the others rho * (1 - rho)"
            " times (evratio in the released code; at its 1 only the first counts); null: all once",
        )
        ratio: float | None = _as_in_llm_pruner("ratio")
        target_parameters: float | None = _as_in_llm_pruner("target_parameters")
        reduction: Reduction | None = _as_in_llm_pruner("reduction")
        protect_first: int | None = _as_in_llm_pruner("protect_first")
        protect_last: int | None = _as_in_llm_pruner("protect_last")
        attention_layers: LayerRange = _as_in_llm_pruner("attention_layers")
        mlp_layers: LayerRange = _as_in_llm_pruner("mlp_layers")
        iterative_steps: int = _as_in_llm_pruner("iterative_steps")
        fresh_windows: Annotated[bool, OnlyIf(iterative_steps=several)] = Field(
            default=True,
            description="draw other calibration windows for each of several steps, as released",
        )
        global_pruning: bool = _as_in_llm_pruner("global_pruning")
        multiple_of: Annotated[int, AddedLater()] = _as_in_llm_pruner("multiple_of")
        mode: Literal["clean", "reference"] = _as_in_llm_pruner("mode")

        # What LLM-Pruner's code reads besides, and HyWIA has no choice of.
        granularity: ClassVar = "block"
        importance: ClassVar = "taylor"

        @model_validator(mode="after")
        def _one_amount(self) -> Self:
            check_not_both(self, ("ratio", "target_parameters"))
            return self

        def layers(self, depth: int, kind: str) -> range:
            """As `LLMPruner.Options.layers`."""
            return LLMPruner.Options.layers(self, depth, kind)  # type: ignore[arg-type]

        def reduce(self) -> Reduction:
            return self.reduction or "sum"

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        del options
        return True

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        """Only the gates are drawn."""
        return bool(options.fusion == "random-gate" and options.taylor == "vec_fuse")

    def prune(self, model: Any, context: Context) -> None:
        """Notes: those of `llm-pruner`, and ``fusion`` if it is a reconstruction."""
        super().prune(model, context)
        if self.options.fusion == "attention" and self.options.taylor == "vec_fuse":
            context.notes["fusion"] = RECONSTRUCTION

    def vectors(
        self, model: Any, coupled: Sequence[Sequence[Member]], context: Context, step: int
    ) -> list[list[torch.Tensor]]:
        """The blended importance of each row or column of the ``coupled`` weights."""
        fusion: Fusion = self.options.fusion
        if self.options.taylor == "param_second":
            return self.taylor_vectors(
                model, coupled, context, step, "param_second", self.options.fisher_decay
            )
        if fusion in PLAIN:
            return self.taylor_vectors(model, coupled, context, step, PLAIN[fusion])
        found = self.taylor_vectors(model, coupled, context, step, "both")
        for vectors in found:
            for index in draw_order(len(vectors)):  # gates are drawn one after the other
                coarse, fine = vectors[index]
                vectors[index] = fused(coarse, fine, fusion, context.generator)
        return found


@hookimpl
def prunebench_register_method() -> type[Method]:
    return HyWIA
