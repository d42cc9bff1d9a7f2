"""KL divergence from the dense model, which runs beside the pruned one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import prunebench
from prunebench import Field, Figure, Metric, PrunebenchError, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import MetricContext


class KLDivergence(Metric):
    """Mean over tokens of KL(dense || pruned), and how often both models rank the same token first.

    Two models with equal accuracy or perplexity can answer differently; this is the distance that
    such scores hide. Every position of every window counts. Softmax in float32, sums in float64.
    The dense model has 0 and 1.

    Both models run over the text once: the pruned one for this metric and perplexity together, the
    dense one for all cells of a suite. Kept are the states before the head and not the logits:
    4 x 512 tokens over a vocabulary of 49,152 would take 400 MB.
    """

    name = "kl-divergence"
    unit = "nats"
    higher_is_better = False
    figures = {"top1-agreement": Figure("share", higher_is_better=True)}  # noqa: RUF012
    needs_text = True
    needs_logits = True
    reference = Reference(title="Accuracy is Not All You Need", arxiv="2407.09141")

    class Options(prunebench.Options):
        chunk: int = Field(
            64, gt=0, description="tokens whose distributions are in memory at once, as float32"
        )

    def measure(self, model: Any, tokenizer: Any, context: MetricContext) -> dict[str, float]:
        del tokenizer
        total = torch.zeros((), dtype=torch.float64)
        same = tokens = 0
        for theirs, ours in context.both_logits(model, self.options.chunk):  # [chunk, vocabulary]
            if theirs.shape != ours.shape:
                raise PrunebenchError(
                    f"the dense model knows {theirs.shape[-1]} tokens and the pruned one"
                    f" {ours.shape[-1]}",
                    hint="leave out this metric: it compares distributions over one vocabulary",
                )
            total += divergence(theirs, ours).sum(dtype=torch.float64).cpu()
            same += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
            tokens += len(ours)
        return {self.name: float(total) / tokens, "top1-agreement": same / tokens}


def divergence(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """KL(dense || pruned) in nats, float32 [...], of logits [..., vocabulary]."""
    p, q = dense.float().log_softmax(-1), pruned.float().log_softmax(-1)
    # A token with probability 0 in the dense model counts nothing (0 log 0 = 0, not NaN).
    return (p.exp() * (p - q)).masked_fill(p == -torch.inf, 0.0).sum(-1)


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return KLDivergence
