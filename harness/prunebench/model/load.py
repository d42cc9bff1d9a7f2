"""From a local folder to a model that is ready to be pruned: quickly, offline, safetensors only."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.anatomy import FAMILIES
from prunebench.model.folder import Checkpoint, check_loaded, read_checkpoint
from prunebench.model.prepare import prepare
from prunebench.model.quiet import quiet

__all__ = ["LoadedModel", "load", "prepare"]


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in eval mode without gradients, and what loading it took."""

    model: Any
    tokenizer: Any
    weight_bytes: int
    """Size of the weight files read."""
    seconds: float
    """Weights and config from disk to device; imports and tokenizer apart."""
    tokenizer_seconds: float


def load(folder: Path, *, dtype: str, device: str, trust_remote_code: bool = False) -> LoadedModel:
    """Load the checkpoint in ``folder``. No network, no pickle; ``dtype`` is 'float32', 'bfloat16' or 'float16'.

    Raises PrunebenchError where the folder is incomplete or damaged, the weights do not fit the config, or
    transformers does not know the architecture.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import_libraries()
    checkpoint = read_checkpoint(folder)
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    torch.empty((), device=device)  # starts the device; that is not loading
    with quiet():
        started = time.perf_counter()
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                device_map=None if device == "cpu" else {"": device},
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported then, with their names
                output_loading_info=True,
                **common,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except SafetensorError as error:
            names = ", ".join(path.name for path in checkpoint.weights[:3])
            raise PrunebenchError(
                f"{folder}: the weights in {names} are damaged: {first_line(error)}",
                hint="copy or download the files again",
            ) from error
        except Exception as error:
            raise _unloadable(checkpoint, error) from error
        check_loaded(folder, report)
        model.eval().requires_grad_(requires_grad=False)
        _into_memory(model)
        if device != "cpu":
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
        except Exception as error:
            raise PrunebenchError(
                f"{folder}: transformers cannot read the tokenizer: {first_line(error)}",
                hint="save it there anew with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
            ) from error
    return LoadedModel(model, tokenizer, checkpoint.weight_bytes, seconds, time.perf_counter() - started)


def import_libraries() -> None:
    """Import what loading any model needs: seconds the first time, which are no part of loading."""
    for name in ("modeling_utils", "generation", *(f"models.{family}.modeling_{family}" for family, _ in FAMILIES)):
        importlib.import_module(f"transformers.{name}")


def _into_memory(model: torch.nn.Module) -> None:
    """Copy what still lies in the mapped file.

    Left there, it would be read during the first forward instead of now, and dense weights would run from file pages
    while those that a method wrote to run from memory: two speeds for one model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _unloadable(checkpoint: Checkpoint, error: Exception) -> PrunebenchError:
    kind = checkpoint.config.get("model_type", "no model_type")
    return PrunebenchError(
        f"{checkpoint.folder}: transformers cannot load this checkpoint ({kind}): {first_line(error)}",
        hint="name a causal language model that the installed transformers knows",
    )
