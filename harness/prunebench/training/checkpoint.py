"""The state of a training on disk, so that a training that was killed goes on where it stopped.

A state holds everything that the next step depends on: weights, the moments of the optimiser,
random numbers, the loss scale, the best weights so far. So the result is the same, bit for bit, as
if nothing had happened. It is used only for the very same training: same windows, same weights to
begin with, same settings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from prunebench.training.optimiser import Trainable
    from prunebench.training.settings import TrainingSettings
    from prunebench.training.windows import TrainingWindows

_log = logging.getLogger("prunebench.training")
EVERY_S = 60.0
"""Seconds of training between two states."""
SHARE = 0.05
"""The part of the time that saving may take: large models are saved more rarely."""
MARGIN_BYTES = 1 << 30
"""What a state leaves free on the disk."""

State = dict[str, Any]
"""Tensors, numbers and texts, and lists and mappings of them."""


class TrainingCheckpoints:
    """Files for the trainings of one cell, in ``folder``, in the order in which they run."""

    def __init__(self, folder: Path, *, every_s: float | None = None) -> None:
        self._folder = folder
        self._every_s = every_s
        self._count = 0

    def next(self) -> TrainingCheckpoint:
        """The file of the next training."""
        self._count += 1
        return TrainingCheckpoint(self._folder / f"{self._count}.pt", every_s=self._every_s)


class TrainingCheckpoint:
    """The newest state of one training, in the file ``path``."""

    def __init__(self, path: Path, *, every_s: float | None = None) -> None:
        self._path = path
        self._every_s = EVERY_S if every_s is None else every_s
        self._key = ""
        self._begun = time.monotonic()
        self._next = self._begun + self._every_s
        self._works = True

    def load(self, key: str) -> State | None:
        """The state that the training ``key`` left; None if there is none that can be used."""
        self._key = key
        try:
            # Only tensors and plain values: a file cannot run code.
            found = torch.load(self._path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            _log.warning("%s cannot be read, so the training begins again: %s", self._path, error)
            return None
        same = isinstance(found, dict) and found.get("key") == key
        return found["state"] if same else None

    def due(self, *, last: bool) -> bool:
        """Whether it is time for another state.

        After the ``last`` step if the training was long: what follows may be killed, too.
        """
        return self._works and time.monotonic() >= (
            self._begun + self._every_s if last else self._next
        )

    def save(self, state: State) -> None:
        """Replace the file, or leave it as it was. If that fails the training goes on without."""
        begun = time.monotonic()
        # One name: a process that is killed here leaves one file, which the next state replaces.
        aside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _check_space(self._path.parent, state)
            with aside.open("wb") as file:
                torch.save({"key": self._key, "state": state}, file)
                # Before the rename: otherwise a power cut may leave the new name without content.
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second, too
            self._works = False
            aside.unlink(missing_ok=True)
            _log.warning("the training cannot be resumed if it is killed: %s", error)
        ended = time.monotonic()
        self._next = ended + max(self._every_s, (ended - begun) / SHARE)


def _check_space(folder: Path, state: State) -> None:
    """Raise OSError if the disk would be nearly full: records must find room, too."""
    needed = sum(each.nbytes for each in _tensors(state)) + MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"a state needs {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)


def training_key(
    module: torch.nn.Module,
    trainable: Trainable,
    windows: TrainingWindows,
    settings: TrainingSettings,
    generator: torch.Generator,
    part: range,
) -> str:
    """A hash of all that decides the result of a training, frozen weights of ``module`` too."""
    # Other versions of torch may round otherwise, so that the result would be of neither.
    said = [torch.__version__, settings.model_dump(mode="json"), part.start, part.stop]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode())
    tensors: list[torch.Tensor] = [generator.get_state(), windows.tokens]
    if windows.counted is not None:
        tensors.append(windows.counted.to(torch.uint8))
    # Frozen weights, because pruning may not give the same ones again: on a GPU, for example.
    weights = dict(module.named_parameters()) | dict(trainable.parameters)
    for name, each in _named(weights, trainable.masks):
        digest.update(f"{name} {tuple(each.shape)} {each.dtype}\n".encode())
        tensors.append(each)
    for each in tensors:
        # Hashed where it lies, at the speed of reading it.
        digest.update(f"{torch.hash_tensor(each.detach()).view(torch.int64).item()}\n".encode())
    return digest.hexdigest()


def _named(
    parameters: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]
) -> list[tuple[str, torch.Tensor]]:
    bits = [(f"{name} zeros", mask.to(torch.uint8)) for name, mask in masks.items()]
    return [*parameters.items(), *bits]


def random_state(device: torch.device) -> State:
    """The state of torch's global generators that a training on ``device`` uses."""
    state: State = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: State, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
