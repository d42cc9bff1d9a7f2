"""Time the pruned model in the runtimes of a cell: convert, compare tokens, rounds beside dense."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from prunebench.cell.profile import SPARE, prompt_ids, too_large
from prunebench.cell.runtime_cache import Converted, Made, converted, key_of, scratch_for_models
from prunebench.cell.runtime_worker import Answer, Job
from prunebench.cell.setup import vocabulary_size
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.isolation.interpreter import module_command
from prunebench.measure.speed.runtime_tokens import agreement, greedy_logits
from prunebench.model.adapter import attached
from prunebench.model.checkpoint import save
from prunebench.model.folder import fingerprint, read_checkpoint
from prunebench.model.placement import input_device, is_dispatched
from prunebench.model.positions import check_positions
from prunebench.plugin.api.runtime import installed
from prunebench.record.runtimes import EXACT, RuntimeResult

if TYPE_CHECKING:
    from prunebench.cell.setup import CellSetup
    from prunebench.experiment.plugins import RuntimeRef
    from prunebench.record.audit import Audit

NO_SHAPE = "the suite times no shape with batch size 1, and a runtime takes one sequence"
DISPATCHED = "the model is on several devices, and a runtime takes one that is in memory"


BESIDE = "a LoRA adapter is beside its weights, which a runtime would not see; merge it into them"


class UnavailableRuntimeError(Exception):
    """Why a runtime gives no figure for this model."""


@dataclass(frozen=True)
class Subject:
    """The model to time."""

    model: Any
    tokenizer: Any
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """For the file that tells how a saved model was made."""
    audited: Audit | None = None
    """What is left of the dense model; None for the dense model itself."""


@dataclass
class _Models:
    """The models that are converted, each saved when a conversion first needs its files."""

    setup: CellSetup
    subject: Subject
    scratch: Path
    dense_unpaired: str | None = None
    """Why there is no dense model, if there is none."""
    _folders: dict[str, Path] = field(default_factory=dict)

    def pruned_folder(self) -> Path:
        """A folder with the pruned model."""
        if "pruned" not in self._folders:
            subject, folder = self.subject, self.scratch / "pruned"
            save(subject.model, subject.tokenizer, folder, made_by=subject.made_by)
            self._folders["pruned"] = folder
        return self._folders["pruned"]

    def dense_folder(self) -> Path:
        """A folder with the dense model, in the precision of the cell."""
        if "dense" not in self._folders:
            folder = self.setup.folder
            if not _is_stored_as(folder, self.setup.cell.model.dtype):
                folder = self.scratch / "dense"
                loaded = self.setup.load()
                save(loaded.model, loaded.tokenizer, folder, made_by={"method": "dense"})
            self._folders["dense"] = folder
        return self._folders["dense"]

    @property
    def dense_key(self) -> Any:
        """What identifies the dense model, without loading it."""
        # The cache of the hub names a model's folder by its commit.
        return [self.setup.cell.model.identity(), self.setup.folder.name]


def _is_stored_as(folder: Path, dtype: str) -> bool:
    """Whether a folder holds safetensors of this type, so that it need not be saved again."""
    try:
        stored = {tensor.dtype for tensor in read_checkpoint(folder).tensors.values()}
    except PrunebenchError:  # a GGUF file
        return False
    return stored == {{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]}


def measure_runtimes(setup: CellSetup, subject: Subject) -> list[RuntimeResult]:
    """The results of all runtimes of the cell, in their order.

    What goes wrong in one is the reason why it has no figures, and a flag of the record.
    """
    cell = setup.cell
    if not cell.runtimes:
        return []
    model = subject.model
    shapes = [shape for shape in cell.latency if shape.batch_size == 1]
    refused = {
        DISPATCHED: is_dispatched(model),
        BESIDE: attached(model) is not None,
        NO_SHAPE: not shapes,
    }
    if (reason := next((one for one, holds in refused.items() if holds), None)) is not None:
        return [_unavailable(ref, reason, setup) for ref in cell.runtimes]
    device = input_device(model)
    prompts = [prompt_ids(vocabulary_size(model), 1, one.prompt, device) for one in shapes]
    with setup.phases.phase("tokens"):
        for shape in shapes:
            check_positions(model, shape.prompt + shape.new_tokens, "the latency shape")
        own = [
            greedy_logits(model, prompt, shape.new_tokens)
            for shape, prompt in zip(shapes, prompts, strict=True)
        ]
    found = []
    with scratch_for_models() as scratch:
        reason = None if subject.audited is None else too_large(subject.audited, model)
        models = _Models(setup, subject, scratch, reason)
        for ref in cell.runtimes:
            try:
                found.append(_measure(ref, models, list(zip(shapes, prompts, own, strict=True))))
            except (UnavailableRuntimeError, PrunebenchError) as error:
                found.append(_unavailable(ref, str(error), setup))
    return found


def _unavailable(ref: RuntimeRef, reason: str, setup: CellSetup) -> RuntimeResult:
    setup.flags.add(f"the runtime '{ref.label}'", f"is not available: {reason}")
    return RuntimeResult(runtime=ref.label, precision=ref.options["precision"], reason=reason)


def _measure(
    ref: RuntimeRef, models: _Models, shapes: Sequence[tuple[LatencySpec, Tensor, Tensor]]
) -> RuntimeResult:
    """One runtime at every shape: (shape, prompt [1, prompt], own logits [new, vocabulary])."""
    setup = models.setup
    changed = models.subject.audited is not None
    with setup.phases.phase("convert"):
        identity = _identity(ref, setup)
        dense_key = key_of(identity, models.dense_key)
        if changed:
            folder = models.pruned_folder()
            mine = _converted(ref, key_of(identity, fingerprint(folder)), lambda: folder)
        else:
            mine = _converted(ref, dense_key, models.dense_folder)
        paired = changed and models.dense_unpaired is None
        dense = _converted(ref, dense_key, models.dense_folder) if paired else None
    unpaired = models.dense_unpaired
    if dense is not None and (unpaired := _no_room(mine, dense)) is not None:
        dense = None
    result = RuntimeResult(
        runtime=ref.label,
        precision=ref.options["precision"],
        versions=mine.versions,
        conversion=mine.conversion,
        dense_conversion=dense and dense.conversion,
    )
    threads = setup.cell.threads or torch.get_num_threads()
    # The pruned model comes first: its tokens are those that the answer holds.
    job = Job(
        runtime=ref.name,
        options=ref.options,
        models=[str(one.path) for one in (mine, dense) if one is not None],
        shapes=[shape for shape, _, _ in shapes],
        prompts=[prompt[0].tolist() for _, prompt, _ in shapes],
        threads=threads,
    )
    with setup.phases.phase("runtimes"):
        answer = run_worker(job)
    for one, (_, _, logits) in zip(answer.timed, shapes, strict=True):
        one.latency.tokens = agreement(logits, one.tokens)
        one.latency.unpaired = unpaired
        result.latency.append(one.latency)
    _judge_tokens(result, setup)
    return result


def _identity(ref: RuntimeRef, setup: CellSetup) -> Any:
    """What decides the outcome of a conversion beside the model."""
    entry = setup.registry["runtime"].get(ref.name)
    packages = () if entry is None else entry.value.packages
    return [ref.identity(), installed(packages)]


def _judge_tokens(result: RuntimeResult, setup: CellSetup) -> None:
    """An engine that computes another model has no speed worth a figure.

    Other precisions round weights, so they may well choose other tokens.
    """
    wrong = [one.tokens for one in result.latency if one.tokens is not None and not one.tokens.same]
    if not wrong or result.precision != EXACT:
        return
    first = wrong[0]
    result.reason = (
        f"other tokens than the model's own code, first at new token"
        f" {(first.first_difference or 0) + 1} of {first.compared}, where its margin is"
        f" {first.margin:.3g} and rounding {first.rounding:.1g}"
    )
    setup.flags.add(f"the runtime '{result.runtime}'", f"is not available: {result.reason}")


def _converted(ref: RuntimeRef, key: str, folder: Callable[[], Path]) -> Converted:
    def make(out: Path) -> Made:
        job = Job(
            runtime=ref.name,
            options=ref.options,
            folder=str(folder()),
            out=str(out),
        )
        answer = run_worker(job)
        assert answer.path is not None
        return Made(answer.path, answer.seconds, answer.versions)

    return converted(key, make)


def _no_room(mine: Converted, dense: Converted) -> str | None:
    """Why the dense model is not timed beside the pruned one; None if both fit in memory."""
    needed = mine.conversion.bytes + dense.conversion.bytes
    free = psutil.virtual_memory().available
    if needed * SPARE <= free:
        return None
    return f"both models take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"


def run_worker(job: Job) -> Answer:
    """Let a new process do ``job``.

    Raises UnavailableRuntimeError, with the reason, if nothing came of it.
    """
    with tempfile.TemporaryDirectory(prefix="prunebench-runtime-") as folder:
        task, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        task.write_text(job.model_dump_json(), encoding="utf-8")
        # A process of its own: an engine that crashes must not take the cell with it.
        output = _output()
        ended = subprocess.run(
            module_command("prunebench.cell.runtime_worker", str(task), str(answer)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
        if not answer.is_file():
            raise UnavailableRuntimeError(_died(ended.returncode))
        found = Answer.model_validate_json(answer.read_text(encoding="utf-8"))
    if found.reason is not None:
        raise UnavailableRuntimeError(found.reason)
    return found


def _output() -> int:
    """Where a worker's output goes: the log of the cell, which is this process's stderr."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError):  # a notebook's stderr is no file
        return subprocess.DEVNULL


def _died(code: int) -> str:
    logging.getLogger("prunebench.runtime").warning("the process of a runtime ended with %d", code)
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}; the log has its last lines"
    return f"its process ended with exit code {code}; the log has its last lines"
