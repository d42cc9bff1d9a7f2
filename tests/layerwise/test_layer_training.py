"""Training layer by layer: what a trainer is given, what happens with what it returns."""

from __future__ import annotations

import copy

import pytest
import torch

from prunebench import LayerwiseOptions, PrunebenchError, anatomy
from prunebench.layerwise.capture import Call, hidden_states
from prunebench.layerwise.layer_run import LayerRun
from prunebench.model.matrices import Matrix
from prunebench.testing import tiny_context
from tiny import tiny_model

FAMILIES = ("llama", "qwen2", "opt", "gpt_neox")  # masks for each layer, flat inputs, parallel


class Halving:
    """Halve the weights of all linears; keep what was seen."""

    statistics = frozenset({"input_norm"})

    def __init__(self, options=None) -> None:
        self.options = options
        self.targets: dict[int, list[torch.Tensor]] = {}
        self.outputs: dict[int, list[torch.Tensor]] = {}
        self.norms: dict[str, torch.Tensor] = {}
        self.gradients: list[float] = []
        self.batches: list[int] = []

    def train_layer(self, layer):
        assert torch.is_grad_enabled()
        self.batches.append(layer.batches)
        scale = torch.ones((), requires_grad=True)
        weights = {name: linear.weight * scale for name, linear in layer.linears.items()}
        total = sum(
            (layer.forward(batch, weights) - layer.target(batch)).square().sum()
            + layer.forward(batch, weights).mean()
            for batch in range(layer.batches)
        )
        self.gradients.append(float(torch.autograd.grad(total, scale)[0]))
        for name, stats in layer.stats.items():
            assert (stats.layer, stats.name) == (layer.index, name)
            self.norms[f"{layer.path}.{name}"] = stats.input_norm
        return {name: weight.detach() / 2 for name, weight in weights.items()}

    def see_trained(self, layer, target, output) -> None:
        assert not torch.is_grad_enabled()
        self.targets.setdefault(layer.index, []).append(target.clone())
        self.outputs.setdefault(layer.index, []).append(output.clone())


def plain(model, tokens, halved: int) -> list[torch.Tensor]:
    """Outputs of all layers if the first ``halved`` have half their weights; whole forwards."""
    twin = copy.deepcopy(model)
    parts = anatomy(twin)
    for layer in list(parts.layers)[:halved]:
        for linear in parts.linears(layer).values():
            linear.weight.mul_(0.5)
    found: list[torch.Tensor] = []
    for layer in parts.layers:
        layer.register_forward_hook(lambda _m, _a, output: found.append(hidden_states(output)))
    twin(tokens, use_cache=False)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dense_inputs", [False, True])
@torch.no_grad()
def test_layers_are_trained_behind_changed_ones_to_their_dense_outputs(
    family: str, dense_inputs: bool
) -> None:
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    context, trainer = tiny_context(model), Halving()
    context.train_layers(model, trainer, dense_inputs=dense_inputs, windows=3)
    assert trainer.batches == [2] * 4
    for index in range(4):
        targets = torch.cat(trainer.targets[index])
        expected = plain(dense, context.windows, 0 if dense_inputs else index)[index]
        torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-5)
        outputs = torch.cat(trainer.outputs[index])
        changed = plain(dense, context.windows, index + 1)[index]
        torch.testing.assert_close(outputs, changed, rtol=1e-4, atol=1e-5)
    for one, other in zip(
        context.linears(model).values(), context.linears(dense).values(), strict=True
    ):
        assert torch.equal(one.weight, other.weight / 2)
    assert all(gradient != 0 for gradient in trainer.gradients)
    assert set(trainer.norms) == set(context.linears(model))


@torch.no_grad()
def test_without_changes_the_model_stays_and_the_next_layers_see_the_same() -> None:
    model, twin = tiny_model("llama"), tiny_model("llama")
    changing, watching = Halving(), Halving()
    tiny_context(model).train_layers(model, watching, changes=False)
    tiny_context(twin).train_layers(twin, changing)
    assert all(map(torch.equal, model.parameters(), tiny_model("llama").parameters()))
    assert not all(map(torch.equal, model.parameters(), twin.parameters()))
    for index in range(4):
        assert torch.equal(torch.cat(watching.outputs[index]), torch.cat(changing.outputs[index]))


@torch.no_grad()
def test_options_choose_the_linears_and_other_layers_only_pass_their_input_on() -> None:
    model = tiny_model("llama")
    context = tiny_context(model)
    trainer = Halving(LayerwiseOptions(layers=(1, 3), linears=["mlp"]))
    done: list[tuple[int, int]] = []
    context.progress = lambda *step: done.append(step)
    context.train_layers(model, trainer)
    assert set(trainer.norms) == {
        f"model.layers.{layer}.mlp.{name}_proj"
        for layer in (1, 2)
        for name in ("gate", "up", "down")
    }
    torch.testing.assert_close(
        torch.cat(trainer.targets[1]), plain(tiny_model("llama"), context.windows, 0)[1]
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


@torch.no_grad()
def test_a_mistake_of_the_trainer_names_the_layer() -> None:
    class Wrong(Halving):
        def train_layer(self, layer):
            raise PrunebenchError("no") if layer.index else ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        tiny_context(model := tiny_model("llama")).train_layers(model, Wrong())
    assert caught.value.__notes__ == ["layer 0"]


def test_a_matrix_that_is_part_of_a_parameter_is_replaced_with_its_gradient() -> None:
    """As in the Conv1D of GPT-2, stored as [in, out], and in the experts of a mixture."""

    class Fused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = torch.nn.Parameter(torch.randn(2, 3, 4))
            self.turned = torch.nn.Parameter(torch.randn(4, 4))

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fused()

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            first, second = self.inner.both
            return hidden @ self.inner.turned @ (first + 2 * second).t()

    layer, states = Layer().requires_grad_(requires_grad=False), torch.randn(1, 5, 4)
    linears = {
        "0.up": Matrix(layer.inner, "both", index=0),
        "1.up": Matrix(layer.inner, "both", index=1),
        "c": Matrix(layer.inner, "turned", turned=True),
    }
    call = Call((), {})
    run = LayerRun(0, "layers.0", layer, [(states, call)], None, linears)
    before = copy.deepcopy(layer.state_dict())
    new = {
        "0.up": torch.randn(3, 4, requires_grad=True),
        "c": torch.randn(4, 4, requires_grad=True),
    }
    output = run.forward(states, call, new)
    expected = states @ new["c"].t() @ (new["0.up"] + 2 * layer.inner.both[1]).t()
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output.square().sum(), list(new.values()))
    wanted = torch.autograd.grad(expected.square().sum(), list(new.values()))
    torch.testing.assert_close(found, wanted)
    assert all(torch.equal(layer.state_dict()[name], one) for name, one in before.items())
