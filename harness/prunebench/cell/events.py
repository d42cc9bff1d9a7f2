"""How a running cell says where it is: one JSON line an event, appended to a file that the engine follows."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Event:
    """A phase has begun (done == total == 0), or has come so far."""

    phase: str
    done: int = 0
    total: int = 0


@dataclass
class EventWriter:
    """Writes events; at most ten a second within a phase, so that reporting costs nothing."""

    file: TextIO
    _last: float = field(default=0.0, init=False)

    def phase(self, name: str) -> None:
        self._write(Event(name))

    def progress(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= 0.1:
            self._last = now
            self._write(Event(name, done, total))

    def _write(self, event: Event) -> None:
        self.file.write(json.dumps([event.phase, event.done, event.total]) + "\n")
        self.file.flush()


class EventReader:
    """Follows an event file from another process; what is half written waits for the next call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            try:
                phase, done, total = json.loads(line)
                events.append(Event(str(phase), int(done), int(total)))
            except (ValueError, TypeError):  # a plugin found the file; its garbage is not ours
                continue
        return events
