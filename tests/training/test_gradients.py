"""The gradients that methods can ask for, held against autograd."""

from __future__ import annotations

import torch

from prunebench import anatomy
from prunebench.plugin.api.context import Context
from tiny import tiny_model

TOKENS = torch.randint(2, 300, (3, 12), generator=torch.Generator().manual_seed(1))


def of_window(window: torch.Tensor, path: str) -> torch.Tensor:
    """The gradient of one window's mean loss, as transformers computes the loss."""
    model = tiny_model("llama")
    weight = model.get_submodule(path).weight.requires_grad_()
    with torch.enable_grad():
        model(window[None], labels=window[None]).loss.backward()
    return weight.grad


def test_gradients_are_those_of_the_mean_loss_and_leave_the_model_as_it_was() -> None:
    model, seen = tiny_model("llama"), {}

    def see(linears, stats) -> None:
        seen.update({(each.layer, name): each for name, each in stats.items()})

    context = Context(TOKENS, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        context.observe_linears(model, {"gradient", "gradient_norm", "input_mean"}, see)
    each = seen[1, "mlp.up_proj"]
    found = torch.stack([of_window(window, "model.layers.1.mlp.up_proj") for window in TOKENS])
    torch.testing.assert_close(each.gradient, found.mean(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(each.gradient_norm, found.norm(dim=0), rtol=1e-4, atol=1e-7)
    assert each.input_mean.shape == (each.gradient.shape[1],)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
