"""YAML 1.2 with lines: scalars, duplicate keys, errors."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.suite.yaml import parse, parse_value

# what JSON writes and YAML readers accept unescaped
CHARACTERS = st.characters(
    max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\x7f"
)
TEXT = st.text(CHARACTERS, max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@given(st.dictionaries(TEXT, VALUES, max_size=5), st.sampled_from([None, 2]))
def test_json_is_read_as_json(data, indent):
    found = parse(json.dumps(data, indent=indent), "f").data
    assert found == data
    assert json.dumps(found) == json.dumps(data)  # 1, 1.0 and True are equal in Python


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_n_m_patterns_stay_text(n, m):
    assert parse(f"a: {n}:{m}", "f").data == {"a": f"{n}:{m}"}
    assert parse(f"a: {{b: [0.5, {n}:{m}]}}", "f").data == {"a": {"b": [0.5, f"{n}:{m}"]}}


@pytest.mark.parametrize(
    "word",
    [
        "no",
        "yes",
        "on",
        "off",
        "y",
        "n",
        "No",
        "1_000",
        "2024-01-01",
        "12:30:45",
        "0b1",
        "1e",
        ".",
        "0o8",
        "=",
        "<<",
    ],
)
def test_yaml_1_1_words_stay_text(word):
    assert parse(f"a: {word}", "f").data == {"a": word}
    assert parse(f"{word}: 1", "f").data == {word: 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("~", None),
        ("", None),
        ("Null", None),
        ("TRUE", True),
        ("False", False),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_core_scalars(text, value):
    found = parse_value(text, "f")
    assert found == value
    assert type(found) is type(value)


def test_nan():
    assert math.isnan(parse_value(".nan", "f"))


def test_lines_of_keys_and_items():
    document = parse("a:\n  - x\n  - b: 1\n    c: 2\nd: &d {e: 1}\nf: *d\n", "f")
    expected = {
        ("a",): 1,
        ("a", 0): 2,
        ("a", 1): 3,
        ("a", 1, "b"): 3,
        ("a", 1, "c"): 4,
        ("d",): 5,
        ("f",): 6,
    }
    assert expected.items() <= document.lines.items()
    assert document.data["f"] == {"e": 1}


def test_duplicate_keys_are_errors():
    with pytest.raises(
        PrunebenchError, match=r"^f\.yaml:4: the key 'a' appears twice, first in line 1"
    ):
        parse("a: 1\nb:\n  c: 1\na: 2\n", "f.yaml")
    with pytest.raises(PrunebenchError, match=r"^f\.yaml:3: the key 'c' appears twice"):
        parse("b:\n  c: 1\n  c: 1\n", "f.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "f.yaml:1: "),
        ("x: 1\na:\n\tb: 1", "f.yaml:3: .*spaces, not tabs"),
        ("a: b: c", "f.yaml:1: "),
        ("a: *b", "f.yaml:1: .*undefined alias"),
        ("\na: &a [*a]", "f.yaml:2: .*contains itself"),
        ("a: 1\n!!int x: 2", "f.yaml:2: .*tag"),
        ("0: 1\n'0': 2", "f.yaml:2: the key '0' appears twice, first in line 1"),
        ("? [a]\n: 1", "f.yaml:1: a key that is not text"),
        ("a: !!python/object:os.system x", "f.yaml:1: .*tag"),
        ("a: !!int x", "f.yaml:1: .*tag"),
        ("a: 1\n---\nb: 2", "f.yaml:2: .*a file holds one suite"),
        ("a: 1\nb: \x00", "f.yaml:2: .*remove that character"),
        ("[" * 1500, "f.yaml:1: YAML: nested too deeply"),
        ("a: " + "9" * 5000, "f.yaml:1: a number of 5000 digits"),
        ('a: "\\ud83d"', "f.yaml:1: half of a surrogate pair"),
        ("a: 1e400", "f.yaml:1: the number 1e400 is too large"),
        ("a: -0.1E+999", "f.yaml:1: the number -0.1E\\+999 is too large"),
    ],
)
def test_errors_are_one_line_with_file_and_line(text, expected):
    with pytest.raises(PrunebenchError, match=expected) as caught:
        parse(text, "f.yaml")
    assert "\n" not in str(caught.value)


def test_aliases_cannot_explode():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(PrunebenchError, match="more than 100000 values"):
        parse("\n".join(lines), "f")


def test_keys_are_text_as_in_json():
    document = parse("0: a\ncpu: b\n0x1: c\ntrue: d\nnull: e\n1.50: f\n'': g\n", "f.yaml")
    assert document.data == {
        "0": "a",
        "cpu": "b",
        "0x1": "c",
        "true": "d",
        "null": "e",
        "1.50": "f",
        "": "g",
    }
    assert document.lines[("0",)] == 1


def test_a_character_may_be_written_as_a_pair_of_surrogates_as_in_json():
    given = {"a \U0001f600": ["\U0001f600 é"]}
    assert parse(json.dumps(given), "f.yaml").data == given
