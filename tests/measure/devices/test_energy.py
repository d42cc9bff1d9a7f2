from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices import powercap
from prunebench.measure.devices.energy import EnergyMeter, measure_energy
from prunebench.record.devices import Energy

RANGE = 262_143_328_850


@pytest.fixture
def rapl(tmp_path):
    """A powercap folder with two packages, their parts, the platform, and one package a second time."""
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


def test_packages_count_and_nothing_twice(rapl):
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
    assert energy.seconds > 0
    assert "2 CPU packages" in energy.source


@given(st.integers(0, RANGE - 1), st.integers(0, RANGE - 1))
def test_a_counter_that_starts_again_is_unwrapped(start, used):
    domain = powercap.Domain(None, RANGE)
    assert powercap.joules([domain], [start], [(start + used) % RANGE]) == pytest.approx(used / 1e6)


def test_what_only_root_may_read_is_not_available_and_why(rapl, monkeypatch):
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


def test_a_counter_that_stops_answering_is_told(rapl):
    with EnergyMeter("cpu", powercap_root=rapl) as meter:
        meter.start()
        (rapl / "intel-rapl:1" / "energy_uj").unlink()
        assert meter.stop() is None
        assert "stopped answering" in meter.reason


class Watts:
    """A meter in whose world rounds take 2 J each and waiting 3 W."""

    source = "told"
    reason = None

    def __init__(self):
        self.joules = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self):
        self.joules, self.began = 0.0, time.perf_counter()

    def stop(self):
        seconds = time.perf_counter() - self.began
        return Energy(joules=self.joules or 3 * seconds, seconds=seconds, source=self.source)


@pytest.mark.parametrize("prompts_in_generation", [False, True])
def test_joules_are_shared_out_over_prompts_and_tokens(prompts_in_generation):
    meter, rounds = Watts(), {"prompt": 0, "generation": 0}

    def prompt():
        meter.joules += 2
        rounds["prompt"] += 1
        time.sleep(0.005)
        return 4

    def generate():
        meter.joules += 10
        rounds["generation"] += 1
        time.sleep(0.005)
        return 20

    spec = LatencySpec(prompt=8, new_tokens=6, batch_size=4, min_rounds=1, min_time_s=0)
    found = measure_energy(
        prompt,
        generate,
        meter=meter,
        least_s=0.05,
        spec=spec,
        prompts_in_generation=prompts_in_generation,
    )
    assert found.joules_per_prompt == pytest.approx(0.5)
    assert found.joules_per_token == pytest.approx(0.4 if prompts_in_generation else 0.5)
    assert found.idle_w == pytest.approx(3, rel=0.01)
    assert min(found.prompt_s, found.generation_s) >= 0.05
    assert found.prompt_w * found.prompt_s == pytest.approx(
        2 * (rounds["prompt"] - 1)
    )  # the first is warm-up
    assert (found.prompt, found.new_tokens, found.batch_size, found.source) == (8, 6, 4, "told")
