"""What tasks of lm-eval need is read from its files: packages that are imported, code that is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality import task_needs
from prunebench.measure.quality.task_index import TaskIndex, task_index
from prunebench.measure.quality.task_needs import check_task, task_fault

FILES = {
    "mine/plain.yaml": "task: plain\noutput_type: multiple_choice\n",
    "mine/base.yaml": "process_results: !function utils.score\n",
    "mine/helped.yaml": "task: helped\ninclude: base.yaml\n",
    "mine/unsafe.yaml": "task: unsafe\nunsafe_code: true\n",
    "mine/python.yaml": "task: python\nclass: !function task.Mine\n",
    "mine/gentle.yaml": "task: gentle\ndoc_to_text: !function gentle.text\n",
    "mine/utils.py": (
        "import re, missing_one\n"
        "from .helpers import more\n"
        "from lm_eval.tasks.other import shared\n"
        "def score(doc):\n    import needed_only_if_called\n"
    ),
    "mine/helpers.py": "if True:\n    from missing_two.inside import thing as more\n",
    "mine/gentle.py": (
        "try:\n    import missing_but_caught\nexcept ImportError:\n    pass\n"
        "try:\n    import missing_three\nexcept ImportError as error:\n    raise ImportError('!') from error\n"
    ),
    "mine/task.py": "import lm_eval.api, numpy\nimport langdetect_no_such\n",
    "other/__init__.py": "",
    "other/shared.py": "import missing_four\n",
}


@pytest.fixture
def index(tmp_path: Path) -> TaskIndex:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    files = [path for path in tmp_path.glob("mine/*.yaml") if path.stem != "base"]
    tasks = {path.stem: f"mine/{path.name}" for path in files}
    return TaskIndex(tmp_path, "1", tasks, {}, {"all": sorted(tasks)})


@pytest.mark.parametrize(
    ("task", "missing"),
    [
        ("helped", "packages missing_four, missing_one, missing_two"),
        ("gentle", "package missing_three"),
        ("python", "package langdetect_no_such"),
    ],
)
def test_imports_are_followed_through_the_files_of_lm_eval(
    index: TaskIndex, task: str, missing: str
) -> None:
    with pytest.raises(
        PrunebenchError, match=f"'{task}' needs the Python {missing}: not installed"
    ):
        check_task(index, task)


def test_a_task_without_functions_needs_nothing_and_a_tag_what_its_tasks_need(
    index: TaskIndex,
) -> None:
    check_task(index, "plain")
    with pytest.raises(PrunebenchError, match="'gentle' needs"):
        check_task(index, "all")


def test_a_task_that_runs_code_is_refused(index: TaskIndex) -> None:
    with pytest.raises(PrunebenchError, match="'unsafe' runs the code that a model writes"):
        check_task(index, "unsafe")


def test_the_extra_of_lm_eval_is_named(index: TaskIndex) -> None:
    assert task_needs._how_to_install(["langdetect", "nltk"]) == "pip install 'lm-eval[ifeval]'"
    assert task_needs._how_to_install(["antlr4"]) == "pip install 'lm-eval[math]'"
    assert task_needs._how_to_install(["no_such"]) == "pip install no_such"


def test_the_usual_tasks_of_the_installed_lm_eval_can_run() -> None:
    index = task_index()
    for name in (
        "arc_easy",
        "arc_challenge",
        "boolq",
        "hellaswag",
        "openbookqa",
        "piqa",
        "winogrande",
    ):
        check_task(index, name)
    for name in ("gsm8k", "mmlu"):
        check_task(index, name)


def spec(name: str) -> TaskSpec:
    return TaskSpec(name=name, harness="1")


@pytest.mark.parametrize(
    ("bos", "eos", "task", "said"),
    [
        (None, None, "arc_easy", "neither a bos nor an eos token"),
        (None, None, "gsm8k", "neither a bos nor an eos token"),
        ("<s>", None, "arc_easy", None),
        ("<s>", None, "gsm8k", "no eos token"),
        (None, "</s>", "gsm8k", None),
        (None, "</s>", "arc_easy", None),
    ],
)
def test_the_special_tokens_that_tasks_need(
    bos: str | None, eos: str | None, task: str, said: str | None
) -> None:
    fault = task_fault([spec(task)], {"bos": bos, "eos": eos, "unk": None, "pad": None})
    assert (fault is None) == (said is None)
    assert said is None or said in fault.message
    assert task_fault([], {"bos": None, "eos": None, "unk": None, "pad": None}) is None
