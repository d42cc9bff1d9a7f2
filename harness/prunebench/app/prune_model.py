"""Prune one model with one method: for people who want the model rather than the benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.suite.load import check_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import Source

if TYPE_CHECKING:
    import torch

    from prunebench.cell.pipeline import PrunedCell
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.registry import Registry
    from prunebench.record.audit import Audit

CALIBRATION: Mapping[str, Any] = {"corpus": "boolq-passages", "windows": 32, "length": 512}
"""What a method looks at where nothing else is said: text that needs no hub."""

Format = Literal["prunebench", "decilm"]


@dataclass(frozen=True)
class Pruned:
    """A pruned model and what is known of it."""

    model: Any
    """The transformers causal LM, in eval mode; None where it was pruned from file to file."""
    tokenizer: Any
    audit: Audit
    """Counted on the model: zeros, parameters, removed and narrower parts."""
    notes: dict[str, Any]
    """What the method says of itself."""
    recovery_notes: dict[str, Any]


def prune(
    model: Any,
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | torch.Tensor | None = None,
    out: str | Path | None = None,
    format: Format = "prunebench",  # noqa: A002 - what the command calls it
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    layer_device: str | None = None,
    stream: bool = False,
    shard_size: int | str = "2 GB",
    progress: Callable[[str, int, int], None] | None = None,
) -> Pruned:
    """Prune ``model`` with ``method`` and save it in ``out``, if that is given.

    ``model`` is what a suite calls a model (a registered name, a folder, a .gguf file, a Hub id), or a transformers causal LM,
    which is pruned in place. ``calibration`` is a suite's `calibration:` section; for a model in memory the token ids, int64
    [windows, length]. ``device`` is where the model lies; with ``layer_device`` one decoder layer at a time visits that, for a GPU
    that cannot hold the model. With ``stream`` the model is never held: layer-wise methods prune it from its safetensors files to
    those in ``out``, of ``shard_size`` bytes at most, with the same result. ``options`` are the method's, for example
    {"sparsity": 0.5}; `allocation` and `recovery` go there too. ``progress`` is called with (phase, done, total).

    Raises PrunebenchError for anything that the user can mend; ``out`` is then as it was before.
    """
    from prunebench.plugin.host import load_plugins

    registry = load_plugins()
    target = None if out is None else _checked_target(Path(out), format)
    if stream:
        where = _checked_stream(model, target, format)
        cell = one_cell(
            str(model),
            method,
            options or {},
            registry,
            calibration=calibration,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        made = _make(cell, layer_device, progress, where, _bytes(shard_size))
        return Pruned(None, made.loaded.tokenizer, made.audit, made.notes, {})
    if isinstance(model, str | Path):
        cell = one_cell(
            str(model),
            method,
            options or {},
            registry,
            calibration=calibration,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        made = _make(cell, layer_device, progress)
        result = Pruned(
            made.loaded.model, made.loaded.tokenizer, made.audit, made.notes, made.recovered.notes
        )
        made_by = made.made_by(cell)
    else:
        result, made_by = _in_memory(model, method, calibration, options or {}, registry, seed)
    if target is not None:
        _save(result, made_by, target, format)
    return result


def _make(
    cell: Cell,
    layer_device: str | None,
    progress: Callable[[str, int, int], None] | None,
    stream_to: Path | None = None,
    shard_bytes: int = 0,
) -> PrunedCell:
    from prunebench.cell.phases import Phases
    from prunebench.cell.pipeline import build_pruned_model, workbench
    from prunebench.cell.streamed import build_streamed

    phases = Phases() if progress is None else Phases(lambda phase: progress(phase, 0, 0), progress)
    bench = workbench(cell, phases, layer_device)
    return (
        build_pruned_model(bench)
        if stream_to is None
        else build_streamed(bench, stream_to, shard_bytes)
    )


def _checked_stream(model: Any, out: Path | None, format: str) -> Path:  # noqa: A002
    if not isinstance(model, str | Path):
        raise PrunebenchError(
            "a model in memory cannot be streamed", hint="name its folder, or leave out `stream`"
        )
    if out is None:
        raise PrunebenchError(
            "a model that is streamed needs a place to go", hint="give `out`, a folder"
        )
    if format != "prunebench":
        raise PrunebenchError(
            f"the format '{format}' is for models whose layers differ, which streaming does not make",
            hint="leave out `format`, or `stream`",
        )
    return out


def _bytes(size: int | str) -> int:
    """A size such as 2000000000, '2 GB' or '512 MiB', in bytes."""
    from pydantic import TypeAdapter, ValidationError

    from prunebench.suite.schema import MemorySize

    try:
        return TypeAdapter(MemorySize).validate_python(size)
    except ValidationError as error:
        raise PrunebenchError(
            f"shard size: '{size}' is no size", hint="write bytes, or text such as 2 GB"
        ) from error


def one_cell(
    model: str,
    method: str,
    options: Mapping[str, Any],
    registry: Registry,
    *,
    calibration: Mapping[str, Any] | torch.Tensor | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
) -> Cell:
    """The cell of one model and one method, checked as a suite is. Raises PrunebenchError where it names several."""
    if calibration is not None and not isinstance(calibration, Mapping):
        raise PrunebenchError(
            "calibration is a tensor and the model is still to be loaded",
            hint="save the tokens with numpy.save and give {'corpus': 'tokens.npy', 'windows': ..., 'length': ...}",
        )
    data = {
        "name": "prune",
        "models": [{"model": model, "dtype": dtype}],
        "methods": [{method: dict(options)}],
        "calibration": {**CALIBRATION, **calibration} if calibration else dict(CALIBRATION),
        "profile": None,
        "seeds": [seed],
        "device": device,
    }
    suite = check_suite(
        Source("prunebench prune", Path.cwd(), json.dumps(data, default=str), data, {}), registry
    )
    cells = plan(suite, registry).cells
    chosen = [cell for cell in cells if cell.method.name == method]
    if len(chosen) != 1:
        raise PrunebenchError(
            f"these options make {len(chosen)} settings of {method}",
            hint="give one value for each option; `prunebench run` takes lists",
        )
    return chosen[0]


def _in_memory(
    model: Any, name: str, tokens: Any, options: Mapping[str, Any], registry: Registry, seed: int
) -> tuple[Pruned, dict[str, Any]]:
    import torch
    from pydantic import ValidationError

    from prunebench.measure.audit import audit, dense_facts
    from prunebench.model.anatomy import anatomy
    from prunebench.plugin.api.context import Context
    from prunebench.plugin.api.method import pattern_of

    if name not in registry["method"]:
        raise PrunebenchError(
            f"unknown method '{name}'", hint=did_you_mean(name, registry["method"])
        )
    if isinstance(tokens, Mapping) or {"recovery", "allocation"} & set(options):
        raise PrunebenchError(
            "a model in memory takes its calibration tokens as a tensor, and neither allocation nor recovery",
            hint="give int64 ids [windows, length], or name the model's folder instead of the model",
        )
    kind = registry["method"][name].value
    if tokens is None and kind.needs_calibration:
        raise PrunebenchError(
            f"'{name}' needs calibration",
            hint="give token ids as an int64 tensor [windows, length]",
        )
    try:
        chosen = kind.Options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "options"
        raise PrunebenchError(f"{name}: {where}: {first['msg']}") from error
    dense = dense_facts(model)
    context = Context(tokens, seed, list(range(len(anatomy(model).layers))))
    training = model.training
    model.eval()
    with torch.no_grad():
        kind(chosen).prune(model, context)
    model.train(training)
    pattern = pattern_of(getattr(chosen, "sparsity", 0.0))
    patterns = sorted({(2, 4), (pattern.keep, pattern.of)} if pattern else {(2, 4)})
    audited = audit(model, dense, context.kept_layers, patterns)
    made_by = {
        "method": name,
        "options": chosen.model_dump(mode="json"),
        "kept_layers": context.kept_layers,
    }
    return Pruned(model, None, audited, context.notes, {}), made_by


def _checked_target(out: Path, format: str) -> Path:  # noqa: A002
    """The folder, refused before anything is computed where it may not be replaced."""
    from prunebench.model.checkpoint import check_target

    if format not in {"prunebench", "decilm"}:
        raise PrunebenchError(
            f"unknown format '{format}'", hint=did_you_mean(format, ["prunebench", "decilm"])
        )
    check_target(out)
    return out


def _save(result: Pruned, made_by: dict[str, Any], target: Path, format: Format) -> None:  # noqa: A002
    from prunebench.model import checkpoint, decilm

    if format == "decilm":
        decilm.save_decilm(result.model, result.tokenizer, target)
    else:
        checkpoint.save(result.model, result.tokenizer, target, made_by=made_by)
