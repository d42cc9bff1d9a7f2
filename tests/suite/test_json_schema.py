"""The JSON Schema of suites has every plugin with its options."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import ConfigDict, Field

from prunebench.plugin.api.options import Options
from prunebench.plugin.registry import PluginEntry, Registry
from prunebench.suite.json_schema import json_schema
from prunebench.suite.schema import LatencyEntry, SuiteFile


@pytest.fixture
def schema(registry):
    return json_schema(registry)


def references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_has_a_definition(schema):
    found = set(references(schema))
    assert found
    assert found <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_every_method_and_option_is_offered(schema, registry):
    one, several = schema["properties"]["methods"]["anyOf"]
    assert several["items"] == one
    names, *forms = one["anyOf"]
    assert names == {"enum": sorted(registry["method"])}
    options = {
        form["required"][0]: form["properties"][form["required"][0]]["anyOf"][0] for form in forms
    }
    assert options.keys() == registry["method"].keys()
    ratio = options["shortgpt"]["properties"]["ratio"]
    value, fan = ratio["anyOf"]
    assert (value["minimum"], value["exclusiveMaximum"], ratio["default"]) == (0, 1, 0.25)
    assert (fan["type"], fan["items"]) == ("array", value)
    assert options["magnitude"]["properties"]["mode"]["anyOf"][0]["enum"] == ["clean", "reference"]
    assert options["wanda"]["additionalProperties"] is False


def test_names_of_models_and_corpora_are_examples(schema):
    assert schema["$defs"]["ModelEntry"]["properties"]["model"]["examples"] == [
        "smollm2-135m-instruct"
    ]
    assert schema["$defs"]["CalibrationEntry"]["properties"]["corpus"]["examples"] == [
        "boolq-passages"
    ]


def test_one_value_or_a_list_or_null(schema):
    forms = schema["$defs"]["LatencyEntry"]["properties"]["prompt"]["anyOf"]
    assert [form["type"] for form in forms] == ["integer", "array"]
    forms = schema["$defs"]["ProfileEntry"]["properties"]["latency"]["anyOf"]
    assert forms[0] == {"$ref": "#/$defs/LatencyEntry"}
    assert forms[2] == {"type": "null"}


def test_it_is_json_and_describes_every_key_of_every_section(schema):
    json.dumps(schema, allow_nan=False)
    assert schema["properties"].keys() == SuiteFile.model_fields.keys()
    assert schema["$defs"]["LatencyEntry"]["properties"].keys() == LatencyEntry.model_fields.keys()


def test_options_that_json_schema_cannot_express_break_nothing(registry):
    class Odd(Options):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: object = Field(default_factory=object)
        call: Callable[[], int] = int

    odd = type("Odd", (registry["method"]["wanda"].value,), {"Options": Odd})
    alone = Registry([PluginEntry("method", "odd", odd, "dist", "1.0", "")])
    forms = json_schema(alone)["properties"]["methods"]["anyOf"][0]["anyOf"]
    assert forms[0] == {"enum": ["odd"]}
    assert forms[1]["properties"]["odd"]["anyOf"][0] == {"type": "object"}
