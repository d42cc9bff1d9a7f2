"""Compare the tokens of a runtime with those of the model's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunebench.measure.speed.execution import logits_of
from prunebench.measure.speed.kv_cache import cache_maker
from prunebench.record.runtimes import TokenAgreement

ROUNDING = 256
"""Units in the last place of the largest logit, float32: an engine adds in another order in every
matrix of every layer, so its rounding adds up."""


@torch.inference_mode()
def greedy_logits(model: Any, prompt: Tensor, new_tokens: int) -> Tensor:
    """The model's own logits along its greedy tokens after ``prompt``, [new_tokens, vocabulary].

    ``prompt`` is int64 [1, prompt], on the model's device. The logits are on the CPU.
    """
    compute, cache = logits_of(model), cache_maker(model)()
    tokens, found = prompt, []
    for _ in range(new_tokens):
        logits = compute(tokens, cache)  # [1, vocabulary]
        found.append(logits[0].cpu())
        tokens = logits.argmax(-1, keepdim=True)
    return torch.stack(found)


def agreement(logits: Tensor, tokens: Sequence[int]) -> TokenAgreement:
    """Where ``tokens`` first differ from those of ``logits``, and whether that is a tie there.

    Only the first difference says something: after it the two texts are not the same.
    """
    found = TokenAgreement(compared=len(tokens))
    for index, (row, token) in enumerate(zip(logits, tokens, strict=True)):
        own = int(row.argmax())
        if own != token:
            values = row.float()
            single = torch.finfo(torch.float32).eps
            eps = max(ROUNDING * single, 4 * torch.finfo(row.dtype).eps)
            found.first_difference = index
            found.margin = float(values[own] - values[token])
            found.rounding = float(eps * values.abs().max())
            break
    return found
