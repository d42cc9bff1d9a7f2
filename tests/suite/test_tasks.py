"""`quality.tasks`: every form, problems with their lines, and what is in a cell's id."""

from __future__ import annotations

import json

import pytest

from prunebench.errors import PrunebenchError
from prunebench.measure.quality.task_data import HUB, TaskData, split_of
from prunebench.measure.quality.task_index import task_index
from prunebench.plugin.registry import PluginEntry, Registry
from prunebench.suite.json_schema import json_schema
from prunebench.suite.plan import plan
from task_folder import task_folder, write

SUITE = """\
name: tasks
models: smollm2-135m-instruct
methods: [magnitude]
profile: null
quality:
  tasks:
    {tasks}
"""


class Rows(TaskData):
    name = "rows"
    summary = "rows"
    licence = "none"
    revision = "1"
    tasks = ("boolq", "arc_easy")

    def splits(self, task):
        raise NotImplementedError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def data(tmp_path, cache, registry, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(cache))
    registry["task data"]["rows"] = PluginEntry("task data", "rows", Rows(), "dist", "1.0", "")
    return task_folder(tmp_path / "data")


def suite(*entries: str) -> str:
    return SUITE.format(tasks="\n    ".join(f"- {entry}" for entry in entries))


def ids(load, registry, text, *overrides):
    return [cell.id for cell in plan(load(text, *overrides), registry).cells]


def test_every_form_of_a_task_entry(load):
    loaded = load(
        suite(
            "boolq",
            "mmlu",
            "{task: [arc_easy, boolq], data: rows, limit: 200, num_fewshot: 0, batch_size: 4}",
            "{task: [arc_easy], data: data}",
        )
    )
    plain, group, easy, boolq, files = loaded.tasks
    assert (plain.name, plain.data.name, plain.limit, plain.num_fewshot) == (
        "boolq",
        HUB,
        None,
        None,
    )
    assert (group.name, group.harness) == ("mmlu", task_index().version)
    assert (easy.name, boolq.name, boolq.data.name, boolq.data.revision) == (
        "arc_easy",
        "boolq",
        "rows",
        "1",
    )
    assert (boolq.limit, boolq.num_fewshot, boolq.batch_size) == (200, 0, 4)
    assert list(files.data.files) == ["arc_easy/test.parquet", "arc_easy/train_head10.jsonl.gz"]
    assert files.data.name == "data"


@pytest.mark.parametrize("tasks", ["boolq", "[boolq]", "{task: boolq}", "[boolq, boolq]"])
def test_one_task_in_many_ways_is_one_experiment(load, registry, tasks):
    text = SUITE.replace("\n    {tasks}", f" {tasks}")
    assert ids(load, registry, text) == ids(load, registry, suite("boolq"))


def test_no_tasks_keep_the_ids_of_older_runs(load, registry):
    text = SUITE.replace("\n  tasks:\n    {tasks}", " {tasks: null}")
    assert ids(load, registry, text) == ids(
        load, registry, text.replace("quality: {tasks: null}\n", "")
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("{task: arc_easy, data: data, batch_size: 2}", True),
        ("{task: arc_easy, data: ./data/}", True),
        ("{task: arc_easy, data: data, limit: 8}", False),
        ("{task: arc_easy, data: data, num_fewshot: 3}", False),
        ("{task: arc_easy, data: rows}", False),
        ("{task: arc_easy}", False),
        ("{task: hellaswag, data: data}", False),
    ],
)
def test_the_id_has_everything_that_affects_the_outcome(load, registry, change, same):
    before = ids(load, registry, suite("{task: arc_easy, data: data}"))
    after = ids(load, registry, suite(change))
    assert (before == after) is same
    assert same or not set(before) & set(after)


def test_a_folder_is_identified_by_its_content(load, registry, data, tmp_path):
    text = suite("{task: arc_easy, data: data}")
    before = ids(load, registry, text)
    data.rename(tmp_path / "moved")
    assert ids(load, registry, text.replace("data: data", "data: moved")) == before
    write(
        tmp_path / "moved" / "hellaswag" / "validation.jsonl", [{"other": 1}]
    )  # not a file of the task
    assert ids(load, registry, text.replace("data: data", "data: moved")) == before
    write(tmp_path / "moved" / "arc_easy" / "test.parquet", [{"other": 1}])
    assert ids(load, registry, text.replace("data: data", "data: moved")) != before


def test_versions_of_lm_eval_and_of_data_are_in_the_id(load, registry):
    before = ids(load, registry, suite("{task: boolq, data: rows}"))
    loaded = load(suite("{task: boolq, data: rows}"))
    (spec,) = loaded.tasks
    newer = spec.model_copy(update={"harness": "9.9"})
    revised = spec.model_copy(update={"data": spec.data.model_copy(update={"revision": "2"})})
    assert len({json.dumps(one.identity()) for one in (spec, newer, revised)}) == 3
    assert before == ids(load, registry, suite("{task: boolq, data: rows}"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "hellaswga",
            r"s\.yaml:7: quality\.tasks.*knows no task 'hellaswga' \(did you mean 'hellaswag'\?\)",
        ),
        ("qqqqzzzz", r"knows no task 'qqqqzzzz' \(`lm-eval ls tasks` lists the names\)"),
        (
            "{task: boolq, data: row}",
            r"s\.yaml:7: quality\.tasks.*unknown data 'row' \(did you mean 'rows'\?\)",
        ),
        ("{task: boolq, data: ./nowhere}", r"no folder .*nowhere \(a path in a suite is relative"),
        (
            "{task: boolq, data: data}",
            r"has no files of the task 'boolq' \(layout: FOLDER/TASK/SPLIT",
        ),
        (
            "{task: piqa, data: rows}",
            r"the data 'rows' has no task 'piqa' \(it has boolq, arc_easy\)",
        ),
        (
            "{task: boolq, data: rows, num_fewshot: 2}",
            r"the data 'rows' has no train split, .*num_fewshot: 0",
        ),
        ("{task: hellaswag, data: data, num_fewshot: 2}", r"hellaswag has no train split"),
        ("{task: boolq, limit: 0}", r"quality\.tasks.*limit: .*greater than 0"),
        ("{task: boolq, shots: 2}", r"unknown key 'shots'"),
    ],
)
def test_problems_have_their_line(load, entry, message):
    with pytest.raises(PrunebenchError, match=message):
        load(suite(entry))


def test_all_problems_come_at_once(load):
    with pytest.raises(PrunebenchError) as caught:
        load(suite("hellaswga", "boolq", "{task: piqa, data: rows}"))
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["7", "9"]


def test_overrides_reach_tasks(load):
    (spec,) = load(suite("boolq"), "quality.tasks={task: boolq, data: rows, limit: 3}").tasks
    assert (spec.limit, spec.data.name) == (3, "rows")


def test_the_json_schema_has_tasks():
    schema = json_schema(Registry([PluginEntry("task data", "rows", Rows(), "dist", "1.0", "")]))
    assert schema["$defs"]["TaskEntry"]["properties"]["data"]["examples"] == ["hub", "rows"]
    forms = schema["$defs"]["QualityEntry"]["properties"]["tasks"]["anyOf"]
    assert {"type": "null"} in forms
    assert {"type": "string"} in forms[0]["anyOf"]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.parquet", "train"),
        ("train_head500.parquet", "train"),
        ("test-00000-of-00002.parquet", "test"),
        ("validation.jsonl.gz", "validation"),
        ("dev.jsonl", "dev"),
        ("trainer.parquet", None),
        ("test.csv", None),
        ("README.md", None),
    ],
)
def test_which_file_is_which_split(tmp_path, file, split):
    assert split_of(tmp_path / file) == split
