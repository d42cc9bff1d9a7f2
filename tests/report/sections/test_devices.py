"""Energy, shared machines and transfers in table, cards and warnings."""

from __future__ import annotations

import pytest

from prunebench.record.devices import Contention, CpuLoad, EnergyResult, GpuSharing, PcieTraffic
from prunebench.record.memory import GpuMemory
from prunebench_report import render
from prunebench_report.data import table as frames
from shown import view

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


def shown(build, tmp_path, change):
    records = [one for one in build.quickstart() if one.cell.method.name in ("dense", "wanda")]
    for record in records:
        change(record)
    return view(build.store(tmp_path / "run", records)), records


def card(found, index=0):
    return found["cards"][index]


def test_energy_is_a_column_where_a_cell_has_it_with_its_distance_from_dense(build, tmp_path):
    def change(record):
        record.energy = energy(0.5 if record.cell.method.name == "dense" else 0.4)

    found, records = shown(build, tmp_path, change)
    column = [one["key"] for one in found["table"]["columns"]].index("joules_per_token")
    assert found["table"]["columns"][column]["unit"] == "mJ"
    cells = [row["cells"][column] for row in found["table"]["rows"]]
    assert [one["text"] for one in cells][:2] == ["500", "400"]
    assert cells[0]["note"] is None
    assert (cells[1]["note"], cells[1]["tone"]) == ("\N{MINUS SIGN}20 %", "better")
    facts = dict(card(found)["energy"])
    assert (facts["Per generated token"], facts["Per prompt"]) == ("500 mJ", "4.20 J")
    assert facts["Source"] == NVML
    assert "not subtracted" in facts["Power while waiting"]
    assert frames.plain(records, 0.95)[1]["joules_ratio"] == pytest.approx(0.8)


def test_energy_of_another_counter_is_not_compared(build):
    records = build.quickstart()[:2]
    records[0].energy = energy(0.5)
    records[1].energy = energy(0.4).model_copy(update={"source": "RAPL"})
    assert frames.plain(records, 0.95)[1]["joules_ratio"] is None


def test_without_energy_there_is_no_column_and_the_card_says_why(build, tmp_path):
    def change(record):
        record.energy = EnergyResult(reason="no RAPL: /sys/class/powercap does not exist")

    found, _ = shown(build, tmp_path, change)
    assert "joules_per_token" not in [one["key"] for one in found["table"]["columns"]]
    assert card(found)["energy"] == [
        ("Energy", "not available: no RAPL: /sys/class/powercap does not exist")
    ]


def load(others, steal=0.0, phase="latency"):
    return CpuLoad(phase=phase, wall_s=3.0, others_share=others, steal_share=steal)


@pytest.mark.parametrize(
    ("loads", "warned"),
    [
        ([load(0.05, 0.04)], False),
        ([load(0.06, 0.06)], True),
        ([load(0.9, phase="prune"), load(0.01)], False),  # nothing is timed then
        ([], False),
    ],
)
def test_a_busy_cpu_while_timing_is_named(build, tmp_path, loads, warned):
    def change(record):
        if record.cell.method.name == "wanda":
            record.contention = Contention(gpu=None, cpu=loads)

    found, _ = shown(build, tmp_path, change)
    texts = [text for text in found["warnings"] if text.startswith("The CPU was busy with others")]
    assert bool(texts) is warned
    told = dict(card(found, 1)["memory"]["facts"])
    assert ("CPU taken by others" in told) == any(one.phase == "latency" for one in loads)
    if warned:
        assert told["CPU taken by others"] == "6 % (latency), 6 % by the hypervisor"
        assert "wanda sparsity=0.5" in texts[0]
        assert "12 %" in texts[0]
        assert "dense" not in texts[0]


@pytest.mark.parametrize(
    ("foreign", "before", "words"),
    [
        (True, 0, "Other processes were on the GPU"),
        (False, 5 << 30, None),
        (None, 5 << 30, "by whom cannot be told"),
        (None, 5 << 20, None),
    ],
)
def test_a_shared_gpu_is_named(build, tmp_path, foreign, before, words):
    gpu = GpuSharing(
        foreign=foreign,
        pids=[4242] if foreign else [],
        phases=["latency"] if foreign else [],
        memory_before_bytes=before,
        note="other processes <b>",
    )

    def change(record):
        record.contention = Contention(gpu=gpu)

    found, records = shown(build, tmp_path, change)
    assert [text for text in found["warnings"] if "GPU" in text] == [
        text for text in found["warnings"] if words and words in text
    ]
    assert bool(words) == any("GPU" in text for text in found["warnings"])
    told = dict(card(found)["memory"]["facts"])["Others on the GPU"]
    assert told == (
        "other processes <b> (pids 4242), during latency" if foreign else "other processes <b>"
    )
    page = render(build.store(tmp_path / "page", records))
    assert "other processes &lt;b&gt;" in page
    assert "other processes <b>" not in page


def test_gpu_figures_and_sampling_faults_stand_in_the_memory_card(build, tmp_path):
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
        record.memory.problem = "the sampler gave nothing after 3.0 s"
        record.cost.peak_gpu_bytes, record.cost.peak_gpu_source = (
            2_000_000_000,
            "torch's allocator, bytes allocated",
        )

    found, records = shown(build, tmp_path, change)
    facts = dict(card(found)["memory"]["facts"])
    assert facts["GPU peak, process (NVML)"] == "n/a"
    assert facts["GPU peak while pruning"] == "2.00 GB (torch's allocator, bytes allocated)"
    phases = dict(card(found)["memory"]["phases"])
    assert phases["prune"].endswith("1.50 GB unique at its end, GPU 2.00 GB allocated")
    assert any("not sampled to the end" in text for text in found["warnings"])
    assert frames.plain(records, 0.95)[0]["prune_peak_gpu_bytes"] == 2_000_000_000


def test_the_legs_of_loading_and_pcie_stand_beside_the_whole(build, tmp_path):
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
                    tx_peak_bytes_per_s=None,
                    generation=5,
                    width=16,
                    generation_limit=5,
                    width_limit=None,
                ),
            }
        )

    found, records = shown(build, tmp_path, change)
    facts = dict(card(found)["load"])
    assert facts["Host memory to device"] == "500 MB in 200 ms, 2.50 GB/s"
    assert (
        facts["PCIe to the GPU"] == "mean 12.0 GB/s, peak 24.0 GB/s over 7 windows of 20 ms (NVML)"
    )
    assert facts["PCIe from the GPU"] == "mean n/a"
    assert facts["PCIe link"] == "generation 5 of 5, 16 of n/a lanes"
    assert frames.plain(records, 0.95)[0]["load_device_s"] == 0.2
