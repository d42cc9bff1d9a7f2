"""The contract kit finds plugins that break a promise; each of these breaks one or two."""

from __future__ import annotations

import random

import pytest
import torch

from prunebench import (
    Allocation,
    Field,
    LinearMethod,
    Method,
    Metric,
    Options,
    PrunebenchError,
    Recovery,
    SparsityOptions,
    lowest,
)
from prunebench.plugin.api.metric import LONGEST_METRIC_NOTES
from prunebench.plugin.registry import PluginEntry
from prunebench.testing.check import check

EVERYWHERE = ("llama",)


class Sound(LinearMethod):
    """Drop the smallest."""

    name = "sound"

    def score(self, weight, stats):
        return weight.abs().float()


class Broken(Sound):
    """A method that does one thing more than it should."""

    def prune(self, model, context) -> None:
        super().prune(model, context)
        self.also(model, context)

    def also(self, model, context) -> None:
        raise NotImplementedError


class Misquoting(Sound):
    """Calibrated on something that no suite can name."""

    published_calibration = {"corpus": "c4", "samples": 128}  # noqa: RUF012


class NotFinite(Broken):
    def also(self, model, context) -> None:
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")


class TooMuch(Sound):
    def mask(self, weight, stats):
        return torch.ones_like(weight, dtype=torch.bool) if self.options.sparsity else weight == 0


class DeafToAllocations(Sound):
    def mask(self, weight, stats):
        return lowest(weight.abs(), self.options.sparsity, group="matrix")


class Undeclared(Broken):
    def also(self, model, context) -> None:
        context.remove_layers(model, [1])


class Seedy(Sound):
    def score(self, weight, stats):
        return torch.rand(weight.shape, generator=stats.generator)


class Forgetful(Sound):
    def score(self, weight, stats):
        return torch.rand(weight.shape)


class NotNothing(Broken):
    def also(self, model, context) -> None:
        model.model.layers[1].mlp.up_proj.weight.mul_(2)


class SameForAll(Sound):
    def mask(self, weight, stats):
        return weight.abs() < weight.abs().median() if self.options.sparsity else weight.isnan()


class Touching(Broken):
    def also(self, model, context) -> None:
        model.model.norm.weight.mul_(1.5)


class Unsaved(Broken):
    def also(self, model, context) -> None:
        model.model.layers[0].mlp.act_fn = torch.nn.Tanh()


class Hooking(Broken):
    def also(self, model, context) -> None:
        model.model.layers[0].register_forward_hook(lambda *_: None)


class Grading(Broken):
    def also(self, model, context) -> None:
        model.model.norm.weight.requires_grad_(True)


class Drawing(Broken):
    def also(self, model, context) -> None:
        random.random()


class Threading(Broken):
    def also(self, model, context) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


class Eating(Broken):
    def also(self, model, context) -> None:
        context.windows.zero_()


class Noting(Broken):
    def also(self, model, context) -> None:
        context.notes["tensor"] = torch.zeros(1)


class Undescribed(Sound):
    class Options(SparsityOptions):
        power: float = Field(1.0)


class Calling(Broken):
    def also(self, model, context) -> None:
        import socket

        socket.getaddrinfo("example.org", 80)


class Crashing(Broken):
    def also(self, model, context) -> None:
        raise ZeroDivisionError("of its own")


def verdicts(kind, value, families=EVERYWHERE, **options):
    entry = PluginEntry(kind, getattr(value, "name", "x"), value, "dist", "1", "")
    threads = torch.get_num_threads()
    found = {verdict.promise.name: verdict for verdict in check(entry, options, families)}
    torch.set_num_threads(threads)
    return found


def broken(kind, value, **options) -> set[str]:
    return {
        name
        for name, verdict in verdicts(kind, value, **options).items()
        if verdict.status == "broken"
    }


def test_a_sound_method_breaks_nothing() -> None:
    found = verdicts("method", Sound, ("llama", "opt"))
    assert {verdict.status for name, verdict in found.items() if name != "cuda"} == {"kept"}


@pytest.mark.parametrize(
    ("method", "promise"),
    [
        (TooMuch, "amount"),
        (DeafToAllocations, "allocation"),
        (Undeclared, "structure"),
        (Seedy, "seed"),
        (Forgetful, "seed"),
        (Forgetful, "tidy"),
        (NotNothing, "zero"),
        (SameForAll, "more"),
        (Touching, "untouched"),
        (Unsaved, "saved"),
        (Hooking, "tidy"),
        (Grading, "tidy"),
        (Drawing, "tidy"),
        (Threading, "tidy"),
        (Eating, "tidy"),
        (Noting, "json"),
        (Undescribed, "documented"),
        (Misquoting, "documented"),
        (Calling, "offline"),
        (NotFinite, "finite"),
        (Crashing, "finite"),
    ],
)
def test_a_broken_promise_is_found(method: type[Method], promise: str) -> None:
    assert promise in broken("method", method)


def test_a_promise_is_not_broken_by_a_refused_family() -> None:
    class Picky(Sound):
        def prune(self, model, context) -> None:
            if model.config.model_type == "opt":
                raise PrunebenchError("only gated MLPs")
            super().prune(model, context)

    found = verdicts("method", Picky, ("llama", "opt"))["finite"]
    assert (found.status, found.details) == ("kept", "opt: refused: only gated MLPs")
    alone = verdicts("method", Picky, ("opt",))["finite"]
    assert (alone.status, alone.details) == ("broken", "opt: refused: only gated MLPs")


class Lopsided(Allocation):
    """Twice as much."""

    name = "lopsided"

    def shares(self, model, sparsity, context):
        model.model.norm.weight.mul_(2)
        return [min(1.0, 2 * sparsity)] * len(context.kept_layers)


def test_an_allocation_with_another_mean_or_that_changes_the_model_is_found() -> None:
    assert broken("allocation", Lopsided) == {"mean", "looks"}


class Refilling(Recovery):
    """Fills zeros."""

    name = "refilling"

    class Options(Options):
        by: float = Field(0.1, description="what")

    def recover(self, model, context) -> None:
        with torch.no_grad():
            for linear in context.linears(model).values():
                linear.weight.add_(
                    self.options.by * torch.rand(linear.weight.shape, generator=context.generator)
                )


def test_a_recovery_that_fills_zeros_is_found() -> None:
    assert broken("recovery", Refilling) == {"zeros"}


class Measure(Metric):
    """Nothing."""

    name = "measure"
    higher_is_better = True

    def measure(self, model, tokenizer, context):
        context.notes["sample"] = self.note()
        return 1.0

    def note(self):
        return "short"


class LongWinded(Measure):
    """Too much."""

    def note(self):
        return "x" * LONGEST_METRIC_NOTES


class Fickle(Measure):
    """Something else each time."""

    def note(self):
        return random.random()


class Unwritable(Measure):
    """A set."""

    def note(self):
        return {1, 2}


def test_notes_of_a_metric_are_short_the_same_and_json() -> None:
    assert broken("metric", Measure) == set()
    assert broken("metric", LongWinded) == {"json"}
    assert broken("metric", Fickle) == {"seed", "looks"}  # it also moves Python's generator
    assert broken("metric", Unwritable) == {"json"}


def test_a_corpus_has_no_contract() -> None:
    with pytest.raises(
        PrunebenchError, match="only these have a contract: method, allocation, recovery, metric"
    ):
        verdicts("corpus", Sound)
