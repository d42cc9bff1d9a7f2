"""`--set KEY=VALUE`: what it changes, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError


def test_a_key_a_method_by_name_and_a_whole_list(load, calibrated):
    suite = load(
        calibrated, "calibration.windows=8", "methods.wanda.sparsity=[0.6, 2:4]", "seeds=[0,1]"
    )
    assert suite.calibration[0].windows == 8
    assert suite.calibration[0].length == 512
    assert [method.options["sparsity"] for method in suite.methods[1:]] == [0.6, "2:4"]
    assert suite.seeds == (0, 1)


@pytest.mark.parametrize("key", ["methods.magnitude.mode", "methods.0.magnitude.mode"])
def test_options_for_a_method_that_is_a_bare_name(load, minimal, key):
    assert load(minimal, f"{key}=reference").methods[1].options["mode"] == "reference"


def test_models_by_name_and_in_short_form(load, minimal):
    by_name = load(minimal, "models.smollm2-135m-instruct.dtype=bfloat16")
    assert by_name.models[0].dtype == "bfloat16"
    assert load(minimal, "models.0.name=small").models[0].name == "small"
    assert load(minimal, "models.0=org/m").models[0].location == "org/m"
    dotted = minimal.replace("smollm2-135m-instruct", "[org/m-1.5, org/m-1]")
    assert [model.dtype for model in load(dotted, "models.org/m-1.5.dtype=float16").models] == [
        "float16",
        "float32",
    ]


def test_missing_sections_are_added(load, minimal):
    assert load(minimal, "limits.time_s=5").time_limit_s == 5
    assert load(minimal, "quality.gate=0.5", "profile.latency=null").latency == ()


def test_later_overrides_win_and_see_earlier_ones(load, minimal):
    suite = load(
        minimal,
        "methods=[dense]",
        "methods.0=magnitude",
        "methods.magnitude.sparsity=0.1",
        "seeds=1",
        "seeds=2",
    )
    assert suite.methods[1].options["sparsity"] == 0.1
    assert suite.seeds == (2,)


@given(st.floats(0, 0.99) | st.tuples(st.integers(1, 7), st.integers(8, 16)))
@settings(max_examples=25)
def test_an_override_means_what_the_file_would_mean(load, minimal, value):
    written = f"{value[0]}:{value[1]}" if isinstance(value, tuple) else repr(value)
    in_file = load(minimal.replace("- magnitude", f"- magnitude: {{sparsity: {written}}}"))
    assert load(minimal, f"methods.magnitude.sparsity={written}").methods == in_file.methods


def test_the_stored_text_lists_the_changes(load, minimal):
    text = load(minimal, "seeds=[3]", "title=a\nb").text
    assert (
        text
        == f"{minimal}\n# Changed on the command line:\n# --set seeds=[3]\n# --set title=a\\nb\n"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds", "--set seeds: not KEY=VALUE"),
        ("=1", "--set =1: not KEY=VALUE"),
        ("a..b=1", "--set a..b=1: not KEY=VALUE"),
        ("seeds=[1", "--set seeds=[1:1: YAML: "),
        ("sedes=[1]", "--set sedes=[1]: sedes: unknown key 'sedes' (did you mean 'seeds'?)"),
        (
            "calibraton.windows=8",
            "--set calibraton.windows=8: calibraton: unknown key 'calibraton' (did you mean",
        ),
        (
            "calibration.windows=x",
            "--set calibration.windows=x: calibration.windows: should be a valid integer, found 'x'",
        ),
        (
            "methods.wnda.sparsity=1",
            "--set methods.wnda.sparsity=1: no 'wnda' in methods (did you mean 'wanda'?)",
        ),
        (
            "methods.wanda.sparsity=2",
            "--set methods.wanda.sparsity=2: methods.wanda.sparsity: 2 is out of range",
        ),
        (
            "methods.wanda.sparsty=0",
            "--set methods.wanda.sparsty=0: methods.wanda.sparsty: unknown option 'sparsty'",
        ),
        ("methods.7.wanda=null", "--set methods.7.wanda=null: methods has 1 items, counted from 0"),
        (
            "calibration.windows.more=1",
            "--set calibration.windows.more=1: calibration.windows is 16 and has no keys",
        ),
        ("models=nowhere", "--set models=nowhere: models: unknown model 'nowhere'"),
    ],
)
def test_errors_name_the_override(load, calibrated, override, message):
    with pytest.raises(PrunebenchError) as caught:
        load(calibrated, override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_there_twice_needs_an_index(load, minimal):
    text = minimal + "  - magnitude: {sparsity: 2:4}\n"
    with pytest.raises(
        PrunebenchError, match=r"several times in methods .*methods\.1\.magnitude\.mode"
    ):
        load(text, "methods.magnitude.mode=reference")
    assert (
        load(text, "methods.1.magnitude.mode=reference").methods[2].options["mode"] == "reference"
    )


def test_errors_elsewhere_keep_their_line_after_an_override(load, calibrated):
    with pytest.raises(PrunebenchError, match=r"^s\.yaml:5: calibration\.windows: "):
        load(
            calibrated.replace("windows: 16", "windows: 0"),
            "models.0.dtype=bfloat16",
            "calibration.length=8",
        )
