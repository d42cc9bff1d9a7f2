"""SliceGPT: identity at 0 %, the paper's formulas, widths, saving, generation, refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from decoding import tokens_of
from prunebench import PrunebenchError, load_pruned
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.model.checkpoint import save
from prunebench.model.decilm import save_decilm
from prunebench.testing import tiny_calibration, tiny_context, tiny_model
from prunebench_plugins.slicegpt import SliceGPT, principal

IDS = tiny_calibration(windows=2, seed=9)


def sliced(model, **options):
    context = tiny_context(model)
    with torch.no_grad():
        SliceGPT(SliceGPT.Options.model_validate(options)).prune(model, context)
    return context.notes


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
@pytest.mark.parametrize("orientation", ["pca", "random"])
def test_at_zero_per_cent_the_logits_stay(family: str, orientation: str) -> None:
    model = tiny_model(family)
    dense = model(IDS).logits
    notes = sliced(model, ratio=0, round_interval=1, final_orientation=orientation)
    torch.testing.assert_close(model(IDS).logits, dense, rtol=1e-4, atol=1e-4)
    assert notes["width"] == 48
    assert notes["explained_variance"] == pytest.approx([1.0] * 9)


def basis_of(states: torch.Tensor, kept: int) -> torch.Tensor:
    """The first eigenvectors of the damped sum of x x^T, by numpy's recipe."""
    x = states.reshape(-1, states.shape[-1]).double()
    gram = x.T @ x
    values, vectors = torch.linalg.eigh(gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram)))
    return vectors[:, values.argsort(descending=True)[:kept]].float()


def by_projection(model, tokens, kept: int, ids) -> torch.Tensor:
    """The same function in full width: states are projected to the kept components everywhere.

    Residuals, and what the sub-blocks read, pass P = Q Q^T; norms count all channels.
    """
    decoder = model.model
    bases: list[torch.Tensor] = []

    def run(batch, *, choosing: bool):
        place = iter(range(100))

        def projected(states, full: bool = False):
            if full:
                return states
            index = next(place)
            if choosing:
                bases.append(basis_of(states, kept))
            return states @ bases[index] @ bases[index].T

        hidden = projected(decoder.embed_tokens(batch))
        positions = torch.arange(batch.shape[1])[None]
        turns = decoder.rotary_emb(hidden, positions)
        for index, layer in enumerate(decoder.layers):
            read = layer.input_layernorm(hidden)
            out, _ = layer.self_attn(read, position_embeddings=turns, attention_mask=None)
            hidden = projected(hidden + out)
            out = layer.mlp(layer.post_attention_layernorm(hidden))
            hidden = projected(hidden + out, full=index == len(decoder.layers) - 1)
        return model.lm_head(decoder.norm(hidden))

    run(tokens, choosing=True)
    return run(ids, choosing=False)


@torch.no_grad()
def test_it_computes_what_projections_in_full_width_do() -> None:
    model, twin = tiny_model("llama"), tiny_model("llama")
    sliced(model, ratio=0.25)
    expected = by_projection(twin, tiny_context(twin).windows, 32, IDS)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_every_matrix_has_the_rounded_width() -> None:
    model = tiny_model("llama")
    notes = sliced(model, ratio=0.3, round_interval=8)  # 33.6 channels
    assert notes["width"] == 32
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    assert shapes["model.embed_tokens.weight"][1] == 32
    assert shapes["lm_head.weight"][1] == 48  # the head is not sliced
    for layer in range(4):
        path = f"model.layers.{layer}."
        assert shapes[path + "self_attn.q_proj.weight"] == (48, 32)
        assert shapes[path + "self_attn.o_proj.weight"] == (32, 48)
        assert shapes[path + "mlp.gate_proj.weight"] == (80, 32)
        last = 48 if layer == 3 else 32
        assert shapes[path + "mlp.down_proj.weight"] == (last, 80)
        assert shapes[path + "attention_rotation"] == (32, 32)
        assert shapes[path + "mlp_rotation"] == (32, last)
    assert notes["rotation_parameters"] == 7 * 32 * 32 + 32 * 48
    assert notes["head_untied"]
    assert all(0 < share < 1 for share in notes["explained_variance"][:-1])
    other = tiny_model("llama")
    assert sliced(other, ratio=0.25, round_interval=1, do_slice_head=True)["width"] == 36
    assert other.lm_head.weight.shape[1] == 36


@pytest.mark.parametrize("mode", ["clean", "reference"])
def test_it_saves_loads_and_generates_with_a_cache(mode: str, tmp_path: Path) -> None:
    model = tiny_model("qwen3")  # its query norms have an epsilon of their own
    sliced(model, ratio=0.25, mode=mode)
    logits = model(IDS).logits
    save(model, None, tmp_path / "sliced", made_by={})
    loaded = load_pruned(tmp_path / "sliced")
    assert torch.equal(loaded(IDS).logits, logits)
    settings = {"max_new_tokens": 6, "do_sample": False}
    with_cache = loaded.generate(IDS[:1, :5], **settings)
    assert torch.equal(with_cache, loaded.generate(IDS[:1, :5], use_cache=False, **settings))
    assert torch.equal(copy.deepcopy(loaded)(IDS).logits, logits)


def test_the_released_code_changes_the_embeddings_and_the_norms() -> None:
    """Identity at 0 % is only in the clean mode."""
    model = tiny_model("llama", rms_norm_eps=1e-3)
    dense = model(IDS).logits
    sliced(model, ratio=0, round_interval=1, mode="reference")
    assert float((model(IDS).logits - dense).abs().max()) > 1e-3
    assert {module.epsilon for module in model.modules() if hasattr(module, "epsilon")} == {1e-5}
    rows = model.model.embed_tokens.weight
    centred = tiny_model("llama").model.embed_tokens.weight
    lengths = (centred - centred.mean(1, keepdim=True)).norm(dim=1)
    torch.testing.assert_close(rows.norm(dim=1), lengths, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("opt", "self_attn_layer_norm subtracts a mean"),
        ("gpt_neox", "input_layernorm subtracts a mean"),
        ("phi", "input_layernorm subtracts a mean"),
    ],
)
def test_norms_that_cannot_be_folded_are_refused(family: str, said: str) -> None:
    model = tiny_model(family)
    with pytest.raises(PrunebenchError, match=said):
        sliced(model, ratio=0.25)
    assert all(map(torch.equal, model.parameters(), tiny_model(family).parameters()))


def test_layers_that_compute_something_else_are_refused() -> None:
    """The parts have the right names, and the layer adds them in another way."""
    model = tiny_model("llama")
    kind = type(model.model.layers[0])

    class LlamaDecoderLayer(kind):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs) * 0.5

    for layer in model.model.layers:
        layer.__class__ = LlamaDecoderLayer
    with pytest.raises(PrunebenchError, match="computes something else when its norms are folded"):
        sliced(model, ratio=0.25)
    assert all(map(torch.equal, model.parameters(), tiny_model("llama").parameters()))


def test_bad_options_and_states_that_are_not_finite() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        SliceGPT.Options(ratio=1.0)
    with pytest.raises(PrunebenchError, match="rounded down to a multiple of 64, are none"):
        sliced(tiny_model("llama"), ratio=0.25, round_interval=64)
    with pytest.raises(PrunebenchError, match="not finite"):
        principal(torch.full((2, 2), float("nan"), dtype=torch.float64))
    values, vectors = principal(torch.diag(torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64)))
    mean = 0.01 * 4 / 3
    assert values.tolist() == pytest.approx([3 + mean, 1 + mean, mean])
    assert vectors.abs()[:, 0].tolist() == pytest.approx([0, 1, 0])


def test_equal_states_have_one_component_and_are_no_trouble() -> None:
    """Zero eigenvalues: every embedding is the same."""
    model = tiny_model("llama")
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:1].expand(320, 48))
    notes = sliced(model, ratio=0.5)
    assert notes["explained_variance"][0] > 0.99
    assert bool(torch.isfinite(model(IDS).logits).all())


def test_defaults_are_the_released_ones() -> None:
    options = SliceGPT.Options()
    assert (options.round_interval, options.do_slice_head) == (8, False)
    assert options.width(576) == 432
    assert SliceGPT.published_calibration["windows"] == 128
    assert not SliceGPT.uses_seed_for(options)
    assert SliceGPT.uses_seed_for(SliceGPT.Options(final_orientation="random"))


@pytest.mark.parametrize("fixed", [False, True])
def test_the_lean_decoder_gives_the_tokens_of_the_models_own_pass(fixed: bool) -> None:
    model = tiny_model("llama", num_key_value_heads=2, vocab_size=320)
    sliced(model, ratio=0.25)
    lean = Lean(model, 2, 24, fixed=fixed)
    prompt = IDS[:, :8]
    expected = model.generate(prompt, max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert torch.equal(tokens_of(lean, prompt, 10), expected[:, 8:])


def test_other_formats_and_a_second_slicing_say_no(tmp_path: Path) -> None:
    model = tiny_model("llama")
    sliced(model, ratio=0.25)
    with pytest.raises(PrunebenchError, match="residual stream of this model is rotated"):
        save_decilm(model, None, tmp_path / "deci")
    with pytest.raises(PrunebenchError, match="cannot be rotated"):
        sliced(model, ratio=0.25)


def test_a_cell_shows_the_channels_that_went_and_the_parameters_that_came(run_cell) -> None:
    record = run_cell("slicegpt", {"ratio": 0.25, "round_interval": 4})
    assert record.status == "ok", record.error
    assert (record.audit.hidden, record.audit.hidden_dense) == (36, 48)
    assert record.audit.missed is None
    assert record.audit.removed_share < 0  # a tiny tied model grows
    assert not record.flags
