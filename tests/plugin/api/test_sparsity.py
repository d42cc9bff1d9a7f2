"""A sparsity is a share, N:M, or N:M by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import LinearMethod, Method, SparsityOptions, pattern_of
from prunebench.plugin.api.sparsity import Pattern, is_share, parse_sparsity, share_of


@given(st.integers(2, 64).flatmap(lambda of: st.tuples(st.integers(1, of - 1), st.just(of))))
def test_both_counts_name_the_same_pattern(pattern: tuple[int, int]) -> None:
    keep, of = pattern
    spellings = (f"{keep}:{of}", {"keep": keep, "of": of}, {"zeros": of - keep, "of": of})
    assert {parse_sparsity(value) for value in spellings} == {f"{keep}:{of}"}
    assert pattern_of(f"{keep}:{of}") == (keep, of)


def test_one_of_four_is_three_zeros() -> None:
    options = SparsityOptions.model_validate_json(
        json.dumps({"sparsity": {"zeros": 3, "of": 4}}), strict=True
    )
    assert options.sparsity == "1:4"
    assert options.model_dump(mode="json") == {"sparsity": "1:4"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"of": 4}, "either `keep` or `zeros`"),
        ({"keep": 1}, "name `of`"),
        ({"keep": 1, "zeros": 3, "of": 4}, "either `keep` or `zeros`"),
        ({"keep": 1, "of": 4, "block": 2}, "either `keep` or `zeros`"),
        ({}, "name `of`"),
        ({"keep": 0, "of": 4}, "at least one must be kept and one removed"),
        ({"keep": 4, "of": 4}, "at least one must be kept and one removed"),
        ({"zeros": 4, "of": 4}, "at least one must be kept and one removed"),
        ({"zeros": 0, "of": 4}, "at least one must be kept and one removed"),
        ({"zeros": 1.5, "of": 4}, "zeros must be whole"),
        ({"keep": "1", "of": True}, "keep and of must be whole"),
        ("4:4", "0 < N < M"),
        ("0:4", "0 < N < M"),
        ("half", "neither a share"),
        (True, "neither a share"),
        (1, "out of range"),
    ],
)
def test_an_invalid_sparsity_is_refused_with_the_fix(value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SparsityOptions.model_validate({"sparsity": value})


def test_a_method_that_asks_for_statistics_needs_calibration() -> None:
    class Asking(LinearMethod):
        statistics = frozenset({"input_norm"})

    class Plain(LinearMethod):
        pass

    assert Asking.needs_calibration
    assert not Plain.needs_calibration


def test_shares_and_patterns_are_told_apart() -> None:
    assert (share_of(0.3), share_of("1:4"), share_of("2:4")) == (0.3, 0.75, 0.5)
    assert Pattern(3, 8).sparsity == 0.625
    assert is_share(0.5)
    assert not is_share("2:4")


def test_a_group_has_a_largest_size() -> None:
    assert parse_sparsity({"keep": 1, "of": 99_999}) == "1:99999"
    with pytest.raises(ValueError, match="at most 99999"):
        parse_sparsity({"keep": 1, "of": 100_000})


def test_the_json_schema_says_what_is_accepted() -> None:
    share, text, *named = SparsityOptions.model_json_schema()["properties"]["sparsity"]["anyOf"]
    assert share == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert text["type"] == "string"
    number = {"type": "integer", "minimum": 1, "maximum": 99_999}
    assert named == [
        {
            "type": "object",
            "properties": {count: number, "of": number},
            "required": [count, "of"],
            "additionalProperties": False,
        }
        for count in ("keep", "zeros")
    ]


def test_what_an_allocation_and_streaming_can_do_with_a_method() -> None:
    class Plain(LinearMethod):
        pass

    class Sloped(LinearMethod):
        statistics = frozenset({"input_norm", "gradient_norm"})

    class Bare(LinearMethod):
        class Options(Method.Options):
            pass

    def refused(**options: object) -> str | None:
        return Plain.refuses_allocation(Plain.Options.model_validate(options))

    assert refused() is None
    assert "leave weights out" in str(refused(layers=[0, 2]))
    assert "leave weights out" in str(refused(linears=["q_proj"]))
    assert "no option `sparsity`" in str(Bare.refuses_allocation(Bare.Options()))
    assert Plain.refuses_streaming(None) is None
    assert "`gradient_norm` takes the whole model" in str(Sloped.refuses_streaming(None))
    assert "decides itself" in str(Method.refuses_allocation(None))
    assert "as a whole" in str(Method.refuses_streaming(None))


def test_a_method_needs_nothing_that_it_does_not_say() -> None:
    for kind in (Method, LinearMethod):
        assert not (kind.needs_calibration or kind.uses_seed or kind.trains)
        assert not (kind.needs_calibration_for(None) or kind.uses_seed_for(None))
    assert LinearMethod.group == "matrix"
    assert LinearMethod.structure == {"unstructured", "n:m"}
    assert Method.structure == frozenset()
