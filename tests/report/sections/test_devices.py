"""Energy, memory, transfers and shared machines in table and cards."""

from __future__ import annotations

import pytest

from prunebench.record.devices import Contention, CpuLoad, EnergyResult, GpuSharing, PcieTraffic
from prunebench.record.memory import GpuMemory
from prunebench_report import render
from prunebench_report.data.table import build_table
from prunebench_report.sections import cards, main_table

NVML = "NVML total energy counter, whole GPU"


def energy(joules):
    return EnergyResult(
        prompt=128,
        new_tokens=32,
        batch_size=1,
        joules_per_token=joules,
        joules_per_prompt=4.2,
        idle_w=70.5,
        source=NVML,
    )


def changed(build, change):
    """Dense and wanda, both changed."""
    records = [build.quickstart()[0], build.quickstart()[3]]
    for record in records:
        change(record)
    return build.given(records)


def card(build, change):
    return cards.section(changed(build, change))[0]


def test_energy_is_a_column_with_its_difference_from_dense_if_a_cell_has_it(build):
    def change(record):
        record.energy = energy(0.5 if record.cell.method.name == "dense" else 0.4)

    given = changed(build, change)
    table = main_table.section(given)
    column = [one["key"] for one in table["columns"]].index("joules_per_token")
    assert table["columns"][column]["unit"] == "mJ"
    cells = [row["cells"][column] for row in table["rows"]]
    assert [one["text"] for one in cells] == ["500", "400"]
    assert cells[0]["note"] is None
    assert (cells[1]["note"], cells[1]["tone"]) == ("\N{MINUS SIGN}20 %", "better")
    facts = dict(cards.section(given)[0]["energy"])
    assert (facts["Per generated token"], facts["Per prompt"]) == ("500 mJ", "4.20 J")
    assert facts["Source"] == NVML
    assert "not subtracted" in facts["Idle power"]
    assert given.table[1]["joules_ratio"] == pytest.approx(0.8)


def test_energy_of_another_counter_is_not_compared(build):
    records = build.quickstart()[:2]
    records[0].energy = energy(0.5)
    records[1].energy = energy(0.4).model_copy(update={"source": "RAPL"})
    assert build_table(records, 0.95)[1]["joules_ratio"] is None


def test_without_energy_there_is_no_column_and_the_card_says_why(build):
    def change(record):
        record.energy = EnergyResult(reason="no RAPL: /sys/class/powercap does not exist")

    given = changed(build, change)
    columns = main_table.section(given)["columns"]
    assert "joules_per_token" not in [one["key"] for one in columns]
    assert cards.section(given)[0]["energy"] == [
        ("Energy", "not available: no RAPL: /sys/class/powercap does not exist")
    ]


def test_others_on_the_cpu_are_listed_by_phase(build):
    def change(record):
        loads = [load(0.9, phase="prune"), load(0.06, 0.06)]
        record.contention = Contention(gpu=None, cpu=loads)

    facts = dict(card(build, change)["memory"]["facts"])
    assert facts["CPU used by others"] == "6 % and 6 % by the hypervisor in latency (3.00 s)"


def load(others, steal=0.0, phase="latency"):
    return CpuLoad(phase=phase, wall_s=3.0, others_share=others, steal_share=steal)


def test_others_on_the_gpu_are_listed_and_escaped(build, tmp_path):
    gpu = GpuSharing(foreign=True, pids=[4242], phases=["latency"], note="other processes <b>")
    record = build.quickstart()[0]
    record.contention = Contention(gpu=gpu)
    [found] = cards.section(build.given([record]))
    shown = dict(found["memory"]["facts"])["Other processes on the GPU"]
    assert shown == "other processes <b> (pids 4242), during latency"
    page = render(build.store(tmp_path / "page", [record]))
    assert "other processes &lt;b&gt;" in page
    assert "other processes <b>" not in page


def test_gpu_figures_are_in_the_memory_card(build):
    def change(record):
        gpu = GpuMemory(
            nvml_device_bytes=9 << 30,
            nvml_process_bytes=None,
            allocated_bytes=2_000_000_000,
            reserved_bytes=None,
        )
        record.memory.gpu = gpu
        record.memory.phases[2] = record.memory.phases[2].model_copy(
            update={"gpu": gpu, "uss_bytes": 1_500_000_000}
        )
        record.cost.peak_gpu_bytes, record.cost.peak_gpu_source = (
            2_000_000_000,
            "torch's allocator, bytes allocated",
        )

    given = changed(build, change)
    memory = cards.section(given)[0]["memory"]
    facts = dict(memory["facts"])
    assert facts["GPU peak, process (NVML)"] == "n/a"
    assert facts["GPU peak while pruning"] == "2.00 GB (torch's allocator, bytes allocated)"
    phases = dict(memory["phases"])
    assert phases["prune"].endswith("1.50 GB unique at the end, GPU 2.00 GB allocated")
    assert given.table[0]["prune_peak_gpu_bytes"] == 2_000_000_000


def test_loading_is_split_into_files_to_host_and_host_to_device(build):
    def change(record):
        record.io.load = record.io.load.model_copy(
            update={
                "host_s": 0.6,
                "device_s": 0.2,
                "device_bytes": 500_000_000,
                "pcie": PcieTraffic(
                    samples=7,
                    rx_mean_bytes_per_s=12e9,
                    rx_peak_bytes_per_s=24e9,
                    tx_mean_bytes_per_s=None,
                    tx_peak_bytes_per_s=3e9,
                    generation=5,
                    width=16,
                    generation_limit=5,
                    width_limit=None,
                ),
            }
        )

    given = changed(build, change)
    facts = dict(cards.section(given)[0]["load"])
    assert facts["Host memory to device"] == "500 MB in 200 ms, 2.50 GB/s"
    assert (
        facts["PCIe to the GPU"] == "mean 12.0 GB/s, peak 24.0 GB/s over 7 windows of 20 ms (NVML)"
    )
    assert facts["PCIe from the GPU"] == "mean n/a, peak 3.00 GB/s"
    assert facts["PCIe link"] == "generation 5 of 5, 16 of n/a lanes"
    assert given.table[0]["load_device_s"] == 0.2
