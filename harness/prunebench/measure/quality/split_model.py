"""Run a model's decoder and its head apart, so that only some logits are in memory at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

LOGITS_BYTES = 28 << 20
"""Float32 logits in memory at once: small enough for the allocator to reuse their memory.

From 32 MiB on, padding included (2 MiB with huge pages), glibc maps new pages for every slice.
Smaller slices cost more, because the head's weights are read once for each.
"""


@dataclass(frozen=True)
class SplitModel:
    """A model whose logits are ``head(decoder(ids).last_hidden_state)``, to the last bit."""

    decoder: Any
    head: Any

    def chunks(self, states: int) -> Iterator[slice]:
        """Even slices of ``states`` states; the logits of each take at most `LOGITS_BYTES`."""
        most = max(1, LOGITS_BYTES // (4 * self.head.weight.shape[0]))
        # Even ones: a short slice at the end would read the head's weights for a few states.
        slices = max(1, math.ceil(states / most))
        rows = max(1, math.ceil(states / slices))
        for start in range(0, states, rows):
            yield slice(start, start + rows)


def split_model(model: Any, sample: torch.Tensor) -> tuple[SplitModel | None, torch.Tensor]:
    """The two parts of ``model``, None if it does more than run one after the other; its logits.

    Some models change the logits after the head (soft capping, scaling) or the states before it. A
    pass over ``sample``, int64 [windows, length], tells; a few tokens are enough. Its logits are
    [windows, length, vocabulary].
    """
    head, decoder = model.get_output_embeddings(), model.base_model
    if head is None or decoder is model:
        return None, model(sample, use_cache=False).logits
    seen: dict[str, Any] = {}
    hooks = [
        decoder.register_forward_hook(lambda _, __, out: seen.update(states=out)),
        head.register_forward_hook(lambda _, given, out: seen.update(given=given[0], logits=out)),
    ]
    try:
        logits = model(sample, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    states = getattr(seen.get("states"), "last_hidden_state", None)
    whole = (
        states is not None
        and "given" in seen
        and torch.equal(states, seen["given"])
        and torch.equal(logits, seen["logits"])
    )
    return (SplitModel(decoder, head) if whole else None), logits
