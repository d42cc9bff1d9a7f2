"""The process of one runtime, which converts a model or times sessions.

It runs as `python -P -m prunebench.cell.runtime_worker JOB ANSWER`, with two JSON files. An engine
may print, keep threads or crash, and none of that affects the cell.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from prunebench.errors import PrunebenchError, described, printable
from prunebench.experiment.measures import LatencySpec
from prunebench.isolation.processes import die_with_parent
from prunebench.plugin.api.runtime import installed
from prunebench.record.runtimes import RuntimeLatency
from prunebench.schema import Part


class Job(Part):
    """What to do."""

    runtime: str
    options: dict[str, Any]
    folder: str | None = Field(None, description="convert this checkpoint ...")
    out: str | None = Field(None, description="... into this folder")
    models: list[str] = Field(
        default_factory=list, description="or time these converted models in turn"
    )
    shapes: list[LatencySpec] = Field(default_factory=list)
    prompts: list[list[int]] = Field(default_factory=list, description="one for each shape")
    threads: int = 1


class Timed(Part):
    latency: RuntimeLatency
    tokens: list[int] = Field(description="of the first model")


class Answer(Part):
    """What came of it."""

    reason: str | None = Field(None, description="why nothing came of it")
    path: str | None = Field(None, description="of the converted model, in `out`")
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    timed: list[Timed] = Field(default_factory=list)


def work(job: Job) -> Answer:
    """Do ``job`` in this process. A refusal is an answer; everything else that fails raises."""
    from prunebench.plugin.host import load_plugins

    entry = load_plugins()["runtime"].get(job.runtime)
    if entry is None:
        raise PrunebenchError(f"no plugin registers the runtime '{job.runtime}'")
    kind = entry.value
    there = installed(kind.packages)
    if missing := [name for name in kind.packages if name not in there]:
        return Answer(
            reason=f"{', '.join(missing)} is not installed (pip install {' '.join(missing)})"
        )
    runtime = kind(kind.Options.model_validate(job.options))
    answer = _time(runtime, job) if job.models else _convert(runtime, job)
    return answer.model_copy(update={"versions": dict(runtime.versions())})


def _convert(runtime: Any, job: Job) -> Answer:
    assert job.folder is not None
    assert job.out is not None
    folder, out = Path(job.folder), Path(job.out)
    if (reason := runtime.refuses(folder)) is not None:
        return Answer(reason=str(reason))
    begun = time.perf_counter()
    path = runtime.convert(folder, out, runtime.options.precision)
    seconds = time.perf_counter() - begun
    return Answer(path=os.path.relpath(path, out), seconds=seconds)


def _time(runtime: Any, job: Job) -> Answer:
    import torch

    from prunebench.isolation.process_tree import linux_tree
    from prunebench.measure.devices.disturbance import CpuWatch
    from prunebench.measure.speed.runtime_rounds import measure_sessions

    torch.set_num_threads(1)  # torch only holds token ids here
    found = []
    for shape, prompt in zip(job.shapes, job.prompts, strict=True):
        length = shape.prompt + shape.new_tokens
        sessions: list[Any] = []
        try:
            for path in job.models:
                sessions.append(runtime.open(Path(path), job.threads, length))
            # A runtime may have started processes of its own: their work is the engine's, too.
            watch = CpuWatch(children=linux_tree(os.getpid()) - {os.getpid()})
            ids = torch.tensor([prompt])
            latency, tokens = measure_sessions(sessions, ids, shape, job.threads, watch)
            watch.close()
        finally:
            for session in sessions:
                session.close()
        found.append(Timed(latency=latency, tokens=tokens))
    return Answer(timed=found)


def main(job_file: str, answer_file: str) -> None:
    die_with_parent()
    os.environ["TQDM_DISABLE"] = "1"  # bars of a converter would fill the log
    # What an engine prints is for the log of the cell, whose output has only the record.
    os.dup2(2, 1)
    job = Job.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
    try:
        answer = work(job)
    except Exception as error:
        import traceback

        traceback.print_exc()
        text = str(error) if isinstance(error, PrunebenchError) else described(error)
        answer = Answer(reason=printable(text))
    Path(answer_file).write_text(json.dumps(answer.model_dump(mode="json")), encoding="utf-8")
    # Threads of an engine may keep the interpreter from ending, and destructors may crash.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
