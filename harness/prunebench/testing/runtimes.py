"""What every runtime promises, tried on a dense model, one with fewer layers and one uneven."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.measure.speed.runtime_tokens import agreement, greedy_logits
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.checkpoint import save
from prunebench.model.folder import fingerprint
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups
from prunebench.plugin.api.runtime import installed
from prunebench.record.runtimes import EXACT
from prunebench.testing.models import tiny_calibration, tiny_model, tiny_tokenizer
from prunebench.testing.promises import (
    NotApplicableError,
    Promise,
    Trial,
    as_json,
    documented,
    promise,
)

if TYPE_CHECKING:
    from prunebench.plugin.api.runtime import Runtime, Session

PROMPT, NEW = 8, 8
"""Tokens; together no longer than the shortest window of the small models."""


@dataclass(frozen=True)
class RuntimeTrial(Trial):
    """One runtime with some options on one model family."""

    plugin: type[Runtime]
    family: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def ready(self) -> None:
        """Convert a model and open it. Raises what the runtime raises, and what it refuses."""
        there = installed(self.plugin.packages)
        if missing := [name for name in self.plugin.packages if name not in there]:
            raise PrunebenchError(f"{', '.join(missing)} is not installed")
        with self.opened(self.dense()) as session:
            next(iter(session.tokens(self.prompt)))

    def parsed(self) -> Any:
        return self.plugin.Options.model_validate(dict(self.options))

    def dense(self) -> Any:
        return tiny_model(self.family)

    @cached_property
    def prompt(self) -> list[int]:
        found: list[int] = tiny_calibration(1, PROMPT)[0].tolist()
        return found

    @contextmanager
    def opened(self, model: Any, count: int = 1) -> Iterator[Any]:
        """A session of ``model``, or a list of ``count`` of them.

        Raises PrunebenchError if the runtime refuses the model.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder, out = Path(scratch) / "model", Path(scratch) / "converted"
            save(model, tiny_tokenizer(), folder, made_by={"method": "trial"})
            out.mkdir()
            before = fingerprint(folder)
            runtime = self.plugin(self.parsed())
            if (reason := runtime.refuses(folder)) is not None:
                raise PrunebenchError(reason)
            path = runtime.convert(folder, out, runtime.options.precision)
            promise(path.is_relative_to(out), f"convert wrote {path}, which is not in its folder")
            promise(fingerprint(folder) == before, "convert changed the folder that it reads")
            sessions: list[Session] = []
            try:
                for _ in range(count):
                    sessions.append(runtime.open(path, 1, PROMPT + NEW))
                yield sessions[0] if count == 1 else sessions
            finally:
                for session in sessions:
                    session.close()

    def tokens(self, session: Session, prompt: Sequence[int] | None = None) -> list[int]:
        """All that the session gives; not more than one token too many."""
        return [int(token) for token in islice(session.tokens(prompt or self.prompt), NEW + 1)]


def _own(trial: RuntimeTrial, change: Callable[[Any], None]) -> None:
    """The tokens of a changed model are those of its own code."""
    if trial.parsed().precision != EXACT:
        raise NotApplicableError(f"only {EXACT} must give the model's own tokens")
    model = trial.dense()
    change(model)
    with trial.opened(model) as session:
        found = trial.tokens(session)[:NEW]
    promise(len(found) == NEW, f"{len(found)} tokens came, and {NEW} were asked for")
    judged = agreement(greedy_logits(model, torch.tensor([trial.prompt]), NEW), found)
    promise(
        judged.same,
        f"token {(judged.first_difference or 0) + 1} is {found[judged.first_difference or 0]}, not"
        f" the model's own, whose logit is {judged.margin} higher",
    )


def dense(trial: RuntimeTrial) -> None:
    _own(trial, lambda _: None)


def shorter(trial: RuntimeTrial) -> None:
    _own(trial, lambda model: remove_layers(model, [1]))


def uneven(trial: RuntimeTrial) -> None:
    def change(model: Any) -> None:
        parts = anatomy(model)
        channels = parts.groups(parts.layers[2], "mlp")
        remove_blocks(model, [Block(1, "mlp"), Block(3, "attention")])
        keep_groups(model, {Block(2, "mlp"): range(0, channels - 8, 2)})

    _own(trial, change)


def length(trial: RuntimeTrial) -> None:
    with trial.opened(trial.dense()) as session:
        found = trial.tokens(session)
    promise(
        len(found) == NEW,
        f"a session of {PROMPT + NEW} tokens gave {len(found)} after a prompt of {PROMPT}",
    )


def again(trial: RuntimeTrial) -> None:
    with trial.opened(trial.dense()) as session:
        first = trial.tokens(session)
        other = iter(session.tokens(trial.prompt[::-1]))
        next(other)  # a reader may stop at any token
        close: Any = getattr(other, "close", None)
        if close is not None:
            close()
        second = trial.tokens(session)
    promise(first == second, f"the same prompt gave {first}, and {second} after another one")


def in_turn(trial: RuntimeTrial) -> None:
    with trial.opened(trial.dense(), 2) as (one, other):
        alone = trial.tokens(one)
        pairs = list(zip(one.tokens(trial.prompt), other.tokens(trial.prompt), strict=False))
    promise(
        [a for a, _ in pairs] == alone[: len(pairs)] == [b for _, b in pairs],
        "two sessions that are used in turn gave other tokens than one alone",
    )


def vocabulary(trial: RuntimeTrial) -> None:
    with trial.opened(trial.dense()) as session:
        found = trial.tokens(session)
    size = trial.dense().get_input_embeddings().num_embeddings
    promise(all(0 <= token < size for token in found), f"{found} are no ids of {size} tokens")


RUNTIME_PROMISES = (
    Promise("dense", "gives the model's own tokens in fp32", dense),
    Promise("shorter", "gives them too if layers were removed", shorter),
    Promise("uneven", "gives them too if layers differ, or refuses such a model", uneven),
    Promise("length", "ends at the length that it was opened with, at no token earlier", length),
    Promise("vocabulary", "gives ids of the model's tokens", vocabulary),
    Promise("again", "gives the same tokens for the same prompt, whatever was before", again),
    Promise("turns", "lets two sessions be used in turn", in_turn),
    Promise("json", "has options that survive JSON", as_json),
    Promise("documented", "says what it is and what each option means", documented),
)
