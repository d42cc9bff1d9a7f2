"""Events of a running cell are read in order; half-written lines wait, garbage is skipped."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from prunebench.cell.events import Event, EventReader, EventWriter


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), st.integers(1, 50))
def test_what_is_written_in_pieces_is_read_once_and_in_order(
    tmp_path_factory, names: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("events")
    whole, part = folder / "whole", folder / "part"
    with whole.open("w") as file:
        for name in names:
            EventWriter(file).phase(name)
    reader, seen = EventReader(part), []
    data = whole.read_bytes()
    with part.open("wb", buffering=0) as file:
        for start in range(0, len(data), size):
            file.write(data[start : start + size])
            seen += reader.read()
    assert [event.phase for event in seen] == names


def test_progress_is_thinned_but_never_its_end(tmp_path: Path) -> None:
    with (tmp_path / "e").open("w") as file:
        writer = EventWriter(file)
        for done in range(1, 1001):
            writer.progress("prune", done, 1000)
    events = EventReader(tmp_path / "e").read()
    assert len(events) < 100
    assert events[-1] == Event("prune", 1000, 1000)


def test_garbage_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "e").write_text('nonsense\n{"a": 1}\n["load", 0, 0]\n[1]\n')
    assert EventReader(tmp_path / "e").read() == [Event("load")]
    assert EventReader(tmp_path / "none").read() == []


def test_what_a_phase_says_goes_with_its_progress_until_the_next_phase(tmp_path: Path) -> None:
    with (tmp_path / "e").open("w") as file:
        writer = EventWriter(file)
        writer.phase("recover")
        writer.say("loss 3.2 " + "x" * 200)
        writer.progress("recover", 1, 1)
        writer.phase("audit")
        writer.progress("audit", 1, 1)
    events = EventReader(tmp_path / "e").read()
    assert [event.said[:8] for event in events] == ["", "loss 3.2", "", ""]
    assert len(events[1].said) == 100
