"""`recovery:` beside a method's options: syntax, fan-out, training windows, identity, bad input."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from typing import Literal

import pytest

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.options import Options
from prunebench.plugin.api.recovery import Recovery, TrainingOptions
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import PluginEntry
from prunebench.suite.estimate import estimate
from prunebench.suite.json_schema import json_schema
from prunebench.suite.plan import plan

SUITE = """\
name: s
models: smollm2-135m-instruct
methods:
  - magnitude: {sparsity: 0.5, recovery: RECOVERY}
calibration: {corpus: boolq-passages, windows: 16, length: 512}
quality: {perplexity: {corpus: boolq-passages, windows: 4, length: 128}}
profile: null
"""


class LoRA(Recovery):
    name = "lora"

    class Options(TrainingOptions):
        rank: int = 8
        targets: list[str] | None = None

    def recover(self, model, context):
        raise NotImplementedError


class Regress(LoRA):
    name = "regress"

    class Options(Options):
        mode: Literal["ridge", "plain"] = "plain"


@pytest.fixture
def registry(registry):
    for kind in (LoRA, Regress):
        registry["recovery"][kind.name] = PluginEntry(
            "recovery", kind.name, kind, "dist", "1.0", ""
        )
    return registry


@pytest.fixture
def cells(load, registry):
    def cells(recovery: str, text: str = SUITE, *overrides: str):
        return plan(load(text.replace("RECOVERY", recovery), *overrides), registry).cells[1:]

    return cells


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("lora", [" + lora"]),
        ("{lora: {rank: 16}}", [" + lora rank=16"]),
        ("{lora: null}", [" + lora"]),
        ("null", [""]),
        ("[null, lora]", ["", " + lora"]),
        ("[{lora: {rank: [4, 8], epochs: 2}}, regress]", [" + lora rank=4 epochs=2", " + lora rank=8 epochs=2", " + regress"]),
        ("{lora: {targets: [q_proj, k_proj]}}", [' + lora targets=["q_proj", "k_proj"]']),
    ],
)  # fmt: skip
def test_given_options_are_the_label_and_lists_fan_out(cells, written, labels):
    assert [cell.label for cell in cells(written)] == [
        f"magnitude sparsity=0.5{label}" for label in labels
    ]


def test_options_are_complete_and_of_their_plugin(cells):
    [cell] = cells("{lora: {rank: 16}}")
    assert cell.method.options == {"sparsity": 0.5, "mode": "clean"}
    assert cell.recovery.options["rank"] == 16
    assert cell.recovery.options["schedule"] == "linear"
    assert (cell.recovery.distribution, cell.recovery.version) == ("dist", "1.0")


def test_method_options_and_recoveries_fan_out_together(cells):
    text = SUITE.replace("0.5", "[0.4, 0.5]")
    assert [cell.label for cell in cells("[null, lora]", text)] == [
        "magnitude sparsity=0.4",
        "magnitude sparsity=0.4 + lora",
        "magnitude sparsity=0.5",
        "magnitude sparsity=0.5 + lora",
    ]


def test_training_windows_are_the_suites_calibration_or_their_own(cells):
    [default] = cells("lora", SUITE.replace("length: 512", "length: [512, 64]"))
    assert (default.calibration, default.recovery.data.windows, default.recovery.data.length) == (
        None,
        16,
        512,
    )
    [own] = cells("{lora: {data: {corpus: boolq-passages, split: evaluation, windows: 64}}}")
    data = own.recovery.data
    assert (data.corpus.name, data.split, data.sampler) == (
        "boolq-passages",
        "evaluation",
        "distinct",
    )
    assert (data.windows, data.length) == (64, 256)
    [alone] = cells("{lora: {data: {corpus: boolq-passages}}}", SUITE.replace("calibration:", "#"))
    assert alone.recovery.data.split == "calibration"


def test_a_training_file_is_relative_to_the_suite(cells, tmp_path):
    (tmp_path / "more.txt").write_text("Some text.\n", encoding="utf-8")
    [cell] = cells("{lora: {data: {corpus: more.txt}}}")
    assert cell.recovery.data.corpus.path == str(tmp_path / "more.txt")


def test_a_recovery_and_what_it_trains_on_decide_the_identity(cells):
    variants = [
        "null",
        "lora",
        "regress",
        "{lora: {rank: 4}}",
        "{lora: {data: {corpus: boolq-passages}}}",
    ]
    ids = [cells(variant)[0].id for variant in variants]
    assert len(set(ids)) == len(variants)
    plain = SUITE.replace(", recovery: RECOVERY", "")
    assert [cell.id for cell in cells("", plain)] == ids[:1]
    assert cells("{lora: {rank: 8}}")[0].id == ids[1]
    assert "recovery" not in cells("null")[0].identity()


@pytest.mark.parametrize("written", ["lora", "{lora: null}", "{lora: {rank: 2}}", "null", "[lora]"])
def test_options_are_set_on_the_command_line(cells, written):
    key = "0.lora" if written == "[lora]" else "lora"
    [cell] = cells(written, SUITE, f"methods.magnitude.recovery.{key}.rank=32")
    assert cell.label == "magnitude sparsity=0.5 + lora rank=32"
    assert cells(written, SUITE, "methods.magnitude.recovery=null")[0].recovery is None


def test_a_recovery_depends_on_the_seed(cells):
    found = cells("[null, lora]", SUITE, "seeds=[0, 1]")
    assert [(cell.label, cell.seed) for cell in found] == [
        ("magnitude sparsity=0.5", 0),
        ("magnitude sparsity=0.5 + lora", 0),
        ("magnitude sparsity=0.5 + lora", 1),
    ]


def test_the_estimate_counts_training_three_times_in_every_epoch(cells, registry):
    plain, trained, once = cells("[null, {lora: {epochs: 2}}, regress]")
    assert estimate(trained, registry).tokens - estimate(plain, registry).tokens == 3 * 2 * 16 * 512
    assert estimate(once, registry).tokens - estimate(plain, registry).tokens == 3 * 16 * 512
    held = cells("{lora: {epochs: 3, batch_size: 2, val_windows: 4, eval_steps: 5}}")[0]
    # 12 windows in 6 steps an epoch; 18 steps, with a validation after 5, 10, 15 and 18.
    assert estimate(held, registry).tokens - estimate(plain, registry).tokens == (
        (3 * 3 * 12 + 4 * 4) * 512
    )
    [few] = cells("{lora: {max_steps: 1, batch_size: 4}}")
    assert estimate(few, registry).tokens - estimate(plain, registry).tokens == 3 * 4 * 512


PLACE = "s.yaml:4: methods.magnitude.recovery"
WRONG = {
    "unknown recovery": ("lroa", f"{PLACE}: unknown recovery 'lroa' (did you mean 'lora'?)"),
    "unknown option": (
        "{lora: {rnak: 8}}",
        f"{PLACE}.lora.rnak: unknown option 'rnak' (did you mean 'rank'?)",
    ),
    "in a list": (
        "[null, {lora: {rank: [8, x]}}]",
        f"{PLACE}[1].lora.rank[1]: should be a valid integer, found 'x'",
    ),
    "out of range": (
        "{lora: {epochs: 0}}",
        f"{PLACE}.lora.epochs: should be greater than or equal to 1, found 0",
    ),
    "empty list": (
        "[]",
        f"{PLACE}: an empty list makes no cells (write null for no recovery, or leave the key out)",
    ),
    "a number": (
        "3",
        f"{PLACE}: 3 is no recovery (write a name, or a name and its options: {{lora: {{rank: 8}}}})",
    ),
    "two in one": (
        "{lora: null, regress: null}",
        f"{PLACE}: 'lora' and 'regress' are in one entry",
    ),
    "data misspelt": (
        "{lora: {data: {corpus: boolq-passages, window: 8}}}",
        f"{PLACE}.lora.data.window: unknown key 'window' (did you mean 'windows'?)",
    ),
    "data without corpus": (
        "{lora: {data: {windows: 8}}}",
        f"{PLACE}.lora.data: 'corpus' is missing",
    ),
    "data of nowhere": (
        "{lora: {data: {corpus: boolq-pasages}}}",
        f"{PLACE}.lora.data.corpus: unknown corpus 'boolq-pasages' (did you mean 'boolq-passages'?)",
    ),
    "data fans out": (
        "{lora: {data: {corpus: boolq-passages, windows: [8, 16]}}}",
        f"{PLACE}.lora.data.windows: should be a valid integer, found [8, 16]",
    ),
    "no such split": (
        "{lora: {data: {corpus: boolq-passages, split: test}}}",
        f"{PLACE}.lora.data.split: 'boolq-passages' has no split 'test'",
    ),
    "no instruction data": (
        "{lora: {data: {corpus: boolq-passages, prompt: alpaca}}}",
        f"{PLACE}.lora.data.corpus: corpus 'boolq-passages' holds no examples of instruction",
    ),
    "unknown prompt": (
        "{lora: {data: {corpus: boolq-passages, prompt: vicuna}}}",
        f"{PLACE}.lora.data.prompt: unknown value 'vicuna' (known: alpaca)",
    ),
    "loss of text": (
        "{lora: {data: {corpus: boolq-passages, loss_on: answer}}}",
        f"{PLACE}.lora.data.loss_on: has no effect without `prompt`",
    ),
    "unknown sampler": (
        "{lora: {data: {corpus: boolq-passages, sampler: distict}}}",
        f"{PLACE}.lora.data.sampler: unknown sampler 'distict' (did you mean 'distinct'?)",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_bad_input_is_named_by_line_and_key(cells, fault):
    written, message = WRONG[fault]
    with pytest.raises(PrunebenchError) as caught:
        cells(written)
    assert str(caught.value).startswith(message)


def test_instruction_data_is_asked_for_by_its_prompt(cells, tmp_path):
    rows = [{"instruction": "a", "output": "b"}]
    (tmp_path / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    data = "{corpus: mine.json, prompt: alpaca, windows: 1"
    [cell] = cells(f"{{lora: {{data: {data}}}}}}}")
    spec = cell.recovery.data
    assert (spec.prompt, spec.loss_on, spec.sampler, spec.length) == (
        "alpaca",
        "answer",
        "examples",
        256,
    )
    [other] = cells(f"{{lora: {{data: {data}, loss_on: all}}}}}}")
    assert other.recovery.data.loss_on == "all"
    assert cell.id != other.id
    [spelt] = cells(f"{{lora: {{data: {data}, loss_on: answer}}}}}}")
    assert spelt.id == cell.id


def test_a_validation_that_takes_all_windows_is_named_when_the_suite_is_planned(cells):
    data = "data: {corpus: boolq-passages, windows: 8}"
    with pytest.raises(PrunebenchError) as caught:
        cells(f"{{lora: {{val_windows: 8, {data}}}}}")
    assert str(caught.value).startswith(
        "s.yaml:4: methods.magnitude.recovery.lora: 8 of 8 windows are held out for validation"
    )
    [cell] = cells(f"{{lora: {{val_windows: 7, {data}}}}}")
    assert cell.recovery.options["val_windows"] == 7
    assert cell.recovery.label == "lora val_windows=7"


def test_no_text_to_train_on_is_an_error_with_the_fix(cells):
    with pytest.raises(
        PrunebenchError, match=r"s\.yaml:4: methods\.magnitude\.recovery: 'lora' needs text"
    ) as caught:
        cells("lora", SUITE.replace("calibration:", "#"))
    assert "data: {corpus: boolq-passages" in caught.value.hint


def test_the_baseline_takes_no_recovery(cells):
    with pytest.raises(
        PrunebenchError,
        match=r"methods\.dense\.recovery: the dense model is the baseline of every cell",
    ):
        cells("lora", SUITE.replace("magnitude: {sparsity: 0.5,", "dense: {"))


def test_the_json_schema_has_recoveries(registry):
    schema = json_schema(registry)
    forms = schema["properties"]["methods"]["anyOf"][0]["anyOf"][1:]
    options = {
        form["required"][0]: form["properties"][form["required"][0]]["anyOf"][0]["properties"]
        for form in forms
    }
    assert "recovery" not in options.pop("dense")
    assert all(each["recovery"] == {"$ref": "#/$defs/recovery"} for each in options.values())
    one, several = schema["$defs"]["recovery"]["anyOf"]
    assert several["items"] == one
    names, none, lora, _ = one["anyOf"]
    assert (names, none) == ({"enum": ["lora", "regress"]}, {"type": "null"})
    options = lora["properties"]["lora"]["anyOf"][0]["properties"]
    assert {"rank", "learning_rate", "data"} <= options.keys()
    assert schema["$defs"]["TrainingEntry"]["properties"]["corpus"]["examples"] == [
        "boolq-passages"
    ]


PLUGIN = """
from prunebench import {base}, Options, hookimpl
class Mine({base}):
    name = "mine"
    class Options(Options):
        {option}: int = 1
    def prune(self, model, context): pass
    def recover(self, model, context): pass
@hookimpl
def prunebench_register_{kind}():
    return Mine
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def host(base: str, option: str):
        (tmp_path / "mine_plugin.py").write_text(
            PLUGIN.format(base=base, option=option, kind=base.lower())
        )
        return load_plugins([EntryPoint("mine", "mine_plugin", "prunebench")])

    yield host
    sys.modules.pop("mine_plugin", None)


@pytest.mark.parametrize(("base", "reserved"), [("Method", "recovery"), ("Recovery", "data")])
def test_the_host_refuses_options_named_like_a_key_of_the_suite(host, base, reserved):
    registry = host(base, reserved)
    assert not registry.entries()
    assert (
        f"Mine has an option '{reserved}', which is a key of suites" in registry.problems[0].message
    )


def test_a_recovery_of_another_plugin_is_found(host):
    registry = host("Recovery", "rank")
    assert [(entry.kind, entry.name) for entry in registry.entries()] == [("recovery", "mine")]
    assert not registry.problems


def test_what_replaces_layers_is_refused_behind_a_method_that_removes_none(cells, registry):
    kind = type("Swap", (LoRA,), {"name": "swap", "replaces_layers": True})
    registry["recovery"]["swap"] = PluginEntry("recovery", "swap", kind, "dist", "1.0", "")
    with pytest.raises(PrunebenchError, match="'swap' replaces removed layers, and 'magnitude'"):
        cells("[lora, swap]")
    [cell] = cells("swap", SUITE.replace("magnitude: {sparsity: 0.5,", "shortgpt: {layers: [2],"))
    assert cell.recovery.name == "swap"
