"""A runtime in this process: the model's own code, or one that goes wrong in a way of its choice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from prunebench import Runtime, RuntimeOptions, Session, load_pruned
from prunebench.plugin.registry import PluginEntry, Registry


class Fake(Runtime):
    """The model's own code."""

    name = "fake"
    converted: list[Path] = []  # noqa: RUF012 - what the tests look at
    opened: list[Path] = []  # noqa: RUF012

    class Options(RuntimeOptions):
        precision: Literal["fp32", "int8"] = "fp32"
        fault: Literal["none", "refuses", "raises", "other", "short"] = "none"

    def refuses(self, folder: Path) -> str | None:
        return "it has no kernel" if self.options.fault == "refuses" else None

    def convert(self, folder: Path, out: Path, precision: str) -> Path:
        if self.options.fault == "raises":
            raise ValueError("no such thing")
        Fake.converted.append(folder)
        return Path(shutil.copytree(folder, out / "model"))

    def open(self, path: Path, threads: int, length: int) -> Session:
        Fake.opened.append(path)
        return Generation(load_pruned(path), length, self.options.fault)


class Generation(Session):
    def __init__(self, model: Any, length: int, fault: str) -> None:
        self._model, self._length, self._fault = model, length, fault

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        ids, cache = torch.tensor([list(prompt)]), None
        for number in range(self._length - len(prompt)):
            if self._fault == "short" and number == 2:
                return
            with torch.inference_mode():
                output = self._model(ids, past_key_values=cache, use_cache=True)
            logits, cache = output.logits[:, -1:], output.past_key_values
            ids = logits.argmin(-1) if self._fault == "other" and number else logits.argmax(-1)
            yield int(ids)

    def close(self) -> None:
        self._model = None


def registry() -> Registry:
    return Registry([PluginEntry("runtime", "fake", Fake, "prunebench-fake", "1.0", "")])
