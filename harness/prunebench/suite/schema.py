"""What may stand in a suite file: its sections, their keys, and what each key means.

Types are strict (no text for a number): what a suite says is what is run. A key that takes one value also takes
a list, which fans out into the grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, core_schema

from prunebench.measure.quality.protocols import DEFAULT, PROTOCOLS, ProtocolName

Dtype = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")


class _OneOrMany:
    """Marks a list that may also be written as its only item, and as null where ``none`` is allowed."""

    def __init__(self, *, none: bool = False) -> None:
        self.none = none

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._listed, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array, *([{"type": "null"}] if self.none else [])]}

    def _listed(self, value: Any) -> Any:
        if value is None and self.none:
            return []
        return value if isinstance(value, list) else [value]


class _Short:
    """Marks a section that may also be written as the text of one key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def expand(value: Any) -> Any:
            return {self.key: value} if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


Many = Annotated[list[T], Field(min_length=1), _OneOrMany()]
"""One or several; never none."""

ManyOrNone = Annotated[list[T], _OneOrMany(none=True)]
"""One, several, or none (null)."""

Count = Annotated[int, Field(gt=0)]


def _bytes(value: Any) -> Any:
    """Bytes of '8 GB' (10^9) or '8 GiB' (2^30); everything but such text is left to the type's own check."""
    match = (
        re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([kKMGT]i?)?B\s*", value)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return value
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match[1]) * base ** " kMGT".index(unit[:1].replace("K", "k") or " "))


MemorySize = Annotated[int, Field(gt=0), BeforeValidator(_bytes, json_schema_input_type=int | str)]
"""Bytes, or text with a unit: kB MB GB TB are powers of 1000, KiB MiB GiB TiB of 1024."""


class Section(BaseModel):
    """A mapping in a suite file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelEntry(Section):
    model: str = Field(description="registered name, Hub id, folder of safetensors, or GGUF file")
    name: str | None = Field(
        None, min_length=1, description="label in tables; the model's own name where absent"
    )
    dtype: Many[Dtype] = Field(["float32"], description="precision in which the weights run")
    revision: str | None = Field(
        None, description="Hub revision: a commit keeps the experiment the same for ever"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    device_map: Literal["auto"] | None = Field(
        None,
        description="auto: spread over GPUs, host memory and disk (accelerate) for quality and timing",
    )
    max_memory: dict[int | Literal["cpu"], MemorySize] | None = Field(
        None,
        description="with device_map: what a GPU, by its number, or cpu may hold; places not named hold nothing",
    )


CORPUS = "registered name, local .txt .jsonl .parquet .npy file, or {file: PATH, field: COLUMN}"


class CalibrationEntry(Section):
    """The token windows that methods may look at."""

    corpus: Many[str | dict[str, Any]] = Field(description=CORPUS)
    split: Many[str] | None = Field(
        None, description="the corpus's own calibration split where absent"
    )
    sampler: Many[str] | None = Field(
        None, description="how windows are drawn; the corpus's own where absent"
    )
    windows: Many[Count] = Field([128], description="number of windows")
    length: Many[Annotated[int, Field(gt=1)]] = Field([2048], description="tokens per window")


class TrainingEntry(Section):
    """The token windows that a recovery trains on: one choice, since lists would not fan out here."""

    corpus: str | dict[str, Any] = Field(description=CORPUS)
    split: str | None = Field(None, description="the corpus's own calibration split where absent")
    sampler: str | None = Field(
        None, description="how windows are drawn; the corpus's own where absent"
    )
    windows: Count = Field(128, description="number of windows")
    length: Annotated[int, Field(gt=1)] = Field(256, description="tokens per window")


class PerplexityEntry(Section):
    """Windows that do not overlap, from the beginning of the corpus; no seed plays a part."""

    corpus: Many[str | dict[str, Any]] = Field(description=CORPUS)
    protocol: Many[ProtocolName] = Field(
        [DEFAULT],
        description="fills in what is left out here: "
        + "; ".join(f"{name}: {protocol.summary}" for name, protocol in PROTOCOLS.items()),
    )
    split: Many[str] | None = Field(
        None, description="the protocol's, else the corpus's own evaluation split"
    )
    windows: Many[Count] | None = Field(
        None,
        description="the first so many windows; the protocol's, else the corpus's usual number, else all",
    )
    length: Many[Annotated[int, Field(gt=1)]] | None = Field(
        None, description="tokens per window; the protocol's"
    )
    tail: bool | None = Field(
        None, description="whether a shorter window at the end counts; the protocol's"
    )


class TextEntry(Section):
    """The windows that a metric looks at: consecutive, from the beginning of the split; no seed plays a part."""

    corpus: str | dict[str, Any] = Field(description=CORPUS)
    split: str | None = Field(None, description="the corpus's own evaluation split where absent")
    windows: Count | None = Field(
        None, description="the first so many; the corpus's usual number where absent, else all"
    )
    length: Annotated[int, Field(gt=1)] = Field(512, description="tokens per window")


class TaskEntry(Section):
    """Tasks, groups or tags of lm-eval. Its prompts and metrics are used as they are, its own rows or others."""

    task: Many[str] = Field(
        description="a name, or several that share what follows; `lm-eval ls tasks` lists them"
    )
    data: str = Field(
        "hub",
        description="where the rows come from: hub, the data sets that lm-eval names; registered data; or a folder, "
        "relative to the suite, with TASK/SPLIT.parquet, .jsonl or .jsonl.gz, SPLIT being train, validation, test or dev",
    )
    limit: Count | None = Field(
        None, description="the first so many questions of each task; all where absent"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="examples before each question; the task's own number where absent, 0 if it has none",
    )
    batch_size: Count = Field(8, description="requests side by side")


class QualityEntry(Section):
    gate: float = Field(
        0.95, gt=0, le=1, description="share of dense quality below which speed is greyed"
    )
    perplexity: ManyOrNone[PerplexityEntry] = Field(
        [], description="one or several; every cell measures them all"
    )
    tasks: ManyOrNone[Annotated[TaskEntry, _Short("task")]] = Field(
        [],
        description="zero-shot or few-shot tasks, run by lm-eval; with 100 questions or more each the gate is about them",
    )
    metrics: ManyOrNone[Any] = Field(
        [],
        description="metrics of plugins by name, or one-key mappings from a name to options; `data:` names their text",
    )


class LatencyEntry(Section):
    """One shape to time; lists fan out to several shapes, all timed in the same cell."""

    prompt: Many[Count] = Field([128], description="prompt tokens")
    new_tokens: Many[Annotated[int, Field(gt=1)]] = Field([32], description="tokens to generate")
    batch_size: Many[Count] = Field([1], description="sequences side by side")
    min_rounds: Many[Count] = Field([5], description="at least so many rounds, and ...")
    min_time_s: Many[Annotated[float, Field(ge=0)]] = Field(
        [3.0], description="... at least so many seconds"
    )
    execution: Many[Literal["fastest", "eager", "static", "lean", "compiled", "cuda-graph"]] = (
        Field(
            ["fastest"],
            description="how a generated token is computed. eager: the model's own pass and a growing KV cache; static: with a "
            "KV cache of fixed size; lean: our own step for Llama, Mistral, Qwen2 and Qwen3, without the model's Python; "
            "compiled: torch.compile, minutes to compile; cuda-graph: lean, recorded once; fastest: cuda-graph on a GPU, "
            "else lean, else eager: the first that gives the same tokens as eager",
        )
    )


class ProfileEntry(Section):
    latency: ManyOrNone[LatencyEntry] = Field(
        default_factory=lambda: [LatencyEntry()],
        description="shapes to time; the default shape where absent, none where null or an empty list",
    )


class LimitsEntry(Section):
    time_s: float | None = Field(None, gt=0, description="a cell is ended after so many seconds")
    memory: MemorySize | None = Field(
        None,
        description="a cell is ended where its processes hold more memory: bytes, or text such as 8 GB or 12 GiB",
    )


class ExpectEntry(Section):
    """A published figure, which the report shows beside what is measured."""

    model: str = Field(description="a model of this suite, by its name")
    method: str = Field(description="a method of this suite")
    options: dict[str, Any] = Field(
        {}, description="those of its options that tell the cell from the method's others"
    )
    allocation: str | None = Field(
        None, description="how its share was spread, by its name; none where absent"
    )
    recovery: str | None = Field(
        None, description="what repaired the model, by its name; none where absent"
    )
    metric: str = Field(
        "perplexity",
        description="perplexity, parameters, removed_share, speedup, a task's name, or tasks-mean",
    )
    corpus: str | None = Field(
        None, description="of a perplexity; needed where the suite measures several"
    )
    protocol: ProtocolName | None = Field(
        None, description="of a perplexity; needed where the suite measures several"
    )
    length: Annotated[int, Field(gt=1)] | None = Field(
        None, description="tokens per window, likewise"
    )
    tasks: Many[str] | None = Field(
        None, description="that a mean is over; all tasks of the suite where absent"
    )
    value: float = Field(
        description="as published: scores of tasks in per cent, shares as fractions"
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="relative difference up to which a measured figure agrees; 0.02 for perplexity and tasks",
    )
    source: str = Field(min_length=1, description="paper and table, or repository")


class SuiteFile(Section):
    """A suite: which models, which methods, measured how. `prunebench plan SUITE` shows the cells it makes."""

    name: str = Field(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        description="small letters, digits, hyphens; names the run",
    )
    title: str | None = Field(None, description="heading of the report")
    models: Many[Annotated[ModelEntry, _Short("model")]]
    methods: Many[Any] = Field(
        description="names, or one-key mappings from a name to options; lists of options fan out; dense is always added",
    )
    calibration: CalibrationEntry | None = Field(None, description="for the methods that need it")
    quality: QualityEntry | None = Field(default_factory=QualityEntry)
    profile: ProfileEntry | None = Field(default_factory=ProfileEntry)
    seeds: Many[Annotated[int, Field(ge=0)]] = Field(
        [0],
        description="of calibration samples, random methods and recoveries; the text that is evaluated never depends on "
        "them. Several give a mean and a spread",
    )
    expect: ManyOrNone[ExpectEntry] = Field(
        [], description="published figures that the cells should reproduce"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$",
        description="auto, cpu, cuda, cuda:0 ...",
    )
    threads: Count | None = Field(
        None, description="CPU threads of a cell; torch's own choice where null"
    )
    gpus: Count | None = Field(
        None,
        description="GPUs of a cell, where it runs on GPUs: one where null, or all for a model spread over devices",
    )
    keep_models: bool = Field(
        default=False, description="save every pruned model in the run folder"
    )
    limits: LimitsEntry | None = Field(default_factory=LimitsEntry)


def section_at(path: tuple[str | int, ...]) -> type[Section] | None:
    """The section whose keys stand at ``path`` of a suite file, if the schema knows one there."""
    section: type[Section] | None = SuiteFile
    for key in path:
        if isinstance(key, int):
            continue
        if section is None or key not in section.model_fields:
            return None
        section = _section_in(section.model_fields[key].annotation)
    return section


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in found if section is not None), None)


def json_schema(
    methods: Mapping[str, Any],
    models: Mapping[str, Any],
    corpora: Mapping[str, Any],
    recoveries: Mapping[str, Any] | None = None,
    task_data: Mapping[str, Any] | None = None,
    allocations: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a suite file, for editors.

    ``methods``, ``recoveries``, ``allocations`` and ``metrics`` map names to classes of plugins, whose options become part of the schema;
    the names of models and corpora become examples (both may also be paths).
    """
    schema = SuiteFile.model_json_schema()
    defs = schema.setdefault("$defs", {})
    forms: list[dict[str, Any]] = [{"enum": sorted(methods)}] if methods else []
    for name, method in sorted(methods.items()):
        options = _options_schema(f"method-{name}", method, defs)
        if recoveries and "properties" in options:
            options["properties"]["recovery"] = {"$ref": "#/$defs/recovery"}
        if allocations and "sparsity" in options.get("properties", {}):
            options["properties"]["allocation"] = {"$ref": "#/$defs/allocation"}
        if (method.needs_calibration or allocations) and "properties" in options:
            options["properties"]["calibration"] = {"$ref": "#/$defs/own-calibration"}
        forms.append(_named(name, options))
    method = {"anyOf": forms}
    described = {"description": schema["properties"]["methods"]["description"]}
    schema["properties"]["methods"] = {
        **described,
        "anyOf": [method, {"type": "array", "items": method, "minItems": 1}],
    }
    defs["ModelEntry"]["properties"]["model"]["examples"] = sorted(models)
    defs["TaskEntry"]["properties"]["data"]["examples"] = ["hub", *sorted(task_data or {})]
    own = {key: value for key, value in defs["CalibrationEntry"].items() if key != "required"}
    defs["own-calibration"] = {
        **own,
        "description": "other text than the suite's; what is left out is as there",
    }
    sections = ["CalibrationEntry", "PerplexityEntry"]
    if allocations:
        one = {"anyOf": _plugin_forms("allocation", allocations, defs)}
        several = {
            "type": "array",
            "items": one,
            "minItems": 1,
            "description": "fans out into the grid",
        }
        defs["allocation"] = {
            "description": "spreads the share over the model",
            "anyOf": [one, several],
        }
    if recoveries:
        defs |= _recovery_schema(recoveries, defs)
        sections.append("TrainingEntry")
    if metrics:
        defs |= _metric_schema(metrics, defs)
        metric = {"$ref": "#/$defs/metric"}
        defs["QualityEntry"]["properties"]["metrics"]["anyOf"] = [
            metric,
            {"type": "array", "items": metric},
            {"type": "null"},
        ]
        sections.append("TextEntry")
    for section in sections:
        defs[section]["properties"]["corpus"]["examples"] = sorted(corpora)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prunebench suite",
        **schema,
    }


def _named(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A mapping from ``name`` to options, or to null for their defaults."""
    entry = {"anyOf": [options, {"type": "null"}]}
    return {
        "type": "object",
        "properties": {name: entry},
        "required": [name],
        "additionalProperties": False,
    }


def _plugin_forms(
    prefix: str, plugins: Mapping[str, Any], defs: dict[str, Any]
) -> list[dict[str, Any]]:
    """A name, a name with options, or null."""
    forms = [
        _named(name, _options_schema(f"{prefix}-{name}", plugin, defs))
        for name, plugin in sorted(plugins.items())
    ]
    return [{"enum": sorted(plugins)}, {"type": "null"}, *forms]


def _recovery_schema(recoveries: Mapping[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """What may stand behind `recovery:`, one or a list, and the section that its `data:` is."""
    forms: list[dict[str, Any]] = [{"enum": sorted(recoveries)}, {"type": "null"}]
    for name, recovery in sorted(recoveries.items()):
        options = _options_schema(f"recovery-{name}", recovery, defs)
        if "properties" in options:
            options["properties"]["data"] = {"$ref": "#/$defs/TrainingEntry"}
        forms.append(_named(name, options))
    one = {"anyOf": forms}
    several = {
        "type": "array",
        "items": one,
        "minItems": 1,
        "description": "fans out into the grid",
    }
    described = {
        "description": "repairs the pruned model before it is measured",
        "anyOf": [one, several],
    }
    return {"recovery": described, "TrainingEntry": TrainingEntry.model_json_schema()}


def _metric_schema(metrics: Mapping[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """What may stand behind `metrics:`, one or a list, and the section that its `data:` is."""
    forms: list[dict[str, Any]] = [{"enum": sorted(metrics)}]
    for name, metric in sorted(metrics.items()):
        options = _options_schema(f"metric-{name}", metric, defs)
        if metric.needs_text and "properties" in options:
            options["properties"]["data"] = {"$ref": "#/$defs/TextEntry"}
        forms.append(_named(name, options))
    described = {
        "description": "judges the pruned model beside perplexity and tasks",
        "anyOf": forms,
    }
    return {"metric": described, "TextEntry": TextEntry.model_json_schema()}


def _options_schema(prefix: str, plugin: Any, defs: dict[str, Any]) -> dict[str, Any]:
    """The options of one plugin class, each a value or a list of values; what they refer to is added to ``defs``."""
    try:
        options: dict[str, Any] = plugin.Options.model_json_schema(
            ref_template=f"#/$defs/{prefix}-{{model}}"
        )
    except Exception:  # a type that JSON Schema cannot say; the plugin can be used all the same
        return {"type": "object"}
    defs |= {f"{prefix}-{key}": value for key, value in options.pop("$defs", {}).items()}
    for key, value in options.get("properties", {}).items():
        described = {
            word: value.pop(word) for word in ("description", "default", "title") if word in value
        }
        fan = {
            "type": "array",
            "items": value,
            "minItems": 1,
            "description": "fans out into the grid",
        }
        options["properties"][key] = {**described, "anyOf": [value, fan]}
    return options
