"""Weights that are not finite before anybody pruned them: named with their file, and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.isolation.model_guard import first_not_finite
from prunebench.model.folder import Checkpoint
from prunebench.model.placement import input_device
from prunebench.model.safetensors_io import TensorFiles

_TOKENS = 32  # of one sequence; attention over a few tokens can hide NaN


def check_dense_weights(model: Any, checkpoint: Checkpoint) -> None:
    """Raise PrunebenchError if a weight of ``model`` holds NaN or infinity.

    ``model`` is what was loaded of ``checkpoint``. Weights on the meta device are left out.
    """
    if name := first_not_finite(model):
        raise _not_finite(name, model.get_parameter(name).dtype, checkpoint)


def check_dense_logits(model: Any, folder: Path) -> None:
    """Raise PrunebenchError if the dense ``model`` of ``folder`` computes NaN or infinity.

    With finite weights that is the data type's range, or a number in config.json such as a rotary
    base of 0. Otherwise it would be blamed on what is measured first.
    """
    size = model.get_input_embeddings().num_embeddings
    length = min(_TOKENS, getattr(model.config, "max_position_embeddings", None) or _TOKENS)
    tokens = torch.arange(length, device=input_device(model))[None] % size  # any ids will do
    # Not a decorator, which would import torch when plugins are listed.
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    if bool(torch.isfinite(logits).all()):
        return
    dtype = next(model.parameters()).dtype
    if dtype == torch.float32:
        hint = "a number in config.json is wrong: its weights are finite"
    else:
        hint = "run the model with `dtype: float32`"
    raise PrunebenchError(
        f"{folder}: the dense model computes NaN or infinity in {_plain(dtype)}", hint=hint
    )


def finite_hint(model: Any) -> str:
    """What to do about a model that computes NaN or infinity after it was changed."""
    if next(model.parameters()).dtype == torch.float32:
        return "prune less: what is left of the model overflows"
    return "run it with `dtype: float32`, or prune less"


def check_stored_weights(
    pieces: Iterable[tuple[str, torch.Tensor]], checkpoint: Checkpoint
) -> None:
    """As `check_dense_weights`, for a model that is not loaded.

    ``pieces`` are names in the files of ``checkpoint`` and elements in the type that is used.
    """
    for name, elements in pieces:
        if elements.is_floating_point() and not bool(torch.isfinite(elements).all()):
            raise _not_finite(name, elements.dtype, checkpoint)


def _not_finite(name: str, dtype: torch.dtype, checkpoint: Checkpoint) -> PrunebenchError:
    """The error for the weight ``name``, which is not finite in ``dtype`` before it is pruned."""
    stored = checkpoint.tensors.get(name)
    if stored is None:  # it has another name in the file
        return PrunebenchError(
            f"{checkpoint.folder}: {name} holds NaN or infinity in {_plain(dtype)}",
            hint="download the checkpoint again, or run it in float32",
        )
    with TensorFiles(checkpoint.tensors) as files:
        found = files.read(name)
    wrong = int((~torch.isfinite(found)).sum())
    if wrong:
        return PrunebenchError(
            f"{stored.path}: {name} holds NaN or infinity in {wrong:,} of {found.numel():,} weights",
            hint="copy or download the file again; if they are still there, the model is damaged",
        )
    largest = float(found.abs().max())
    return PrunebenchError(
        f"{stored.path}: {name} has weights up to {largest:.3g}, too large for {_plain(dtype)}",
        hint="run the model with `dtype: bfloat16` or `dtype: float32`",
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
