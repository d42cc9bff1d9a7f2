"""Try all levels on one type."""

from __future__ import annotations

import torch

import families.coupling
import families.depth
import families.experts
import families.stream
import families.training
import families.weights  # noqa: F401 - registers its checks
from families.levels import LEVELS
from prunebench.testing.any_type import tiny_model

Row = dict[str, str]


def outcome(model_type: str, name: str) -> str:
    try:
        return LEVELS[name](model_type)
    except AssertionError as error:
        return f"WRONG: {error}".split("\n")[0]
    except Exception as error:  # the other types are tried all the same
        return f"CRASH: {type(error).__name__}: {error}".split("\n")[0]


def row(model_type: str) -> Row | str:
    """The outcome of every level, or why no model of this type can be built."""
    torch.set_num_threads(1)
    try:
        tiny_model(model_type)
    except Exception as error:
        return f"does not build: {type(error).__name__}: {error}".split("\n")[0]
    return {name: outcome(model_type, name) for name in LEVELS}
