"""lm-eval's wrapper of a transformers model, which computes what several texts share only once.

lm-eval runs a text for each choice of each question. Here the texts of a task form trees
(`token_trees`), the decoder runs over their nodes, and the head over the states that predict a
token of a choice. The log-likelihoods are those of lm-eval up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn import functional

from prunebench.measure.quality.split_model import SplitModel, split_model
from prunebench.measure.quality.token_trees import JOINED, Row, batches_of, rows_of
from prunebench.model.batches import tokens_per_batch

MOST_NODES = 4096
"""Nodes of a row: the mask of a row has their number squared."""
PROBE = 6
"""Tokens of the trunk and of both branches of the tree that tells whether a model can do it."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference of logits from those of the plain way, over the largest logit."""
HALF_TOLERANCE = 0.05
"""The same for types of 16 bits. A branch that sees another one is off by far more."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What lm-eval passes on: (context, continuation) as text, and the token ids of both."""
Answer = tuple[float, bool]
"""The log-likelihood of a continuation, and whether greedy decoding would write it."""


class TreeScoringLM(HFLM):  # type: ignore[misc]
    """`HFLM` that scores continuations in trees, if the model gives the same likelihoods so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.one_by_one: str | None = None
        """Why texts of the task were scored one by one, each as a whole; None if they were not."""
        self._split: SplitModel | None = None
        self._probed = False
        self._fault: str | None = None

    def start(self, batch_size: int) -> None:
        """Begin a task; ``batch_size`` is given here because `lm_eval.evaluate` takes none.

        (lm-eval issue 3207)
        """
        self.batch_size_per_gpu = batch_size
        self.one_by_one = None

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Answer]:
        texts = [_text(request, self.max_length) for request in requests]
        longest = max(texts, key=len, default=[])
        self.one_by_one = self._refusal(longest)
        if self.one_by_one is not None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)  # type: ignore[no-any-return]
        answers: dict[int, Answer] = {}
        hidden = self.model.get_input_embeddings().weight.shape[1]
        rows = rows_of(texts, hidden, MOST_NODES)
        length = max(len(longest), hidden // JOINED)
        budget = min(tokens_per_batch(self.device), self.batch_size * length)
        if self._split is None:
            budget = 1
        for batch in batches_of(rows, budget, hidden):
            found = self._answers(batch, requests)
            answers |= found
            for index, answer in found.items():
                if requests[index][0] is not None:  # None: a piece of a longer text
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        return [answers[index] for index in range(len(requests))]

    def _refusal(self, text: list[int]) -> str | None:
        """Why this model cannot score trees; None if it can. ``text`` is the longest one."""
        window = _shortest_window(self.model.config)
        if window is not None and len(text) > window:
            return f"the attention looks {window} tokens back, and a text has {len(text)}"
        if len(text) <= PROBE:
            return "the texts are too short to gain by it"
        if not self._probed:  # once for all tasks: it costs three passes
            self._fault = self._probe(text[:PROBE], text[PROBE : 2 * PROBE])
            self._probed = True
        return self._fault

    def _probe(self, trunk: list[int], branch: list[int]) -> str | None:
        """Why a tree of these tokens has other logits than its texts; None if it has the same."""
        vocabulary = len(self.model.get_input_embeddings().weight)
        other = [(token + 1) % vocabulary for token in branch]
        two = torch.tensor([trunk + branch, trunk + other], device=self.device)
        self._split, wanted = split_model(self.model, two)
        if self._split is None and "logits_to_keep" not in signature(self.model.forward).parameters:
            return "the model computes all logits or none"
        (row,) = rows_of(two.tolist(), hidden=1 << 20, most=MOST_NODES)
        places = [(0, node) for path in row.paths for node in path]
        try:
            found = torch.cat([logits for _, logits in self._logits([row], places)])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"the model takes no mask of its own ({type(error).__name__})"
        wanted = wanted[row.members].flatten(0, 1)  # [nodes, vocabulary]
        off = float((found - wanted).abs().max() / wanted.abs().max())
        if not off <= TOLERANCE.get(self.model.dtype, HALF_TOLERANCE):
            return f"logits change by up to {off:.1g} of the largest one"
        return None

    def _answers(self, batch: Sequence[Row], requests: Sequence[Request]) -> dict[int, Answer]:
        """The answers to all requests in the rows of ``batch``, by their number."""
        places: list[tuple[int, int]] = []  # row and node of each state that predicts a token
        targets: list[int] = []
        spans: list[tuple[int, slice]] = []  # of each request, in `targets`
        for number, row in enumerate(batch):
            for index, path in zip(row.members, row.paths, strict=True):
                wanted = requests[index][2]
                spans.append((index, slice(len(targets), len(targets) + len(wanted))))
                places += [(number, node) for node in path[-len(wanted) :]]
                targets += wanted
        ids = torch.tensor(targets, device=self.device)[:, None]  # [scored, 1]
        picked, greedy = [], []
        for chunk, logits in self._logits(batch, places):
            # In the type that lm-eval uses: then its rounding is ours.
            likely = functional.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
            picked.append(likely.gather(1, ids[chunk]))
            # `argmax` costs as much as the softmax; few tokens are as likely as the likeliest.
            best = picked[-1] >= likely.amax(-1, keepdim=True)
            rows = best.squeeze(1).nonzero().squeeze(1)
            best[rows] = likely[rows].argmax(-1, keepdim=True) == ids[chunk][rows]
            greedy.append(best)
        likelihoods, chosen = torch.cat(picked).squeeze(1).cpu(), torch.cat(greedy).cpu()
        return {
            index: (float(likelihoods[span].sum()), bool(chosen[span].all()))
            for index, span in spans
        }

    def _logits(
        self, batch: Sequence[Row], places: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Logits [places, vocabulary] of these nodes, (row, node) each, some places at a time."""
        at = torch.tensor(places)  # [places, 2]
        if self._split is not None:
            states = self._split.decoder(**self._inputs(batch)).last_hidden_state
            at = at.to(states.device)
            for chunk in self._split.chunks(len(at)):
                yield chunk, self._split.head(states[at[chunk, 0], at[chunk, 1]])
            return
        (row,) = batch  # the nodes to keep are the same in all rows of a call
        nodes, back = torch.unique(at[:, 1], return_inverse=True)
        logits = self.model(**self._inputs([row]), logits_to_keep=nodes.to(self.device)).logits[0]
        yield slice(0, len(at)), logits[back.to(logits.device)]

    def _inputs(self, batch: Sequence[Row]) -> dict[str, Any]:
        """What the model takes to run these rows; the longest one comes first."""
        nodes = len(batch[0].tokens)
        ids = torch.zeros(len(batch), nodes, dtype=torch.long)
        positions = torch.zeros_like(ids)
        # Padding attends to itself: a softmax over nothing would be NaN.
        seen = torch.eye(nodes, dtype=torch.bool).repeat(len(batch), 1, 1)
        for number, row in enumerate(batch):
            count = len(row.tokens)
            ids[number, :count] = torch.tensor(row.tokens)
            positions[number, :count] = torch.tensor(row.depths)
            seen[number, :count, :count] = row.attends()
        dtype = self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": mask[:, None].to(self.device),  # [rows, 1, nodes, nodes]
            "position_ids": positions.to(self.device),
            "use_cache": False,
        }


def _text(request: Request, longest: int) -> list[int]:
    """The ids that go through the model, as lm-eval cuts them: no last token, the end if long."""
    _, context, continuation = request
    return (context + continuation)[-(longest + 1) :][:-1]


def _shortest_window(config: Any) -> int | None:
    """How far back the layers look that do not look at everything; None if all do."""
    text = config.get_text_config(decoder=True)
    found = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if getattr(text, "use_sliding_window", True) is False:  # Qwen2 keeps the number
        found = found[1:]
    return min((each for each in found if isinstance(each, int)), default=None)
