"""Sub-blocks with channels of their own: they compute what masks do, save, load and generate."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from decoding import tokens_of
from prunebench import Block, Context, PrunebenchError, anatomy, load_pruned
from prunebench.measure.audit import audit, dense_facts
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.model.checkpoint import memory_bytes, save
from prunebench.model.decilm import save_decilm
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration, tiny_context, tiny_model

IDS = tiny_calibration(windows=2, seed=9)
BLOCKS = [Block(layer, kind) for layer in range(4) for kind in ("attention", "mlp")]
PATHS = {
    "attention": ("self_attn", "input_layernorm", "self_attn.o_proj"),
    "mlp": ("mlp", "post_attention_layernorm", "mlp.down_proj"),
}


def some(count: int, generator: torch.Generator) -> list[int]:
    found = (torch.rand(count, generator=generator) < 0.5).nonzero().flatten().tolist()
    return found or [0]


def drawn(seed: int = 0):
    """Channels that each sub-block reads and writes, and the MLP's own."""
    generator = torch.Generator().manual_seed(seed)
    reads = {block: some(48, generator) for block in BLOCKS}
    writes = {block: some(48, generator) for block in BLOCKS}
    inside = {block: some(80, generator) for block in BLOCKS if block.kind == "mlp"}
    # The smallest and the largest sets are special.
    reads[Block(1, "mlp")], writes[Block(1, "mlp")] = [47], [0]
    reads[Block(2, "attention")] = writes[Block(3, "attention")] = list(range(48))
    return reads, writes, inside


def indexed(model, seed: int = 0) -> Context:
    reads, writes, inside = drawn(seed)
    context = tiny_context(model)
    context.index_residual(model, reads, writes)
    context.keep_groups(model, inside)
    return context


def masked(model, seed: int = 0) -> torch.Tensor:
    """Logits in full width, with zeros for all channels that are not among the drawn ones."""
    reads, writes, inside = drawn(seed)

    def zeroed(kept: list[int], states: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(states.shape[-1])
        mask[kept] = 1
        return states * mask

    model = copy.deepcopy(model)
    for block in BLOCKS:
        module = model.model.layers[block.layer]
        _, norm, writer = PATHS[block.kind]
        module.get_submodule(norm).register_forward_hook(
            lambda _, __, out, kept=reads[block]: zeroed(kept, out)
        )
        module.get_submodule(writer).register_forward_hook(
            lambda _, __, out, kept=writes[block]: zeroed(kept, out)
        )
        if block.kind == "mlp":
            module.get_submodule(writer).register_forward_pre_hook(
                lambda _, given, kept=inside[block]: (zeroed(kept, given[0]),)
            )
    return model(IDS).logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma", {}),
    ],
)
def test_sliced_logits_are_the_masked_ones(family: str, overrides) -> None:
    model = tiny_model(family, **overrides)
    expected = masked(model)
    indexed(model)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_with_all_channels_the_logits_stay_to_the_last_bit() -> None:
    model = tiny_model("llama")
    tiny_context(model).index_residual(model, {}, {})
    assert torch.equal(model(IDS).logits, tiny_model("llama")(IDS).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_saves_loads_and_generates_with_a_cache(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    indexed(model)
    logits = model(IDS).logits
    save(model, None, tmp_path / "pruned", made_by={})
    loaded = load_pruned(tmp_path / "pruned")
    assert torch.equal(loaded(IDS).logits, logits)
    assert memory_bytes(loaded) == memory_bytes(model)
    settings = {"max_new_tokens": 6, "do_sample": False}
    with_cache = loaded.generate(IDS[:1, :5], **settings)
    assert torch.equal(with_cache, loaded.generate(IDS[:1, :5], use_cache=False, **settings))
    half = load_pruned(tmp_path / "pruned", dtype="bfloat16")
    assert half.model.layers[0].mlp_reads.dtype == torch.int32
    assert half.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert bool(torch.isfinite(half(IDS).logits).all())


def test_every_matrix_has_its_own_sizes() -> None:
    model = tiny_model("llama")
    reads, writes, inside = drawn()
    indexed(model)
    assert tuple(model.model.embed_tokens.weight.shape) == (320, 48)
    assert tuple(model.model.norm.weight.shape) == (48,)
    for layer, kind in BLOCKS:
        block = Block(layer, kind)
        module = model.model.layers[layer]
        before, behind = len(reads[block]), len(writes[block])
        if kind == "attention":
            shapes = {n: tuple(m.weight.shape) for n, m in module.self_attn.named_children()}
            assert shapes["q_proj"] == (48, before)
            assert shapes["k_proj"] == shapes["v_proj"] == (24, before)
            assert shapes["o_proj"] == (behind, 48)
            continue
        width = len(inside[block])
        assert tuple(module.mlp.gate_proj.weight.shape) == (width, before)
        assert tuple(module.mlp.down_proj.weight.shape) == (behind, width)
        assert module.mlp.down_proj.out_features == behind


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_lean_decoder_gives_the_tokens_of_the_models_own_pass(family: str, fixed: bool) -> None:
    model = tiny_model(family)
    indexed(model)
    lean = Lean(model, 2, 24, fixed=fixed)
    prompt = IDS[:, :8]
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(tokens_of(lean, prompt, 8), expected[:, 8:])


def test_the_audit_counts_what_went_and_apply_removes_it_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    facts = dense_facts(model)
    context = indexed(model)
    found = audit(model, facts, context.dense_indices)
    assert found.parameters == sum(each.numel() for each in set(model.parameters()))
    assert found.form == "sliced"
    assert found.kept is not None
    reads, writes, _ = drawn()
    assert found.kept.mlp_reads[1] == "47 of 48"
    assert found.kept.attention_reads[2] == "0-47 of 48"
    apply = load_plugins()["method"]["apply"].value
    record = {"schema": 1, "audit": found.model_dump(mode="json")}
    (tmp_path / "record.json").write_text(json.dumps(record))
    other = tiny_model("llama")
    again = tiny_context(other)
    apply(apply.Options.model_validate({"units": str(tmp_path / "record.json")})).prune(
        other, again
    )
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert audit(other, facts, again.dense_indices).kept == found.kept
    kept = other.model.layers[0].attention_writes.tolist()
    assert kept == writes[Block(0, "attention")]
    assert other.model.layers[0].mlp_reads.tolist() == reads[Block(0, "mlp")]


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("opt", "not one attention and one MLP, each behind a norm .fc1"),
        ("gpt_neox", "not one attention and one MLP"),
        ("phi", "not one attention and one MLP"),
        ("mixtral", "mlp is not made of plain linears"),
    ],
)
def test_other_families_are_refused_with_the_reason(family: str, said: str) -> None:
    model = tiny_model(family)
    before = model(IDS).logits
    with pytest.raises(PrunebenchError, match=said):
        tiny_context(model).index_residual(model, {}, {})
    assert torch.equal(model(IDS).logits, before)


def test_layers_that_do_more_than_to_add_are_refused_and_unchanged() -> None:
    """The parts have the right names, and the layer scales what it computes."""
    model = tiny_model("llama")
    kind = type(model.model.layers[0])

    class LlamaDecoderLayer(kind):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs) * 0.5

    for layer in model.model.layers:
        layer.__class__ = LlamaDecoderLayer
    before = model(IDS).logits
    with pytest.raises(PrunebenchError, match="does more than to add them"):
        indexed(model)
    assert torch.equal(model(IDS).logits, before)
    assert not list(model.model.layers.named_buffers())


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({Block(0, "mlp"): []}, "0.mlp reads channels that are not"),
        ({Block(0, "mlp"): [3, 1]}, "not an ascending selection of 0 to 47"),
        ({Block(0, "mlp"): [48]}, "not an ascending selection of 0 to 47"),
        ({Block(4, "mlp"): [0]}, "no layer 4"),
    ],
)
def test_wrong_indices_are_an_error(chosen, said: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match=said):
        tiny_context(model).index_residual(model, chosen, {})
    assert not list(model.model.layers.named_buffers())


def test_other_formats_and_a_second_change_say_no(tmp_path: Path) -> None:
    model = tiny_model("llama")
    context = indexed(model)
    with pytest.raises(PrunebenchError, match="which the DeciLM format cannot describe"):
        save_decilm(model, None, tmp_path / "deci")
    with pytest.raises(PrunebenchError, match="residual stream was changed before"):
        context.index_residual(model, {}, {})
    with pytest.raises(PrunebenchError, match="does not read and write all of them"):
        context.keep_hidden(model, range(40))


def test_it_runs_in_another_type_under_autocast() -> None:
    model = tiny_model("llama")
    indexed(model)
    logits = model(IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = model(IDS).logits
    torch.testing.assert_close(found.float(), logits, rtol=0.1, atol=0.1)


def test_blocks_and_layers_can_go_afterwards(tmp_path: Path) -> None:
    model = tiny_model("llama")
    context = indexed(model)
    context.remove_blocks(model, [Block(0, "attention"), Block(1, "mlp")])
    context.remove_layers(model, [3])
    assert len(anatomy(model).layers) == 3
    logits = model(IDS).logits
    save(model, None, tmp_path / "pruned", made_by={})
    assert torch.equal(load_pruned(tmp_path / "pruned")(IDS).logits, logits)
