"""The top of the report warns of whatever makes numbers incomparable."""

from __future__ import annotations

import pytest

from prunebench.record.devices import Contention, CpuLoad, GpuSharing
from prunebench_report.data.load_runs import load_runs
from prunebench_report.sections import warnings


def warned(build, records, **extra):
    return " ".join(warnings.section(build.given(records, **extra)))


def test_a_complete_run_has_no_warning(build):
    assert warned(build, build.quickstart()) == ""


def test_missing_cells_other_machines_and_unpaired_timings_are_named(build):
    records = build.quickstart()
    records[1].provenance["cpu"] = "another processor"
    records[2] = build.record(records[2].cell, 812.0, 1.0, paired=False)
    for record in records:
        record.provenance["cpu_governor"] = "powersave"
    text = warned(build, records, missing=(build.cell("owl"),))
    assert "Not run: 1 of 9 cells" in text
    assert "2 different machines" in text
    assert "1 cell was not timed in rounds interleaved with dense" in text
    assert "'powersave'" in text
    assert "No dense cell finished" in warned(build, build.quickstart()[1:3])


def test_cells_still_to_come_are_no_warning(build):
    records = build.quickstart()
    assert warned(build, records, missing=(build.cell("owl"),), running=True) == ""


def test_several_gates_are_named(build):
    assert "different quality gates" in warned(build, build.quickstart(), gates=(0.95, 0.9))


def test_a_damaged_record_is_named_with_its_reason(build, tmp_path):
    records = build.quickstart()
    store = build.store(tmp_path / "run", records)
    store.record_path(records[3].id).write_text('{"schema": 1', encoding="utf-8")
    assert f"{records[3].id}.json cannot be used" in warnings.section(load_runs([store]))[0]


def test_other_execution_forms_and_missing_pairs_are_named(build):
    records = build.quickstart()
    records[1].speed.latency[0].execution = "compiled"
    for record in records[2:4]:
        record.speed.latency[0].unpaired = "the dense model takes 9.0 GB"
        record.speed.latency[0].inter_token_speedup = None
    text = warned(build, records)
    assert "different execution forms (7 eager, 1 compiled)" in text
    assert "2 cells were not timed beside dense: the dense model takes 9.0 GB" in text
    assert "interleaved" not in text


def test_a_dense_model_that_became_slower_is_named(build):
    records = build.quickstart()
    slow = records[3].speed.latency[0].dense_inter_token_s
    records[3].speed.latency[0].dense_inter_token_s = slow.model_copy(
        update={"median": 1.5 * slow.median}
    )
    assert "the dense model took up to 51 % longer per token" in warned(build, records)
    records[3].speed.latency[0].dense_inter_token_s = slow.model_copy(
        update={"median": 390 * slow.median}
    )
    assert "took up to 393 times as long per token" in warned(build, records)


def load(others, steal=0.0, phase="latency"):
    return CpuLoad(phase=phase, wall_s=3.0, others_share=others, steal_share=steal)


@pytest.mark.parametrize(
    ("loads", "busy"),
    [
        ([load(0.05, 0.04)], False),
        ([load(0.06, 0.06)], True),
        ([load(0.9, phase="prune"), load(0.01)], False),  # nothing is timed in that phase
        ([], False),
    ],
)
def test_a_busy_cpu_while_timing_is_named(build, loads, busy):
    records = [build.quickstart()[0], build.quickstart()[3]]
    records[1].contention = Contention(gpu=None, cpu=loads)
    text = warned(build, records)
    assert ("up to 12 % of the CPU during the timing of wanda sparsity=0.5." in text) is busy
    assert bool(text) is busy


@pytest.mark.parametrize(
    ("foreign", "before", "words"),
    [
        (True, 0, "Other processes used the GPU"),
        (False, 5 << 30, None),
        (None, 5 << 30, "Unknown processes used the GPU"),
        (None, 5 << 20, None),
    ],
)
def test_a_shared_gpu_is_named(build, foreign, before, words):
    records = build.quickstart()[:2]
    gpu = GpuSharing(foreign=foreign, memory_before_bytes=before, note="")
    for record in records:
        record.contention = Contention(gpu=gpu)
    text = warned(build, records)
    assert ("GPU" in text) is bool(words)
    assert (words or "") in text


def test_memory_that_was_not_sampled_and_global_changes_are_named(build):
    records = build.quickstart()[:2]
    records[0].memory.problem = "the sampler gave nothing after 3.0 s"
    records[1].flags = ["torch.set_num_threads changed"]
    text = warned(build, records)
    assert "stopped early in dense (the sampler gave nothing" in text
    assert "left side effects behind or could not measure a figure in random sparsity=0.5" in text


def test_a_branch_that_moved_between_cells_is_named(build):
    records = build.quickstart()
    for record, digit in zip(records, "aaab", strict=False):
        record.provenance["unpinned"] = {"model org/tiny at main": digit * 40}
    assert (
        "The model org/tiny at main was not the same in all cells, because no commit pins it: "
        "aaaaaaa, bbbbbbb. Do not compare these cells." in warned(build, records)
    )
    records[3].provenance["unpinned"] = {"model org/tiny at main": "a" * 40}
    assert warned(build, records) == ""
