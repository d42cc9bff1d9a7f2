"""A registry of small stand-ins, so that planning is tested apart from the built-in plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from prunebench.model.source import ModelAsset
from prunebench.model.wheel import WheelAsset
from prunebench.plugin.api.method import LinearMethod, Method
from prunebench.plugin.api.options import Options, SparsityOptions
from prunebench.plugin.registry import PluginEntry, PluginProblem, Registry
from prunebench.suite.load import Suite, load_suite
from prunebench.text.corpus import Corpus


class Dense(Method):
    name = "dense"

    def prune(self, model: Any, context: Any) -> None:
        raise NotImplementedError


class Random(Dense):
    name = "random"
    uses_seed = True
    Options = SparsityOptions


class Magnitude(LinearMethod):
    name = "magnitude"

    class Options(SparsityOptions):
        mode: Literal["clean", "reference"] = "clean"

    def score(self, weight: Any, stats: Any) -> Any:
        raise NotImplementedError


class Wanda(Magnitude):
    name = "wanda"
    statistics: ClassVar = frozenset({"input_norm"})
    Options = SparsityOptions


class ShortGPT(Dense):
    name = "shortgpt"
    needs_calibration = True

    class Options(Options):
        ratio: float = Field(0.25, ge=0, lt=1)
        layers: list[int] | None = None
        verbose: bool = False


class Passages(Corpus):
    name = "boolq-passages"
    summary = "passages"
    licence = "CC"
    splits = ("calibration", "evaluation")
    calibration_split = "calibration"
    evaluation_split = "evaluation"
    sampler = "distinct"
    revision = "1"

    def documents(self, split: str) -> Iterable[str]:
        raise NotImplementedError


def asset(name: str) -> ModelAsset:
    wheel = WheelAsset(distribution="models", version="1", member=f"{name}.gguf", sha256="0" * 64)
    return ModelAsset(
        name, wheel, parameters=1000, summary="tiny", reference="none", licence="Apache-2.0"
    )


def registered(kind: str, value: Any) -> PluginEntry:
    return PluginEntry(kind, value.name, value, distribution="dist", version="1.0", origin="")


@pytest.fixture
def registry() -> Registry:
    return Registry(
        [
            *(registered("method", kind) for kind in (Dense, Random, Magnitude, Wanda, ShortGPT)),
            registered("model", asset("smollm2-135m-instruct")),
            registered("corpus", Passages()),
        ],
        problems=[PluginProblem("sparsegpt", "extra-methods", "0.3", "ImportError: no scipy")],
    )


MINIMAL = """\
name: mini
models: smollm2-135m-instruct
methods:
  - magnitude
"""

CALIBRATED = """\
name: mini
models: smollm2-135m-instruct
methods:
  - wanda: {sparsity: 0.5}
calibration: {corpus: boolq-passages, windows: 16, length: 512}
quality:
  perplexity: {corpus: boolq-passages, windows: 4, length: 128}
"""


@pytest.fixture
def minimal() -> str:
    return MINIMAL


@pytest.fixture
def calibrated() -> str:
    return CALIBRATED


@pytest.fixture
def load(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Suite]:
    """Writes a suite's text into `s.yaml` of a fresh working folder and loads it."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> Suite:
        Path("s.yaml").write_text(text, encoding="utf-8")
        return load_suite("s.yaml", registry=registry, overrides=overrides)

    return load
