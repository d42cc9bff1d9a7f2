"""A low-rank adapter that stays beside a model's linears, in PEFT's format on disk.

y = W x + alpha / rank * B (A x). The linears stay as they are, so zeros in W stay zero and the
model is saved, counted and cut as without an adapter. PEFT would replace the linears instead, and
nothing here could read them any more. So the updates are added by forward hooks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.weight_files import ADAPTER, ADAPTER_WEIGHTS
from prunebench.model.wrong_file import read_json

FOLDER = "adapter"
"""Inside a checkpoint. Not beside the weights: there transformers would put it on top of them."""
_PREFIX = "base_model.model."
"""PEFT's names begin with it."""


@dataclass(frozen=True)
class Adapter:
    """Updates by the module path of their linear: (A [rank, in], B [out, rank])."""

    updates: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    alpha: float
    dropout: float = 0.0
    """While it was trained; for those who train it on."""

    @property
    def rank(self) -> int:
        a, _ = next(iter(self.updates.values()))
        return len(a)

    @property
    def parameters(self) -> int:
        return sum(a.numel() + b.numel() for a, b in self.updates.values())

    def attach(self, model: Any) -> None:
        """Put the updates beside the linears of ``model``.

        Raises PrunebenchError if the model has no such linears.
        """
        for path, (a, b) in self.updates.items():
            linear = _linear(model, path)
            if linear is None or linear.weight.shape != (len(b), a.shape[1]):
                raise PrunebenchError(
                    f"the adapter has an update for {path}, and the model has no such linear",
                    hint="take adapter and model from the same folder",
                )
            linear.register_forward_hook(_Beside(a, b, self.alpha, self.dropout))

    def save(self, folder: Path) -> None:
        """Write it into ``folder`` as PEFT reads it (`PeftModel.from_pretrained`)."""
        from safetensors.torch import save_file

        folder.mkdir()
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(self.updates),
            "bias": "none",
            "inference_mode": True,
        }
        (folder / ADAPTER).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        tensors = {}
        for path, pair in self.updates.items():
            for letter, tensor in zip("AB", pair, strict=True):
                tensors[f"{_PREFIX}{path}.lora_{letter}.weight"] = (
                    tensor.detach().cpu().contiguous()
                )
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def attached(model: Any) -> Adapter | None:
    """The adapter beside the linears of ``model``, or None."""
    found = {
        path: hook
        for path, module in model.named_modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, _Beside)
    }
    if not found:
        return None
    first = next(iter(found.values()))
    updates = {path: (hook.a, hook.b) for path, hook in found.items()}
    return Adapter(updates, first.alpha, first.dropout)


def read_adapter(checkpoint: Path) -> Adapter | None:
    """The adapter that was saved inside the folder ``checkpoint``, or None.

    Raises PrunebenchError if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = checkpoint / FOLDER
    if not (folder / ADAPTER).is_file():
        return None
    config = read_json(folder / ADAPTER)
    weights = folder / ADAPTER_WEIGHTS
    try:
        tensors = load_file(weights)
        updates = {
            path: (
                tensors[f"{_PREFIX}{path}.lora_A.weight"],
                tensors[f"{_PREFIX}{path}.lora_B.weight"],
            )
            for path in config["target_modules"]
        }
        return Adapter(updates, float(config["lora_alpha"]), float(config["lora_dropout"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PrunebenchError(
            f"{weights}: not an adapter that prunebench saved: {error}",
            hint=f"copy the folder {FOLDER} again, or remove it to load the pruned weights alone",
        ) from error


class _Beside:
    """A forward hook that adds the update to the output of a linear."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, alpha: float, dropout: float) -> None:
        self.a, self.b = a.detach(), b.detach()
        self.alpha, self.dropout = alpha, dropout

    def __call__(self, _linear: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> Any:
        (x,) = inputs
        if self.a.device != x.device:  # the model was moved
            self.a, self.b = self.a.to(x.device), self.b.to(x.device)
        # The order of PEFT's own forward pass, so that results agree to the last bit.
        low = torch.nn.functional.linear(x.to(self.a.dtype), self.a)  # [..., rank]
        update = torch.nn.functional.linear(low, self.b) * (self.alpha / len(self.a))
        return (output + update).to(output.dtype)


def _linear(model: Any, path: str) -> torch.nn.Linear | None:
    try:
        found = model.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, torch.nn.Linear) else None
