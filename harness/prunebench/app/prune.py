"""Prune one model with one method: for people who want the model rather than the benchmark."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunebench.errors import PrunebenchError, did_you_mean

if TYPE_CHECKING:
    import torch

    from prunebench.cell.setup import CellSetup
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.registry import Registry
    from prunebench.record.audit import Audit

Format = Literal["prunebench", "decilm", "gguf"]
FORMATS: tuple[Format, ...] = ("prunebench", "decilm", "gguf")

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


@dataclass(frozen=True)
class PruneJob:
    """What to prune, how, and where the result goes."""

    model: Any
    """What a suite calls a model (a registered name, a folder, a .gguf file, a Hub id), or a
    transformers causal LM, which is pruned in place."""
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's options, `allocation` and `recovery` among them."""
    calibration: Mapping[str, Any] | torch.Tensor | None = None
    """A suite's `calibration:` section; or for a model in memory token ids, int64
    [windows, length]. Without a corpus: the method's published calibration, if the hub is there."""
    seed: int = 0
    dtype: str = "float32"
    """The precision to prune and save in; a model in memory keeps its own."""
    device: str = "auto"
    """Where the model is loaded."""
    layer_device: str | None = None
    """Where one decoder layer at a time is pruned: a GPU that cannot hold the whole model."""
    out: Path | None = None
    """The folder for the pruned model; it is written whole or not at all."""
    force: bool = False
    """Replace the model that ``out`` holds."""
    format: Format = "prunebench"
    precision: str | None = None
    """Of format gguf: f32, f16, bf16 or q8_0; None is that of ``dtype``."""
    uniform: bool = False
    """Fill layers up with zeros until all are alike, so that a plain config describes the model in
    ``out``. The model that is returned stays as it was pruned."""
    stream: bool = False
    """Never hold the model: read a layer from its safetensors files, prune it, write it to ``out``.
    Only for layer-wise methods; the result is the same."""
    shard_size: int | str = "2 GB"
    """The most bytes of a weight file that streaming writes."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model and what is known of it."""

    model: Any
    """The transformers causal LM, in eval mode; None if it was streamed from file to file."""
    tokenizer: Any
    audit: Audit
    """Counted on the model: zeros, parameters, removed and narrower parts."""
    notes: dict[str, Any]
    """What the method noted."""
    recovery_notes: dict[str, Any]
    flags: tuple[str, ...] = ()
    """Side effects of plugins, what the checkpoint holds and the model does not use, and where the
    saved model differs from this one."""
    calibration: str | None = None
    """What it was calibrated on, and why on that; None if no text was read."""


DEVICES = "write auto, cpu, mps, cuda or cuda:0"

SETTINGS: Mapping[str, str] = {
    **{
        name: f"write `--{name.replace('_', '-')} {{value}}` (in Python {name}=...)"
        for name in (
            "seed",
            "dtype",
            "device",
            "layer_device",
            "out",
            "format",
            "precision",
            "shard_size",
        )
    },
    "stream": "write `--stream` (in Python stream=True)",
    "force": "write `--force` (in Python force=True)",
    "uniform": "write `--uniform` (in Python uniform=True)",
    "plugin": "write `--plugin {value}`",
    "calibration": "write `--calibration corpus={value}` (in Python calibration={{'corpus': ...}})",
    "model": "the model is the first word, before the method",
    "method": "the method is the second word, after the model",
    "options": "write each option by itself, for example sparsity=0.5",
}
"""What pruning itself takes, and how it is written; a method's option may have the same name."""


def prune_model(job: PruneJob, progress: Progress | None = None) -> Pruned:
    """Prune a model and save it if ``job.out`` names a folder.

    Raises PrunebenchError for anything that the user can mend; the folder is then as it was before.
    Only if the job's format cannot hold the result, the folder has it in prunebench's own.
    """
    from prunebench.plugin.host import load_chosen_plugins

    registry = load_chosen_plugins()
    _check_settings(job)
    _check_for_settings(job, registry)
    # Pruning may take hours: it must not end at a folder that cannot be replaced.
    if job.out is not None:
        _check_target(job.out, job.format, force=job.force)
        _check_precision(job)
    if job.stream:
        return _stream(job, registry, progress)
    if isinstance(job.model, str | Path):
        result, made_by = _load_and_prune(job, registry, progress)
    else:
        from prunebench.app.prune_in_memory import prune_in_memory

        audit, notes, made_by = prune_in_memory(
            job.model, job.method, job.options, job.calibration, job.seed, registry
        )
        flags = (f"the method missed what it was asked for: {audit.missed}",) * bool(audit.missed)
        result = Pruned(job.model, None, audit, notes, {}, flags)
    if job.out is not None:
        differs = _save(result, made_by, job.out, job)
        result = dataclasses.replace(result, flags=(*result.flags, *differs))
    return result


def _check_settings(job: PruneJob) -> None:
    """Raise PrunebenchError if a setting has no sensible value."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    from prunebench.suite.field_types import Device, MemorySize, Seed

    strict = ConfigDict(strict=True)
    kinds: dict[str, tuple[Any, str]] = {
        "seed": (Seed, "give a whole number from 0 to 9223372036854775807"),
        "device": (Device, DEVICES),
        "layer_device": (Device | None, DEVICES),
        "shard_size": (MemorySize, "write bytes, or text such as 2 GB"),
    }
    for name, (kind, hint) in kinds.items():
        value = getattr(job, name)
        try:
            TypeAdapter(kind, config=strict).validate_python(value)
        except ValidationError as error:
            raise PrunebenchError(
                f"{name.replace('_', ' ')} '{value}' is not valid", hint=hint
            ) from error


def _check_for_settings(job: PruneJob, registry: Registry) -> None:
    """Raise PrunebenchError if a setting of pruning is among the method's options."""
    if job.method not in registry["method"]:
        return  # said later, with a suggestion
    known = {
        field.alias or name
        for name, field in registry["method"][job.method].value.Options.model_fields.items()
    }
    for option, value in job.options.items():
        name = option.replace("-", "_")
        # A mapping is the method's own calibration, as in a suite.
        if name not in SETTINGS or option in known or isinstance(value, Mapping):
            continue
        written = shlex.quote(value if isinstance(value, str) else json.dumps(value, default=str))
        raise PrunebenchError(
            f"'{option}' is no option of '{job.method}', but of pruning itself",
            hint=SETTINGS[name].format(value=written),
        )


def _load_and_prune(
    job: PruneJob, registry: Registry, progress: Progress | None
) -> tuple[Pruned, dict[str, Any]]:
    from prunebench.cell.pipeline import build_pruned_model

    setup = _set_up(job, registry, progress)
    made = build_pruned_model(setup)
    result = Pruned(
        made.loaded.model,
        made.loaded.tokenizer,
        made.audit,
        made.notes,
        made.recovery.notes,
        tuple(setup.flags.found),
        _calibration(setup),
    )
    return result, made.made_by(setup.cell)


def _stream(job: PruneJob, registry: Registry, progress: Progress | None) -> Pruned:
    from prunebench.cell.streamed import build_streamed

    out = _checked_stream(job)
    setup = _set_up(job, registry, progress)
    made = build_streamed(setup, out, _shard_bytes(job.shard_size))
    flags = tuple(setup.flags.found)
    return Pruned(
        None, made.loaded.tokenizer, made.audit, made.notes, {}, flags, _calibration(setup)
    )


def _cell(job: PruneJob, registry: Registry, progress: Progress | None) -> tuple[Cell, str | None]:
    """The cell, and why it has the calibration that it has; None if the user chose it."""
    from prunebench.app.default_calibration import (
        OFFLINE,
        default_calibration,
        described,
        reader,
        with_keys,
        with_training_text,
    )
    from prunebench.app.one_cell import one_cell

    def planned(options: Mapping[str, Any], calibration: Any) -> Cell:
        return one_cell(
            str(job.model),
            {job.method: options},
            registry,
            command="prunebench prune",
            calibration=calibration,
            seed=job.seed,
            dtype=job.dtype,
            device=job.device,
        )

    if job.calibration is not None and not isinstance(job.calibration, Mapping):
        return planned(job.options, job.calibration), None  # refused: a tensor
    given = job.calibration or {}
    # First with a text that needs no hub: what is wrong with the job is found before a download.
    cell = planned(job.options, with_keys(OFFLINE, given))
    if reader(cell, registry) is None:
        return cell.model_copy(update={"calibration": None}), None
    if "corpus" in given or "calibration" in job.options:
        return cell, None

    def say(phase: str) -> None:
        if progress is not None:
            progress(phase, 0, 0)

    chosen = default_calibration(cell, given, registry, say)
    cell = planned(with_training_text(job.options, OFFLINE), chosen.keys)
    assert cell.calibration is not None
    # At once, too: the published text may take an hour where another takes a minute.
    say(f"calibrate on {described(cell.calibration, chosen.why)}")
    return cell, chosen.why


def _set_up(job: PruneJob, registry: Registry, progress: Progress | None) -> CellSetup:
    from prunebench.cell.phases import Phases
    from prunebench.cell.setup import set_up

    cell, why = _cell(job, registry, progress)
    phases = Phases() if progress is None else Phases(lambda phase: progress(phase, 0, 0), progress)
    setup = set_up(cell, phases, job.layer_device)
    setup.calibration_reason = why
    return setup


def _calibration(setup: CellSetup) -> str | None:
    from prunebench.app.default_calibration import described

    spec = setup.cell.calibration
    return None if spec is None else described(spec, setup.calibration_reason)


def _check_target(out: Path, format: str, *, force: bool) -> None:  # noqa: A002 - as the option
    """Refuse a folder that must not be replaced, before anything is computed."""
    from prunebench.model.files import check_writable
    from prunebench.model.save_target import save_target

    if format not in FORMATS:
        raise PrunebenchError(f"unknown format '{format}'", hint=did_you_mean(format, FORMATS))
    target = save_target(out)
    if not force and target.is_dir() and any(target.iterdir()):
        raise PrunebenchError(
            f"{out} holds a saved model already",
            hint="add --force to replace it (in Python force=True), or choose another folder",
        )
    check_writable(target)


def _check_precision(job: PruneJob) -> None:
    from prunebench.model.gguf_write import PRECISIONS

    # Before anything is computed, as the folder.
    if job.precision is None:
        return
    if job.format != "gguf":
        raise PrunebenchError(
            f"`precision` is of the format gguf, not of '{job.format}'",
            hint="choose the precision of other formats with `--dtype` (in Python dtype=...)",
        )
    if job.precision not in PRECISIONS:
        raise PrunebenchError(
            f"unknown precision '{job.precision}'", hint=did_you_mean(job.precision, PRECISIONS)
        )


def _checked_stream(job: PruneJob) -> Path:
    """The folder to stream to. Raises PrunebenchError if the job cannot be streamed."""
    if not isinstance(job.model, str | Path):
        raise PrunebenchError(
            "a model in memory cannot be streamed", hint="name its folder, or leave out `stream`"
        )
    if job.out is None:
        raise PrunebenchError(
            "streaming needs a folder to write the model to", hint="give `out`, a folder"
        )
    if job.format != "prunebench" or job.uniform:
        what = "`uniform`" if job.uniform else f"the format '{job.format}'"
        raise PrunebenchError(
            f"{what} is for models whose layers differ, and streaming makes none of those",
            hint=f"leave out `{'uniform' if job.uniform else 'format'}`, or `stream`",
        )
    return job.out


def _shard_bytes(size: int | str) -> int:
    """A size such as 2000000000, '2 GB' or '512 MiB', in bytes."""
    from pydantic import TypeAdapter

    from prunebench.suite.field_types import MemorySize

    return TypeAdapter(MemorySize).validate_python(size)


def _save(result: Pruned, made_by: dict[str, Any], out: Path, job: PruneJob) -> tuple[str, ...]:
    """Save the pruned model as the job says; returns in what the saved one differs."""
    from prunebench.app.export import Form, save_as

    return save_as(
        result.model,
        result.tokenizer,
        out,
        Form(job.format, job.uniform, job.precision),
        made_by=made_by,
        kept=result.audit.kept,
    )
