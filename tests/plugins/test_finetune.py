"""Fine-tuning as a recovery: what it trains, and which zeros it keeps."""

from __future__ import annotations

import pytest
import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from tiny import VOCABULARY, tiny_model


def sparse(family: str):
    """A model with half of the weights set to zero in all linears except one."""
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for linear in list(Context(None, 0, []).linears(model).values())[1:]:
            linear.weight.masked_fill_(
                torch.rand(linear.weight.shape, generator=generator) < 0.5, 0
            )
    return model


def recover(model, **options) -> Context:
    kind = load_plugins()["recovery"]["finetune"].value
    tokens = torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))
    context = Context(tokens, 0, list(range(len(anatomy(model).layers))))
    kind(
        kind.Options.model_validate(
            {"learning_rate": 3e-3, "batch_size": 4, "epochs": 3, **options}
        )
    ).recover(model, context)
    return context


@pytest.mark.parametrize("scope", ["linears", "all"])
@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_zeros_stay_and_only_the_scope_is_trained(family, scope):
    model, before = sparse(family), sparse(family)
    context = recover(model, scope=scope, weight_decay=0.1)
    prunable = {f"{path}.weight" for path in context.linears(model)}
    masks = context.zeros(before)
    for name, other in before.named_parameters():
        each = model.get_parameter(name)
        assert torch.equal(each, other) == (scope == "linears" and name not in prunable), name
        if name in masks:
            assert torch.equal(each == 0, masks[name]), name
    assert context.notes["masked_linears"] == len(prunable) - 1
    assert context.notes["last_loss"] < context.notes["first_loss"]
    assert not any(each.requires_grad for each in model.parameters())


def test_a_linear_with_few_zeros_has_no_mask():
    model = tiny_model("llama")
    linear = next(iter(Context(None, 0, []).linears(model).values()))
    linear.weight[0, 0] = 0
    recover(model)
    assert linear.weight[0, 0] != 0
