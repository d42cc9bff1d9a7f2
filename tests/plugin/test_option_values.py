"""Options are read as strictly everywhere, and no number in them is one that JSON cannot hold."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from prunebench.engine.select import built_in
from prunebench.plugin.host import load_plugins
from prunebench.plugin.option_values import LARGEST, first_fault, read_options, read_text_options


class Mode(enum.Enum):
    FAST = "fast"


class Given(BaseModel):
    count: int = 1
    share: float = 0.5
    either: int | float = 1
    several: list[float] = []
    named: dict[int, float] = {}
    mode: Mode = Mode.FAST
    file: Path | None = None


PLUGINS = [
    entry
    for entry in [*load_plugins().entries(), *built_in()]
    if isinstance(getattr(entry.value, "Options", None), type)
]
TOO_MUCH = [math.nan, math.inf, -math.inf, 10**30, -(10**30), True]


@pytest.mark.parametrize("value", TOO_MUCH, ids=str)
@pytest.mark.parametrize("entry", PLUGINS, ids=lambda entry: f"{entry.kind} {entry.name}")
def test_no_option_of_a_plugin_takes_such_a_number(entry: Any, value: Any) -> None:
    model = entry.value.Options
    for name, field in model.model_fields.items():
        if value is True and "bool" in str(field.annotation):
            continue
        for read in (read_options, read_text_options):
            with pytest.raises(ValidationError):
                read(model, {field.alias or name: value})


@pytest.mark.parametrize("value", TOO_MUCH[:5], ids=str)
@pytest.mark.parametrize("name", ["count", "share", "either", "several", "named"])
def test_nor_one_that_sets_no_bounds_of_its_own(name: str, value: Any) -> None:
    given = {name: {"several": [0.5, value], "named": {3: value}}.get(name, value)}
    with pytest.raises(ValidationError) as caught:
        read_options(Given, given)
    assert first_fault(caught.value)[0].startswith(name)


def test_text_is_read_as_text_alone_and_true_is_no_number() -> None:
    with pytest.raises(ValidationError):
        read_options(Given, {"count": "2"})
    assert read_text_options(Given, {"count": "2", "share": "0.25"}) == Given(count=2, share=0.25)
    for read in (read_options, read_text_options):
        with pytest.raises(ValidationError) as caught:
            read(Given, {"count": True})
        assert first_fault(caught.value)[0] == "count"


def test_a_whole_float_is_an_integer_where_one_is_asked_for() -> None:
    assert read_options(Given, {"count": 8.0}).count == 8
    either = read_options(Given, {"either": 8.0}).either
    assert (either, type(either)) == (8.0, float)
    assert read_options(Given, {"count": float(2**40), "either": 8.0}).count == 2**40
    with pytest.raises(ValidationError, match=r"8\.5"):
        read_options(Given, {"count": 8.5})
    assert read_options(Given, {"count": LARGEST}).count == LARGEST


def test_what_python_has_for_a_value_is_taken() -> None:
    given = {"mode": Mode.FAST, "file": Path("a/b"), "named": {0: 0.5}, "several": (1, 2)}
    assert read_options(Given, given) == Given(file=Path("a/b"), named={0: 0.5}, several=[1, 2])
    with pytest.raises(TypeError, match="object is no value"):
        read_options(Given, {"share": object()})


class Ranged(BaseModel):
    """An option that is a tuple, in a model with a validator of its own."""

    layers: tuple[int | None, int | None] | None = None
    names: set[str] = set()

    @model_validator(mode="before")
    @classmethod
    def _unchanged(cls, data: Any) -> Any:
        return data


def test_a_validator_of_the_whole_model_changes_no_strictness() -> None:
    read = read_options(Ranged, {"layers": [0, None], "names": ["a", "b"]})
    assert read == Ranged(layers=(0, None), names={"a", "b"})
    for wrong in ({"layers": ["0", None]}, {"layers": [0]}, {"layers": [True, None]}, {"names": 3}):
        with pytest.raises(ValidationError):
            read_options(Ranged, wrong)
