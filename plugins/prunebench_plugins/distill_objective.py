"""The loss of the recovery `distill` and its gradient, slice by slice in float32.

Autograd would hold the logits of both models several times. The gradient of the divergence at the
logits is T (p_pruned - p_dense), so it is computed here: besides the logits of both models only
their gradient is in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional

LOGITS_BYTES = 32 << 20
"""Float32 logits of one model that are taken into account at once."""


class _Outputs(NamedTuple):
    """What a model gives for all tokens but the last, which predicts nothing."""

    logits: torch.Tensor
    """[tokens, vocabulary]."""
    states: torch.Tensor
    """What its head reads, [tokens, hidden]."""


@dataclass(frozen=True)
class Distillation:
    """KL(p_dense || p_pruned) of the next token in nats, with what the options add to it."""

    module: Any
    """The pruned model, which learns."""
    dense: Any
    options: Any

    @property
    def device(self) -> torch.device:
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    def targets(self, windows: Any) -> int:
        count: int = windows.targets
        return count

    def backward(self, windows: Any, weight: float) -> float:
        mine, dense = self._outputs(windows)
        gradient = torch.empty_like(mine.logits)
        total = self._divergence(windows, mine.logits.detach(), dense.logits, gradient, weight)
        ends, gradients = [mine.logits], [gradient]
        if self.options.states_weight:
            error = self._states_error(windows, mine, dense)
            total += float(error.detach())
            ends, gradients = [*ends, error], [*gradients, torch.full_like(error, weight)]
        torch.autograd.backward(ends, gradients)
        return total

    def mean(self, windows: Any, batch_size: int) -> float:
        total = 0.0
        with torch.no_grad():
            for part in windows.split(batch_size):
                here = part.to(self.device)
                mine, dense = self._outputs(here)
                total += self._divergence(here, mine.logits, dense.logits)
                if self.options.states_weight:
                    total += float(self._states_error(here, mine, dense))
        return total / self.targets(windows)

    def _outputs(self, windows: Any) -> tuple[_Outputs, _Outputs]:
        """Of the pruned model and of the dense one."""
        ids = windows.tokens[:, :-1]
        half = torch.autocast(ids.device.type, torch.bfloat16, enabled=self.options.bfloat16)
        with half:
            mine = _run(self.module, ids)
            with torch.no_grad():
                return mine, _run(self.dense, ids)

    def _divergence(
        self,
        windows: Any,
        mine: torch.Tensor,
        dense: torch.Tensor,
        gradient: torch.Tensor | None = None,
        weight: float = 1.0,
    ) -> float:
        """The sum over the tokens that count; writes ``weight`` times its gradient."""
        temperature, text = self.options.temperature, self.options.next_token_weight
        targets = windows.tokens[:, 1:].reshape(-1, 1)  # [tokens, 1]
        counted = _counted(windows)
        rows = max(1, LOGITS_BYTES // (4 * mine.shape[1]))
        total = torch.zeros((), dtype=torch.float64, device=mine.device)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = mine[part].float()
            log_p = functional.log_softmax(logits / temperature, dim=1)  # [rows, vocabulary]
            wanted = functional.log_softmax(dense[part].float() / temperature, dim=1)
            p_dense = wanted.exp()
            # [rows, 1]
            loss = (p_dense * (wanted - log_p)).sum(dim=1, keepdim=True) * temperature**2
            slope = (log_p.exp() - p_dense) * temperature
            if text:
                plain = functional.log_softmax(logits, dim=1)
                loss = loss - text * plain.gather(1, targets[part])
                slope += text * plain.exp_().scatter_add_(
                    1, targets[part], plain.new_full((len(plain), 1), -1.0)
                )
            if counted is not None:
                loss, slope = loss * counted[part], slope * counted[part]
            total += loss.sum(dtype=torch.float64)
            if gradient is not None:
                gradient[part] = slope.mul_(weight)
        return float(total)

    def _states_error(self, windows: Any, mine: _Outputs, dense: _Outputs) -> torch.Tensor:
        """`states_weight` times the sum over the tokens that count."""
        wanted = dense.states.float()
        error = (mine.states.float() - wanted).square().mean(dim=1, keepdim=True)  # [tokens, 1]
        scale = wanted.square().mean(dim=1, keepdim=True)
        relative = error / scale.clamp_min(torch.finfo(torch.float32).tiny)
        counted = _counted(windows)
        if counted is not None:
            relative = relative * counted
        total: torch.Tensor = relative.sum() * self.options.states_weight
        return total


def _counted(windows: Any) -> torch.Tensor | None:
    """Which tokens' predictions count, [tokens, 1]; None: all."""
    counted: torch.Tensor | None = windows.counted
    return None if counted is None else counted[:, 1:].reshape(-1, 1)


def _run(model: Any, ids: torch.Tensor) -> _Outputs:
    """The model's outputs for the ids [windows, length]."""
    with _seen_by_head(model) as states:
        logits = model(input_ids=ids, use_cache=False).logits
    return _Outputs(logits.flatten(0, 1), states[-1].flatten(0, 1))


@contextmanager
def _seen_by_head(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects what the model's head reads."""
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    try:
        yield seen
    finally:
        hook.remove()
