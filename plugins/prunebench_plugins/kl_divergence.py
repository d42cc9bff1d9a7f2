"""KL divergence from the dense model, which runs beside the pruned one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import prunebench
from prunebench import Field, Figure, Metric, PrunebenchError, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import MetricContext

CACHE_BYTES = 1 << 19
"""Float32 logits of a model that a core's own cache holds beside what is computed of them."""


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
            # On a CPU `argmax` takes three times as long.
            first = theirs.max(-1).indices == ours.max(-1).indices
            same += int(first.sum())
            tokens += len(ours)
        return {self.name: float(total) / tokens, "top1-agreement": same / tokens}


def divergence(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """KL(dense || pruned) in nats, float32 [...], of logits [..., vocabulary]."""
    size = dense.shape[-1]
    # A few rows at a time on a CPU, so that all steps find them in the cache.
    rows = max(1, CACHE_BYTES // (4 * size)) if dense.device.type == "cpu" else dense.numel()
    parts = [torch.split(one.reshape(-1, size), rows) for one in (dense, pruned)]
    return torch.cat([_of_rows(*pair) for pair in zip(*parts, strict=True)]).view(dense.shape[:-1])


def _of_rows(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Sum p (a - b) - log(sum(exp a) / sum(exp b)), [rows], of logits a and b [rows, vocabulary].

    From both the row's maximum is subtracted: no exponential overflows.
    """
    a, b = (one - one.amax(-1, keepdim=True) for one in (dense.float(), pruned.float()))
    weights = a.exp()
    total = weights.sum(-1)
    shift = (total / b.exp().sum(-1)).log()
    apart = a.sub_(b)
    found = apart.mul(weights).sum(-1) / total - shift
    if not bool(found.isfinite().all()):
        # A token with probability 0 in the dense model counts nothing (0 log 0 = 0, not NaN).
        apart.masked_fill_(weights == 0, 0.0)
        found = apart.mul_(weights).sum(-1) / total - shift
    return found


@hookimpl
def prunebench_register_metric() -> type[Metric]:
    return KLDivergence
