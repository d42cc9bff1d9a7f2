from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from decoding import tokens_of
from prunebench.measure.speed import products
from prunebench.measure.speed.execution import Eager, choose, decoder
from prunebench.measure.speed.recorded_decoder import RecordedLean
from prunebench.measure.speed.recorded_step import (
    Recorder,
    difference,
    program,
    pruned,
    shared,
)
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.model.anatomy import Block
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups
from prunebench.testing import any_type
from tiny import tiny_model

OTHERS = ("gemma", "opt", "gpt_neox", "phi", "qwen3_moe", "mixtral")
"""Families of the contract kit that no step was written for: other norms, biases, one residual for
attention and MLP, fused queries, keys and values, experts."""
MORE = ("gpt2", "phi3", "cohere", "stablelm", "granite")
"""Weights stored the other way round, fused gates, interleaved and partial rotations, factors."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No product is timed, so that the form does not depend on this machine."""
    monkeypatch.setattr(products, "_SMALL", 1 << 30)


def prompt(batch=2, length=7):
    return torch.randint(3, 300, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("family", "batch"), [(family, (1, 3)[each % 2]) for each, family in enumerate(OTHERS + MORE)]
)
def test_a_family_without_a_step_of_its_own_runs_lean_with_its_own_tokens(family, batch):
    model = tiny_model(family) if family in OTHERS else any_type.tiny_model(family)
    chosen = choose([model], prompt(batch), 8)
    assert (chosen.form, chosen.same_tokens) == ("lean", True), chosen.notes
    assert isinstance(chosen.decoders[0], RecordedLean)
    for ids in (prompt(batch), prompt(batch, 4)):  # a second prompt forgets the first
        assert torch.equal(tokens_of(chosen.decoders[0], ids, 8), tokens_of(Eager(model), ids, 8))


def test_a_pruned_model_keeps_its_tokens_and_linears_of_one_input_are_one_product():
    model = tiny_model("gemma")
    remove_blocks(model, [Block(0, "attention"), Block(2, "mlp")])
    keep_groups(model, {Block(1, "mlp"): list(range(0, 40, 2)), Block(1, "attention"): [0]})
    lean = decoder(model, "lean", 2, 16)
    assert torch.equal(tokens_of(lean, prompt(), 8), tokens_of(Eager(model), prompt(), 8))
    assert {"64 x 48", "40 x 48", "128 x 48", "160 x 48"} <= set(lean.products.kernels)


@pytest.mark.parametrize(("family", "batch"), [("gemma", 1), ("gpt_neox", 3), ("qwen3_moe", 3)])
def test_packed_products_serve_every_family(monkeypatch, family, batch):
    monkeypatch.setattr(products, "_SMALL", 0)
    times = {name: 1.0 + (name != "transposed") for name in products.KERNELS}
    monkeypatch.setattr(products, "seconds_of", lambda *_: times)
    chosen = choose([tiny_model(family)], prompt(batch), 6)
    assert (chosen.form, chosen.same_tokens) == ("lean-packed", True)
    before = chosen.products.copied_bytes
    tokens_of(chosen.decoders[0], prompt(batch) + 9, 6)  # other experts
    assert chosen.products.copied_bytes == before
    assert set(chosen.products.kernels.values()) == {"transposed"}


def test_half_precision_is_recorded_too():
    model = tiny_model("phi").to(torch.bfloat16)
    assert choose([model], prompt(1), 6).form == "lean"


def test_recording_leaves_nothing_behind():
    model = tiny_model("qwen3_moe")
    before = model.config._attn_implementation
    RecordedLean(model, 1, 12)
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(UnavailableError):
        RecordedLean(any_type.tiny_model("gemma2"), 1, 12)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gemma2", "needs softcap"),
        ("gpt_oss", "needs s_aux"),
        ("bloom", "takes no positions"),
        ("diffllama", "reads other keys or values"),
        ("gptj", "attention interface"),
        ("jamba", "keeps a LinearAttentionLayer"),
    ],
)
def test_what_cannot_be_recorded_has_a_reason(family, why):
    with pytest.raises(UnavailableError) as caught:
        decoder(any_type.tiny_model(family), "lean", 1, 12)
    assert why in str(caught.value)


def test_a_window_shorter_than_the_sequence_is_refused():
    model = any_type.tiny_model("starcoder2", sliding_window=8)
    with pytest.raises(UnavailableError, match="layer 0 attends to a window of 8"):
        RecordedLean(model, 1, 9)
    assert choose([model], prompt(1, 4), 4).form == "lean"


def test_hooks_and_training_mode_are_not_passed_over():
    model = tiny_model("phi")
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(UnavailableError, match=r"layers\.1\.mlp has hooks"):
        RecordedLean(model, 1, 12)
    handle.remove()
    model.model.layers[1].train()
    with pytest.raises(UnavailableError, match="training mode"):
        RecordedLean(model, 1, 12)


def changed(model, forward):
    """The model, with another computation in the MLP of its second layer."""
    kind = type(model.model.layers[1].mlp)
    model.model.layers[1].mlp.__class__ = type(kind.__name__, (kind,), {"forward": forward(kind)})
    return model


def test_a_model_that_branches_on_numbers_is_refused():
    def forward(kind):
        return lambda self, x: kind.forward(self, x) if bool(x.sum() > 0) else x

    with pytest.raises(UnavailableError, match=r"reads numbers out of tensors \(__bool__\)"):
        RecordedLean(changed(tiny_model("phi"), forward), 1, 12)


def test_a_model_that_counts_its_calls_is_refused():
    def forward(kind):
        def counting(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return kind.forward(self, x) * self.calls

        return counting

    with pytest.raises(UnavailableError, match="differ from position to position"):
        RecordedLean(changed(tiny_model("phi"), forward), 1, 12)


def test_other_logits_are_found_before_anybody_uses_the_step(monkeypatch):
    def forward(kind):
        return lambda self, x: kind.forward(self, x) * (1.0 if x.shape[1] > 1 else self.gain)

    model = changed(tiny_model("phi"), forward)
    mlp = model.model.layers[1].mlp
    mlp.gain = 3.0
    check = RecordedLean._check

    def checked(self):
        mlp.gain = 1.0  # the recorded step still multiplies by three
        check(self)

    monkeypatch.setattr(RecordedLean, "_check", checked)
    with pytest.raises(UnavailableError, match="its logits differ by"):
        RecordedLean(model, 1, 12)


def recorded(step, *inputs):
    with Recorder(inputs) as recorder:
        output = step(*inputs)
    recorder.recording.output = recorder.ref(output)
    return recorder.recording


def numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)


WEIGHT = torch.arange(9.0).view(3, 3)


@pytest.mark.parametrize(
    "step",
    [
        lambda a, b: functional.linear(a, WEIGHT) + torch.cat([b, a], -1)[:, 1:4],
        lambda a, b: a.chunk(3, -1)[1] * torch.split(b, 1, -1)[0],
        lambda a, b: (a * 2).add_(b).div_(b.exp()),
        lambda a, b: torch.stack([a, b]).softmax(0)[..., torch.tensor([0, 2])],
        lambda a, b: functional.dropout(a, 0.5, training=False) + torch.topk(b, 2).values.sum(),
    ],
)
def test_a_program_computes_what_was_recorded(step):
    made = program(shared(pruned(recorded(step, *numbers(0)))))
    for seed in (1, 2):
        assert torch.equal(made(*numbers(seed)), step(*numbers(seed)))


def test_equal_calls_are_made_once_and_useless_ones_never():
    def step(a, b):
        a.exp()
        return a.sin() * b + a.sin()

    found = shared(pruned(recorded(step, *numbers(0))))
    assert [call.function.__name__ for call in found.calls] == ["sin", "mul", "add"]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda a, b: a * b.sum().item(), "reads numbers"),
        (lambda a, b: a[b > 0], "depends on numbers"),
        (lambda a, b: a[torch.where(b > 0)], "depends on numbers"),
        (lambda a, b: a + torch.rand(2, 3), "random"),
        (lambda a, b: a.clone().view(-1).mul_(2) + b.view(-1), "in place"),
        (lambda a, b: WEIGHT.clone().mul_(a[0]) + b[0], "in place"),
        (lambda a, b: WEIGHT + 1, "does not depend"),
    ],
)
def test_calls_that_cannot_be_replayed_are_refused(step, why):
    with pytest.raises(UnavailableError, match=why):
        recorded(step, *numbers(0))


def test_recordings_differ_in_calls_constants_and_python_numbers():
    def of(step, seed=0):
        return recorded(step, *numbers(seed))

    plain = of(lambda a, b: a * 2 + b)
    assert difference(plain, of(lambda a, b: a * 2 + b, 5)) is None
    assert "arguments" in difference(plain, of(lambda a, b: a * 3 + b))
    assert "arguments" in difference(plain, of(lambda a, b: a * 2 + a))
    assert "and" in difference(plain, of(lambda a, b: a * 2 - b))
    assert "calls" in difference(plain, of(lambda a, b: a * 2))
    fixed = of(lambda a, b: a * torch.arange(3) + b)
    assert difference(fixed, of(lambda a, b: a * torch.arange(3) + b)) is None
    assert "arguments" in difference(fixed, of(lambda a, b: a * torch.arange(1, 4) + b))
