"""Options without effect, seeds that change nothing, and text that nothing reads."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from click.testing import CliRunner

from prunebench import Context, Field, NoEffect, OnlyIf, Options, PrunebenchError
from prunebench.cli import prunebench
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import Suite, check_suite, load_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import source_of
from tiny import tiny_model

REGISTRY = load_plugins()
TEXT = {"corpus": "tiny-text", "windows": 2, "length": 32}


def suite(method: Any, **more: Any) -> Suite:
    data = {"name": "s", "models": "tiny-llama", "methods": [method], "calibration": TEXT, **more}
    return check_suite(source_of(data, "s.yaml"), REGISTRY)


def cells(method: Any, **more: Any) -> list[Any]:
    return list(plan(suite(method, **more), REGISTRY).cells[1:])


REFUSED = [
    ("llm-pruner", {"importance": "l2", "iterative_steps": 3}, "iterative_steps", "importance: l2"),
    ("wanda", {"sparsity": "2:4", "use_variant": True}, "use_variant", "sparsity: 2:4"),
    ("sparsegpt", {"sparsity": "2:4", "block_size": 64}, "block_size", "sparsity: 2:4"),
    ("magnitude", {"min_density": 0.2}, "min_density", "scope: layer"),
    ("llm-pruner", {"importance": "l1", "taylor": "vectorize"}, "taylor", "importance: l1"),
    ("llm-pruner", {"importance": "l2", "taylor": "param_mix"}, "taylor", "importance: l2"),
    ("llm-pruner", {"importance": "random", "taylor": "vectorize"}, "taylor", "importance: random"),
    ("llm-pruner", {"importance": "random", "reduction": "max"}, "reduction", "importance: random"),
    (
        "llm-pruner",
        {"granularity": "channel", "protect_first": 1},
        "protect_first",
        "granularity: channel",
    ),
    (
        "llm-pruner",
        {"granularity": "channel", "protect_last": 0},
        "protect_last",
        "granularity: channel",
    ),
    (
        "llm-pruner",
        {"granularity": "channel", "mode": "reference"},
        "mode",
        "granularity: channel",
    ),
]


@pytest.mark.parametrize(("method", "options", "option", "because"), REFUSED)
def test_an_option_without_effect_is_refused_with_the_reason(
    method: str, options: dict[str, Any], option: str, because: str
) -> None:
    with pytest.raises(
        PrunebenchError, match=rf"{method}\.{option}: has no effect with `{because}`"
    ):
        suite({method: options})


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize("more", [{}, {"global_pruning": True}, {"reduction": "max"}])
def test_steps_change_nothing_for_norms(importance: str, more: dict[str, Any]) -> None:
    """That is why `iterative_steps` is refused there."""
    kind = REGISTRY["method"]["llm-pruner"].value
    found = []
    for steps in (1, 3):
        model = tiny_model("llama")
        options = {"ratio": 0.5, "importance": importance, "iterative_steps": steps, **more}
        with torch.no_grad():
            kind(kind.Options(**options)).prune(model, Context(None, 0, [0, 1, 2, 3]))
        found.append(model.state_dict())
    assert all(map(torch.equal, found[0].values(), found[1].values()))


@pytest.mark.parametrize("recovery", ["lora", "finetune"])
def test_so_are_options_of_a_recovery(recovery: str) -> None:
    with pytest.raises(PrunebenchError, match="`eval_steps` needs `val_windows` or `val_share`"):
        suite({"magnitude": {"recovery": {recovery: {"eval_steps": 5}}}})
    suite({"magnitude": {"recovery": {recovery: {"eval_steps": 5, "val_windows": 1}}}})


def test_so_are_options_of_an_allocation() -> None:
    owl = {"owl": {"threshold": 3.0, "spread": 0}}
    with pytest.raises(PrunebenchError, match=r"owl\.threshold: has no effect with `spread: 0"):
        suite({"wanda": {"allocation": owl}})


def test_the_message_names_file_and_line_and_what_to_write(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: s\nmodels: tiny-llama\nmethods:\n  - magnitude:\n      min_density: 0.1\n"
    )
    with pytest.raises(PrunebenchError) as caught:
        load_suite(file, registry=REGISTRY)
    assert str(caught.value) == (
        f"{file}:5: methods.magnitude.min_density: has no effect with `scope: layer`"
        " (leave it out, or write `scope: global`)"
    )


def test_every_value_of_a_list_counts() -> None:
    with pytest.raises(PrunebenchError, match="with `importance: l1` or `importance: l2`"):
        suite({"llm-pruner": {"importance": ["l1", "l2"], "taylor": "vectorize"}})


def test_an_effect_in_some_combinations_is_a_warning_and_equal_ones_are_planned_once() -> None:
    method = {"llm-pruner": {"importance": ["taylor", "l2"], "taylor": ["vectorize", "param_mix"]}}
    [warning] = suite(method).warnings
    assert "methods.llm-pruner.taylor: has no effect with `importance: l2`" in warning
    assert [cell.label for cell in cells(method)] == [
        "llm-pruner importance=taylor taylor=vectorize",
        "llm-pruner importance=taylor taylor=param_mix",
        "llm-pruner importance=l2",
    ]


def test_of_equal_combinations_the_one_with_defaults_keeps_its_id() -> None:
    [alone] = cells({"llm-pruner": {"importance": "l2"}})
    *_, last = cells(
        {"llm-pruner": {"importance": ["taylor", "l2"], "taylor": ["vectorize", "param_first"]}}
    )
    assert last.id == alone.id


def test_a_default_that_is_spelt_out_is_only_a_warning() -> None:
    method = {"magnitude": {"min_density": 0.01}}
    assert "min_density: has no effect" in suite(method).warnings[0]
    assert [cell.id for cell in cells(method)] == [cell.id for cell in cells("magnitude")]


def test_the_command_line_shows_warnings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "name: s\nmodels: tiny-llama\nmethods:\n  - magnitude: {min_density: 0.01}\n"
    )
    result = CliRunner().invoke(prunebench, ["plan", "mine.yaml"])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: mine.yaml:4: methods.magnitude.min_density: has no")


@pytest.mark.parametrize("name", ["quickstart", "smoke", "standard"])
def test_shipped_suites_have_no_warnings(name: str) -> None:
    assert load_suite(name, registry=REGISTRY).warnings == ()


class TwoWays(Options):
    size: Annotated[int, OnlyIf(kind=("a", "b")), OnlyIf(force=True)] = Field(1, alias="Size")
    kind: str = "c"
    force: bool = False
    text: Annotated[str, OnlyIf(kind=str.isupper, force=True)] = ""


def test_one_of_several_marks_is_enough_and_all_conditions_of_a_mark_are_needed() -> None:
    assert TwoWays().without_effect() == {
        "Size": NoEffect("kind: c", "kind: a"),
        "text": NoEffect("kind: c", None),
    }
    assert "Size" not in TwoWays(kind="b").without_effect()
    assert "Size" not in TwoWays(force=True).without_effect()
    assert TwoWays(kind="C").without_effect()["text"] == NoEffect("force: false", "force: true")
    assert TwoWays(kind="C", force=True).without_effect() == {}


def test_a_mark_that_names_no_option_is_the_authors_mistake() -> None:
    with pytest.raises(TypeError, match="OnlyIf names 'scop', which is no option"):

        class Wrong(Options):
            share: Annotated[float, OnlyIf(scop="global")] = 0.0


@pytest.mark.parametrize(
    ("method", "text", "expected"),
    [
        ("magnitude", {}, [(None, 1)]),
        ("dense", {}, []),
        ({"llm-pruner": {"importance": "l2"}}, {}, [(2, 1)]),
        ({"llm-pruner": {"importance": "l2"}}, {"windows": [2, 3]}, [(2, 1)]),
        ({"llm-pruner": {"importance": "l1"}}, {"sampler": "consecutive"}, [(2, 1)]),
        ({"llm-pruner": {"importance": "random"}}, {"windows": [2, 3]}, [(2, 1), (2, 2)]),
        ("llm-pruner", {}, [(2, 1), (2, 2)]),
        ("llm-pruner", {"sampler": "consecutive"}, [(2, 1)]),
        ("wanda", {"sampler": "consecutive"}, [(2, 1)]),
        ("blockpruner", {"sampler": "consecutive"}, [(2, 1)]),
        ("wanda", {}, [(2, 1), (2, 2)]),
        ("random", {}, [(None, 1), (None, 2)]),
        ({"magnitude": {"recovery": "finetune"}}, {}, [(None, 1), (None, 2)]),
        ({"magnitude": {"allocation": "uniform"}}, {}, [(None, 1)]),
        ({"magnitude": {"allocation": "owl"}}, {}, [(2, 1), (2, 2)]),
        ({"magnitude": {"allocation": {"owl": {"spread": 0}}}}, {}, [(2, 1)]),
    ],
)
def test_what_no_seed_and_no_text_can_change_is_planned_once(
    method: Any, text: dict[str, Any], expected: list[tuple[int | None, int]]
) -> None:
    found = cells(method, seeds=[1, 2], calibration={**TEXT, **text})
    assert [
        (cell.calibration and cell.calibration.windows, cell.seed) for cell in found
    ] == expected


def test_a_setting_that_reads_no_text_needs_no_calibration() -> None:
    [cell] = cells({"llm-pruner": {"importance": "l2"}}, calibration=None)
    assert cell.calibration is None
    with pytest.raises(PrunebenchError, match="'llm-pruner' needs calibration"):
        suite("llm-pruner", calibration=None)
    with pytest.raises(PrunebenchError, match="'llm-pruner' looks at no text with these options"):
        suite({"llm-pruner": {"importance": "l2", "calibration": {"windows": 3}}})
    both = {"llm-pruner": {"importance": ["taylor", "l2"], "calibration": {"windows": 3}}}
    assert [cell.calibration.windows for cell in cells(both)] == [3, 3]
