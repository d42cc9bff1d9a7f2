"""Greedy continuations of prompts, for metrics that judge what a model writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from prunebench.measure.speed.execution import Eager
from prunebench.model.positions import check_positions


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids of the tokens that end a text, by the tokenizer and by the checkpoint.

    A chat model has more than one: the end of its turn, and the end of the text.
    """
    named = (
        getattr(tokenizer, "eos_token_id", None),
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
    )
    found: set[int] = set()
    for one in named:
        found.update(one if isinstance(one, list | tuple) else () if one is None else (one,))
    return frozenset(found)


@torch.no_grad()
def greedy_continuations(
    model: Any, prompts: Tensor, new_tokens: int, end: Collection[int] = ()
) -> list[Tensor]:
    """The most likely next tokens of each prompt, one after the other, with a KV cache.

    ``prompts`` are int64 [batch, prompt] without padding, on the device of the model's embedding.
    Gives an int64 [tokens] for each of them: ``new_tokens``, or fewer if one of ``end`` comes, which
    is then the last. Raises PrunebenchError if the model has no positions for so many tokens.
    """
    check_positions(model, prompts.shape[1] + new_tokens, "a prompt with its continuation")
    decoder = Eager(model)
    ends = torch.tensor(sorted(end), dtype=prompts.dtype, device=prompts.device)
    found = [decoder.prompt(prompts)]  # each [batch, 1]
    ended = torch.isin(found[0], ends)
    # A sequence that has ended runs on with the others of the batch; its rest is cut off below.
    while len(found) < new_tokens and not bool(ended.all()):
        found.append(decoder.step(found[-1]))
        ended |= torch.isin(found[-1], ends)
    tokens = torch.cat(found, dim=1)  # [batch, tokens]
    return [_until_end(row, torch.isin(row, ends)) for row in tokens]


def _until_end(row: Tensor, is_end: Tensor) -> Tensor:
    """``row``, [tokens], up to its first end token."""
    ends = is_end.nonzero()
    return row if len(ends) == 0 else row[: int(ends[0]) + 1]
