"""HyWIA: coarse and fine are LLM-Pruner's, blends lie between them, gates are those of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from prunebench_plugins.hywia_fusion import attention, draw_order, fused, random_gate
from prunebench_plugins.llm_pruner_groups import members
from tiny import tiny_model

IDS = torch.randint(0, 320, (5, 24), generator=torch.Generator().manual_seed(2))
METHODS = load_plugins().registered("method")
HYWIA = METHODS["hywia"]


def build(name: str = "hywia", **options: object) -> Any:
    cls = METHODS[name]
    return cls(cls.Options.model_validate(options))


def vectors(name: str = "hywia", family: str = "llama", seed: int = 0, tokens=IDS, **options):
    """The importance of the members of the third layer's attention and MLP."""
    model = tiny_model(family)
    parts = anatomy(model)
    coupled = [list(members(parts, block)) for block in parts.blocks if block.layer == 2]
    context = Context(tokens, seed, list(range(4)))
    with torch.no_grad():
        return build(name, **options).vectors(model, coupled, context, 0)


def flat(nested) -> torch.Tensor:
    return torch.cat([vector for each in nested for vector in each])


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
@pytest.mark.parametrize(("fusion", "taylor"), [("coarse", "vectorize"), ("fine", "param_first")])
def test_coarse_and_fine_prune_exactly_as_llm_pruner(fusion: str, taylor: str, family: str) -> None:
    assert flat(vectors(family=family, fusion=fusion)).equal(
        flat(vectors("llm-pruner", family, taylor=taylor))
    )
    models = []
    for name, options in (("hywia", {"fusion": fusion}), ("llm-pruner", {"taylor": taylor})):
        model = tiny_model(family)
        with torch.no_grad():
            build(name, ratio=0.5, **options).prune(model, Context(IDS, 0, list(range(4))))
        models.append(model)
    ours, theirs = models
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("fusion", ["mean", "random-gate", "attention"])
def test_a_blend_is_between_coarse_and_fine(fusion: str) -> None:
    coarse, fine = flat(vectors(fusion="coarse")), flat(vectors(fusion="fine"))
    blend = flat(vectors(fusion=fusion))
    assert bool((coarse <= blend).all())
    assert bool((blend <= fine).all())
    assert not blend.equal(coarse)
    assert not blend.equal(fine)
    if fusion == "mean":
        assert blend.equal((coarse + fine) / 2)


def test_both_importances_come_from_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blend takes no second pass, and is made of exactly the two importances."""
    from prunebench_plugins import llm_pruner

    asked = []
    original = llm_pruner.taylor_vectors

    def recording(*args, **kwargs):
        asked.append(args[3])
        return original(*args, **kwargs)

    monkeypatch.setattr(llm_pruner, "taylor_vectors", recording)
    vectors(fusion="mean")
    assert asked == ["both"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_the_gate_is_an_untrained_network_of_torch(seed: int) -> None:
    """With the same seed, the numbers of the released code's two linear layers."""
    generator = torch.Generator().manual_seed(1)
    coarse, fine = torch.rand(9, generator=generator), 1 + torch.rand(9, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1), torch.nn.Sigmoid()
        )
    with torch.no_grad():
        wanted = network(torch.stack([fine, coarse], dim=1))[:, 0]
    found = random_gate(coarse, fine, torch.Generator().manual_seed(seed))
    assert torch.allclose(found, wanted, rtol=1e-6)
    assert bool(((found > 0) & (found < 1)).all())


def test_the_gate_s_spread_vanishes_with_the_gradients() -> None:
    coarse, fine = torch.rand(50), 1 + torch.rand(50)
    spreads = [
        float(random_gate(coarse * scale, fine * scale, torch.Generator().manual_seed(3)).std())
        for scale in (1.0, 1e-3, 1e-6)
    ]
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 1e-6


def test_gates_are_drawn_in_the_order_of_the_released_code() -> None:
    """Key, output, value, query; then gate, up, down."""
    generator = torch.Generator().manual_seed(42)
    coarse, fine = (vectors(fusion=one) for one in ("coarse", "fine"))
    found = vectors(fusion="random-gate", seed=42)
    for block, order in enumerate(((1, 3, 2, 0), (0, 1, 2))):
        for index in order:
            wanted = fused(coarse[block][index], fine[block][index], "random-gate", generator)
            assert found[block][index].equal(wanted)
    assert draw_order(2) == [0, 1]


def test_only_gates_depend_on_the_seed() -> None:
    assert flat(vectors(fusion="random-gate", seed=1)).equal(
        flat(vectors(fusion="random-gate", seed=1))
    )
    assert not flat(vectors(fusion="random-gate", seed=1)).equal(
        flat(vectors(fusion="random-gate", seed=2))
    )
    assert HYWIA.uses_seed_for(build(fusion="random-gate").options)
    assert not HYWIA.uses_seed_for(build().options)
    assert not HYWIA.uses_seed_for(build(fusion="random-gate", taylor="param_second").options)


def test_attention_does_not_depend_on_the_size_of_gradients() -> None:
    coarse, fine = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([6.0, 7.0, 8.0])
    generator = torch.Generator()
    weight = attention(coarse, fine, generator)
    assert torch.allclose(weight, attention(coarse * 1e-4, fine * 1e-4, generator), atol=1e-5)
    # standardised: fine -1.2247, 0, 1.2247; coarse -0.9258, -0.4629, 1.3887
    wanted = torch.sigmoid(torch.tensor([-1.2247 + 0.9258, 0.4629, 1.2247 - 1.3887]))
    assert torch.allclose(weight, wanted, atol=1e-4)
    assert attention(torch.ones(3), torch.ones(3), generator).tolist() == [0.5] * 3


@pytest.mark.parametrize(("decay", "counts"), [(None, (1, 1)), (0.6, (0.6, 0.24)), (1.0, (1, 0))])
def test_the_fisher_information_decays(decay: float | None, counts: tuple[float, float]) -> None:
    """Sums of w^2 times squared gradients, by single windows: the first, and the others."""
    found = flat(vectors(taylor="param_second", fisher_decay=decay))
    single = [
        flat(vectors("llm-pruner", taylor="param_second", tokens=IDS[i : i + 1])) for i in range(5)
    ]
    wanted = counts[0] * single[0] + counts[1] * sum(single[1:])
    assert torch.allclose(found, wanted / 5, rtol=1e-4)


def test_the_reconstruction_says_so_everywhere() -> None:
    context = Context(IDS, 0, list(range(4)))
    with torch.no_grad():
        build(fusion="attention", ratio=0.5).prune(tiny_model("llama"), context)
    assert "reconstruction from the paper's abstract" in context.notes["fusion"]
    assert "RECONSTRUCTION" in (HYWIA.__doc__ or "")
    assert "reconstruction" in str(HYWIA.Options.model_fields["fusion"].description)
    with torch.no_grad():
        build(ratio=0.5).prune(tiny_model("llama"), plain := Context(IDS, 0, list(range(4))))
    assert "fusion" not in plain.notes


def test_shared_options_are_those_of_llm_pruner() -> None:
    ours, theirs = HYWIA.Options.model_fields, METHODS["llm-pruner"].Options.model_fields
    shared = set(ours) & set(theirs)
    assert shared == set(ours) - {"fusion", "fisher_decay"}
    for name in shared - {"taylor", "fresh_windows"}:
        assert ours[name].default == theirs[name].default, name
        assert ours[name].description == theirs[name].description, name
    assert list(build().options.layers(32, "mlp")) == list(range(4, 30))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 1.0}, "less than 1"),
        ({"ratio": 0.2, "target_parameters": 0.2}, "not both"),
        ({"fusion": "median"}, "'random-gate'"),
        ({"taylor": "param_second", "fisher_decay": 0}, "greater than 0"),
        ({"granularity": "channel"}, "Extra inputs"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        build(**options)


def test_options_without_effect_are_named() -> None:
    idle = build(taylor="param_second", fusion="coarse").options.without_effect()
    assert set(idle) == {"fusion", "fresh_windows"}
    assert set(build(fisher_decay=0.6).options.without_effect()) == {
        "fisher_decay",
        "fresh_windows",
    }


def test_every_step_draws_windows_of_its_own() -> None:
    drawn = []

    def draw(number: int) -> torch.Tensor:
        drawn.append(number)
        return IDS

    for options in ({"iterative_steps": 2}, {"iterative_steps": 2, "fresh_windows": False}, {}):
        context = Context(IDS, 0, list(range(4)), draw=draw)
        with torch.no_grad():
            build(ratio=0.5, **options).prune(tiny_model("llama"), context)
    assert drawn == [1, 1]  # looked for before the first step, then used in the second
