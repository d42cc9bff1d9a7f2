"""What DISP-LLM trains: the hypernetwork, its gates in the frozen model, and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from prunebench import anatomy, next_token_backward
from prunebench_plugins.disp_llm_budget import PER_LAYER

if TYPE_CHECKING:
    from prunebench_plugins.disp_llm_budget import Budget

CURVE_POINTS = 50
_TINY = 1e-20
_FLOAT16_FACTOR = 2.0**10


class HyperNetwork(torch.nn.Module):
    """A bidirectional GRU over one input for each mask, and a linear for each of them."""

    def __init__(self, sizes: list[int], hidden: int, base: float) -> None:
        super().__init__()
        self.base = base
        self.gru = torch.nn.GRU(hidden, 2 * hidden, bidirectional=True)
        self.norm = torch.nn.LayerNorm(4 * hidden)
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(4 * hidden, size, bias=False) for size in sizes
        )
        self.inputs = torch.nn.Parameter(torch.randn(len(sizes), 1, hidden))

    def forward(self) -> torch.Tensor:
        """The logits plus `base` of all masks one after the other, [sum of sizes]."""
        states = functional.gelu(self.norm(self.gru(self.inputs)[0][:, 0]))  # [masks, 4 * hidden]
        logits = [head(state) for head, state in zip(self.heads, states, strict=True)]
        return torch.cat(logits) + self.base


def noise(kind: str, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """One Gumbel for each entry, or the difference of two (a logistic variable), float32 [count]."""

    def gumbel() -> torch.Tensor:
        # On the CPU, so that every device draws the same numbers.
        uniform = torch.rand(count, generator=generator)
        return -torch.log(-torch.log(uniform + _TINY) + _TINY)

    return gumbel() if kind == "gumbel" else gumbel() - gumbel()


def soft_gates(theta: torch.Tensor, options: Any) -> torch.Tensor:
    """sigmoid((theta + noise) / T), [entries]."""
    return torch.sigmoid((theta + noise(options.noise, len(theta)).to(theta.device)) / options.T)


def rounded(soft: torch.Tensor) -> torch.Tensor:
    """round(s), with the gradient of s."""
    return soft + (soft.round() - soft).detach()


def reinmax(theta: torch.Tensor, temperature: float) -> torch.Tensor:
    """A draw of 0 or 1 with the probability sigmoid(theta), and ReinMax's gradient.

    L. Liu et al., "Bridging Discrete and Backpropagation: Straight-Through and Beyond"
    (arXiv:2304.08612), algorithm 2, for two values. With D the draw, p0 = sigmoid(theta) and
    p1 = (D + sigmoid(theta / temperature)) / 2, the gradient is that of 2 p1 - p0 / 2, in which p1
    is written as a sigmoid of theta plus a constant.
    """
    # The draw itself has no gradient; what follows gives it one.
    draw = (theta + noise("logistic", len(theta)).to(theta.device) > 0).to(theta.dtype).detach()
    average = (draw + torch.sigmoid(theta / temperature)) / 2
    constant = (torch.logit(average, eps=1e-6) - theta).detach()
    slope = 2 * torch.sigmoid(theta + constant) - torch.sigmoid(theta) / 2
    return draw + slope - slope.detach()


def hard_gates(theta: torch.Tensor, options: Any) -> torch.Tensor:
    """Gates of 0 and 1 with a gradient, drawn anew, [entries]."""
    if options.gates == "reinmax":
        return reinmax(theta, 1.0)
    return rounded(soft_gates(theta, options))


@contextmanager
def gated(model: Any, gates: torch.Tensor, sizes: list[int]) -> Iterator[None]:
    """Run the model with gates [entries] on what sub-blocks read, compute and write.

    The gate of an MLP's channel multiplies act(gate) and up, and so their product twice.
    """
    parts = anatomy(model)
    handles: list[Any] = []

    # Gates are float32 whatever the model computes in: their differences are small.
    def on_output(module: Any, gate: torch.Tensor) -> None:
        handles.append(
            module.register_forward_hook(lambda _, __, output: output * gate.to(output.dtype))
        )

    def on_input(module: Any, gate: torch.Tensor) -> None:
        handles.append(
            module.register_forward_pre_hook(lambda _, given: given[0] * gate.to(given[0].dtype))
        )

    every = torch.split(gates, sizes)
    for index, layer in enumerate(parts.layers):
        reads, writes, mlp_reads, inside, mlp_writes = every[
            PER_LAYER * index : PER_LAYER * (index + 1)
        ]
        heads, channels = parts.head_reader(layer), parts.channel_reader(layer)
        on_output(layer.get_submodule(parts.cuttable(layer, "attention").norms[0]), reads)
        on_output(layer.get_submodule(heads), writes)
        on_output(layer.get_submodule(parts.cuttable(layer, "mlp").norms[0]), mlp_reads)
        on_input(layer.get_submodule(channels), inside * inside)
        on_output(layer.get_submodule(channels), mlp_writes)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class GatedModel:
    """Cross-entropy of the model under the gates, plus the budget; the hypernetwork learns.

    Each window has gates of its own, as each GPU has in the released code. The gradient goes to the
    gates first, and from there through the hypernetwork: a model in float16 has a factor of its
    own for the way through it.
    """

    def __init__(
        self,
        model: Any,
        network: HyperNetwork,
        budget: Budget,
        p: float,
        options: Any,
    ) -> None:
        self.module = network
        self._model = model
        self._budget = budget
        self._p = p
        self._options = options
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self._factor = _FLOAT16_FACTOR if half else 1.0
        self._curve: list[list[float]] = []
        """[windows so far, cross-entropy, share of the weights that rounded gates remove]."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def targets(self, windows: Any) -> int:
        count: int = windows.targets
        return count

    def backward(self, windows: Any, weight: float) -> float:
        options, targets = self._options, self.targets(windows)
        theta = self.module()
        gates = (
            soft_gates(theta, options) if options.gates == "soft" else hard_gates(theta, options)
        )
        total, gradient = self._through_model(gates, windows, weight)
        kept = self._budget.share(hard_gates(theta, options))
        # By chance nothing may be kept, of a tiny model.
        budget = options.lam * (kept.clamp_min(1 / self._budget.total) / self._p).log().abs()
        torch.autograd.backward([gates, budget], [gradient, budget.new_tensor(weight * targets)])
        self._curve.append([len(self._curve) + 1, total / targets, 1 - float(kept.detach())])
        return total + float(budget.detach()) * targets

    def mean(self, windows: Any, batch_size: int) -> float:
        """The cross-entropy under the gates that are above one half without noise."""
        total = 0.0
        with torch.no_grad():
            gates = (self.module() > self._options.even).float()
            with gated(self._model, gates, self._budget.sizes):
                for part in windows.split(batch_size):
                    here = part.to(self.device)
                    logits = self._model(input_ids=here.tokens[:, :-1], use_cache=False).logits
                    losses = functional.cross_entropy(
                        logits.float().flatten(0, 1), here.tokens[:, 1:].flatten(), reduction="none"
                    )
                    if here.counted is not None:
                        losses = losses * here.counted[:, 1:].flatten()
                    total += float(losses.sum(dtype=torch.float64))
        return total / self.targets(windows)

    def _through_model(
        self, gates: torch.Tensor, windows: Any, weight: float
    ) -> tuple[float, torch.Tensor]:
        """The sum of the cross-entropy, and ``weight`` times its gradient at the gates."""
        # Not through the hypernetwork at once: in float16 the way through the model needs a factor
        # that its own gradients do not.
        while True:
            leaf = gates.detach().requires_grad_()
            with gated(self._model, leaf, self._budget.sizes):
                total = next_token_backward(
                    self._model, windows.tokens, weight * self._factor, windows.counted
                )
            gradient = leaf.grad
            assert gradient is not None
            if self._factor <= 1 or bool(torch.isfinite(gradient).all()):
                return total, gradient / self._factor
            self._factor /= 2

    def says(self) -> str:
        """What the budget is like, for the progress display."""
        _, loss, removed = self._curve[-1]
        return f"cross-entropy {loss:.3f}, {removed:.1%} of {1 - self._p:.1%} removed"

    def state(self) -> dict[str, Any]:
        """What goes on if the training is resumed."""
        return {"curve": self._curve, "factor": self._factor}

    def load(self, state: dict[str, Any]) -> None:
        self._curve, self._factor = list(state["curve"]), state["factor"]

    def notes(self) -> dict[str, Any]:
        """The curve for the record, at most `CURVE_POINTS` points."""
        stride = -(-len(self._curve) // CURVE_POINTS)
        curve = [
            [int(windows), *(round(each, 6) for each in rest)]
            for windows, *rest in self._curve[::-1][::stride][::-1]
        ]
        return {
            "budget_curve": curve,
            "hypernetwork_parameters": sum(each.numel() for each in self.module.parameters()),
        }
