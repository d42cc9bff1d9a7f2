"""Greedy continuations of prompts, for metrics that judge what a model writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from prunebench.measure.quality.split_model import SplitModel, split_model
from prunebench.measure.speed.execution import Eager
from prunebench.model.batches import batches_by_length, tokens_per_batch
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions

PROBE_TOKENS = 4
"""Tokens of the pass that finds out how the model can be split."""


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
    model: Any,
    prompts: Tensor,
    new_tokens: int,
    end: Collection[int] = (),
    until: Callable[[list[int]], bool] | None = None,
) -> list[Tensor]:
    """The most likely next tokens of each prompt, one after the other, with a KV cache.

    ``prompts`` are int64 [batch, prompt] without padding, on the device of the model's embedding.
    Gives an int64 [tokens] for each of them: ``new_tokens``, or fewer if one of ``end`` comes,
    which is then the last, or if ``until`` says of the tokens so far that they are enough. Raises
    PrunebenchError if that is more tokens than the model has positions.
    """
    check_positions(model, prompts.shape[1] + new_tokens, "a prompt with its continuation")
    decoder = Eager(model)
    written: list[list[int]] = [[] for _ in prompts]
    tokens = decoder.prompt(prompts)  # [batch, 1]
    unfinished = set(range(len(prompts)))
    for count in itertools.count(1):
        for row, (token,) in enumerate(tokens.tolist()):
            if row in unfinished:
                written[row].append(token)
                if token in end or (until is not None and until(written[row])):
                    unfinished.remove(row)
        if not unfinished or count >= new_tokens:
            break
        # A sequence that has ended runs on with the others of the batch, unseen.
        tokens = decoder.step(tokens)
    return [torch.tensor(row, dtype=prompts.dtype, device=prompts.device) for row in written]


@torch.no_grad()
def greedy_choices(
    model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The tokens that greedy decoding writes behind each prompt, as long as it follows a text.

    ``prompts`` and ``continuations`` are token ids, none of the prompts empty. Gives for each pair
    as many tokens as the continuation has, and one more: the most likely token after the prompt and
    the first 0, 1, 2, ... tokens of the continuation. All come from one pass over both, without
    decoding step by step. Raises PrunebenchError if a text has more tokens than the model
    positions.
    """
    texts = [[*prompt, *rest] for prompt, rest in zip(prompts, continuations, strict=True)]
    if not texts:
        return []
    check_positions(model, max(map(len, texts)), "a prompt with its continuation")
    device = input_device(model)
    split, _ = split_model(model, torch.tensor([texts[0][:PROBE_TOKENS]], device=device))
    found: list[list[int]] = [[] for _ in texts]
    longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    lengths = [len(texts[index]) for index in longest_first]
    for some in batches_by_length(lengths, tokens_per_batch(device)):
        batch = longest_first[some]
        # Padding comes last, where no token of a causal model sees it.
        ids = torch.zeros(len(batch), len(texts[batch[0]]), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, : len(texts[index])] = torch.tensor(texts[index])
        last = [len(texts[index]) for index in batch]
        first = [len(prompts[index]) - 1 for index in batch]  # predicts the first token
        best = _most_likely(model, split, ids.to(device), first, last)
        for index, row_best in zip(batch, best, strict=True):
            found[index] = row_best
    return found


def _most_likely(
    model: Any, split: SplitModel | None, ids: Tensor, first: Sequence[int], last: Sequence[int]
) -> list[list[int]]:
    """The most likely next tokens at the positions first..last - 1 of each row of ``ids``."""
    if split is None:
        logits = model(ids, use_cache=False).logits  # [rows, length, vocabulary]
        return [
            row[start:end].argmax(-1).tolist()
            for row, start, end in zip(logits, first, last, strict=True)
        ]
    decoded = split.decoder(ids, use_cache=False).last_hidden_state  # [rows, length, hidden]
    parts = [row[start:end] for row, start, end in zip(decoded, first, last, strict=True)]
    # All rows together: for each one alone the head's weights would be read again.
    states = torch.cat(parts)  # [positions of all rows, hidden]
    # `argmax` takes three times as long on a CPU.
    best = [split.head(states[chunk]).max(-1).indices for chunk in split.chunks(len(states))]
    return [one.tolist() for one in torch.split(torch.cat(best), [len(part) for part in parts])]
