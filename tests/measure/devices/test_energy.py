from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices import energy as module
from prunebench.measure.devices import powercap
from prunebench.measure.devices.energy import EnergyMeter, measure_energy
from prunebench.measure.devices.energy_sources import integral
from prunebench.record.devices import Energy

RANGE = 262_143_328_850


@pytest.fixture
def rapl(tmp_path):
    """A powercap folder: two packages, a part, the platform, and one package a second time."""
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for folder, name in names.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (tmp_path / folder / "energy_uj").write_text("1000000\n")
    return tmp_path


def advance(rapl, folder, microjoules):
    path = rapl / folder / "energy_uj"
    path.write_text(str((int(path.read_text()) + microjoules) % RANGE))


def test_packages_count_and_none_of_them_twice(rapl):
    with EnergyMeter("cpu", powercap_root=rapl) as meter:
        meter.start()
        for folder in (
            "intel-rapl:0",
            "intel-rapl:0:0",
            "intel-rapl:1",
            "intel-rapl:2",
            "intel-rapl-mmio:0",
        ):
            advance(rapl, folder, 2_500_000)
        energy = meter.stop()
    assert energy.joules == pytest.approx(5.0)
    assert energy.seconds >= 0
    assert "2 CPU packages" in energy.source


@given(st.integers(0, RANGE - 1), st.integers(0, RANGE - 1))
def test_a_counter_that_wrapped_around_is_unwrapped(start, used):
    domain = powercap.Domain(None, RANGE)
    assert powercap.joules([domain], [start], [(start + used) % RANGE]) == pytest.approx(used / 1e6)


def test_a_counter_that_only_root_may_read_is_not_available_and_the_reason_says_so(
    rapl, monkeypatch
):
    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(powercap.Domain, "read", refuse)
    with EnergyMeter("cpu", powercap_root=rapl) as meter:
        meter.start()
        assert meter.stop() is None
        assert meter.source is None
        assert "only be read by root" in meter.reason


@pytest.mark.parametrize("broken", ["absent", "empty", "rubbish"])
def test_without_counters_there_is_a_reason(tmp_path, broken):
    root = tmp_path / "powercap"
    if broken != "absent":
        root.mkdir()
    if broken == "rubbish":
        (root / "intel-rapl:0").mkdir()
        (root / "intel-rapl:0" / "name").write_text("package-0")
        (root / "intel-rapl:0" / "max_energy_range_uj").write_text("much")
    found = measure_energy(pytest.fail, pytest.fail, meter=EnergyMeter("cpu", powercap_root=root))
    assert found.joules_per_token is None
    assert "RAPL" in found.reason


def test_a_counter_that_stops_answering_is_named(rapl):
    with EnergyMeter("cpu", powercap_root=rapl) as meter:
        meter.start()
        (rapl / "intel-rapl:1" / "energy_uj").unlink()
        assert meter.stop() is None
        assert "stopped answering" in meter.reason


class World:
    """A clock that only rounds and waiting move, and a meter: waiting costs 3 W."""

    source = "told"
    reason = None

    def __init__(self):
        self.now, self.joules = 0.0, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.spend(seconds, 3 * seconds)

    def spend(self, seconds, joules):
        self.now += seconds
        self.joules += joules

    def start(self):
        self.joules, self.began = 0.0, self.now

    def stop(self):
        return Energy(joules=self.joules, seconds=self.now - self.began, source=self.source)


@pytest.mark.parametrize(("in_generation", "per_token"), [(False, 0.5), (True, 0.4)])
def test_joules_are_divided_among_prompts_and_tokens(monkeypatch, in_generation, per_token):
    world = World()
    monkeypatch.setattr(module, "time", world)

    def prompt():
        world.spend(0.25, 2)
        return 4

    def generate():
        world.spend(0.5, 10)
        return 20

    spec = LatencySpec(prompt=8, new_tokens=6, batch_size=4, min_rounds=1, min_time_s=0)
    found = measure_energy(
        prompt,
        generate,
        meter=world,
        least_s=1.0,
        spec=spec,
        prompts_in_generation=in_generation,
    )
    assert found.joules_per_prompt == 0.5
    assert found.joules_per_token == pytest.approx(per_token)
    assert (found.prompt_s, found.generation_s) == (1, 1)  # one warm-up round more was run
    assert (found.prompt_w, found.generation_w, found.idle_w) == (8, 20, 3)
    assert world.now == 1 + (0.25 + 1) + (0.5 + 1)
    assert (found.prompt, found.new_tokens, found.batch_size, found.source) == (8, 6, 4, "told")


def test_a_round_longer_than_the_minimum_runs_once(monkeypatch):
    world = World()
    monkeypatch.setattr(module, "time", world)
    rounds = []

    def round_():
        rounds.append(world.now)
        world.spend(5, 1)
        return 1

    measure_energy(round_, round_, meter=world, least_s=1.0)
    assert len(rounds) == 4  # of each phase the warm-up and one


def test_power_is_integrated_by_the_trapezoidal_rule():
    assert integral([(0.0, 100.0), (1.0, 200.0), (3.0, 200.0)]) == 150 + 400
    assert integral([(0.0, 100.0)]) == 0


def test_power_with_a_gap_gives_no_energy():
    assert integral([(0.0, 100.0), (1.0, None), (2.0, 100.0)]) is None
