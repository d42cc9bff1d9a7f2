"""Apply: what a structured method removed, removed again from its file, gives the same model."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import prunebench
from prunebench import Block, Context, Method, PrunebenchError, anatomy
from prunebench.cli import prunebench as command
from prunebench.experiment.cell import Cell
from prunebench.measure.audit import audit, dense_facts
from prunebench.model.checkpoint import save
from prunebench.plugin.host import load_plugins
from prunebench.record.audit import Audit
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig
from tiny import FAMILIES, tiny_checkpoint, tiny_model

IDS = torch.randint(0, 320, (3, 12), generator=torch.Generator().manual_seed(2))
METHODS = [
    ("shortgpt", {"count": 2}),
    ("blockpruner", {"count": 4}),
    ("llm-pruner", {"ratio": 0.5, "protect_first": 1}),
    ("llm-pruner", {"ratio": 0.3, "global_pruning": True, "iterative_steps": 2}),
    ("llm-pruner", {"ratio": 0.25, "granularity": "channel"}),
]


def method(name: str, **options: Any) -> Method:
    cls = load_plugins()["method"][name].value
    return cls(cls.Options.model_validate(options))


def prune(model, name: str, **options: Any) -> tuple[Context, Audit]:
    facts = dense_facts(model)
    context = Context(IDS, 0, list(range(facts.layers)))
    with torch.no_grad():
        method(name, **options).prune(model, context)
    return context, audit(model, facts, context.dense_indices)


def described(model) -> dict[str, Any]:
    """The config without what saving and loading add to it."""
    added = {"_name_or_path", "architectures", "dtype"}
    return {key: value for key, value in model.config.to_dict().items() if key not in added}


def assert_same(one, other) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert torch.equal(one(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_a_method_and_its_file_give_the_same_model(
    family: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if family == "gemma" and "granularity" in options:
        pytest.skip("Gemma's embeddings are scaled by the width")
    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    _, found = prune(model, name, **options)
    save(model, None, tmp_path / "pruned", made_by={}, kept=found.kept)
    context, again = prune(dense, "apply", units=str(tmp_path / "pruned" / "pruning.json"))
    assert_same(model, dense)
    assert described(model) == described(dense)
    assert again == found
    assert context.kept_layers == found.kept_layers


def some(data: st.DataObject, total: int, least: int = 0) -> list[int]:
    return sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=least)))


def random_cuts(data: st.DataObject, model, context: Context) -> None:
    """What a plugin may do: any cuts in any order, counted in the model as it is then."""
    for kind in data.draw(st.lists(st.sampled_from(["layers", "blocks", "groups", "hidden"]))):
        parts = anatomy(model)
        if kind == "layers":
            gone = some(data, len(parts.layers))
            if len(gone) < len(parts.layers):
                context.remove_layers(model, gone)
        elif kind == "blocks":
            gone = some(data, len(parts.blocks))
            if len(gone) < len(parts.blocks):
                context.remove_blocks(model, [parts.blocks[index] for index in gone])
        elif kind == "groups":
            block = data.draw(st.sampled_from(parts.blocks))
            present = parts.groups(parts.layers[block.layer], block.kind)
            context.keep_groups(model, {block: some(data, present, 1)})
        else:
            context.keep_hidden(model, some(data, parts.embeddings.weight.shape[1], 1))


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from([family for family in FAMILIES if family != "gemma"]))
def test_any_cuts_in_any_order_can_be_applied_again(data: st.DataObject, family: str) -> None:
    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    facts = dense_facts(model)
    context = Context(None, 0, list(range(4)))
    random_cuts(data, model, context)
    found = audit(model, facts, context.dense_indices)
    record = {"schema": 2, "audit": json.loads(found.model_dump_json())}
    units = prunebench_units(record)
    _, again = prune(dense, "apply", units=units)
    assert_same(model, dense)
    assert again == found


def prunebench_units(data: dict[str, Any]) -> dict[str, Any]:
    """What the option holds after it read a file with this content, as a cell stores it."""
    from prunebench_plugins.apply_units import units_of

    return json.loads(units_of(data).model_dump_json())


def test_a_list_of_ones_own_in_json_or_yaml(tmp_path: Path) -> None:
    (tmp_path / "units.yaml").write_text(
        "layers: [3]\nattention: [0]\nkv_groups: {1: [0]}\nmlp_channels: {1: 0-9, 2: [79, 4]}\n"
        'hidden: "40-47"\n'
    )
    (tmp_path / "units.json").write_text(
        '{"layers": [3], "attention": "0", "kv_groups": {"1": [0]}, "hidden": "40-47",'
        ' "mlp_channels": {"1": "0-9", "2": [4, 79]}}'
    )
    expected = tiny_model("llama")
    context = Context(None, 0, [0, 1, 2, 3])
    context.keep_hidden(expected, range(40))
    context.keep_groups(expected, {Block(1, "attention"): [1], Block(1, "mlp"): range(10, 80)})
    context.keep_groups(expected, {Block(2, "mlp"): [i for i in range(80) if i not in {4, 79}]})
    context.remove_blocks(expected, [Block(0, "attention")])
    context.remove_layers(expected, [3])
    for name in ("units.yaml", "units.json"):
        model = tiny_model("llama")
        prune(model, "apply", units=str(tmp_path / name))
        assert_same(model, expected)


def test_a_layer_that_loses_both_blocks_goes_with_them() -> None:
    model = tiny_model("llama")
    context, found = prune(
        model, "apply", units={"attention": [0, 1], "mlp": "0,2 of 4", "layers": [3]}
    )
    assert context.kept_layers == [1, 2]
    assert found.removed_blocks == ["1.attention", "2.mlp"]


def test_nothing_to_remove_removes_nothing() -> None:
    model, dense = tiny_model("qwen2"), tiny_model("qwen2")
    prune(model, "apply", units={})
    assert_same(model, dense)
    assert described(model) == described(dense)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ({"layers": [4]}, r"a model with a layer 4, and this one has layers 0 to 3"),
        ({"mlp": "1 of 12"}, r"a model of 12 layers, and this one has layers 0 to 3"),
        ({"kv_groups": {"7": [0]}}, r"a model with a layer 7"),
        ({"kv_groups": {"1": "0-1"}}, r"1.attention: all 2 would be removed .*under `attention`"),
        ({"mlp_channels": {"1": "3 of 11008"}}, r"count of 11008, and this model has 80 there"),
        ({"mlp_channels": {"1": [80]}}, r"count up to 80, and this model has 80 there"),
        ({"hidden": "0-47"}, r"the residual stream: all 48 would be removed"),
        ({"layers": "0-3"}, r"all 4 layers would be removed"),
        ({"attention": "0-3", "mlp": "0-3"}, r"all 4 layers would be removed"),
        ({"attention": "0-1", "mlp": "0-1", "layers": "2-3"}, r"all 4 layers would be removed"),
    ],
)
def test_units_of_another_model_are_refused_and_change_nothing(
    units: dict[str, Any], said: str
) -> None:
    model, dense = tiny_model("llama"), tiny_model("llama")
    with pytest.raises(PrunebenchError, match=said):
        prune(model, "apply", units=units)
    assert_same(model, dense)


def test_layers_of_a_family_without_bypass_can_be_removed() -> None:
    model = tiny_model("opt", do_layer_norm_before=False)
    context, _ = prune(model, "apply", units={"layers": [1], "mlp_channels": {"2": "0-9"}})
    assert context.kept_layers == [0, 2, 3]


@pytest.mark.parametrize(
    ("model", "units", "said"),
    [
        (
            lambda: tiny_model("gemma"),
            {"hidden": [0], "mlp": [1], "mlp_channels": {"2": [0]}, "layers": [3]},
            "residual channels of this gemma model cannot be removed",
        ),
        (
            lambda: tiny_model("opt", do_layer_norm_before=False),
            {"attention": [1], "mlp_channels": {"2": [0]}},
            "normalises after adding",
        ),
    ],
)
def test_a_family_that_refuses_is_left_as_it_was(model, units: dict[str, Any], said: str) -> None:
    ours, dense = model(), model()
    with pytest.raises(PrunebenchError, match=said):
        prune(ours, "apply", units=units)
    assert_same(ours, dense)


def test_a_block_that_is_not_there_is_named() -> None:
    model = tiny_model("llama")
    prune(model, "apply", units={"attention": [1]})
    with pytest.raises(PrunebenchError, match=r"no 1\.attention to remove: the model has none"):
        prune(model, "apply", units={"attention": [1]})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("u.json", "{", "not JSON"),
        ("u.yaml", "a: [", "not YAML"),
        ("u.yaml", "- 3\n", "no mapping of keys"),
        ("u.yaml", "layer: [3]\n", "Extra inputs"),
        ("u.yaml", "layers: [3, 3]\n", "appears twice"),
        ("u.yaml", "layers: [-1]\n", "write numbers from 0"),
        ("u.yaml", "layers: 3-1\n", "must ascend"),
        ("u.yaml", b"\xff\xfe", "not UTF-8"),
        ("u.json", '{"schema": 2, "audit": null}', "no pruned model"),
        ("u.json", '{"shape": {}, "format": 1}', "tells only how many stayed"),
        (
            "u.json",
            '{"schema": 2, "audit": {"kept": {"layers": "0-3 of 4", "hidden": null}}}',
            "residual stream stayed is not known",
        ),
        (
            "u.json",
            '{"schema": 2, "audit": {"kept": {"layers": "0-3 of 4", "hidden": "0 of 1", "mlp": {"2": null}}}}',
            "which units of 2.mlp stayed is not known",
        ),
        ("u.json", '{"schema": 2, "audit": {"widths": [{}]}}', "tells only how many stayed"),
    ],
)
def test_a_file_that_names_no_units_is_an_error(
    name: str, text: str | bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        method("apply", units=str(tmp_path / name))


def test_a_record_from_before_units_were_recorded_has_its_layers_and_blocks() -> None:
    units = prunebench_units(
        {
            "schema": 2,
            "audit": {
                "removed_layers": [3],
                "removed_blocks": ["0.attention", "2.mlp"],
                "hidden": 48,
                "hidden_dense": 48,
            },
        }
    )
    assert [units[key] for key in ("layers", "attention", "mlp")] == ["3", "0", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_from_the_command_line(folder: Path) -> None:
    text = [f"--calibration={pair}" for pair in ("corpus=text.txt", "windows=2", "length=16")]
    assert run("prune", "./model", "blockpruner", "count=3", *text, "--out=a").exit_code == 0
    done = run("prune", "./model", "apply", "units=a/pruning.json", "--out=b")
    assert done.exit_code == 0, done.exception
    assert_same(prunebench.load_pruned("a"), prunebench.load_pruned("b"))
    kept = [json.loads(Path(name, "pruning.json").read_text())["kept"] for name in "ab"]
    assert kept[0] == kept[1]
    done = run("prune", "./model", "apply", "units=nowhere.json", "--out=c")
    assert "nowhere.json is not there" in str(done.exception)
    done = run("prune", "./model", "apply", "--out=c")
    assert "'units' is missing" in str(done.exception)


def test_a_suite_applies_what_a_cell_of_another_run_removed(tmp_path: Path) -> None:
    """The name is relative to the suite. The cell holds what the file says, and a short label."""
    rig = Rig(tmp_path)
    assert rig.run(rig.suite("shortgpt: {count: 2}")).returncode == 0
    records = (tmp_path / "runs" / "tiny" / "cells").glob("*.json")
    [first] = [path for path in records if record_of(path)["cell"]["method"]["name"] == "shortgpt"]
    (tmp_path / "files").mkdir()
    shutil.copy(first, tmp_path / "files" / "a.json")
    shutil.copy(first, tmp_path / "files" / "b.json")
    suites = {name: suite_in(rig, name) for name in "ab"}
    assert len({cell_of(path).id for path in suites.values()}) == 1, "the same units, the same cell"
    assert cell_of(suites["a"]).label == "apply units=a.json"

    assert rig.run(suites["a"], "--out", "again").returncode == 0
    again = record_of(tmp_path / "again" / "cells" / f"{cell_of(suites['a']).id}.json")
    assert again["audit"] == record_of(first)["audit"]
    assert again["quality"] == record_of(first)["quality"]


def suite_in(rig: Rig, name: str) -> Path:
    text = rig.suite(f"apply: {{units: {name}.json}}").read_text()
    path = rig.folder / "files" / f"{name}.yaml"
    path.write_text(text.replace("./model", "../model").replace("text.txt", "../text.txt"))
    return path


def cell_of(suite: Path) -> Cell:
    registry = load_plugins()
    return plan(load_suite(suite, registry=registry), registry).cells[1]


def record_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_number_that_no_model_reaches_is_a_typing_error() -> None:
    assert prunebench_units({"hidden": [9_999_999]})["hidden"] == "9999999"
    with pytest.raises(ValueError, match="write numbers from 0"):
        prunebench_units({"hidden": [10_000_000]})
