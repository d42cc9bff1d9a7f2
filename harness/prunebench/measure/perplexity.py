"""Perplexity over consecutive windows that do not overlap, by SparseGPT's protocol, windows weighted by tokens.

All windows have one length, so that the mean over tokens and the mean of the windows' means are the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunebench.errors import PrunebenchError
from prunebench.measure import results
from prunebench.measure.positions import check_positions
from prunebench.model.batches import windows_per_batch

LOGITS_BYTES = 32 << 20
"""Logits that stand in memory at once, as float32: small enough for the cache and for the allocator to reuse."""
PROBE_TOKENS = 4


@torch.inference_mode()
def perplexity(
    model: Any,
    tokens: Tensor,
    *,
    corpus: str,
    split: str,
    bos: str,
    tokens_sha256: str,
    batch_windows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> results.Perplexity:
    """exp(total negative log-likelihood / tokens predicted) of ``model`` on ``tokens``, int64 [windows, length].

    Every window predicts its tokens 2..length (Frantar and Alistarh 2023, arXiv:2301.00774, and the released code's
    evaluation). Logits are taken to float32, the sum to float64. ``batch_windows`` run together (by default
    `windows_per_batch`); ``progress(done, total)`` is called in windows. The remaining arguments go on the result.

    Raises PrunebenchError where a window's likelihood is not finite, ValueError where the shape is wrong.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens are [windows, length >= 2], not {list(tokens.shape)}")
    windows, length = tokens.shape
    check_positions(model, length, f"perplexity on {corpus}")
    model.eval()
    device = model.get_input_embeddings().weight.device
    scorer = _Scorer(model, tokens[:1, :PROBE_TOKENS].to(device))
    size = batch_windows or windows_per_batch(length, device)
    sums: list[float] = []  # of each window, nats
    for start in range(0, windows, size):
        for nll in scorer.nll(tokens[start : start + size].to(device)).tolist():
            if not math.isfinite(nll):
                raise PrunebenchError(
                    f"perplexity on {corpus}: the likelihood of window {len(sums)} is not finite",
                    hint="the pruned model overflows: run it with dtype float32, or prune less",
                )
            sums.append(nll)
        if progress is not None:
            progress(len(sums), windows)
    return _result(sums, length, corpus=corpus, split=split, bos=bos, tokens_sha256=tokens_sha256)


def _result(sums: list[float], length: int, **names: str) -> results.Perplexity:
    scored = len(sums) * (length - 1)
    nll = math.fsum(sums) / scored
    means = [value / (length - 1) for value in sums]
    spread = math.sqrt(math.fsum((mean - nll) ** 2 for mean in means) / (len(sums) - 1)) if len(sums) > 1 else None
    try:
        value = math.exp(nll)
    except OverflowError as error:
        raise PrunebenchError(
            f"perplexity on {names['corpus']}: {nll:.4g} nats per token are beyond any perplexity",
            hint="the pruned model is broken: prune less",
        ) from error
    return results.Perplexity(
        window=length,
        stride=length,
        windows=len(sums),
        tokens_scored=scored,
        nll=nll,
        nll_stderr=None if spread is None else spread / math.sqrt(len(sums)),
        perplexity=value,
        **names,
    )


class _Scorer:
    """Runs the decoder over a batch and the head over slices of its output, where these two are the whole model.

    Models that work on the logits behind the head (soft capping, scaling) or on the states before it run whole; one
    pass over a few tokens tells.
    """

    def __init__(self, model: Any, sample: Tensor) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        self._decoder = model.base_model
        self._split = self._head is not None and self._decoder is not model and self._splits(sample)

    def _splits(self, sample: Tensor) -> bool:
        seen: dict[str, Any] = {}
        hooks = [
            self._decoder.register_forward_hook(lambda _, __, out: seen.update(states=out)),
            self._head.register_forward_hook(lambda _, given, out: seen.update(given=given[0], logits=out)),
        ]
        try:
            logits = self._model(sample, use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
        states = getattr(seen.get("states"), "last_hidden_state", None)
        return (
            states is not None
            and "given" in seen
            and torch.equal(states, seen["given"])
            and torch.equal(logits, seen["logits"])
        )

    def nll(self, batch: Tensor) -> Tensor:
        """Sum of the negative log-likelihoods of each window, float64 [windows]. batch: int64 [windows, length]."""
        parts = self._split_nll(batch) if self._split else self._whole_nll(batch)
        return torch.cat(list(parts)).view(batch.shape[0], -1).sum(1, dtype=torch.float64)

    def _split_nll(self, batch: Tensor) -> Iterator[Tensor]:
        states = self._decoder(batch, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)  # [tokens, hidden]
        targets = batch[:, 1:].flatten()  # [tokens]
        rows = max(1, LOGITS_BYTES // (4 * self._head.weight.shape[0]))
        for start in range(0, len(targets), rows):
            yield _token_nll(self._head(states[start : start + rows]), targets[start : start + rows])

    def _whole_nll(self, batch: Tensor) -> Iterator[Tensor]:
        for window in batch:
            logits = self._model(window[None], use_cache=False).logits[0, :-1]  # [length - 1, vocabulary]
            yield _token_nll(logits, window[1:].to(logits.device))


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """log(sum(exp(logits))) - logits[target], float32 [tokens]; overwrites ``logits`` [tokens, vocabulary]."""
    logits = logits.float()
    picked = logits.gather(1, targets[:, None])
    top = logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    return total.log_().add_(top).sub_(picked).squeeze(1)
