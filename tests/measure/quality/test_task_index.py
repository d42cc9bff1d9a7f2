"""The quick index of lm-eval's names agrees with lm-eval's own."""

from __future__ import annotations

import pytest

from prunebench.measure.quality import task_index as module
from prunebench.measure.quality.task_index import task_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch):
    """One cache for all tests here: the first look into lm-eval's folder costs a second."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(folder))
    return folder


def test_it_agrees_with_lm_eval_on_some_folders():
    from lm_eval.tasks import TaskManager

    index = task_index()
    names = ["mmlu", "ai2_arc", "boolq", "openbookqa", "super-glue-lm-eval-v1", "agieval"]
    folders = index.folders(names)
    assert [path.name for path in folders] == sorted((path.name for path in folders), reverse=True)
    manager = TaskManager(include_defaults=False, include_path=[str(folder) for folder in folders])
    tops = {folder.name for folder in folders}
    mine = {
        name: path
        for name, path in (index.tasks | index.groups).items()
        if path.split("/")[0] in tops
    }
    theirs = {name: entry for name, entry in manager.task_index.items() if entry.yaml_path}
    assert mine.keys() == theirs.keys()
    assert all(
        str(entry.yaml_path).endswith(f"tasks/{mine[name]}") for name, entry in theirs.items()
    )
    for tag in manager.all_tags:
        assert set(index.tags[tag]) >= manager.task_index[tag].tags


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("boolq", 1, "boolq"),
        ("mmlu", 57, "mmlu_anatomy"),  # groups of tags
        ("ai2_arc", 2, "arc_challenge"),  # a tag that one of them inherits from an included file
        ("openllm", 64, "hellaswag"),  # members with settings of their own
        ("nothing", 0, None),
    ],
)
def test_a_name_stands_for_its_tasks(name, count, some):
    leaves = task_index().leaves(name)
    assert len(leaves) == len(set(leaves)) == count
    assert some is None or some in leaves


def test_families_are_folders_of_lm_eval():
    assert (task_index().family("mmlu_anatomy"), task_index().family("nothing")) == ("mmlu", "")


def test_it_is_kept_and_lm_eval_is_not_looked_through_again(cache, monkeypatch):
    first = task_index()
    (memo,) = (cache / "lm-eval").glob("*.json")
    monkeypatch.setattr(module, "_scan", pytest.fail)
    assert task_index() == first
    assert memo.stat().st_size < 5e6


def test_a_damaged_cache_file_is_made_again(cache):
    first = task_index()
    (memo,) = (cache / "lm-eval").glob("*.json")
    memo.write_text("damaged")
    assert task_index() == first


def test_without_lm_eval_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(module.PrunebenchError, match=r"lm-eval is not installed.*pip install"):
        task_index()
