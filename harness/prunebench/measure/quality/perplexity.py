"""Perplexity over consecutive windows that do not overlap; the mean is over tokens.

If all windows have the same length, this is also the mean of the windows' means, which some
protocols ask for. A shorter window at the end counts by its number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import PerplexitySpec
from prunebench.measure.quality.split_model import SplitModel, split_model
from prunebench.model.batches import windows_per_batch
from prunebench.model.finite import finite_hint
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions
from prunebench.record.quality import Perplexity
from prunebench.text.windows import Windows

CACHE_BYTES = 1 << 19
"""Float32 exponentials of logits that a core's own cache holds."""
LEAST_SUM = 1e-20
"""Sums of exponentials below this could miss terms that float32 has no normal number for."""
PROBE_TOKENS = 4
"""Tokens of the pass that finds out how the model can be split."""


@torch.inference_mode()
def perplexity(
    model: Any,
    windows: Windows,
    spec: PerplexitySpec,
    *,
    batch_windows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> Perplexity:
    """exp(total negative log-likelihood / tokens predicted) of ``model`` on ``windows``.

    Every window predicts its tokens 2..length (Frantar and Alistarh 2023, arXiv:2301.00774, and the
    released code's evaluation). Logits are taken to float32, the sum to float64. ``spec`` names the
    result. ``batch_windows`` run together (default `windows_per_batch`); ``progress(done, total)``
    counts windows. ``keep`` takes the decoder's states of each batch of whole windows, [windows,
    length, hidden], if the model is a decoder and a head; then other measures need no pass.

    Raises PrunebenchError if a window's likelihood is not finite, ValueError for a wrong shape.
    """
    tokens, tail, corpus = windows.tokens, windows.tail, spec.corpus.name
    _check_shapes(tokens, tail)
    full, length = tokens.shape
    longest = length if full or tail is None else tail.shape[1]
    check_positions(model, longest, f"perplexity on {corpus}")
    model.eval()
    device = input_device(model)
    sample = tokens if full or tail is None else tail
    scorer = _Scorer(model, sample[:1, :PROBE_TOKENS].to(device))
    size = batch_windows or windows_per_batch(length, device)
    batches = [tokens[start : start + size] for start in range(0, full, size)]
    if tail is not None:
        batches.append(tail)
    sums: list[float] = []  # of each window, nats
    for batch in batches:
        whole = batch is not tail
        for nll in scorer.nll(batch.to(device), keep if whole else None).tolist():
            if not math.isfinite(nll):
                raise PrunebenchError(
                    f"perplexity on {corpus}: the likelihood of window {len(sums)} is not finite",
                    hint=finite_hint(model),
                )
            sums.append(nll)
        if progress is not None:
            progress(len(sums), full + (tail is not None))
    return _result(sums, windows, spec)


def _check_shapes(tokens: Tensor, tail: Tensor | None) -> None:
    if tokens.dim() != 2 or tokens.shape[0] + (tail is not None) < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens are [windows, length >= 2], not {list(tokens.shape)}")
    if tail is not None and (
        tail.dim() != 2 or tail.shape[0] != 1 or not 2 <= tail.shape[1] < tokens.shape[1]
    ):
        raise ValueError(f"the tail is [1, 2 <= tokens < length], not {list(tail.shape)}")


def _result(sums: list[float], windows: Windows, spec: PerplexitySpec) -> Perplexity:
    length = windows.tokens.shape[1]
    tail = 0 if windows.tail is None else windows.tail.shape[1]
    scored = [length - 1] * (len(sums) - bool(tail)) + ([tail - 1] if tail else [])
    total = sum(scored)
    nll = math.fsum(sums) / total
    # Standard error of a ratio of sums, by the delta method: sqrt(n / (n - 1) sum r_i^2) / T with
    # the residuals r_i = NLL_i - nll x T_i. For windows of one length it is the standard deviation
    # of their means over sqrt(n).
    squares = math.fsum(
        (value - nll * count) ** 2 for value, count in zip(sums, scored, strict=True)
    )
    stderr = math.sqrt(squares * len(sums) / (len(sums) - 1)) / total if len(sums) > 1 else None
    try:
        value = math.exp(nll)
    except OverflowError as error:
        raise PrunebenchError(
            f"perplexity on {spec.corpus.name}: {nll:.4g} nats per token are beyond any perplexity",
            hint="the pruned model is broken: prune less",
        ) from error
    return Perplexity(
        protocol=spec.protocol,
        corpus=spec.corpus.name,
        split=spec.split,
        window=length,
        stride=length,
        windows=len(sums),
        tail_tokens=tail,
        tokens_scored=total,
        bos=windows.bos,
        tokens_sha256=windows.sha256,
        nll=nll,
        nll_stderr=stderr,
        perplexity=value,
        window_nll=sums,
    )


class _Scorer:
    """Negative log-likelihoods, if possible without all logits of a batch in memory.

    The decoder runs over a whole batch and the head over slices of its output, if these two are the
    whole model; otherwise the model runs window by window.
    """

    def __init__(self, model: Any, sample: Tensor) -> None:
        self._model = model
        self._split, _ = split_model(model, sample)

    def nll(self, batch: Tensor, keep: Callable[[Tensor], None] | None) -> Tensor:
        """int64 [windows, length] -> negative log-likelihood of each window, float64 [windows]."""
        if self._split is None:
            parts = self._whole_nll(batch)
        else:
            decoded = self._split.decoder(batch, use_cache=False).last_hidden_state
            if keep is not None:
                keep(decoded)
            parts = _split_nll(self._split, decoded, batch)
        return torch.cat(list(parts)).view(batch.shape[0], -1).sum(1, dtype=torch.float64)

    def _whole_nll(self, batch: Tensor) -> Iterator[Tensor]:
        for window in batch:
            # [length - 1, vocabulary]
            logits = self._model(window[None], use_cache=False).logits[0, :-1]
            yield _token_nll(logits, window[1:].to(logits.device))


def _split_nll(split: SplitModel, decoded: Tensor, batch: Tensor) -> Iterator[Tensor]:
    """``decoded``: what the decoder makes of ``batch``, [windows, length, hidden]."""
    # The state at position t predicts token t + 1: the last state has no target.
    states = decoded[:, :-1].flatten(0, 1)  # [windows x (length - 1), hidden]
    targets = batch[:, 1:].flatten()  # [windows x (length - 1)]
    for chunk in split.chunks(len(targets)):
        yield _token_nll(split.head(states[chunk]), targets[chunk])


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """log(sum(exp(logits))) - logits[target], float32 [tokens]; ``logits`` [tokens, vocabulary]."""
    picked = logits.gather(1, targets[:, None]).squeeze(1)  # [tokens]
    return log_sum_exp(logits).sub_(picked)


def log_sum_exp(logits: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row, float32 [tokens], exact but for rounding.

    ``logits``: [tokens, vocabulary] of any floating type; they may be overwritten. A row with NaN
    or infinity, or with nothing but minus infinity, has a result that is not finite.
    """
    if logits.device.type != "cpu":
        return _shifted_log_sum_exp(logits.float())
    # Sums of plain exponentials spare the passes that find the maximum and subtract it. A few rows
    # at a time for each core, so that their exponentials stay in its cache.
    rows = torch.get_num_threads() * max(1, CACHE_BYTES // (4 * logits.shape[1]))
    total = torch.cat([part.float().exp().sum(1) for part in torch.split(logits, rows)])
    exact = (total > LEAST_SUM) & (total < math.inf)
    found = total.log()
    if not bool(exact.all()):
        found[~exact] = _shifted_log_sum_exp(logits[~exact].float())
    return found


def _shifted_log_sum_exp(logits: Tensor) -> Tensor:
    """`log_sum_exp` of float32 logits of any size, which are overwritten."""
    top = logits.amax(1, keepdim=True)  # exp of logits minus their maximum cannot overflow
    return logits.sub_(top).exp_().sum(1, keepdim=True).log_().add_(top).squeeze(1)
