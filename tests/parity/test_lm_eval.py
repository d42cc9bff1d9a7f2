"""Our scores equal those of lm-eval's command line, to the last digit, on seven real tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunebench.experiment.measures import TaskDataRef, TaskSpec
from prunebench.measure.quality.task_data import task_files
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.tasks import evaluate_tasks

pytestmark = pytest.mark.parity

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODEL = SHARED / "models" / "stories260K-hf"
DATA = SHARED / "data"
TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
LIMIT = 40


def command_line(out: Path, shots: int) -> dict[str, dict[str, float]]:
    task = DATA / "lm_eval_tasks" / "local_zeroshot7.yaml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run"),
            *("--model", "hf", "--model_args", f"pretrained={MODEL}"),
            *("--tasks", task, "--limit", str(LIMIT), "--batch_size", "8", "--device", "cpu"),
            *("--num_fewshot", str(shots), "--output_path", out),
        ],
        capture_output=True, text=True, timeout=600, cwd=out,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = out.rglob("results_*.json")
    results: dict[str, dict[str, float]] = json.loads(found.read_text())["results"]
    return results


@pytest.mark.parametrize("shots", [0, 2])
def test_seven_tasks(tmp_path: Path, shots: int) -> None:
    for path in (MODEL, DATA):
        if not path.is_dir():
            pytest.skip(f"the real model or data is not there: {path}")
    theirs = command_line(tmp_path, shots)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(MODEL),
        AutoTokenizer.from_pretrained(MODEL),
    )
    specs = [
        TaskSpec(
            name=task,
            data=TaskDataRef(
                name="data",
                path=str(DATA),
                files={path.relative_to(DATA).as_posix(): "" for path in task_files(DATA, task)},
            ),
            limit=LIMIT,
            num_fewshot=shots,
            harness=task_index().version,
        )
        for task in TASKS
    ]
    ours = evaluate_tasks(model, tokenizer, specs)
    assert [result.task for result in ours] == list(TASKS)
    compared = 0
    for result in ours:
        assert result.samples == LIMIT
        for metric in result.metrics:
            theirs_of = theirs[result.task]
            assert metric.value == theirs_of[f"{metric.metric},{metric.filter}"], result.task
            assert metric.stderr == theirs_of[f"{metric.metric}_stderr,{metric.filter}"], (
                result.task
            )
            compared += 1
    assert compared == 12
