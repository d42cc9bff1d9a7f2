"""Every causal-LM type of transformers in the lean form: the logits of its own pass, or a reason.

Prints a line for each type, and what refuses how many of them.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from prunebench.measure.speed.execution import decoder
from prunebench.measure.speed.kv_cache import cache_maker
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.testing.any_type import TYPES, VOCABULARY, tiny_model

PROMPT, STEPS = 6, 8
WANTED = 80
"""How many types have to run lean at least."""


@torch.inference_mode()
def outcome(model_type: str) -> str:
    """'lean', or why not. Raises AssertionError if the tokens are others than the model's own."""
    try:
        model = tiny_model(model_type)
    except Exception as error:  # a type that needs another package
        return f"does not build: {type(error).__name__}"
    try:
        lean = decoder(model, "lean", 2, PROMPT + STEPS)
    except UnavailableError as reason:
        return str(reason)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY - 20, (2, PROMPT), generator=generator)
    cache, read, found = cache_maker(model)(), tokens, lean.prompt(tokens)
    for number in range(STEPS):
        logits = model(read, past_key_values=cache, use_cache=True).logits[:, -1]
        best = logits.max(-1, keepdim=True)
        missed = float((best.values - logits.gather(1, found)).max() / logits.abs().max())
        assert missed < 1e-4, f"{model_type}: other tokens at step {number}"
        read = best.indices
        if number < STEPS - 1:
            found = lean.step(read)
    return "lean"


@pytest.mark.families
def test_every_type_runs_lean_or_says_why() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for model_type in TYPES:
        found[model_type] = outcome(model_type)
        print(f"{model_type:28} | {found[model_type]}", flush=True)
    torch.set_num_threads(threads)
    reasons = Counter(reason for reason in found.values() if reason != "lean")
    for reason, count in reasons.most_common():
        print(f"{count:4} x {reason}")
    count = sum(reason == "lean" for reason in found.values())
    print(f"{count} of {len(found)} types run lean")
    assert count >= WANTED
