"""REAP: remove the routed experts that add least to their layer's output (arXiv:2510.13999)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

import prunebench
from prunebench import Field, Method, OnlyIf, PrunebenchError, Reference, anatomy, hookimpl

if TYPE_CHECKING:
    from prunebench import Context, ExpertRows

Criterion = Literal[
    "reap", "frequency", "ean_sum", "ean_mean", "weighted_ean_sum", "max_activations"
]
SUPER_QUANTILE, SUPER_SHARE, SUPER_LAYERS = 0.995, 0.1, 0.75
"""A super expert has an activation above this quantile of all experts' largest activations, and
above this share of the largest of all; only this first share of the layers counts."""


class Reap(Method):
    """Remove the share `ratio` of the routed experts of every layer, those with the lowest score.

    With g_j(x) the gate of expert j and E_j(x) its output, the score of `criterion=reap` is the
    mean of g_j(x) * ||E_j(x)||_2 over the tokens that are routed to j. The others are those of the
    released code: `frequency` counts these tokens; `ean_sum` and `ean_mean` are the sum and the
    mean of ||E_j(x)||_2, `weighted_ean_sum` is the sum of g_j(x) * ||E_j(x)||_2, and
    `max_activations` the largest element of E_j(x). Experts that no token is routed to go first.

    int(experts * ratio) are removed, ties by index; if the router chooses among groups of experts
    first, int(experts of a group * ratio) of every group. What belongs to an expert in the router
    goes too, and the config has the new number, so the result is a plain folder.
    """

    name = "reap"
    reference = Reference(
        title="REAP the Experts: Why Pruning Prevails for One-Shot MoE compression",
        arxiv="2510.13999",
        code="https://github.com/CerebrasResearch/reap",
    )
    structure: ClassVar = frozenset({"experts"})
    needs_calibration = True

    class Options(prunebench.Options):
        ratio: float = Field(
            0.5, ge=0, lt=1, description="share of the routed experts of every layer to remove"
        )
        criterion: Criterion = Field("reap", description="the score of an expert; see `reap`")
        gates: Annotated[
            Literal["model", "reference"],
            OnlyIf(criterion=("reap", "weighted_ean_sum")),
        ] = Field(
            "model",
            description="what the model multiplies an expert's output by; or, as in the released"
            " code, the softmax of the router's logits, divided by its sum over the token's experts"
            " if the config has `norm_topk_prob`",
        )
        preserve_super_experts: bool = Field(
            False,
            description="keep the experts with the largest activations, whatever their score, in"
            " the first three quarters of the layers",
        )
        preserve_outliers: Annotated[bool, OnlyIf(preserve_super_experts=True)] = Field(
            False, description="look for super experts in all layers"
        )

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``experts``, ``removed_experts``, ``never_routed`` and ``scores``.

        How many experts each layer had; which were removed, in the order of their scores, and the
        scores of all, by the path of the module; how many got no token.
        """
        parts = anatomy(model)
        mixture = parts.mixture()
        size = mixture.count // mixture.groups
        per_group = int(size * self.options.ratio)
        left = mixture.count - per_group * mixture.groups
        if left < mixture.fewest:
            raise PrunebenchError(
                f"{left} of {mixture.count} experts would be left in a layer, and its router needs"
                f" at least {mixture.fewest}",
                hint=f"use a ratio of at most {1 - mixture.fewest / mixture.count:.4g}",
            )
        sums = {path: _Sums(mixture.count) for path in mixture.experts}
        reference = self.options.gates == "reference"
        norm = bool(getattr(model.config.get_text_config(), "norm_topk_prob", False))

        def see(path: str, rows: ExpertRows) -> None:
            gates = reference_gates(rows, renormalise=norm) if reference else rows.gates
            sums[path].add(rows, gates)

        context.observe_experts(model, see, logits=reference)
        scores = {path: each.score(self.options.criterion) for path, each in sums.items()}
        self._check(scores, sums)
        never = sum(int((each.tokens == 0).sum()) for each in sums.values())
        if never:
            context.log.warning(
                "%d of %d experts got no calibration token; they are removed first",
                never,
                mixture.count * len(scores),
            )
        spared = self._super_experts({path: each.largest for path, each in sums.items()})
        removed = {}
        for path, score in scores.items():
            order = score.masked_fill(spared[path], torch.inf)
            groups = order.view(mixture.groups, size).argsort(dim=1, stable=True)[:, :per_group]
            first = torch.arange(mixture.groups)[:, None] * size
            removed[path] = (groups + first).flatten().tolist()
        kept = {
            path: [expert for expert in range(mixture.count) if expert not in set(gone)]
            for path, gone in removed.items()
        }
        context.notes |= {
            "experts": mixture.count,
            "removed_experts": removed,
            "never_routed": never,
            "scores": {path: _finite(score) for path, score in scores.items()},
        }
        if per_group:
            context.keep_experts(model, kept)

    def _check(self, scores: Mapping[str, torch.Tensor], sums: Mapping[str, _Sums]) -> None:
        for path, score in scores.items():
            if not bool(torch.isfinite(score[sums[path].tokens > 0]).all()):
                raise PrunebenchError(
                    f"{path}: the output of an expert is not finite on the calibration windows",
                    hint="try bfloat16 or float32, or look for a damaged checkpoint",
                )

    def _super_experts(self, largest: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """True for the experts to keep in any case, bool [experts] by path."""
        if not self.options.preserve_super_experts:
            return {
                path: torch.zeros_like(each, dtype=torch.bool) for path, each in largest.items()
            }
        joined = torch.stack(list(largest.values()))  # [layers, experts]
        seen = joined[joined.isfinite()]
        threshold = max(float(seen.quantile(SUPER_QUANTILE)), float(seen.max()) * SUPER_SHARE)
        last = len(joined) if self.options.preserve_outliers else int(len(joined) * SUPER_LAYERS)
        found = joined > threshold
        found[last:] = False
        return dict(zip(largest, found, strict=True))


class _Sums:
    """What is known of the experts of one layer; all tensors [experts]."""

    def __init__(self, count: int) -> None:
        self.tokens = torch.zeros(count, dtype=torch.int64)
        self.norms = torch.zeros(count, dtype=torch.float64)
        self.weighted = torch.zeros(count, dtype=torch.float64)
        self.largest = torch.full((count,), -torch.inf)

    def add(self, rows: ExpertRows, gates: torch.Tensor) -> None:
        """Add the rows of an expert, multiplied by these gates [tokens]."""
        if not len(gates):
            return
        norms = torch.linalg.vector_norm(rows.outputs.float(), dim=1)  # [tokens, out] -> [tokens]
        self.tokens[rows.expert] += len(norms)
        self.norms[rows.expert] += norms.double().sum().cpu()
        self.weighted[rows.expert] += (norms * gates.float()).double().sum().cpu()
        largest = rows.outputs.float().amax().cpu()
        self.largest[rows.expert] = torch.maximum(self.largest[rows.expert], largest)

    def score(self, criterion: Criterion) -> torch.Tensor:
        """The score of each expert, float64 [experts]; minus infinity for those without a token."""
        found = {
            "reap": self.weighted / self.tokens,
            "frequency": self.tokens.double(),
            "ean_sum": self.norms,
            "ean_mean": self.norms / self.tokens,
            "weighted_ean_sum": self.weighted,
            "max_activations": self.largest.double(),
        }[criterion]
        return found.masked_fill(self.tokens == 0, -torch.inf)


def reference_gates(rows: ExpertRows, *, renormalise: bool) -> torch.Tensor:
    """The gates in the released code, float32 [tokens]: the softmax of the router's logits.

    ``renormalise``: divided by its sum over the experts of the token.
    """
    assert rows.logits is not None, "observe the experts with their logits"
    shares = rows.logits.float().softmax(dim=1)  # [tokens, experts]
    gates = shares[:, rows.expert]
    if renormalise:
        gates = gates / shares.gather(1, rows.chosen).sum(dim=1)
        gates = gates.clamp_min(torch.finfo(gates.dtype).eps)
    return gates


def _finite(score: torch.Tensor) -> list[float | None]:
    """The scores for the record; None for experts without a token."""
    return [float(each) if each.isfinite() else None for each in score]


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Reap
