from __future__ import annotations

import pytest
import torch
from torch import nn

from decoding import generated, tokens_of
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed.execution import Eager, choose, decoder
from prunebench.measure.speed.latency import measure_latency, one_round
from prunebench.measure.speed.lean_decoder import Lean, side_by_side
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.model.anatomy import Block
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups
from prunebench.testing import any_type
from tiny import FAMILIES, tiny_model

WHOLE = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "layer_types": None},
}
"""The tiny models of these families have windows shorter than the sequences here."""
NOT_PACKED = "lean-packed: no product is faster with a second copy of its weight"
"""Of tiny models: their products take longer to call than to compute."""
LEAN = ("llama", "mistral", "qwen2", "qwen3")


def model_of(family: str, **changes):
    return tiny_model(family, **(WHOLE.get(family, {}) | changes)).eval()


def prompt(batch=2, length=7):
    return torch.randint(0, 320, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", LEAN)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
def test_lean_generates_what_the_model_generates(family, batch, fixed):
    model = model_of(family)
    ids = prompt(batch)
    expected = generated(model, ids, 10)[:, 7:]
    lean = Lean(model, batch, 17, fixed=fixed)
    assert torch.equal(tokens_of(lean, ids, 10), expected)
    assert torch.equal(tokens_of(lean, ids, 10), expected)  # a second prompt forgets the first


@pytest.mark.parametrize("family", FAMILIES)
def test_the_static_cache_gives_the_same_tokens(family):
    model = model_of(family)
    assert torch.equal(
        tokens_of(decoder(model, "static", 2, 17), prompt(), 10),
        tokens_of(Eager(model), prompt(), 10),
    )


def pruned(kind):
    model = model_of("llama", num_hidden_layers=4)
    if kind == "layers":
        remove_layers(model, [1, 2])
    elif kind == "blocks":
        remove_blocks(model, [Block(0, "attention"), Block(2, "mlp"), Block(3, "attention")])
    elif kind == "widths":
        groups = {Block(1, "attention"): [0], Block(2, "mlp"): list(range(0, 40, 2))}
        keep_groups(model, groups)
    else:
        for each in model.model.layers.parameters():
            each.data[..., ::2] = 0
    return model


@pytest.mark.parametrize("kind", ["layers", "blocks", "widths", "zeros"])
def test_a_pruned_model_runs_lean_with_its_own_tokens(kind):
    model = pruned(kind)
    chosen = choose([model, model_of("llama", num_hidden_layers=4)], prompt(), 10)
    assert (chosen.form, chosen.same_tokens, chosen.notes) == ("lean", True, [NOT_PACKED])
    assert torch.equal(
        tokens_of(chosen.decoders[0], prompt(), 10), tokens_of(Eager(model), prompt(), 10)
    )


def test_half_precision_runs_lean_through_either_kernel():
    model = model_of("llama").to(torch.bfloat16)
    assert choose([model], prompt(1), 8).same_tokens is True


def test_weights_put_side_by_side_are_held_once_and_stay_the_parameters():
    model = model_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Lean(model, 1, 16)
    attention = model.model.layers[0].self_attn
    storages = {
        each.weight.untyped_storage().data_ptr()
        for each in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    assert len(storages) == 1
    Lean(model, 2, 16)  # a second shape lays nothing out again
    assert {attention.q_proj.weight.untyped_storage().data_ptr()} == storages
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    attention.k_proj.weight.data.zero_()  # what changes the parameter changes what lean computes
    assert torch.equal(
        tokens_of(Lean(model, 2, 17), prompt(), 10), tokens_of(Eager(model), prompt(), 10)
    )


def test_side_by_side_gives_the_rows_in_order():
    parts = [nn.Parameter(torch.full((rows, 3), float(rows))) for rows in (1, 2, 4)]
    for _ in range(2):
        whole = side_by_side(parts)
        assert torch.equal(whole[:, 0], torch.tensor([1.0, 2, 2, 4, 4, 4, 4]))
    whole[0] = 9
    assert parts[0][0, 0] == 9


class Odd(nn.Linear):
    """A linear that computes something else."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_a_model_with_foreign_parts_is_refused_and_runs_eagerly():
    model = model_of("llama")
    odd = Odd(model.config.hidden_size, model.config.intermediate_size, bias=False)
    model.model.layers[1].mlp.up_proj = odd
    with pytest.raises(UnavailableError, match="layer 1: its MLP holds a Odd"):
        Lean(model, 1, 16)
    chosen = choose([model], prompt(), 5)
    assert chosen.form == "eager"
    assert chosen.notes == ["lean-packed, lean: layer 1: its MLP holds a Odd"]


def test_hooks_are_not_passed_over():
    model = model_of("llama")
    handle = model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)
    assert choose([model], prompt(), 4).form == "eager"
    handle.remove()
    assert choose([model], prompt(), 4).form == "lean"


@pytest.mark.parametrize(
    ("family", "why"), [("gemma2", "needs softcap"), ("mistral", "window of 16")]
)
def test_a_model_that_lean_does_not_cover_has_a_reason(family, why):
    model = any_type.tiny_model("gemma2") if family == "gemma2" else tiny_model(family)
    chosen = choose([model.eval()], prompt(2, 12) % 300, 10)
    assert chosen.form == "eager"
    assert why in chosen.notes[0]


def test_other_tokens_are_found_and_the_next_form_is_taken(monkeypatch):
    model = model_of("llama")
    step = Lean.step
    monkeypatch.setattr(Lean, "step", lambda self, tokens: (step(self, tokens) + 1) % 300)
    chosen = choose([model], prompt(), 6)
    assert chosen.form == "eager"
    assert chosen.notes[0] == NOT_PACKED
    assert "other tokens than eager decoding, first at new token 2 of 6" in chosen.notes[1]
    asked = choose([model], prompt(), 6, "lean")
    assert (asked.form, asked.same_tokens) == ("lean", False)


def test_a_form_that_cannot_be_had_is_an_error_with_the_reason():
    with pytest.raises(
        PrunebenchError, match="execution 'cuda-graph': CUDA graphs need a CUDA GPU"
    ) as caught:
        choose([model_of("llama")], prompt(), 4, "cuda-graph")
    assert "fastest" in caught.value.hint


def test_latency_records_the_form_and_whether_its_tokens_agree():
    model, dense = pruned("layers"), model_of("llama", num_hidden_layers=4)
    shape = LatencySpec(prompt=7, new_tokens=6, batch_size=2, min_rounds=6, min_time_s=0)
    found, _ = measure_latency(model, prompt(), shape, dense=dense)
    assert (found.execution, found.same_tokens, found.execution_notes) == (
        "lean",
        True,
        [NOT_PACKED],
    )
    assert found.second_copy_bytes == 0
    eager, _ = measure_latency(
        model, prompt(), shape.model_copy(update={"execution": "eager"}), dense=dense
    )
    assert (eager.execution, eager.same_tokens) == ("eager", None)


def test_every_form_times_as_many_tokens():
    model = model_of("llama")
    for form in ("eager", "static", "lean"):
        with torch.inference_mode():
            ttft, steps = one_round(decoder(model, form, 2, 12), prompt(), 5)
        assert ttft >= 0
        assert len(steps) == 4
