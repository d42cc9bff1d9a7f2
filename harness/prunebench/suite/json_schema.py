"""JSON Schema of suite files, so that editors complete and check them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from prunebench.measure.quality.task_data import HUB
from prunebench.plugin.option_values import LARGEST
from prunebench.plugin.suite_keys import ALLOCATION, CALIBRATION, DATA, RECOVERY
from prunebench.suite.methods import DENSE
from prunebench.suite.options import depth
from prunebench.suite.schema import SuiteFile, TextEntry, TrainingEntry

if TYPE_CHECKING:
    from prunebench.plugin.registry import Kind, Registry

Json = dict[str, Any]


def json_schema(registry: Registry) -> Json:
    """JSON Schema (draft 2020-12) of a suite file, with the options of everything in ``registry``.

    Names of models, corpora and task data become examples: paths are allowed in their place.
    """
    schema = SuiteFile.model_json_schema()
    writer = _Writer(registry, schema.setdefault("$defs", {}))
    methods = schema["properties"]["methods"]
    schema["properties"]["methods"] = {
        "description": methods["description"],
        **_one_or_several(writer.methods()),
    }
    writer.define_allocations()
    writer.define_recoveries()
    writer.define_metrics()
    writer.define_runtimes()
    writer.add_examples()  # last: it fills in sections that the others define
    _complete(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prunebench suite",
        **schema,
    }


class _Writer:
    """Writes what depends on plugins; definitions that are referred to go to ``defs``."""

    def __init__(self, registry: Registry, defs: Json) -> None:
        self.registry = registry
        self.defs = defs

    def methods(self) -> Json:
        """One entry of `methods:`."""
        # The same section, in which no key is required: keys left out are as in the suite's.
        own = {
            key: value for key, value in self.defs["CalibrationEntry"].items() if key != "required"
        }
        self.defs["own-calibration"] = {
            "description": "calibration text other than the suite's; keys left out are as there",
            **_one_or_fan(own),
        }
        forms = self.forms("method", self._add_keys_beside_method)
        return {"anyOf": [*self.names("method"), *forms]}

    def _add_keys_beside_method(self, method: Any, properties: Json) -> None:
        if self.registry["recovery"] and method.name != DENSE:
            properties[RECOVERY] = _reference("recovery")
        if self.registry["allocation"] and "sparsity" in properties:
            properties[ALLOCATION] = _reference("allocation")
        # An allocation may need text although its method needs none.
        if method.needs_calibration or self.registry["allocation"]:
            properties[CALIBRATION] = _reference("own-calibration")

    def define_allocations(self) -> None:
        if self.registry["allocation"]:
            names = self.names("allocation")
            one = {"anyOf": [*names, {"type": "null"}, *self.forms("allocation")]}
            self.defs["allocation"] = {
                "description": "spreads the sparsity over the layers",
                **_one_or_fan(one),
            }

    def define_recoveries(self) -> None:
        if self.registry["recovery"]:

            def add_data(_: Any, properties: Json) -> None:
                properties[DATA] = _or_null(_reference("TrainingEntry"))

            names = self.names("recovery")
            one = {"anyOf": [*names, {"type": "null"}, *self.forms("recovery", add_data)]}
            self.defs["recovery"] = {
                "description": "repairs the pruned model before it is measured",
                **_one_or_fan(one),
            }
            self.defs["TrainingEntry"] = TrainingEntry.model_json_schema()

    def define_metrics(self) -> None:
        if self.registry["metric"]:

            def add_data(metric: Any, properties: Json) -> None:
                if metric.needs_text:
                    properties[DATA] = _or_null(_reference("TextEntry"))

            self.defs["metric"] = {
                "description": "judges the pruned model, like perplexity and tasks",
                "anyOf": [*self.names("metric"), *self.forms("metric", add_data)],
            }
            self.defs["TextEntry"] = TextEntry.model_json_schema()
            metric = _reference("metric")
            self.defs["QualityEntry"]["properties"]["metrics"]["anyOf"] = [
                metric,
                {"type": "array", "items": metric},
                {"type": "null"},
            ]

    def define_runtimes(self) -> None:
        if self.registry["runtime"]:
            self.defs["runtime"] = {
                "description": "an engine in which the model is timed, too",
                "anyOf": [*self.names("runtime"), *self.forms("runtime")],
            }
            runtime = _reference("runtime")
            self.defs["ProfileEntry"]["properties"]["runtimes"]["anyOf"] = [
                runtime,
                {"type": "array", "items": runtime},
                {"type": "null"},
            ]

    def add_examples(self) -> None:
        self.defs["ModelEntry"]["properties"]["model"]["examples"] = sorted(self.registry["model"])
        self.defs["TaskEntry"]["properties"]["data"]["examples"] = [
            HUB,
            *sorted(self.registry["task data"]),
        ]
        for section in ("CalibrationEntry", "PerplexityEntry", "TrainingEntry", "TextEntry"):
            if section in self.defs:
                corpus = self.defs[section]["properties"]["corpus"]
                corpus["examples"] = sorted(self.registry["corpus"])

    def names(self, kind: Kind) -> list[Json]:
        """The plugins of a kind that need no options: their name is enough."""
        plugins = sorted(self.registry.registered(kind).items())
        names = [name for name, plugin in plugins if not _required(plugin)]
        return [{"enum": names}] if names else []

    def forms(
        self, kind: Kind, add_keys: Callable[[Any, Json], None] = lambda *_: None
    ) -> list[Json]:
        """For each plugin of a kind: a mapping from its name to its options.

        ``add_keys`` gets the plugin and the properties of its options, to add keys of the suite.
        """
        found = []
        for name, plugin in sorted(self.registry.registered(kind).items()):
            options = self._options(f"{kind}-{name}", plugin)
            if "properties" in options:
                add_keys(plugin, options["properties"])
            found.append(_named(name, options if _required(plugin) else _or_null(options)))
        return found

    def _options(self, prefix: str, plugin: Any) -> Json:
        """The options of a plugin's class, each a value or a list of values."""
        try:
            options: Json = plugin.Options.model_json_schema(
                ref_template=f"#/$defs/{prefix}-{{model}}", schema_generator=_WithKeys
            )
        except Exception:  # a type that JSON Schema cannot express; the plugin works all the same
            return {"type": "object"}
        self.defs.update(
            {f"{prefix}-{key}": value for key, value in options.pop("$defs", {}).items()}
        )
        depths = {
            field.alias or name: depth(field.annotation)
            for name, field in plugin.Options.model_fields.items()
        }
        for key, value in options.get("properties", {}).items():
            about = {
                word: value.pop(word)
                for word in ("description", "default", "title")
                if word in value
            }
            listed = depths.get(key, 0)
            options["properties"][key] = {**about, **_one_or_fan(value, listed=listed > 0)}
        return options


class _WithKeys(GenerateJsonSchema):
    """Pydantic's JSON Schema, which says of a mapping with numbers as keys what its keys are."""

    def dict_schema(self, schema: core_schema.DictSchema) -> Json:
        found = super().dict_schema(schema)
        keys: Any = schema.get("keys_schema", {})
        if keys.get("type") == "int":
            sign = "-?" if keys.get("ge", keys.get("gt", -1)) < 0 else ""
            digits = len(str(keys.get("le", keys.get("lt", LARGEST + 1) - 1)))
            pattern = f"^(0|{sign}[1-9][0-9]{{0,{digits - 1}}})$"
            found["propertyNames"] = {"type": "string", "pattern": pattern}
        return found


def _complete(schema: Json) -> None:
    """Add what pydantic leaves out of a schema: bounds of numbers, and keys that no pattern fits.

    The loader refuses larger numbers and other keys too.
    """
    if "patternProperties" in schema:
        schema.setdefault("additionalProperties", False)
    if schema.get("type") in ("integer", "number"):
        if not schema.keys() & {"minimum", "exclusiveMinimum"}:
            schema["minimum"] = -LARGEST
        if not schema.keys() & {"maximum", "exclusiveMaximum"}:
            schema["maximum"] = LARGEST
    for word, below in schema.items():
        if word in {"properties", "patternProperties", "$defs"}:
            inside = list(below.values())
        elif word in {"anyOf", "allOf", "oneOf", "prefixItems"}:
            inside = below
        else:
            inside = [below] if word in {"items", "additionalProperties", "then"} else []
        for one in inside:
            if isinstance(one, dict):  # `additionalProperties` may be true or false
                _complete(one)


def _or_null(one: Json) -> Json:
    return {"anyOf": [one, {"type": "null"}]}


def _reference(name: str) -> Json:
    return {"$ref": f"#/$defs/{name}"}


def _required(plugin: Any) -> bool:
    """Whether a plugin has options without a default."""
    return any(field.is_required() for field in plugin.Options.model_fields.values())


def _named(name: str, options: Json) -> Json:
    """A mapping from ``name`` to its options."""
    return {
        "type": "object",
        "properties": {name: options},
        "required": [name],
        "additionalProperties": False,
    }


def _one_or_several(one: Json) -> Json:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _one_or_fan(one: Json, *, listed: bool = False) -> Json:
    """A value or a list of values, of which each makes cells of its own.

    If a single value is a list (``listed``), only a list with a list in it is several.
    """
    fan = {"type": "array", "items": one, "minItems": 1, "description": "fans out into the grid"}
    if listed:
        fan["contains"] = {"type": "array"}
    return {"anyOf": [one, fan]}
