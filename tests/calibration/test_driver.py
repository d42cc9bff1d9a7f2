"""The layer-by-layer driver against a plain, slow re-statement of it, on every family."""

from __future__ import annotations

import pytest
import torch

from prunebench import LinearMethod, LinearStats, anatomy
from prunebench.calibration import driver
from prunebench.errors import PrunebenchError
from prunebench.model import batches
from tiny import FAMILIES, tiny_model


def ignore(_done: int, _total: int) -> None:
    """No one watches."""


def tokens(model, windows: int = 3, length: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (windows, length), generator=generator)


class Recorder(LinearMethod):
    """Halves every weight matrix and remembers what it was told, so that successors see changed predecessors."""

    name = "recorder"
    statistics = frozenset({"input_norm"})

    def __init__(self) -> None:
        super().__init__(self.Options())
        self.norms: dict[tuple[int, str], torch.Tensor] = {}

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:  # pragma: no cover - not asked for
        raise AssertionError

    def prune_linear(self, weight: torch.Tensor, stats: LinearStats) -> None:
        self.norms[stats.layer, stats.name] = stats.input_norm.clone()
        weight.mul_(0.5)


def adding(total: torch.Tensor):
    """A hook that adds the squares of a linear's inputs to ``total`` [in]."""

    def hook(_module, args) -> None:
        total.add_(args[0].flatten(0, -2).pow(2).sum(0))

    return hook


@torch.no_grad()
def reference_norms(model, ids: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
    """Full model forwards, one layer at a time, hooks on every linear: slow and obvious."""
    norms: dict[tuple[int, str], torch.Tensor] = {}
    for index, layer in enumerate(anatomy(model).layers):
        linears = anatomy(model).linears(layer)
        sums = {name: torch.zeros(linear.in_features) for name, linear in linears.items()}
        handles = [linear.register_forward_pre_hook(adding(sums[name])) for name, linear in linears.items()]
        for window in ids:
            model(window[None], use_cache=False)
        for handle in handles:
            handle.remove()
        for name, total in sums.items():
            norms[index, name] = (total / len(ids)).sqrt()
            linears[name].weight.mul_(0.5)
    return norms


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_those_of_full_forwards_behind_pruned_predecessors(family: str) -> None:
    model, twin = tiny_model(family), tiny_model(family)
    ids = tokens(model)
    recorder = Recorder()
    with torch.no_grad():
        driver.prune_linears(model, recorder, ids, torch.Generator(), ignore)
    expected = reference_norms(twin, ids)
    assert recorder.norms.keys() == expected.keys()
    for key, norm in expected.items():
        torch.testing.assert_close(recorder.norms[key], norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was_but_for_its_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 16)  # several batches
    model = tiny_model(family)
    before = [dict(module.__dict__) for module in model.modules()]
    with torch.no_grad():
        driver.prune_linears(model, Recorder(), tokens(model), torch.Generator(), ignore)
        driver.observe_layers(model, tokens(model), lambda *_: None, ignore)
    for module, state in zip(model.modules(), before, strict=True):
        assert module.__dict__.keys() == state.keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_an_overridden_forward_is_put_back() -> None:
    model = tiny_model("llama")
    layer = anatomy(model).layers[0]
    original = layer.forward
    layer.forward = mine = lambda *args, **kwargs: original(*args, **kwargs)
    with torch.no_grad():
        driver.prune_linears(model, Recorder(), tokens(model), torch.Generator(), ignore)
    assert layer.forward is mine


@pytest.mark.parametrize("family", FAMILIES)
def test_observe_layers_sees_every_state_before_the_final_norm(family: str) -> None:
    model = tiny_model(family)
    ids = tokens(model)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        driver.observe_layers(model, ids, lambda i, a, b: seen.__setitem__(i, (a, b)), ignore)
        states = model(ids, output_hidden_states=True).hidden_states
    count = len(anatomy(model).layers)
    assert sorted(seen) == list(range(count))
    for index in range(count):
        torch.testing.assert_close(seen[index][0], states[index])
    last = anatomy(model).final_norm(seen[count - 1][1])
    torch.testing.assert_close(last, states[-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen[count - 1][1], states[-1], atol=1e-3)


def test_inputs_that_are_not_finite_are_named() -> None:
    model = tiny_model("llama")
    anatomy(model).layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with torch.no_grad(), pytest.raises(PrunebenchError, match=r"layer 0: the input of mlp.down_proj is not finite"):
        driver.prune_linears(model, Recorder(), tokens(model), torch.Generator(), ignore)


def test_progress_counts_layers() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, int]] = []
    with torch.no_grad():
        driver.prune_linears(model, Recorder(), tokens(model), torch.Generator(), lambda a, b: seen.append((a, b)))
    count = len(anatomy(model).layers)
    assert seen == [(index + 1, count) for index in range(count)]
