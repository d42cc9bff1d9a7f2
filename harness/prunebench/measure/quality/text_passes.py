"""Passes over text that several measures of a cell, or several cells of a model, share.

The pruned model's states are kept from perplexity for the metrics of the same cell. What only the
dense model decides (its states, its continuations, its scores of choices) is kept in the cache
folder for the cells that come after. These are inputs to measures, never results: every figure is
computed anew from them, and a cell gives the same figures if the folder is empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunebench.callbacks import ignore
from prunebench.measure.quality.choice_scores import ChoiceScores
from prunebench.measure.quality.final_states import (
    FinalStates,
    StatesOnDisk,
    fits,
    on_input_device,
    states_of,
)
from prunebench.measure.quality.greedy import PROBE_TOKENS, greedy_continuations
from prunebench.measure.quality.split_model import SplitModel, split_model
from prunebench.model.tensor_folder import TensorFolder, tensor_sha256
from prunebench.text.windows import tokens_sha256

FOLDER = "dense-passes"
LIMIT_BYTES = 4 << 30
FORM = 1
"""Counts the ways of making what is kept. Add one when they change: old files are then unused."""

Load = Callable[[], Any]
Pair = tuple[Tensor, Tensor]


class TextPasses:
    """The passes of one cell over text.

    ``dense`` gives a text that identifies the dense model and how this process runs it; without it
    nothing is kept on disk. ``own_is_dense`` says that the cell's own model is the dense one.
    """

    def __init__(
        self, dense: Callable[[], str] | None = None, *, own_is_dense: bool = False
    ) -> None:
        self._identify = dense
        self._own_is_dense = own_is_dense
        self._own: dict[str, tuple[Any, StatesOnDisk]] = {}

    def keep(self, model: Any, windows: Tensor) -> Callable[[Tensor], None] | None:
        """What takes the states of the cell's model over int64 ``windows`` while they are made.

        None if they are too many to be kept.
        """
        if not fits(model, windows):
            return None
        spool = StatesOnDisk(len(windows))
        self._own[_sha256(windows)] = model, spool
        return spool

    def both_logits(
        self,
        model: Any,
        load_dense: Load,
        windows: Tensor,
        tokens: int,
        progress: Callable[[int, int], None] = ignore,
    ) -> Iterator[Pair]:
        """The logits of the dense model and of ``model``, see `MetricContext.both_logits`."""
        ours = self._states(model, windows, _stage(progress, 0))
        theirs = ours and self._dense_states(load_dense, ours, windows, _stage(progress, 1))
        length = windows.shape[1]
        moved = _stage(progress, 2)
        parts = [slice(start, start + tokens) for start in range(0, length, tokens)]
        for number, window in enumerate(windows):
            if ours is None or theirs is None:
                whole = [_whole_logits(one, window) for one in (load_dense(), model)]
                yield from ((whole[0][part], whole[1][part]) for part in parts)
            else:
                for part in parts:
                    yield theirs.logits(number, part), ours.logits(number, part)
            moved(number + 1, len(windows))

    def continuations(
        self, load_dense: Load, prompts: Tensor, new_tokens: int, end: Collection[int]
    ) -> list[Tensor]:
        """What the dense model writes, see `MetricContext.dense_continuations`."""
        key = self._key("continuations", _sha256(prompts), new_tokens, sorted(end))
        padded = self._load(key)
        if padded is not None:
            return [row[row >= 0].to(prompts.device) for row in padded]
        found = greedy_continuations(load_dense(), prompts, new_tokens, end)
        padded = torch.full((len(found), new_tokens), -1, dtype=torch.long)
        for row, tokens in zip(padded, found, strict=True):
            row[: len(tokens)] = tokens
        self._store(key, padded)
        return found

    def choice_scores(
        self,
        load_dense: Load,
        score: Callable[[Any], Mapping[str, Sequence[ChoiceScores]]],
        tasks: str | None,
    ) -> Mapping[str, Sequence[ChoiceScores]]:
        """What the dense model makes of each choice, see `MetricContext.dense_choice_scores`.

        ``tasks`` is a text that identifies the questions, None if nothing pins them.
        """
        key = None if tasks is None else self._key("choices", tasks)
        kept = None if key is None else self._folder.load_json(key)
        if kept is not None:
            return {
                task: [ChoiceScores(tuple(nll), correct) for nll, correct in questions]
                for task, questions in kept.items()
            }
        found = score(load_dense())
        if key is not None:
            self._folder.store_json(
                key, {task: list(questions) for task, questions in found.items()}
            )
        return found

    def close(self) -> None:
        """Free the disk of this cell's own states."""
        for _, spool in self._own.values():
            spool.close()
        self._own.clear()

    def _states(
        self, model: Any, windows: Tensor, progress: Callable[[int, int], None]
    ) -> FinalStates | None:
        """The states of the cell's model: those that perplexity left, or those of a new pass."""
        split = _split(model, windows) if fits(model, windows) else None
        if split is None:
            return None
        of, spool = self._own.get(_sha256(windows), (None, None))
        states = spool.tensor() if spool is not None and of is model else None
        if states is None or states.shape[:2] != windows.shape:
            states = states_of(split, windows, progress)
        return FinalStates(states, split.head)

    def _dense_states(
        self,
        load_dense: Load,
        ours: FinalStates,
        windows: Tensor,
        progress: Callable[[int, int], None],
    ) -> FinalStates | None:
        """The states of the dense model.

        The key has the hash of the dense model's head. So a pruned model that has the same head
        finds them without the dense model being loaded, and one with another head does not.
        """
        if self._own_is_dense:
            self._store(self._states_key(windows, ours.head), ours.states)
            return ours
        kept = self._load(self._states_key(windows, ours.head))
        if kept is not None:
            return FinalStates(kept, ours.head)
        dense = load_dense()
        split = _split(dense, windows)
        if split is None:
            return None
        key = self._states_key(windows, split.head)
        states = self._load(key)
        if states is None:
            states = states_of(split, on_input_device(dense, windows), progress)
            self._store(key, states)
        return FinalStates(states, split.head)

    def _states_key(self, windows: Tensor, head: Any) -> str | None:
        # Another kind of head may compute something else from equal weights.
        if self._identify is None or type(head) is not torch.nn.Linear:
            return None
        parts = [tensor_sha256(each) for each in (head.weight, head.bias) if each is not None]
        return self._key("states", _sha256(windows), *parts)

    def _key(self, kind: str, *parts: Any) -> str | None:
        if self._identify is None:
            return None
        return json.dumps([FORM, kind, self._identify(), *parts])

    @cached_property
    def _folder(self) -> TensorFolder:
        return TensorFolder(FOLDER, limit_bytes=LIMIT_BYTES)

    def _load(self, key: str | None) -> Tensor | None:
        return None if key is None else self._folder.load(key)

    def _store(self, key: str | None, value: Tensor) -> None:
        if key is not None:
            self._folder.store(key, value)


def _whole_logits(model: Any, window: Tensor) -> Tensor:
    """int64 [length] -> [length, vocabulary]."""
    logits: Tensor = model(on_input_device(model, window[None]), use_cache=False).logits[0]
    return logits


def _split(model: Any, windows: Tensor) -> SplitModel | None:
    return split_model(model, on_input_device(model, windows[:1, :PROBE_TOKENS]))[0]


def _sha256(windows: Tensor) -> str:
    return tokens_sha256(windows.cpu().numpy())


def _stage(progress: Callable[[int, int], None], number: int) -> Callable[[int, int], None]:
    """Progress within one of three stages: the model's pass, the dense one's, the comparison."""
    return lambda done, total: progress(number * total + done, 3 * total)
