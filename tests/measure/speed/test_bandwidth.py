from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from prunebench.measure.speed import bandwidth as module
from prunebench.measure.speed.bandwidth import read_bandwidth


@pytest.fixture
def passes(monkeypatch):
    """A clock on which the kernels' passes take the seconds of these lists, the last for ever."""
    taken = {"mv": [1.0], "sum": [1.0]}
    clock = SimpleNamespace(now=0.0, counts={"mv": 0, "sum": 0})
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def timed(name, kernel):
        def call(*given, **words):
            number = clock.counts[name]
            clock.counts[name] += 1
            clock.now += taken[name][min(number, len(taken[name]) - 1)]
            return kernel(*given, **words)

        return call

    monkeypatch.setattr(torch, "mv", timed("mv", torch.mv))
    monkeypatch.setattr(torch.Tensor, "sum", timed("sum", torch.Tensor.sum))
    monkeypatch.setattr(module, "HOST_BYTES", 64 << 20)
    return SimpleNamespace(taken=taken, counts=clock.counts)


def test_it_is_the_best_pass_of_the_faster_kernel_after_a_warm_up(passes):
    passes.taken["mv"] = [0.01, 0.5, 0.25, 0.5]  # the first one does not count
    passes.taken["sum"] = [0.5]
    found, source = read_bandwidth("cpu")
    assert found == (64 << 20) / 0.25
    threads = torch.get_num_threads()
    assert source == (
        f"measured: matrix-vector product over 64 MiB of float32, best pass, {threads} threads"
    )


def test_a_kernel_has_three_passes_at_least_and_then_stops_after_its_time(passes):
    passes.taken["sum"] = [module.BUDGET_S / 20]
    read_bandwidth("cpu")
    assert passes.counts == {"mv": 1 + module.MIN_PASSES, "sum": 1 + 11}


def test_a_quick_kernel_stops_after_the_most_passes(passes):
    passes.taken["mv"] = passes.taken["sum"] = [1e-6]
    read_bandwidth("cpu")
    assert passes.counts == dict.fromkeys(("mv", "sum"), 1 + module.MAX_PASSES)


def test_a_disturbed_try_is_repeated_on_the_same_buffer(passes, monkeypatch):
    class Busy:
        """Something else uses the machine in the first try."""

        tries = 0

        def read(self):
            return None

        def disturbed(self, before, after):
            del before, after
            self.tries += 1
            return "busy" if self.tries == 1 else None

    filled = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, **how: filled.append(shape) or ones(*shape))
    passes.taken["mv"] = [0.5]
    read_bandwidth("cpu", Busy())
    assert passes.counts["mv"] == 2 * (1 + module.MIN_PASSES)
    assert len(filled) == 1


def test_a_machine_that_is_nearly_full_gets_a_smaller_buffer(passes, monkeypatch):
    monkeypatch.setattr(module, "HOST_BYTES", 512 << 20)
    monkeypatch.setattr(
        module.psutil, "virtual_memory", lambda: SimpleNamespace(available=300 << 20)
    )
    assert "over 75 MiB" in read_bandwidth("cpu")[1]
