"""What a model costs to run is measured at every shape, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch

from prunebench.cell import profile as module
from prunebench.cell.phases import Phases
from prunebench.cell.profile import profile, prompt_ids, too_large
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.audit import audit, dense_facts
from prunebench.measure.speed import sparse24
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.surgery import remove_layers
from tiny import VOCABULARY, tiny_model

SHAPE = LatencySpec(prompt=5, new_tokens=4, batch_size=1, min_rounds=1, min_time_s=0)


def shortened():
    model = tiny_model("llama", num_hidden_layers=4).eval()
    facts = dense_facts(model)
    remove_layers(model, [1])
    return model, audit(model, facts, DenseIndices([0, 2, 3]))


def dense_model():
    return tiny_model("llama", num_hidden_layers=4).eval()


def test_everything_is_measured_at_the_first_shape_and_latency_at_all(monkeypatch):
    model, audited = shortened()
    phases = Phases()
    second = SHAPE.model_copy(update={"batch_size": 2})
    found = profile(
        model, [SHAPE, second], VOCABULARY, phases, audited=audited, load_dense=dense_model
    )
    assert [one.batch_size for one in found.latency] == [1, 2]
    assert all(
        one.inter_token_speedup is not None and one.unpaired is None for one in found.latency
    )
    assert len(found.samples) == len(found.generation) == 2
    assert (found.breakdown.prompt, found.breakdown.batch_size) == (5, 1)
    assert found.energy.source or found.energy.reason
    assert [one.phase for one in phases.times] == [
        "weights",
        "generate",
        "bandwidth",
        "latency",
        "energy",
    ]


def test_weights_lie_side_by_side_before_anything_is_timed(monkeypatch):
    model, audited = shortened()
    blocks = []
    breakdown = module.breakdown

    def noting(model, *args, **kwargs):
        blocks.append({each.untyped_storage().data_ptr() for each in model.parameters()})
        return breakdown(model, *args, **kwargs)

    monkeypatch.setattr(module, "breakdown", noting)
    profile(model, [SHAPE], VOCABULARY, Phases(), audited=audited)
    assert [len(each) for each in blocks] == [1]


def test_a_dense_model_that_does_not_fit_is_named_and_the_rest_is_measured(monkeypatch):
    model, audited = shortened()
    monkeypatch.setattr(
        module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})()
    )
    assert "GB are free" in too_large(audited, model)
    found = profile(
        model,
        [SHAPE],
        VOCABULARY,
        Phases(),
        audited=audited,
        load_dense=lambda: pytest.fail("was loaded"),
    )
    assert "not timed between its rounds" in found.latency[0].unpaired
    assert found.latency[0].inter_token_speedup is None


def test_no_shapes_no_profile():
    model, audited = shortened()
    assert profile(model, [], VOCABULARY, Phases(), audited=audited).latency == []


def test_the_prompt_is_the_same_for_every_cell():
    assert torch.equal(prompt_ids(100, 2, 9, "cpu"), prompt_ids(100, 2, 9, "cpu"))


def two_four(keep=2):
    model = tiny_model("llama").eval()
    facts = dense_facts(model)
    for layer in model.model.layers:
        for module_ in layer.modules():
            if isinstance(module_, torch.nn.Linear):
                flat = module_.weight.data.view(-1, 4)
                flat[:, keep:] = 0
    return model, audit(model, facts, DenseIndices(list(range(len(model.model.layers)))), [(2, 4)])


@pytest.mark.parametrize(("keep", "legal"), [(1, True), (2, True), (3, False), (4, False)])
def test_only_models_that_follow_2_4_are_timed_with_the_sparse_kernels(keep, legal):
    assert sparse24.applies(two_four(keep)[1]) is legal


def test_a_cpu_has_no_sparse_tensor_cores_and_says_so():
    model, audited = two_four()
    assert sparse24.unsupported(model) == "needs a CUDA GPU"
    found = profile(model, [SHAPE], VOCABULARY, Phases(), audited=audited)
    assert [one.weights for one in found.latency] == ["as stored"]


def test_with_kernels_the_model_is_timed_a_second_time(monkeypatch):
    """With the GPU's part replaced: what is timed, in which order, and what goes on the record."""
    model, audited = two_four()
    monkeypatch.setattr(sparse24, "unsupported", lambda _: None)
    monkeypatch.setattr(sparse24, "convert", lambda _: (13, 14))
    found = profile(
        model,
        [SHAPE],
        VOCABULARY,
        Phases(),
        audited=audited,
        load_dense=lambda: tiny_model("llama").eval(),
    )
    assert [one.weights for one in found.latency] == ["as stored", "2:4 kernels"]
    assert found.latency[1].inter_token_speedup is not None
    assert "13 of 14 matrices" in found.latency[1].execution_notes[-1]
