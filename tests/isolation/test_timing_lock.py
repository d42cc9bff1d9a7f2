"""Timed phases run alone: which phases overlap, who waits, and who goes first."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.isolation.timing_lock import TIMED, WAITING, TimingLock

PROCESS = """
import json, random, sys, time
from pathlib import Path
from prunebench.isolation.timing_lock import TimingLock

lock, spans = TimingLock(Path(sys.argv[1])), []
draw = random.Random(int(sys.argv[2]))
lock.enter_phase("prune")
print("inside", flush=True)
sys.stdin.readline()
for _ in range(15):
    phase = draw.choice(["prune", "latency"])
    lock.enter_phase(phase)
    begun = time.monotonic()
    time.sleep(draw.random() / 100)
    spans.append((phase, begun, time.monotonic()))
print(json.dumps(spans))
"""


def test_no_phase_of_another_process_overlaps_a_timed_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for seed in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == b"inside\n"  # all four at once: it is not timed
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    spans = [json.loads(process.communicate()[0]) for process in processes]
    for one, mine in enumerate(spans):
        for others in spans[:one]:
            for phase, begun, ended in mine:
                for other, begun_2, ended_2 in others:
                    if begun < ended_2 and begun_2 < ended:
                        assert phase not in TIMED
                        assert other not in TIMED


def test_a_timed_phase_that_waits_goes_before_those_that_come_later(tmp_path: Path) -> None:
    said: list[str] = []
    waits = threading.Event()
    first, second = TimingLock(tmp_path), TimingLock(tmp_path)
    timed = TimingLock(tmp_path, lambda: (said.append(WAITING), waits.set()))
    first.enter_phase("prune")
    assert second.try_share()
    second.release()
    waiting = threading.Thread(target=timed.enter_phase, args=("latency",))
    waiting.start()
    waits.wait()
    assert not second.try_share()  # although the lock is only shared
    first.release()
    waiting.join()
    assert not second.try_share()
    timed.enter_phase("energy")  # from one timed phase to the next nobody comes in between
    assert said == [WAITING]
    assert not second.try_share()
    timed.close()
    assert second.try_share()


def test_a_waiter_can_give_up(tmp_path: Path) -> None:
    timed, other = TimingLock(tmp_path), TimingLock(tmp_path)
    timed.enter_phase("load")

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        other.share(give_up)


def test_without_a_folder_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNEBENCH_TIMING_LOCK", raising=False)
    lock = TimingLock.from_environment(pytest.fail)
    for phase in ("start", "load", "prune", "latency"):
        lock.enter_phase(phase)
    assert lock.try_share()


def test_the_error_names_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunebenchError, match=r"cannot take turns with .*file"):
        TimingLock(tmp_path / "file")
