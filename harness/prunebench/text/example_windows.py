"""Training windows from instruction data: one example in each, of which the answer counts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunebench.errors import PrunebenchError
from prunebench.experiment.text import CalibrationSpec
from prunebench.text.encoder import Encoder
from prunebench.text.examples import PROMPTS, Example

PADDING = 0
"""The id behind an example. No loss counts it, and causal models see it nowhere before."""


def example_windows(
    spec: CalibrationSpec, examples: Sequence[Example], encoder: Encoder, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Token ids, int64 [windows, length], and which of them the loss counts, bool of that shape.

    A window is the prompt, the answer and an end-of-sequence token, cut to ``length``. Examples
    whose prompt fills the window have no answer, and count nothing, as in the code of Alpaca-LoRA
    and LLM-Pruner. ``seed`` decides which examples are taken and their order. Raises
    PrunebenchError if there are too few of them, or if none has an answer.
    """
    count = spec.windows
    if spec.prompt is None or count is None:
        raise ValueError("windows of examples need a prompt and their number")
    if len(examples) < count:
        raise PrunebenchError(
            f"corpus '{spec.corpus.name}' ({spec.split}) has {len(examples)} examples, and"
            f" {count} windows are asked for",
            hint="lower `windows`",
        )
    write = PROMPTS[spec.prompt]
    tokens = np.full((count, spec.length), PADDING, dtype=np.int64)
    counted = np.zeros((count, spec.length), dtype=np.bool_)
    order = random.Random(seed).sample(range(len(examples)), count)
    for row, index in enumerate(order):
        prompt = write(examples[index])
        ids = encoder(prompt + examples[index].output)
        # The answer may change how the end of the prompt is tokenised: what differs is answer.
        start = 0 if spec.loss_on == "all" else _common(encoder(prompt), ids)
        if encoder.eos is not None and ids[-1:] != [encoder.eos]:
            ids = [*ids, encoder.eos]
        ids = ids[: spec.length]
        tokens[row, : len(ids)] = ids
        counted[row, start : len(ids)] = True
    if not counted[:, 1:].any():
        raise PrunebenchError(
            f"corpus '{spec.corpus.name}' ({spec.split}): no example has an answer within"
            f" {spec.length} tokens",
            hint="raise `length`",
        )
    return tokens, counted


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of leading ids that both have."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
