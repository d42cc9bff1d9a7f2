"""The sections of a suite file, their keys, and what each key means.

A key that takes one value also takes a list, which fans out into the grid. The descriptions appear
in the JSON Schema and as hints in error messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, WithJsonSchema

from prunebench.measure.quality.protocols import DEFAULT, PROTOCOLS, ProtocolName
from prunebench.suite.field_types import (
    Count,
    Device,
    Many,
    ManyOrNone,
    MemoryDevice,
    MemorySize,
    Seconds,
    Section,
    Seed,
    Short,
    Threads,
    TokenCount,
)

Dtype = Literal["float32", "bfloat16", "float16"]

CORPUS = (
    "registered name, local .txt .jsonl .json .parquet .npy file, or {file: PATH, field: COLUMN}"
)
CALIBRATION_SPLIT = "default: the corpus's own calibration split"
SAMPLER = (
    "how windows are drawn: c4-gptq, distinct, joined-random, space-joined-random, joined-rows, "
    "consecutive; default: the corpus's own"
)
TOKENS = "tokens per window"


def _corpus_mapping(key: str) -> dict[str, Any]:
    """JSON Schema of {file: PATH, field: COLUMN} and of {corpus: NAME}."""
    text, none = {"type": "string"}, {"type": "null"}
    return {
        "type": "object",
        "properties": {key: text, "field": {"anyOf": [text, none]}},
        "required": [key],
        "additionalProperties": False,
    }


CorpusName = Annotated[
    str | dict[str, Any],
    WithJsonSchema({"anyOf": [{"type": "string"}, *map(_corpus_mapping, ("file", "corpus"))]}),
]
"""What names a corpus; `prunebench.text.resolve` reads it."""


def _needs_device_map(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema that `max_memory` goes with `device_map: auto`."""
    schema |= {
        "if": {"properties": {"max_memory": {"type": "object"}}, "required": ["max_memory"]},
        "then": {"properties": {"device_map": {"const": "auto"}}, "required": ["device_map"]},
    }


class ModelEntry(Section, json_schema_extra=_needs_device_map):
    model: str = Field(description="registered name, Hub id, folder of safetensors, or GGUF file")
    name: str | None = Field(
        None, min_length=1, description="label in tables; default: the model's own name"
    )
    dtype: Many[Dtype] = Field(["float32"], description="precision in which the weights run")
    revision: str | None = Field(
        None, description="Hub revision; a commit keeps the experiment the same for ever"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    device_map: Literal["auto"] | None = Field(
        None,
        description="auto: distribute the model over GPUs, host memory and disk (accelerate), "
        "for quality and timing",
    )
    max_memory: dict[MemoryDevice, MemorySize] | None = Field(
        None,
        description="with device_map: the most that a GPU, by its number, or cpu may hold; "
        "devices that are not named hold nothing",
    )


class CalibrationEntry(Section):
    """The token windows that methods may look at."""

    corpus: Many[CorpusName] = Field(description=CORPUS)
    split: Many[str] | None = Field(None, description=CALIBRATION_SPLIT)
    sampler: Many[str] | None = Field(None, description=SAMPLER)
    windows: Many[Count] = Field([128], description="number of windows")
    rows: Many[Count] | None = Field(
        None,
        description="number of documents to draw instead: all windows that they fill; for the "
        "sampler joined-rows, as BlockPruner's code counts",
    )
    length: Many[TokenCount] = Field([2048], description=TOKENS)


class TrainingEntry(Section):
    """The token windows that a recovery trains on. No lists: these keys would not fan out."""

    corpus: CorpusName = Field(description=CORPUS)
    split: str | None = Field(None, description=CALIBRATION_SPLIT)
    sampler: str | None = Field(None, description=SAMPLER)
    windows: Count = Field(128, description="number of windows")
    length: TokenCount = Field(256, description=TOKENS)
    prompt: Literal["alpaca"] | None = Field(
        None,
        description="the corpus is instruction data ({instruction, input, output}); every window is "
        "one example in the prompt of Stanford Alpaca. Default: the corpus is text",
    )
    loss_on: Literal["answer", "all"] | None = Field(
        None, description="with prompt: train on the answers only, or on all; default: answer"
    )


class PerplexityEntry(Section):
    """Windows that do not overlap, from the beginning of the corpus; the seed does not matter."""

    corpus: Many[CorpusName] = Field(description=CORPUS)
    protocol: Many[ProtocolName] = Field(
        [DEFAULT],
        description="decides the keys that are left out; "
        + "; ".join(f"{name}: {protocol.summary}" for name, protocol in PROTOCOLS.items()),
    )
    split: Many[str] | None = Field(
        None, description="default: the protocol's, else the corpus's own evaluation split"
    )
    windows: Many[Count] | None = Field(
        None,
        description="number of windows, from the beginning; default: the protocol's, else the "
        "corpus's usual number, else all",
    )
    length: Many[TokenCount] | None = Field(
        None, description="tokens per window; default: the protocol's"
    )
    tail: bool | None = Field(
        None, description="whether a shorter window at the end counts; default: the protocol's"
    )


class TextEntry(Section):
    """The windows that a metric looks at: consecutive, from the beginning of the split."""

    corpus: CorpusName = Field(description=CORPUS)
    split: str | None = Field(None, description="default: the corpus's own evaluation split")
    windows: Count | None = Field(
        None,
        description="number of windows, from the beginning; default: the corpus's usual number, "
        "else all",
    )
    length: TokenCount = Field(512, description=TOKENS)


class TaskEntry(Section):
    """Tasks, groups or tags of lm-eval: with its prompts and metrics, on its own rows or others."""

    task: Many[str] = Field(
        description="a name, or several that share the keys below; `lm-eval ls tasks` lists them"
    )
    data: str = Field(
        "hub",
        description="where the rows come from: hub, the data sets that lm-eval names; registered "
        "data; or a folder, relative to the suite, with TASK/SPLIT.parquet, .jsonl or .jsonl.gz, "
        "SPLIT being train, validation, test or dev",
    )
    limit: Count | None = Field(
        None, description="number of questions of each task, from the beginning; default: all"
    )
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None,
        description="examples before each question; default: the task's own number, 0 if it has "
        "none",
    )
    batch_size: Count = Field(
        8,
        description="requests in a batch, at most; or rows, if requests that begin alike share one",
    )
    max_new_tokens: Count | None = Field(
        None,
        description="the most tokens of an answer that the model writes (gsm8k, ifeval, ...); "
        "default: the task's own number",
    )


class GateEntry(Section):
    """A quality gate for each set of figures; a cell must pass all of them."""

    tasks: float = Field(
        0.95,
        gt=0,
        le=1,
        description="share of dense quality in tasks, or in perplexity if tasks do not decide",
    )
    generation: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of dense quality in what the model writes: generative tasks of lm-eval "
        "and metrics such as arithmetic-and-copy; default: not judged",
    )


class QualityEntry(Section):
    gate: Annotated[GateEntry, Short("tasks", number=True)] = Field(
        default_factory=GateEntry,
        description="share of dense quality below which speed is greyed: a number, or a mapping "
        "with one for tasks and one for generation",
    )
    perplexity: ManyOrNone[PerplexityEntry] = Field(
        [], description="one or several; every cell measures them all"
    )
    tasks: ManyOrNone[Annotated[TaskEntry, Short("task")]] = Field(
        [],
        description="zero-shot or few-shot tasks, run by lm-eval; if each has at least 100 "
        "questions, the gate uses their scores instead of perplexity",
    )
    metrics: ManyOrNone[Any] = Field(
        [],
        description="metrics of plugins by name, or one-key mappings from a name to options; "
        "`data:` names their text",
    )


class LatencyEntry(Section):
    """One shape to time; lists fan out to several shapes, all timed in the same cell."""

    prompt: Many[Count] = Field([128], description="prompt tokens")
    # The first new token comes out of the prompt phase; inter-token latency needs a second.
    new_tokens: Many[TokenCount] = Field([32], description="tokens to generate")
    batch_size: Many[Count] = Field([1], description="sequences in a batch")
    min_rounds: Many[Count] = Field([5], description="the least number of rounds, and ...")
    min_time_s: Many[Seconds] = Field(
        [3.0], description="... the least number of seconds; timing ends when both are reached"
    )
    execution: Many[
        Literal["fastest", "eager", "static", "lean", "lean-packed", "compiled", "cuda-graph"]
    ] = Field(
        ["fastest"],
        description="how a generated token is computed. eager: the model's own pass and a "
        "growing KV cache; static: with a KV cache of fixed size; lean: one step "
        "without the model's Python, ours or recorded; lean-packed: the same, with "
        "second copies of weights in the layout that the processor multiplies fastest; compiled: "
        "torch.compile, minutes to compile; cuda-graph: lean, recorded once; fastest: cuda-graph "
        "on a GPU, else lean-packed, else lean, else eager: the first that gives the same tokens "
        "as eager",
    )


class ProfileEntry(Section):
    latency: ManyOrNone[LatencyEntry] = Field(
        default_factory=lambda: [LatencyEntry()],
        description="shapes to time; null or an empty list times none. Default: one shape",
    )
    runtimes: ManyOrNone[Any] = Field(
        [],
        description="engines in which the shapes with batch size 1 are timed too, by name, or "
        "one-key mappings from a name to options",
    )


class LimitsEntry(Section):
    time_s: Seconds | None = Field(
        None, gt=0, description="a cell is ended after this many seconds"
    )
    memory: MemorySize | None = Field(
        None,
        description="a cell is ended if its processes hold more memory: bytes, or text such as "
        "8 GB or 12 GiB",
    )


class ExpectEntry(Section):
    """A published figure, which the report shows beside what is measured."""

    model: str = Field(description="a model of this suite, by its name")
    method: str = Field(description="a method of this suite")
    options: dict[str, Any] = Field(
        {}, description="those of its options that tell the cell from the method's others"
    )
    allocation: str | None = Field(None, description="the name of its allocation; default: none")
    recovery: str | None = Field(None, description="the name of its recovery; default: none")
    metric: str = Field(
        "perplexity",
        description="perplexity, parameters, removed_share, speedup, removed_layers, a task's name,"
        " or tasks-mean",
    )
    corpus: str | None = Field(
        None, description="of a perplexity; needed if the suite measures several"
    )
    protocol: ProtocolName | None = Field(
        None, description="of a perplexity; needed if the suite measures several"
    )
    length: TokenCount | None = Field(
        None, description="tokens per window of a perplexity; needed if the suite measures several"
    )
    tasks: Many[str] | None = Field(
        None, description="the tasks of a mean; default: all tasks of the suite"
    )
    layers: Many[NonNegativeInt] | None = Field(
        None,
        description="for removed_layers: the decoder layers that the publication removes, whose"
        " number is the value",
    )
    value: float = Field(
        description="as published: scores of tasks in per cent, shares as fractions"
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="relative difference up to which a measured figure agrees; default: 0.02 for "
        "perplexity and tasks",
    )
    source: str = Field(min_length=1, description="paper and table, or repository")


class SuiteFile(Section):
    """A suite: models, methods, and what to measure. `prunebench plan SUITE` shows its cells."""

    name: str = Field(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        description="small letters, digits, hyphens; names the run",
    )
    title: str | None = Field(None, description="heading of the report")
    models: Many[Annotated[ModelEntry, Short("model")]]
    methods: Many[Any] = Field(
        description="names, or one-key mappings from a name to options; lists of options fan out; "
        "dense is always added",
    )
    calibration: ManyOrNone[CalibrationEntry] = Field(
        [],
        description="for the methods that need it; with several, every method prunes once for each",
    )
    quality: QualityEntry | None = Field(default_factory=QualityEntry)
    profile: ProfileEntry | None = Field(default_factory=ProfileEntry)
    seeds: Many[Seed] = Field(
        [0],
        description="of calibration samples, random methods and recoveries; the text that is "
        "evaluated never depends on them. Several give a mean and a deviation",
    )
    expect: ManyOrNone[ExpectEntry] = Field(
        [], description="published figures that the cells should reproduce"
    )
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:0 ...")
    threads: Threads | None = Field(
        None, description="CPU threads of a cell; null: torch's own choice"
    )
    gpus: Threads | None = Field(
        None,
        description="GPUs of a cell that runs on GPUs; null: one, or all for a model with "
        "device_map",
    )
    keep_models: bool = Field(
        default=False, description="save every pruned model in the run folder"
    )
    limits: LimitsEntry | None = Field(default_factory=LimitsEntry)


def section_at(path: tuple[str | int, ...]) -> type[Section] | None:
    """The section whose keys belong at ``path`` of a suite file; None if there is none."""
    section: type[Section] | None = SuiteFile
    for key in path:
        if isinstance(key, int):
            continue
        if section is None or key not in section.model_fields:
            return None
        section = _section_in(section.model_fields[key].annotation)
    return section


def _section_in(annotation: Any) -> type[Section] | None:
    """The section in a type such as ``list[Annotated[ModelEntry, ...]] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in found if section is not None), None)
