"""How a running cell reports its progress: JSON lines appended to a file that the engine reads."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

# Within a phase at most one event in this time is written, so that progress costs nothing.
INTERVAL_S = 0.1
LONGEST_WORDS = 100


@dataclass(frozen=True)
class Event:
    """A phase began (done == total == 0), or is ``done`` of ``total`` parts through."""

    phase: str
    done: int = 0
    total: int = 0
    said: str = ""
    """A few words on how the phase goes, such as a loss."""


@dataclass
class EventWriter:
    """Writes events to ``file``."""

    file: TextIO
    _last: float = field(default=0.0, init=False)
    _said: str = field(default="", init=False)

    def phase(self, name: str) -> None:
        self._said = ""
        self._write(Event(name))

    def say(self, words: str) -> None:
        """Add a few words to the events that follow in this phase."""
        self._said = words[:LONGEST_WORDS]

    def progress(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= INTERVAL_S:
            self._last = now
            self._write(Event(name, done, total, self._said))

    def _write(self, event: Event) -> None:
        words = [event.said] if event.said else []
        self.file.write(json.dumps([event.phase, event.done, event.total, *words]) + "\n")
        self.file.flush()


class EventReader:
    """Follows an event file that another process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        """The events since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        # The last line may be half written: leave it for the next call.
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        events = []
        for line in complete.splitlines():
            try:
                phase, done, total, *words = json.loads(line)
                said = str(words[0])[:LONGEST_WORDS] if words else ""
                events.append(Event(str(phase), int(done), int(total), said))
            except (ValueError, TypeError):
                # A plugin wrote into the file; skip what is no event.
                continue
        return events
