"""The training loop of recoveries and iterative methods, with AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch

from prunebench.errors import PrunebenchError
from prunebench.training.checkpoint import (
    TrainingCheckpoint,
    random_state,
    set_random_state,
    training_key,
)
from prunebench.training.learning import learning
from prunebench.training.log import TrainingLog
from prunebench.training.objective import Objective, Remembers
from prunebench.training.optimiser import NotFiniteError, Optimiser, Trainable
from prunebench.training.scaling import LossScale
from prunebench.training.settings import TrainingSettings
from prunebench.training.validation import BestWeights
from prunebench.training.watch import Watch
from prunebench.training.windows import TrainingWindows


def train(
    objective: Objective,
    trainable: Trainable,
    windows: TrainingWindows,
    settings: TrainingSettings,
    *,
    generator: torch.Generator,
    watch: Watch,
    part: range | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TrainingLog:
    """Train parameters in place, so that the ``objective`` gets smaller.

    Half-precision parameters are updated in float32 and rounded after each step, because small
    steps would be lost in them. Models in float16 have their loss scaled (`LossScale`). Afterwards
    the training mode and `requires_grad` are as before, and there are no gradients. ``generator``
    decides the order of the windows and the dropout; ``watch`` is told of every optimiser step.
    With `settings.val_windows` or `val_share` the last windows are held out, and the best
    weights are kept unless `settings.keeps_best` says no.

    ``part``: the steps of the schedule to take, for example range(10) for the first ten; None: all.
    If it ends before the schedule does, there is no validation. ``checkpoint``: where the state is
    kept from time to time; if it has one of this very training, that goes on from there. Then
    randomness of the objective must come from torch's global generator.

    Raises PrunebenchError, with the step and the parameter, if the loss or a gradient is not
    finite. The model is then as the last finite step left it.
    """
    begun = time.perf_counter()
    if reason := settings.refuses_windows(len(windows)):
        raise PrunebenchError(reason, hint="lower `val_windows` or `val_share`, or add windows")
    held = settings.held_out(len(windows))
    fit = windows.pick(slice(0, len(windows) - held))
    steps = settings.steps(len(fit))
    part = range(steps) if part is None else part
    told = (objective.module, trainable, windows, settings, generator, part)
    key = "" if checkpoint is None else training_key(*told)
    # Half a schedule has no end to judge.
    validated = held if part.stop == steps else 0
    with (
        _training_mode(objective.module, trainable.parameters),
        _seeded(generator, objective.device),
        Optimiser(trainable, settings) as optimiser,
    ):
        stepper = _Stepper(objective, optimiser, settings, LossScale(objective.module), steps)
        best = _best_weights(objective, trainable, settings, windows, validated)
        run = _Run(stepper, best, begun, checkpoint)
        run.resume(key)
        batches = _batches(fit, settings, len(part), generator)
        # Those that were taken before are drawn again, so that the order goes on.
        for batch in islice(batches, len(run.losses), None):
            run.take(part, batch)
            watch.stepped(
                len(run.losses), len(part), run.losses[-1], run.tokens, objective=objective
            )
            run.save(last=len(run.losses) == len(part))
    if best is not None:
        best.restore()
    return run.log


def _best_weights(
    objective: Objective,
    trainable: Trainable,
    settings: TrainingSettings,
    windows: TrainingWindows,
    last: int,
) -> BestWeights | None:
    """Keeps the weights that do best on the ``last`` windows; None if that is none."""
    if not last:
        return None
    held = windows.pick(slice(len(windows) - last, None))
    return BestWeights(
        objective,
        trainable.parameters,
        held,
        settings.micro_batch_size,
        keeps=settings.keeps_best(),
    )


@dataclass
class _Run:
    """What one training has done so far; can be kept on disk and taken up again."""

    stepper: _Stepper
    best: BestWeights | None
    begun: float
    checkpoint: TrainingCheckpoint | None
    losses: list[float] = field(default_factory=list)
    resumed: int | None = None
    resumed_tokens: int = 0
    seconds: float = 0.0
    """What an earlier process took, as are the two before."""

    def take(self, part: range, batch: TrainingWindows) -> None:
        """Take the next step of ``part``, and validate if it is time."""
        stepper, step = self.stepper, part.start + len(self.losses)
        self.losses.append(stepper.take(step, batch))
        if self.best is not None and stepper.settings.evaluates(step + 1, stepper.steps):
            self.best.validate(step + 1)

    @property
    def tokens(self) -> int:
        """Tokens that went through the model in this process."""
        return self.stepper.tokens - self.resumed_tokens

    def resume(self, key: str) -> None:
        """Go on from the state of the training ``key``, if there is one; otherwise begin."""
        # A state is used for the very same training only, never to begin another one with.
        found = None if self.checkpoint is None else self.checkpoint.load(key)
        if found is None:
            if self.best is not None and self.stepper.settings.validates_first():
                self.best.validate(0)
            return
        self.losses = list(found["losses"])
        self.resumed, self.seconds = len(self.losses), found["seconds"]
        self.stepper.tokens = self.resumed_tokens = found["tokens"]
        self.stepper.scale.load(found["scale"])
        self.stepper.optimiser.load(found["optimiser"])
        if self.best is not None:
            self.best.load(found["best"])
        if isinstance(self.stepper.objective, Remembers):
            self.stepper.objective.load(found["objective"])
        # Last: what was done so far may have drawn numbers.
        set_random_state(found["random"], self.stepper.objective.device)

    def save(self, *, last: bool) -> None:
        """Keep the state if it is time; and the last one, so that what follows may be killed."""
        if self.checkpoint is None or not self.checkpoint.due(last=last):
            return
        objective = self.stepper.objective
        self.checkpoint.save(
            {
                "losses": self.losses,
                "seconds": self._seconds,
                "tokens": self.stepper.tokens,
                "scale": self.stepper.scale.state(),
                "optimiser": self.stepper.optimiser.state(),
                "best": None if self.best is None else self.best.state(),
                "random": random_state(objective.device),
                "objective": objective.state() if isinstance(objective, Remembers) else None,
            }
        )

    @property
    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.begun

    @property
    def log(self) -> TrainingLog:
        stepper, best = self.stepper, self.best
        parameters = stepper.optimiser.trainable.parameters.values()
        return TrainingLog(
            self.losses,
            stepper.tokens,
            sum(parameter.numel() for parameter in parameters),
            self._seconds,
            stepper.scale.overflows,
            [] if best is None else best.losses,
            None if best is None else best.step,
            self.resumed,
        )


@dataclass
class _Stepper:
    """Takes one optimiser step after the other."""

    objective: Objective
    optimiser: Optimiser
    settings: TrainingSettings
    scale: LossScale
    steps: int
    """Of the whole schedule."""
    tokens: int = 0
    """Tokens that went through the model."""

    def take(self, step: int, batch: TrainingWindows) -> float:
        """Step number ``step``, counted from 0; returns the batch's mean loss before it."""
        where = f"training step {step + 1} of {self.steps}"
        while True:
            loss = self._backward(batch)
            if not math.isfinite(loss):
                raise PrunebenchError(
                    f"{where}: the loss is not finite"
                    f"{_culprit(self.optimiser.trainable.parameters)}",
                    hint="lower `learning_rate`, or prune less: the model may be broken before it"
                    " is trained",
                )
            try:
                self.optimiser.step(self.settings.rate(step, self.steps), self.scale.factor)
            except NotFiniteError as error:
                # The batch is tried again and not dropped as GradScaler does: a recovery may have
                # a few steps only.
                if self.scale.overflowed():
                    continue
                raise PrunebenchError(
                    f"{where}: the gradient of {error} is not finite",
                    hint="lower `learning_rate`, or load the model in float32",
                ) from error
            self.scale.updated()
            return loss

    def _backward(self, batch: TrainingWindows) -> float:
        """Add up the gradients of the scaled mean loss of the batch; returns the mean loss."""
        targets = self.objective.targets(batch)
        total = 0.0
        # Micro-batches add up to the mean over all tokens, so their size changes no result.
        for part in batch.split(self.settings.micro_batch_size):
            here = part.to(self.objective.device)
            total += self.objective.backward(here, self.scale.factor / targets)
            self.tokens += part.size
        return total / targets


def _batches(
    windows: TrainingWindows, settings: TrainingSettings, steps: int, generator: torch.Generator
) -> Iterator[TrainingWindows]:
    """``steps`` batches of up to `batch_size` windows, in a new order in every epoch."""
    given = 0
    while True:
        order = torch.randperm(len(windows), generator=generator)
        for chosen in torch.split(order, settings.batch_size):
            if given == steps:
                return
            if not settings.trains_on(len(chosen)):
                continue
            given += 1
            yield windows.pick(chosen)


def _culprit(parameters: Mapping[str, torch.Tensor]) -> str:
    """Name a trained parameter that is itself not finite, if there is one."""
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            return f", and {name} holds values that are not finite"
    return ""


@contextmanager
def _training_mode(
    model: torch.nn.Module, parameters: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    """Training mode, and gradients for ``parameters`` only; restore everything afterwards."""
    mode = model.training
    with learning(model, parameters.values()):
        model.train()
        try:
            yield
        finally:
            model.train(mode)


@contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, which dropout uses, from ``generator``; restore it later."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
