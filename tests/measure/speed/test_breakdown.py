from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices import disturbance
from prunebench.measure.devices.disturbance import DisturbedError
from prunebench.measure.speed import breakdown as breakdown_module
from prunebench.measure.speed import compare_forms as compare_module
from prunebench.measure.speed import rounds as rounds_module
from prunebench.measure.speed.breakdown import PARTS, breakdown
from prunebench.measure.speed.compare_forms import GENERATE, compare_forms
from prunebench.measure.speed.dejavu_claims import findings
from prunebench.measure.speed.io import generation_io, weight_bytes
from prunebench.measure.speed.kv_cache import kv_cache_bytes
from prunebench.measure.speed.latency import measure_latency
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.surgery import remove_blocks
from prunebench.record.speed import Breakdown, PartShare
from tiny import FAMILIES, tiny_model


class Clock:
    """A microsecond passes at every look, and the seconds that a test gives to modules."""

    now = 0.0

    def spends(self, seconds, module):
        """Every pass of ``module`` takes ``seconds``."""
        plain = module.forward

        def forward(*given, **words):
            self.now += seconds
            return plain(*given, **words)

        module.forward = functools.wraps(plain)(forward)

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    made = Clock()
    for module in (breakdown_module, rounds_module, compare_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def prompt(batch=2, length=6):
    return torch.randint(0, 320, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_by_part_add_up_to_those_that_a_token_reads(family):
    model = tiny_model(family)
    found = breakdown(model, prompt(), 4, rounds=1)
    assert [part.part for part in found.parts] == list(PARTS)
    total = weight_bytes(model, 2) + kv_cache_bytes(model, 6, 4, 2)
    assert sum(part.token_bytes for part in found.parts) == total
    parts = anatomy(model)
    mlp = [
        linear.weight
        for layer in parts.layers
        for name, linear in parts.linears(layer).items()
        if _in_mlp(name)
    ]
    biases = [
        linear.bias
        for layer in parts.layers
        for name, linear in parts.linears(layer).items()
        if _in_mlp(name)
    ]
    assert found.of("mlp").token_bytes == 4 * sum(
        each.numel() for each in (*mlp, *biases) if each is not None
    )


def _in_mlp(name):
    return name.startswith(("mlp", "fc"))


@pytest.mark.parametrize("family", FAMILIES)
def test_time_counts_for_the_part_that_spends_it(family, clock):
    model = tiny_model(family)
    parts = anatomy(model)
    first = parts.layers[0]
    clock.spends(2.0, first.get_submodule(parts.sub_block(first, "mlp").modules[-1]))
    clock.spends(1.0, first.get_submodule(parts.sub_block(first, "attention").modules[-1]))
    clock.spends(0.5, parts.head)
    clock.spends(0.25, parts.embeddings)
    found = breakdown(model, prompt(), 4)
    for seconds in ("prompt_s", "token_s"):
        taken = {part.part: getattr(part, seconds) for part in found.parts}
        expected = {"attention": 1, "mlp": 2, "norms": 0, "head": 0.5, "rest": 0.25}
        assert taken == pytest.approx(expected, abs=1e-3)


def test_parts_that_do_not_add_up_to_the_whole_are_measured_again_and_then_not_available(
    clock, monkeypatch
):
    monkeypatch.setattr(disturbance, "TOLERANCE", 0.25)
    model = tiny_model("llama")
    looks = []

    def slow_with_hooks(_module, _given):
        looks.append(len(model.model.layers[0].mlp._forward_hooks))
        clock.now += 3.81 if looks[-1] else 0.17

    model.model.embed_tokens.register_forward_pre_hook(slow_with_hooks)
    with pytest.raises(
        DisturbedError, match=r"parts of a prompt add up to 3\.81 s, the whole takes 0\.17 s"
    ):
        breakdown(model, prompt(), 4, rounds=1)
    assert sum(look > 0 for look in looks) == 2 * 4  # twice one round of four passes


def test_hooks_are_removed_and_the_model_computes_the_same():
    model = tiny_model("llama").eval()
    before = model(prompt()).logits
    breakdown(model, prompt(), 3, rounds=1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(prompt()).logits, before)


def test_removed_blocks_cost_nothing():
    model = tiny_model("llama", num_hidden_layers=2)
    remove_blocks(model, [Block(0, "mlp"), Block(1, "mlp")])
    assert breakdown(model, prompt(), 3, rounds=1).of("mlp").token_bytes == 0


def measured(**parts):
    split = Breakdown(
        prompt=6,
        new_tokens=4,
        batch_size=2,
        rounds=1,
        parts=[
            PartShare(part=name, prompt_s=1, token_s=seconds, token_bytes=size)
            for name, (seconds, size) in (dict.fromkeys(PARTS, (0.0, 0)) | parts).items()
        ],
    )
    model = tiny_model("llama")
    shape = LatencySpec(prompt=6, new_tokens=4, batch_size=2, min_rounds=1, min_time_s=0)
    latency, _ = measure_latency(model, prompt(), shape)
    return split, latency, generation_io(model, latency, 1e9, "test")


def test_claims_that_hold():
    split, latency, io = measured(attention=(1.0, 33), mlp=(2.0, 67), rest=(0.5, 0))
    found = {one.claim: one.holds for one in findings(split, latency, io)}
    assert found["attention and MLP both matter"] is True
    assert found["the MLP is about two thirds of the bytes that both load"] is True
    assert found["communication between devices is small"] is None


def test_claims_that_do_not_hold():
    split, latency, io = measured(attention=(0.1, 90), mlp=(2.0, 10))
    found = {one.claim: one for one in findings(split, latency, io)}
    assert found["attention and MLP both matter"].holds is False
    assert found["the MLP is about two thirds of the bytes that both load"].holds is False
    slow = io.model_copy(update={"utilisation": 0.2})
    claims = {one.claim: one for one in findings(split, latency, slow)}
    assert claims["generation is bound by loading parameters"].holds is False
    assert "20 %" in claims["generation is bound by loading parameters"].evidence


def test_claims_that_could_not_be_measured_are_left_open():
    split, latency, _ = measured(attention=(0.1, 90), mlp=(2.0, 10))
    latency.inter_token_s = None
    latency.not_measurable = "2 of 24 rounds were undisturbed"
    found = {one.claim: one for one in findings(None, latency, None)}
    assert all(one.holds is None for one in found.values())
    longer = found["generation takes longer than the prompt"]
    assert longer.evidence == "2 of 24 rounds were undisturbed"
    assert split is not None


def test_forms_are_compared_with_generate(clock, monkeypatch):
    model = tiny_model("llama").eval()
    clock.spends(1.0, model)  # `lean` generates without the model's own pass
    step = Lean.step

    def quarter(self, tokens):
        clock.now += 0.25
        return step(self, tokens)

    monkeypatch.setattr(Lean, "step", quarter)
    found = compare_forms(model, prompt(1), 6, ["eager", "lean", "cuda-graph"], rounds=6)
    assert [one.form for one in found] == [GENERATE, "eager", "lean", "cuda-graph"]
    assert [one.inter_token_s for one in found[:3]] == pytest.approx([1, 1, 0.25], abs=1e-3)
    assert [one.speedup.estimate for one in found[1:3]] == pytest.approx([1, 4], abs=1e-2)
    assert found[2].same_tokens is True
    assert found[3].inter_token_s is None
    assert "CUDA GPU" in found[3].note
