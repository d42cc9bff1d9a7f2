"""Bad suites: each problem is one line with file, line, key and fix, and all come at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import field_validator

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.options import Options
from prunebench.suite.load import load_suite
from prunebench.suite.schema import SuiteFile
from prunebench.suite.yaml import parse


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


BAD = {
    "plugin of another name": (
        "{corpus: boolq-passages, windows: 16",
        "{corpus: pile, windows: 16",
        (
            "s.yaml:5: calibration.corpus: unknown corpus 'pile' "
            "(known: boolq-passages; plugins that are not loaded: sparsegpt)"
        ),
    ),
    "misspelt key": (
        "calibration:",
        "calibraton:",
        "s.yaml:5: calibraton: unknown key 'calibraton' (did you mean 'calibration'?)",
    ),
    "misspelt inner key": (
        "windows: 16",
        "window: 16",
        "s.yaml:5: calibration.window: unknown key 'window' (did you mean 'windows'?)",
    ),
    "misspelt option": (
        "sparsity: 0.5",
        "sparsty: 0.5",
        "s.yaml:4: methods.wanda.sparsty: unknown option 'sparsty' (did you mean 'sparsity'?)",
    ),
    "unknown method": (
        "wanda",
        "wnda",
        "s.yaml:4: methods.wnda: unknown method 'wnda' (did you mean 'wanda'?)",
    ),
    "method of a broken plugin": (
        "wanda",
        "sparsegpt",
        (
            "s.yaml:4: methods.sparsegpt: unknown method 'sparsegpt' "
            "(the plugin 'sparsegpt' of extra-methods is not loaded: ImportError: no scipy)"
        ),
    ),
    "unknown model": (
        "smollm2-135m-instruct",
        "smollm2-135m-instrct",
        (
            "s.yaml:2: models: unknown model 'smollm2-135m-instrct': "
            "not a named model, a file, a folder or a Hub id 'org/name' "
            "(did you mean 'smollm2-135m-instruct'?)"
        ),
    ),
    "unknown corpus": (
        "{corpus: boolq-passages, windows: 16",
        "{corpus: boolq-pasages, windows: 16",
        "s.yaml:5: calibration.corpus: unknown corpus 'boolq-pasages' (did you mean 'boolq-passages'?)",
    ),
    "unknown split": (
        "windows: 16",
        "split: evaluaton, windows: 16",
        "s.yaml:5: calibration.split: 'boolq-passages' has no split 'evaluaton' (did you mean 'evaluation'?)",
    ),
    "unknown sampler": (
        "windows: 16",
        "sampler: [distinct, distnct], windows: 16",
        "s.yaml:5: calibration.sampler[1]: unknown sampler 'distnct' (did you mean 'distinct'?)",
    ),
    "token sampler on text": (
        "windows: 16",
        "sampler: as-is, windows: 16",
        (
            "s.yaml:5: calibration.sampler: the sampler 'as-is' is not for 'boolq-passages', which holds text "
            "(leave `sampler` out, then 'distinct' is used)"
        ),
    ),
    "unknown dtype": (
        "models: smollm2-135m-instruct",
        "models:\n  - {model: smollm2-135m-instruct, dtype: [float32, bfloat61]}",
        "s.yaml:3: models[0].dtype[1]: unknown value 'bfloat61' (did you mean 'bfloat16'?)",
    ),
    "sparsity out of range": (
        "sparsity: 0.5",
        "sparsity: [0.5, 1.5]",
        "s.yaml:4: methods.wanda.sparsity[1]: 1.5 is out of range: a share of weights to remove is at least 0 and below 1",
    ),
    "sparsity not a number": (
        "sparsity: 0.5",
        "sparsity: .nan",
        "s.yaml:4: methods.wanda.sparsity: nan is out of range: a share of weights to remove is at least 0 and below 1",
    ),
    "N:M the wrong way round": (
        "sparsity: 0.5",
        "sparsity: 4:2",
        "s.yaml:4: methods.wanda.sparsity: 4:2: N:M keeps N of every M weights, so 0 < N < M",
    ),
    "option out of range": (
        "wanda: {sparsity: 0.5}",
        "shortgpt: {ratio: 1}",
        "s.yaml:4: methods.shortgpt.ratio: should be less than 1, found 1",
    ),
    "text for a switch": (
        "wanda: {sparsity: 0.5}",
        "shortgpt: {verbose: no}",
        "s.yaml:4: methods.shortgpt.verbose: 'no' is text in YAML 1.2 (write true or false)",
    ),
    "two methods in one entry": (
        "wanda: {sparsity: 0.5}",
        "wanda:\n    sparsity: 0.5",
        (
            "s.yaml:4: methods[0]: 'wanda' and 'sparsity' are in one entry "
            "(begin each method with its own `- `, and indent options below `wanda:`)"
        ),
    ),
    "options that are no mapping": (
        "{sparsity: 0.5}",
        "0.5",
        "s.yaml:4: methods.wanda: options are a mapping, found 0.5 (for example wanda: {OPTION: VALUE})",
    ),
    "empty grid": (
        "sparsity: 0.5",
        "sparsity: []",
        "s.yaml:4: methods.wanda.sparsity: an empty list makes no cells (give at least one value, or leave the key out)",
    ),
    "empty list": (
        "windows: 16",
        "windows: []",
        "s.yaml:5: calibration.windows: an empty list makes no cells (give at least one value, or leave the key out)",
    ),
    "wrong type": (
        "windows: 16",
        "windows: sixteen",
        "s.yaml:5: calibration.windows: should be a valid integer, found 'sixteen' (number of windows)",
    ),
    "number too small": (
        "windows: 16",
        "windows: 0",
        "s.yaml:5: calibration.windows: should be greater than 0, found 0 (number of windows)",
    ),
    "missing key": (
        "corpus: boolq-passages, windows: 16",
        "windows: 16",
        (
            "s.yaml:5: calibration: 'corpus' is missing "
            "(registered name, local .txt .jsonl .json .parquet .npy file, "
            "or {file: PATH, field: COLUMN})"
        ),
    ),
    "a name that is no folder's": (
        "name: mini",
        "name: ../Mini",
        "s.yaml:1: name: '../Mini' is not valid (small letters, digits, hyphens; names the run)",
    ),
    "no name": (
        "name: mini\n",
        "",
        "s.yaml:1: 'name' is missing (small letters, digits, hyphens; names the run)",
    ),
    "merge key": (
        "name: mini",
        "<<: {a: 1}\nname: mini",
        "s.yaml:1: <<: unknown key '<<' (known: ",
    ),
    "section that is none": (
        "quality:\n  perplexity: {corpus: boolq-passages, windows: 4, length: 128}",
        "quality: good",
        "s.yaml:6: quality: should be a mapping of keys, found 'good'",
    ),
    "no calibration": (
        "calibration: {corpus: boolq-passages, windows: 16, length: 512}\n",
        "",
        (
            "s.yaml:4: methods.wanda: 'wanda' needs calibration and the suite has none "
            "(add for example calibration: {corpus: boolq-passages, windows: 16, length: 512})"
        ),
    ),
    "no such device": (
        "name: mini",
        "device: gpu\nname: mini",
        "s.yaml:1: device: 'gpu' is not valid (auto, cpu, ",
    ),
    "duplicate key": (
        "windows: 16",
        "windows: 16, windows: 8",
        "s.yaml:5: the key 'windows' appears twice, first in line 5",
    ),
    "two models of one name": (
        "models: smollm2-135m-instruct",
        "models: [org/a, org/a]",
        "s.yaml:2: models[1]: models[0] is called 'org/a' too (give one of them another name: {model: org/a, name: ...})",
    ),
    "missing local file": (
        "{corpus: boolq-passages, windows: 16",
        "{corpus: ./none.txt, windows: 16",
        "s.yaml:5: calibration.corpus: no file ",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD)
def test_a_problem_is_one_line_with_file_line_key_and_fix(load, calibrated, old, new, message):
    with pytest.raises(PrunebenchError) as caught:
        load(replaced(calibrated, old, new))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_all_errors_come_at_once_in_the_order_of_the_file(load, calibrated):
    text = replaced(calibrated, "smollm2-135m-instruct", "nothing")
    text = replaced(text, "sparsity: 0.5", "sparsity: 2, spasity: 1")
    text = replaced(text, "windows: 16", "windows: -1, sampler: 3")
    text = replaced(text, "{corpus: boolq-passages, windows: 4", "{corpus: nowhere, windows: 4")
    with pytest.raises(PrunebenchError) as caught:
        load(text)
    places = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
    assert places == [
        ["s.yaml:2", "models"],
        ["s.yaml:4", "methods.wanda.sparsity"],
        ["s.yaml:4", "methods.wanda.spasity"],
        ["s.yaml:5", "calibration.sampler"],
        ["s.yaml:5", "calibration.windows"],
        ["s.yaml:7", "quality.perplexity.corpus"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "s.yaml:1: a suite is a mapping of keys, this file is empty"),
        (b"# only a comment\n", "s.yaml:1: a suite is a mapping of keys, this file is empty"),
        (b"- a\n- b\n", "s.yaml:1: a suite is a mapping of keys, this file is a list"),
        (b"hello\n", "s.yaml:1: a suite is a mapping of keys, this file is a single value"),
        (b"name: x\ntitle: caf\xe9\n", "s.yaml:2: not UTF-8 text"),
        (b"name: x\nmodels: [a\n", "s.yaml:3: YAML: "),
        (b"\x00\x01\x02", "s.yaml:1: YAML: special characters are not allowed"),
    ],
)
def test_files_that_are_no_suite_are_errors(tmp_path, registry, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_bytes(content)
    with pytest.raises(PrunebenchError) as caught:
        load_suite("s.yaml", registry=registry)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_does_no_harm(tmp_path, registry, minimal):
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + minimal.encode())
    assert load_suite(path, registry=registry).name == "mini"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("quikstart", "there is no suite 'quikstart' (did you mean 'quickstart'?)"),
        ("no/such.yaml", "there is no suite file no/such.yaml (give the path of a YAML file"),
        (".", "cannot read the suite .: "),
    ],
)
def test_a_missing_suite_is_an_error_with_a_hint(registry, given, message):
    with pytest.raises(PrunebenchError) as caught:
        load_suite(given, registry=registry)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["9" * 300, "~no-such-user/file"], ids=["too long", "no user"])
@pytest.mark.parametrize(
    "key", ["calibration.corpus", "quality.perplexity.corpus", "quality.tasks.0.data"]
)
def test_names_that_no_file_can_have_are_errors(load, registry, calibrated, key, name):
    text = replaced(calibrated, "quality:\n", "quality:\n  tasks: [{task: boolq, data: hub}]\n")
    with pytest.raises(PrunebenchError, match="is not a valid path"):
        load(text, f'{key}="{name}"')
    with pytest.raises(PrunebenchError, match="is not a valid path"):
        load_suite(name, registry=registry)


KEYS = st.sampled_from(
    [*SuiteFile.model_fields, "corpus", "windows", "model", "wanda", "sparsity", "latency", "x"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["", "no", "dense", "2:4", "a b"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*SuiteFile.model_fields, "x"]), VALUES, max_size=4))
@settings(max_examples=100)
def test_any_value_in_a_section_gives_a_suite_or_clear_errors(load, calibrated, sections):
    base = parse(calibrated, "s.yaml").data
    overrides = [f"{key}={json.dumps(value)}" for key, value in sections.items()]
    for attempt in (lambda: load(written(base | sections)), lambda: load(calibrated, *overrides)):
        try:
            attempt()
        except PrunebenchError as error:
            assert all(line.startswith(("s.yaml", "--set ")) for line in str(error).splitlines())


def written(data):
    """JSON is YAML, apart from infinities and nan."""
    text = json.dumps(data, indent=1)
    return text.replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")


def test_without_dense_there_is_no_suite(load, registry, minimal):
    del registry["method"]["dense"]
    with pytest.raises(
        PrunebenchError, match="'dense', the baseline of every suite, is not available"
    ):
        load(minimal)


def test_a_plugin_that_fails_to_check_its_options_is_named(load, registry, calibrated, monkeypatch):
    class Broken(Options):
        sparsity: float

        @field_validator("sparsity")
        @classmethod
        def fail(cls, value):
            raise ZeroDivisionError("oh")

    monkeypatch.setattr(registry["method"]["wanda"].value, "Options", Broken)
    with pytest.raises(
        PrunebenchError,
        match=r"^s\.yaml:4: methods\.wanda: dist cannot check .* ZeroDivisionError: oh$",
    ):
        load(calibrated)
