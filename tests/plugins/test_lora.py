"""LoRA: the trained model is the merged model, zeros stay, no trace of peft, in every family."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from prunebench import Context, PrunebenchError, anatomy
from prunebench.model.anatomy import Block
from prunebench.model.checkpoint import save
from prunebench.model.load import load_pruned
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups
from prunebench.plugin.host import load_plugins
from tiny import FAMILIES, VOCABULARY, tiny_model

SCALE = 16 / 8


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(seed))


def half_zeros(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for linear in Context(None, 0, []).linears(model).values():
            linear.weight.masked_fill_(
                torch.rand(linear.weight.shape, generator=generator) < 0.5, 0
            )
    return model


def recover(model, kind: type[Context] = Context, seed: int = 0, **options):
    recovery = load_plugins()["recovery"]["lora"].value
    context = kind(tokens(), seed, list(range(len(anatomy(model).layers))))
    given = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 3, "schedule": "constant", **options}
    recovery(recovery.Options.model_validate(given)).recover(model, context)
    return context


def unmerged(model, **options):
    """Train without merging, and put the adapter beside the linears as the harness does."""
    context = recover(model, Trained, merge=False, **options)
    context.adapter.attach(model)
    return context


def assert_plain(model) -> None:
    """No trace of peft is left."""
    assert not [name for name, _ in model.named_modules() if "lora" in name or "base_layer" in name]
    assert not [name for name in vars(model) if "peft" in name.lower()]
    assert not any(each.requires_grad for each in model.parameters())
    assert not model.training
    anatomy(model)


class Trained(Context):
    """Keep the logits of the model with its adapters after the training."""

    def train(self, model, *args, **kwargs):
        log = super().train(model, *args, **kwargs)
        with torch.no_grad():
            self.__dict__["logits"] = model(tokens(1)).logits
        return log


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_the_trained_model(family, masked):
    model = half_zeros(tiny_model(family)) if masked else tiny_model(family)
    before = {name: each.clone() for name, each in model.named_parameters()}
    masks = Context(None, 0, []).zeros(model)
    context = recover(model, Trained)
    assert_plain(model)
    torch.testing.assert_close(model(tokens(1)).logits, context.logits, rtol=1e-4, atol=1e-4)
    assert context.notes["last_loss"] < context.notes["first_loss"]
    assert context.notes["masked_targets"] == (context.notes["targets"] if masked else 0)
    prunable = {f"{path}.weight" for path in context.linears(model)}
    for name, each in model.named_parameters():
        assert torch.equal(each, before[name]) == (name not in prunable), name
        if masked and name in prunable:
            assert torch.equal(each == 0, masks[name]), name


def test_gradients_under_a_mask_are_those_of_the_masked_weights():
    """Compare with autograd through W + scale (B A) * mask in a plain model."""

    class Compare(Context):
        def train(self, model, adapters, *args, **kwargs):
            log = super().train(model, adapters, *args, **kwargs)  # B is zero before
            for each in adapters.values():
                each.requires_grad = True
            model(tokens(1)).logits.square().mean().backward()
            plain = half_zeros(tiny_model("llama"))
            effective = {}
            copies = {
                name: each.detach().clone().requires_grad_() for name, each in adapters.items()
            }
            for path, linear in self.linears(plain).items():
                a, b = (copies[f"{path}.lora_{each}.default.weight"] for each in "AB")
                effective[f"{path}.weight"] = linear.weight + SCALE * (b @ a) * (linear.weight != 0)
            functional_call(plain, effective, (tokens(1),)).logits.square().mean().backward()
            for name, each in adapters.items():
                torch.testing.assert_close(each.grad, copies[name].grad, rtol=1e-3, atol=1e-5)
                each.grad = None
            self.notes["compared"] = len(adapters)
            return log

    model = half_zeros(tiny_model("llama"))
    context = recover(model, Compare, dropout=0.0)
    assert context.notes["compared"] == 2 * context.notes["targets"]


def test_a_model_with_different_widths_in_every_layer_and_removed_blocks():
    model = tiny_model("llama")
    with torch.no_grad():
        keep_groups(model, {Block(0, "mlp"): range(7)})
        keep_groups(model, {Block(1, "attention"): [1]})
        remove_blocks(model, [Block(2, "attention"), Block(3, "mlp")])
    shapes = {name: each.shape for name, each in model.named_parameters()}
    context = recover(model, Trained)
    assert_plain(model)
    assert {name: each.shape for name, each in model.named_parameters()} == shapes
    assert context.notes["targets"] == 4 * 7 - 4 - 3
    assert context.notes["last_loss"] < context.notes["first_loss"]
    torch.testing.assert_close(model(tokens(1)).logits, context.logits, rtol=1e-4, atol=1e-4)


def test_half_precision_models_keep_their_dtype():
    model = half_zeros(tiny_model("llama")).to(torch.bfloat16)
    masks = Context(None, 0, []).zeros(model)
    context = recover(model)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(model.get_parameter(name) == 0, mask) for name, mask in masks.items())
    assert context.notes["last_loss"] < context.notes["first_loss"]


def test_targets_choose_the_linears():
    model, before = tiny_model("llama"), tiny_model("llama")
    context = recover(model, targets=["q_proj", "down_proj"])
    changed = {
        name
        for name, each in model.named_parameters()
        if not torch.equal(each, before.get_parameter(name))
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
    assert len(changed) == context.notes["targets"] == 8
    with pytest.raises(PrunebenchError, match="no linear of the layers is called fc1") as caught:
        recover(model, targets=["q_proj", "fc1"])
    assert "gate_proj" in caught.value.hint


def test_the_result_depends_on_the_seed_alone():
    def weight(seed: int) -> torch.Tensor:
        model = tiny_model("opt")
        torch.rand(seed + 3)  # whatever was drawn before
        recover(model, seed=seed, epochs=2)
        return model.model.decoder.layers[1].fc1.weight

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


def test_a_failed_training_leaves_the_pruned_model():
    model, before = tiny_model("llama"), tiny_model("llama")
    with pytest.raises(PrunebenchError, match="not finite"):
        recover(model, learning_rate=1e30, max_grad_norm=None)
    assert_plain(model)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_it_saves_and_loads(tmp_path):
    model = half_zeros(tiny_model("qwen3"))
    recover(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens(1)).logits, model(tokens(1)).logits)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_an_adapter_that_is_not_merged_leaves_the_weights_and_gives_the_trained_logits(family):
    model, before = half_zeros(tiny_model(family)), half_zeros(tiny_model(family))
    context = unmerged(model)
    assert_plain(model)
    assert all(map(torch.equal, model.parameters(), before.parameters()))
    torch.testing.assert_close(model(tokens(1)).logits, context.logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(tokens(1)).logits, before(tokens(1)).logits, atol=1e-2)
    assert context.notes["masked_targets"] == 0
    assert context.adapter.rank == 8
    assert context.adapter.parameters == context.notes["trained_parameters"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_adapter_is_saved_beside_the_weights_and_loads_with_peft(tmp_path, dtype):
    model = half_zeros(tiny_model("llama"))
    for each in model.parameters():  # not `model.to`, which would round rotary frequencies
        each.data = each.data.to(dtype)
    with torch.no_grad():
        keep_groups(model, {Block(0, "mlp"): range(7)})  # plain loaders cannot read the weights
    unmerged(model, targets=["q_proj", "up_proj"])
    expected = model(tokens(1)).logits
    save(model, None, tmp_path / "saved", made_by={})
    again = load_pruned(tmp_path / "saved")
    assert torch.equal(again(tokens(1)).logits, expected)
    base = load_pruned(tmp_path / "saved", adapter=False)
    assert not torch.equal(base(tokens(1)).logits, expected)
    with_peft = PeftModel.from_pretrained(base, tmp_path / "saved" / "adapter")
    assert torch.equal(with_peft(tokens(1)).logits, expected)
    trained = [name for name, _ in with_peft.named_parameters() if "lora_A" in name]
    assert len(trained) == 2 * 4
    assert all(
        not mask.any() or bool((again.get_parameter(name)[mask] == 0).all())
        for name, mask in Context(None, 0, []).zeros(model).items()
    )


def test_a_damaged_adapter_is_named(tmp_path):
    model = tiny_model("llama")
    unmerged(model)
    save(model, None, tmp_path / "saved", made_by={})
    (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(PrunebenchError, match=r"adapter_model\.safetensors: not an adapter"):
        load_pruned(tmp_path / "saved")
    load_pruned(tmp_path / "saved", adapter=False)


def test_an_adapter_of_another_model_is_refused():
    context = recover(tiny_model("llama"), merge=False)
    with pytest.raises(PrunebenchError, match="has an update for model\\.layers"):
        context.adapter.attach(tiny_model("opt"))


class Updates(Context):
    """Keep A and B of every linear as the training left them."""

    def train(self, model, adapters, *args, **kwargs):
        log = super().train(model, adapters, *args, **kwargs)
        self.__dict__["trained"] = {name: each.detach().clone() for name, each in adapters.items()}
        return log


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "sparse"])
def test_what_is_merged_is_alpha_by_rank_times_b_a(masked):
    model = half_zeros(tiny_model("llama")) if masked else tiny_model("llama")
    before = {
        path: each.weight.clone() for path, each in Context(None, 0, []).linears(model).items()
    }
    context = recover(model, Updates, rank=3, alpha=6.6)
    for path, linear in context.linears(model).items():
        a, b = (context.trained[f"{path}.lora_{each}.default.weight"] for each in "AB")
        assert a.shape == (3, linear.in_features)
        assert b.shape == (linear.out_features, 3)
        assert bool(b.any())
        update = 2.2 * (b @ a)
        expected = before[path] + (update * (before[path] != 0) if masked else update)
        torch.testing.assert_close(linear.weight, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "sparse"])
def test_dropout_is_used_and_an_adapter_says_what_it_was(masked):
    def trained(dropout: float) -> torch.Tensor:
        model = half_zeros(tiny_model("llama")) if masked else tiny_model("llama")
        recover(model, dropout=dropout)
        return model.model.layers[1].mlp.up_proj.weight

    assert torch.equal(trained(0.0), trained(0.0))
    assert not torch.equal(trained(0.0), trained(0.5))
    kept = recover(tiny_model("llama"), merge=False, rank=3, alpha=6.6, dropout=0.2).adapter
    assert (kept.alpha, kept.dropout) == (6.6, 0.2)


def test_initial_values_of_a_come_from_the_cells_seed_and_updates_are_float32():
    def first(seed: int, drawn: int = 0) -> torch.Tensor:
        class Initial(Context):
            def train(self, model, adapters, *args, **kwargs):
                assert {each.dtype for each in adapters.values()} == {torch.float32}
                self.__dict__["a"] = next(iter(adapters.values())).detach().clone()
                return super().train(model, adapters, *args, **kwargs)

        torch.manual_seed(drawn)
        return recover(tiny_model("llama").bfloat16(), Initial, seed, epochs=1).a

    assert torch.equal(first(3), first(3, drawn=9))
    assert not torch.equal(first(3), first(4))
