"""`prunebench run` on a machine that is never quiet: a reason instead of each speed, and exit code 3."""

from __future__ import annotations

import json

import pytest

from prunebench.measure.devices.disturbance import CpuWatch
from prunebench.store.run_folder import RunStore
from rig import Rig

NOISE = "its threads waited for a core (40 % of the time)"


@pytest.fixture
def undisturbed(monkeypatch):
    """Every round is disturbed."""
    monkeypatch.setattr(CpuWatch, "disturbed", lambda *_: NOISE)


def test_a_busy_machine_gives_results_without_speeds(tmp_path):
    rig = Rig(tmp_path / "rig")
    suite = rig.suite("magnitude", latency=True)
    done = rig.run(suite)
    assert done.returncode == 3, done.stderr
    assert "the speed of 2 of 2 cells was not measurable" in done.stderr
    store = RunStore.open(rig.folder / "runs" / "tiny")
    records, _ = store.records()
    for record in records:
        assert record.status == "ok"
        assert record.quality.perplexity[0].perplexity > 0
        (timed,) = record.speed.latency
        assert timed.not_measurable.endswith("needed: its threads waited for a core")
        assert timed.inter_token_s is timed.inter_token_speedup is None
        assert record.speed.breakdown is None
        assert NOISE in record.speed.breakdown_reason
        assert record.io.generation == []
        assert NOISE in record.io.generation_reason
        assert record.io.load.seconds is None
        assert NOISE in record.io.load.not_measurable
    report = (store.folder / "report.html").read_text()
    assert "Speed was not measurable here" in report
    rows = json.loads(rig.invoke("export", store.folder, "--format", "json").stdout)
    for row in rows:
        assert row["speed_not_measurable"]
        assert row["inter_token_p50_s"] is row["inter_token_speedup"] is row["ttft_p50_s"] is None
