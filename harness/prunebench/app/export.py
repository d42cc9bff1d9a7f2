"""Save a pruned model in the format that was asked for, and lose it in no case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench.errors import PrunebenchError

if TYPE_CHECKING:
    from prunebench.record.kept_units import KeptUnits

GGUF_FILE = "model.gguf"
_PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""What GGUF calls the precisions that a model may be pruned in."""

Save = Callable[[Any, Path], None]
"""Saves a model in prunebench's own format in a folder."""


class Form(NamedTuple):
    """How a model is to be saved."""

    format: str = "prunebench"
    uniform: bool = False
    """Whether zeros make all layers alike."""
    precision: str | None = None
    """Of GGUF; None: that of the model."""


def save_as(
    model: Any,
    tokenizer: Any,
    out: Path,
    form: Form,
    *,
    made_by: Mapping[str, Any],
    kept: KeptUnits | None,
) -> tuple[str, ...]:
    """Save ``model`` in ``form``; returns in what the saved model differs from it.

    If the model cannot be saved like this, ``out`` holds it in prunebench's own format, and the
    PrunebenchError says so: pruning it again may take hours.
    """
    from prunebench.model.checkpoint import save

    def own(each: Any, folder: Path) -> None:
        save(each, tokenizer, folder, made_by=made_by, kept=kept)

    if form.format == "prunebench" and not form.uniform:
        own(model, out)
        return ()
    try:
        return _converted(model, tokenizer, out, form, own)
    except PrunebenchError as error:
        # In its own format any model can be saved, and `dense` converts it later.
        own(model, out)
        raise PrunebenchError(
            f"{error.message}; so {out} holds the pruned model in prunebench's own format",
            hint=error.hint,
        ) from error


def _converted(model: Any, tokenizer: Any, out: Path, form: Form, own: Save) -> tuple[str, ...]:
    from prunebench.model.decilm import save_decilm
    from prunebench.model.uniform import Padded, uniform

    padded = uniform(model) if form.uniform else Padded(model, ())
    if form.format == "decilm":
        return save_decilm(padded.model, tokenizer, out)
    if form.format == "gguf":
        _write_gguf(padded.model, out, own, form.precision)
    else:
        own(padded.model, out)
    return padded.notes


def _write_gguf(model: Any, out: Path, own: Save, precision: str | None) -> None:
    """Write ``out``/model.gguf, from a checkpoint that lies beside it meanwhile."""
    from prunebench.model.files import atomic_replace, scratch_folder
    from prunebench.model.gguf_write import write_gguf
    from prunebench.model.save_target import check_replaceable, save_target

    kind = _PRECISION.get(str(model.dtype).removeprefix("torch."), "f32")
    target = save_target(out)
    # The writer reads a folder. It lies beside the target, so that one disk has to hold both, and
    # not in it, because the file alone is the result.
    with (
        scratch_folder(target) as beside,
        atomic_replace(target, partial(check_replaceable, shown=out)) as aside,
    ):
        own(model, beside / "checkpoint")
        aside.mkdir()
        write_gguf(beside / "checkpoint", aside / GGUF_FILE, precision or kind)
