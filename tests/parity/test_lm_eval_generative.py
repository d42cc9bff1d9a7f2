"""Scores of written answers equal those of lm-eval's command line on the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunebench.experiment.measures import TaskDataRef, TaskSpec
from prunebench.measure.quality import tasks
from prunebench.measure.quality.task_index import task_index
from prunebench.measure.quality.tasks import evaluate_tasks

pytestmark = pytest.mark.parity

MODEL = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K-hf"
COUNT = 12
LOCAL = """
include: {folder}/gsm8k.yaml
task: gsm8k_local
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {{train: {rows}/train.jsonl, test: {rows}/test.jsonl}}
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 24}}
"""


def write_rows(folder: Path) -> None:
    """The model tells stories: what it writes ends in no number, but sometimes in these words."""
    folder.mkdir(parents=True)
    for split, start in (("train", 50), ("test", 1)):
        rows = [
            {"question": f"Once upon a time there were {n} dogs.", "answer": f"And {n}.\n#### {n}"}
            for n in range(start, start + COUNT)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


def command_line(out: Path, rows: Path) -> tuple[dict[str, float], list[str]]:
    """lm-eval's scores, and what the model wrote."""
    (folder,) = task_index().folders(["gsm8k"])
    local = out / "tasks"
    local.mkdir()
    (local / "gsm8k_local.yaml").write_text(LOCAL.format(folder=folder, rows=rows))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run"),
            *("--model", "hf", "--model_args", f"pretrained={MODEL}"),
            *("--tasks", "gsm8k_local", "--include_path", local, "--batch_size", "4"),
            *("--device", "cpu", "--num_fewshot", "2", "--output_path", out, "--log_samples"),
        ],
        capture_output=True, text=True, timeout=600, cwd=out,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = out.rglob("results_*.json")
    results: dict[str, float] = json.loads(found.read_text())["results"]["gsm8k_local"]
    (samples,) = out.rglob("samples_*.jsonl")
    by_document = {}
    for line in samples.read_text().splitlines():
        sample = json.loads(line)  # one for each filter
        by_document[sample["doc_id"]] = sample["resps"][0][0]
    return results, sorted(by_document.values())


def test_gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not MODEL.is_dir():
        pytest.skip(f"the real model is not there: {MODEL}")
    rows = tmp_path / "data" / "gsm8k"
    write_rows(rows)
    out = tmp_path / "theirs"
    out.mkdir()
    theirs, they_wrote = command_line(out, rows)
    we_wrote: list[str] = []
    watch = tasks._Watch.add_partial

    def noting(self: object, kind: str, request: object, answer: str) -> None:
        we_wrote.append(answer)
        watch(self, kind, request, answer)

    monkeypatch.setattr(tasks._Watch, "add_partial", noting)
    spec = TaskSpec(
        name="gsm8k",
        data=TaskDataRef(
            name="data",
            path=str(rows.parent),
            files={f"gsm8k/{split}.jsonl": "" for split in ("test", "train")},
        ),
        num_fewshot=2,
        batch_size=4,
        max_new_tokens=24,
        harness=task_index().version,
    )
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    (ours,) = evaluate_tasks(model, AutoTokenizer.from_pretrained(MODEL), [spec])
    assert ours.generative
    assert sorted(we_wrote) == they_wrote
    assert len(set(we_wrote)) > 1
    assert ours.samples == COUNT
    for metric in ours.metrics:
        assert metric.value == theirs[f"{metric.metric},{metric.filter}"]
        assert metric.stderr == theirs[f"{metric.metric}_stderr,{metric.filter}"]
