"""A cell that would fail after pruning fails before it, with words of ours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunebench.cell.before_pruning import check_before_pruning
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec, TaskSpec
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.store.run_folder import RunStore
from rig import Rig
from small_records import cell
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

TEXT = CalibrationSpec(
    corpus=CorpusRef(name="tiny-text"), split="all", sampler="distinct", windows=2, length=129
)
SHAPE = LatencySpec(prompt=120, new_tokens=9, batch_size=1, min_rounds=1, min_time_s=0)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"calibration": TEXT}, "a calibration window takes 129"),
        ({"latency": (SHAPE,)}, "a prompt with its new tokens takes 129"),
    ],
    ids=["calibration", "latency"],
)
def test_windows_beyond_learned_positions(asked: dict[str, Any], what: str) -> None:
    one = cell().model_copy(update={"latency": (), **asked})
    loaded = SimpleNamespace(model=tiny_model("opt"), tokenizer=tiny_tokenizer())
    with pytest.raises(PrunebenchError, match=what):
        check_before_pruning(one, loaded)
    check_before_pruning(
        one, SimpleNamespace(model=tiny_model("llama"), tokenizer=tiny_tokenizer())
    )


def test_a_tokenizer_without_the_tokens_that_tasks_need() -> None:
    one = cell().model_copy(update={"tasks": (TaskSpec(name="arc_easy", harness="1"),)})
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(PrunebenchError, match="neither a bos nor an eos token"):
        check_before_pruning(one, SimpleNamespace(model=tiny_model("llama"), tokenizer=tokenizer))


def test_the_method_has_not_pruned_yet(tmp_path: Path) -> None:
    """The folder's config changes after planning, as a model of the hub may: only the cell sees it."""
    rig = Rig(tmp_path)
    tiny_checkpoint(rig.folder / "model", "opt")
    rig.plugin(
        "noting",
        "from prunebench import Method, hookimpl\n"
        "class Noting(Method):\n"
        "    name = 'noting'\n"
        "    needs_calibration = True\n"
        "    def prune(self, model, context):\n"
        "        open('pruned.txt', 'w').close()\n"
        "@hookimpl\n"
        "def prunebench_register_method():\n"
        "    return Noting\n",
    )
    # Without a model_type that says so, planning cannot know that positions are learned.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunebench.model.positions._LEARNED", frozenset())
        suite = rig.suite("noting")
        suite.write_text(
            suite.read_text().replace(
                "windows: 2, length: 16}\nquality", "windows: 2, length: 129}\nquality"
            )
        )
        done = rig.run(suite)
    assert done.returncode == 1, done.stdout + done.stderr
    [failed] = [one for one in RunStore.open(tmp_path / "runs" / "tiny").records()[0] if one.error]
    assert failed.cell.method.name == "noting"
    assert "a calibration window takes 129 tokens" in failed.error.message
    assert not (tmp_path / "pruned.txt").exists()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "opt"
