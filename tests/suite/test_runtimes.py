"""`profile.runtimes`: syntax, fan-out, identity, schema, bad input."""

from __future__ import annotations

from typing import Literal

import pytest

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.runtime import Runtime, RuntimeOptions
from prunebench.plugin.registry import PluginEntry
from prunebench.suite.json_schema import json_schema
from prunebench.suite.plan import plan

SUITE = """\
name: s
models: smollm2-135m-instruct
methods: [magnitude]
quality: {perplexity: {corpus: boolq-passages, windows: 4, length: 128}}
profile:
  latency: {prompt: 8, new_tokens: 4, batch_size: BATCH}
  runtimes: RUNTIMES
"""
WITHOUT = SUITE.replace("  runtimes: RUNTIMES\n", "").replace("BATCH", "1")


class Engine(Runtime):
    name = "engine"

    class Options(RuntimeOptions):
        precision: Literal["fp32", "int8"] = "fp32"

    def convert(self, folder, out, precision):
        raise NotImplementedError

    def open(self, path, threads, length):
        raise NotImplementedError


@pytest.fixture
def registry(registry):
    registry["runtime"]["engine"] = PluginEntry("runtime", "engine", Engine, "dist", "1.0", "")
    return registry


@pytest.fixture
def cells(load, registry):
    def cells(runtimes: str, batch: str = "1", text: str = SUITE):
        return plan(
            load(text.replace("RUNTIMES", runtimes).replace("BATCH", batch)), registry
        ).cells

    return cells


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("engine", ["engine"]),
        ("[engine]", ["engine"]),
        ("[engine, {engine: {precision: int8}}]", ["engine", "engine precision=int8"]),
        (
            "{engine: {precision: [fp32, int8]}}",
            ["engine precision=fp32", "engine precision=int8"],
        ),
        ("[engine, engine]", ["engine"]),
        ("null", []),
    ],
)
def test_names_and_options_become_references(cells, written, labels):
    for cell in cells(written):
        assert [ref.label for ref in cell.runtimes] == labels


def test_a_suite_without_runtimes_has_the_ids_of_before(cells):
    bare = cells("", text=WITHOUT)
    assert all("runtimes" not in cell.identity() for cell in bare)
    assert [cell.id for cell in bare] == [cell.id for cell in cells("null")]
    assert not {cell.id for cell in bare} & {cell.id for cell in cells("engine")}


@pytest.mark.parametrize(
    ("written", "batch", "message"),
    [
        ("[enginee]", "1", "unknown runtime 'enginee'"),
        ("{engine: {precision: fp8}}", "1", "precision"),
        ("{engine: {bits: 4}}", "1", "bits"),
        ("engine", "[2, 4]", "the shapes with batch size 1, and the suite has none"),
        ("[3]", "1", "3 is no runtime"),
    ],
)
def test_what_is_wrong_is_said(cells, written, batch, message):
    with pytest.raises(PrunebenchError) as error:
        cells(written, batch)
    assert message in str(error.value)


def test_the_schema_has_each_runtime_with_its_options(registry):
    schema = json_schema(registry)
    assert {"enum": ["engine"]} in schema["$defs"]["runtime"]["anyOf"]
    assert schema["$defs"]["ProfileEntry"]["properties"]["runtimes"]["anyOf"][0] == {
        "$ref": "#/$defs/runtime"
    }
