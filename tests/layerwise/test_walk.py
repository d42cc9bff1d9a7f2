"""The layer walk against a plain and slow version of it, on every family."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch

from prunebench import Context, LayerwiseMethod, LinearMethod, LinearStats, anatomy
from prunebench.errors import PrunebenchError
from prunebench.layerwise.capture import hidden_states
from prunebench.layerwise.statistics import Hessian
from prunebench.layerwise.walk import LayerWalk
from prunebench.model import batches
from tiny import FAMILIES, tiny_model


def tokens(model, windows: int = 3, length: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (windows, length), generator=generator)


def walk(model, **rest) -> LayerWalk:
    return LayerWalk(tokens(model), torch.Generator(), **rest)


class Recorder(LinearMethod):
    """Halve every weight matrix, so that later layers see a change, and keep the input norms."""

    name = "recorder"
    statistics = frozenset({"input_norm"})

    def __init__(self) -> None:
        super().__init__(self.Options())
        self.norms: dict[tuple[int, str], torch.Tensor] = {}

    def score(
        self, weight: torch.Tensor, stats: LinearStats
    ) -> torch.Tensor:  # pragma: no cover - not asked for
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
        handles = [
            linear.register_forward_pre_hook(adding(sums[name])) for name, linear in linears.items()
        ]
        for window in ids:
            model(window[None], use_cache=False)
        for handle in handles:
            handle.remove()
        for name, total in sums.items():
            norms[index, name] = (total / len(ids)).sqrt()
            linears[name].weight.mul_(0.5)
    return norms


@pytest.mark.parametrize("batch_tokens", [16, 32, 512])  # 1, 2 and all 3 windows in a batch
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_those_of_full_forwards_behind_pruned_predecessors(
    family: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", batch_tokens)
    model, twin = tiny_model(family), tiny_model(family)
    ids = tokens(model)
    recorder = Recorder()
    with torch.no_grad():
        walk(model).prune(model, recorder)
    expected = reference_norms(twin, ids)
    assert recorder.norms.keys() == expected.keys()
    for key, norm in expected.items():
        torch.testing.assert_close(recorder.norms[key], norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_weights_of_the_model_change(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 16)  # several batches
    model = tiny_model(family)
    before = [dict(module.__dict__) for module in model.modules()]
    with torch.no_grad():
        walk(model).prune(model, Recorder())
        walk(model).observe_layers(model, lambda *_: None)
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
        walk(model).prune(model, Recorder())
    assert layer.forward is mine


@pytest.mark.parametrize("family", FAMILIES)
def test_observe_layers_sees_every_state_before_the_final_norm(family: str) -> None:
    model = tiny_model(family)
    ids = tokens(model)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        walk(model).observe_layers(model, lambda i, a, b: seen.__setitem__(i, (a, b)))
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
    with (
        torch.no_grad(),
        pytest.raises(PrunebenchError, match=r"layer 0: the input of mlp.down_proj is not finite"),
    ):
        walk(model).prune(model, Recorder())


def test_progress_counts_layers() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, int]] = []
    with torch.no_grad():
        watched = walk(model, progress=lambda done, total: seen.append((done, total)))
        watched.prune(model, Recorder())
    count = len(anatomy(model).layers)
    assert seen == [(index + 1, count) for index in range(count)]


class Groups(LayerwiseMethod):
    """Keep each group's names and Hessian, and halve its weights."""

    name = "groups"
    statistics = frozenset({"hessian"})

    def __init__(self, *, true_sequential: bool = False) -> None:
        super().__init__(self.Options())
        self._true_sequential = true_sequential
        self.hessians: dict[tuple[int, tuple[str, ...]], torch.Tensor] = {}

    @property
    def true_sequential(self) -> bool:
        return self._true_sequential

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        assert len({id(each.hessian) for each in stats}) == 1, (
            "linears that share an input share its Hessian"
        )
        self.hessians[stats[0].layer, tuple(each.name for each in stats)] = stats[0].hessian
        for weight in weights:
            weight.mul_(0.5)


@torch.no_grad()
def reference_hessians(
    model, ids: torch.Tensor, *, true_sequential: bool
) -> dict[tuple[int, tuple[str, ...]], torch.Tensor]:
    """Full model forwards, once a layer or once a group, in float64: slow and obvious."""
    found = {}
    for index, layer in enumerate(anatomy(model).layers):
        inputs = anatomy(model).inputs_of(layer)
        for groups in [[group] for group in inputs] if true_sequential else [inputs]:
            handles = []
            for group in groups:
                linear = layer.get_submodule(group[0])
                total = found[index, group] = torch.zeros(
                    linear.in_features, linear.in_features, dtype=torch.float64
                )

                def hook(_module, args, total=total) -> None:
                    inputs = args[0].flatten(0, -2).double()
                    total.add_(inputs.t() @ inputs)

                handles.append(linear.register_forward_pre_hook(hook))
            for window in ids:
                model(window[None], use_cache=False)
            for handle in handles:
                handle.remove()
            for group in groups:
                found[index, group] *= 2 / len(ids)
                for name in group:
                    layer.get_submodule(name).weight.mul_(0.5)
    return found


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_hessians_equal_those_of_full_forwards(
    family: str, true_sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "prunebench.layerwise.statistics.PANEL", 32
    )  # 48 and 80 features: an incomplete panel too
    model, twin = tiny_model(family), tiny_model(family)
    method = Groups(true_sequential=true_sequential)
    with torch.no_grad():
        walk(model).prune(model, method)
    expected = reference_hessians(twin, tokens(model), true_sequential=true_sequential)
    assert list(method.hessians) == list(expected)
    for key, hessian in expected.items():
        assert method.hessians[key].dtype == torch.float32
        assert torch.equal(method.hessians[key], method.hessians[key].t())
        torch.testing.assert_close(method.hessians[key].double(), hessian, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("true_sequential", [False, True])
def test_linears_that_read_one_input_share_one_hessian(
    monkeypatch: pytest.MonkeyPatch, true_sequential: bool
) -> None:
    added: list[int] = []
    add = Hessian.add
    monkeypatch.setattr(
        Hessian,
        "add",
        lambda self, inputs, windows: (added.append(id(self)), add(self, inputs, windows)),
    )
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 16)
    model = tiny_model("llama")
    with torch.no_grad():
        walk(model).prune(model, Groups(true_sequential=true_sequential))
    layers, inputs, windows = 4, 4, 3
    assert len(added) == layers * inputs * windows


class PlainPruner:
    """Everything that the walk needs, and no prunebench class: keep names and sparsities."""

    statistics = frozenset()
    true_sequential = False

    def __init__(self) -> None:
        self.sparsities: dict[str, float | None] = {}

    def prune_group(self, weights, stats) -> None:
        assert len(weights) == len(stats)
        for each in stats:
            self.sparsities[f"model.layers.{each.layer}.{each.name}"] = each.sparsity


@pytest.mark.parametrize("decided", [True, False])
def test_a_linears_own_sparsity_comes_with_its_statistics(decided: bool) -> None:
    model = tiny_model("llama")
    paths = Context(None, 0, []).linears(model)
    shares = {path: index / len(paths) for index, path in enumerate(paths)}
    pruner = PlainPruner()
    LayerWalk(None, torch.Generator()).prune(model, pruner, shares if decided else None)
    assert pruner.sparsities == (shares if decided else dict.fromkeys(paths))


@pytest.mark.parametrize("true_sequential", [False, True])
def test_a_hessian_is_freed_before_the_next_group_is_pruned(true_sequential: bool) -> None:
    alive: list[int] = []

    class Watching(Groups):
        seen: list[weakref.ref] = []  # noqa: RUF012

        def prune_group(self, weights, stats) -> None:
            alive.append(sum(one() is not None for one in self.seen))
            self.seen.append(weakref.ref(stats[0].hessian))

    model = tiny_model("llama")
    walk(model).prune(model, Watching(true_sequential=true_sequential))
    assert alive == [0] * 16  # four layers with four inputs each


def test_an_error_names_its_layer_and_linear() -> None:
    class Fussy(Recorder):
        def prune_linear(self, weight: torch.Tensor, stats: LinearStats) -> None:
            if (stats.layer, stats.name) == (2, "self_attn.v_proj"):
                raise PrunebenchError("not this one", hint="leave it")

    model = tiny_model("llama")
    with (
        torch.no_grad(),
        pytest.raises(PrunebenchError, match=r"^layer 2, self_attn.v_proj: not this one") as raised,
    ):
        walk(model).prune(model, Fussy())
    assert raised.value.hint == "leave it"


class Moves:
    """Records where `Module.to` sends decoder layers."""

    def __init__(self, model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, str]] = []
        layers = {id(layer): index for index, layer in enumerate(anatomy(model).layers)}
        to = torch.nn.Module.to

        def record(module, device):
            if id(module) in layers:
                self.seen.append((layers[id(module)], str(device)))
            return to(module, device)

        monkeypatch.setattr(torch.nn.Module, "to", record)


DEVICE = torch.device("cpu", 0)
"""The same memory as "cpu" under another name: shows moves on a machine without a GPU."""


@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_at_a_time_is_on_the_compute_device(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, twin = tiny_model(family), tiny_model(family)
    plain, placed = Recorder(), Recorder()
    with torch.no_grad():
        walk(model).prune(twin, plain)
        moves = Moves(model, monkeypatch)
        context = Context(tokens(model), 0, [0, 1, 2, 3], device=DEVICE)
        context.prune_linears(model, placed)
    assert moves.seen == [(index, name) for index in range(4) for name in ("cpu:0", "cpu")]
    assert all(torch.equal(plain.norms[key], norm) for key, norm in placed.norms.items())
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_a_layer_moves_back_if_pruning_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Recorder):
        def prune_linear(self, weight: torch.Tensor, stats: LinearStats) -> None:
            raise PrunebenchError("broken")

    model = tiny_model("llama")
    moves = Moves(model, monkeypatch)
    with torch.no_grad(), pytest.raises(PrunebenchError, match="broken"):
        walk(model, device=DEVICE).prune(model, Broken())
    assert moves.seen == [(0, "cpu:0"), (0, "cpu")]


@pytest.mark.parametrize("family", FAMILIES)
def test_observing_on_a_compute_device_sees_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 16)
    model = tiny_model(family)
    seen: tuple[dict[int, list[torch.Tensor]], dict[int, list[torch.Tensor]]] = ({}, {})
    with torch.no_grad():
        for found, device in zip(seen, (None, DEVICE), strict=True):

            def see(layer, before, after, found=found) -> None:
                found.setdefault(layer, []).append(torch.stack([before, after]))

            walk(model, device=device).observe_layers(model, see)
    assert sorted(seen[0]) == sorted(seen[1]) == [0, 1, 2, 3]
    for index, states in seen[0].items():
        torch.testing.assert_close(torch.cat(states), torch.cat(seen[1][index]))


@pytest.mark.parametrize("family", FAMILIES)
def test_observed_norms_are_those_of_the_whole_dense_model(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 32)  # two windows, and one
    model = tiny_model(family)
    found: dict[tuple[int, str], torch.Tensor] = {}

    def see(linears, stats) -> None:
        assert linears.keys() == stats.keys()
        found.update({(each.layer, name): each.input_norm.clone() for name, each in stats.items()})

    ids, sums = tokens(model), {}
    with torch.no_grad():
        walk(model).observe_linears(model, {"input_norm"}, see)
        for index, layer in enumerate(anatomy(model).layers):
            for name, linear in anatomy(model).linears(layer).items():
                sums[index, name] = torch.zeros(linear.in_features)
                linear.register_forward_pre_hook(adding(sums[index, name]))
        model(ids, use_cache=False)
    assert found.keys() == sums.keys()
    for key, total in sums.items():
        torch.testing.assert_close(found[key], (total / len(ids)).sqrt(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measured", [True, False])
def test_a_layer_runs_no_further_than_its_last_input_before_it_is_pruned(
    monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    """Once to measure, up to the last linear, if there is something to measure; once behind it."""
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 16)  # a window a batch
    model = tiny_model("llama")
    runs = {"norm": 0, "last": 0}

    def count(name: str):
        def hook(*_) -> None:
            runs[name] += 1

        return hook

    for layer in anatomy(model).layers:
        layer.input_layernorm.register_forward_hook(count("norm"))
        layer.mlp.down_proj.register_forward_hook(count("last"))
    with torch.no_grad():
        walk(model).prune(model, Recorder() if measured else PlainPruner())
    layers, windows = 4, 3
    advanced = (layers - 1) * windows  # nothing reads the output of the last layer
    assert runs == {"norm": advanced + (layers * windows if measured else 0), "last": advanced}


def test_a_model_of_one_layer_is_measured() -> None:
    model, twin = (tiny_model("llama", num_hidden_layers=1) for _ in range(2))
    recorder = Recorder()
    with torch.no_grad():
        walk(model).prune(model, recorder)
    for key, norm in reference_norms(twin, tokens(twin)).items():
        torch.testing.assert_close(recorder.norms[key], norm, rtol=1e-4, atol=1e-6)


def test_layers_may_return_a_tuple() -> None:
    states = torch.ones(1, 2, 3)
    assert hidden_states(states) is states
    assert hidden_states((states, None)) is states


def test_observed_inputs_that_are_not_finite_are_named() -> None:
    model = tiny_model("llama")
    anatomy(model).layers[1].input_layernorm.weight.data[0] = float("nan")
    with (
        torch.no_grad(),
        pytest.raises(PrunebenchError, match=r"layer 1: the input of self_attn.q_proj is not fin"),
    ):
        walk(model).observe_linears(model, {"input_norm"}, lambda *_: None)


def test_observing_without_statistics_needs_no_windows_and_runs_no_layer() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.forward = None  # cannot run
    seen = []
    context = Context(None, 0, [0, 1, 2, 3])
    context.observe_linears(
        model, (), lambda linears, stats: seen.append((list(linears), [*stats.values()]))
    )
    assert [names for names, _ in seen] == [list(anatomy(model).linears(model.model.layers[0]))] * 4
    assert [stats[0].layer for _, stats in seen] == [0, 1, 2, 3]
    assert seen[2][1][-1].name == "mlp.down_proj"
    with pytest.raises(PrunebenchError, match="the cell has none"):
        context.observe_linears(model, {"input_norm"}, lambda *_: None)


def test_progress_of_observing_counts_layers_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that runs as a whole has no progress by layers."""
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 16)
    model = tiny_model("llama")

    def observed(what: str, **rest) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        watched = walk(model, progress=lambda done, total: seen.append((done, total)), **rest)
        with torch.no_grad():
            if what == "linears":
                watched.observe_linears(model, {"input_norm"}, lambda *_: None)
            else:
                watched.observe_layers(model, lambda *_: None)
        return seen

    layers = [(done, 4) for done in (1, 2, 3, 4)]
    assert observed("linears") == layers
    assert observed("layers", device=torch.device("cpu")) == layers
    assert observed("layers") == [(done, 3) for done in (1, 2, 3)]
