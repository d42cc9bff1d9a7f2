"""The agreement table, printed at the end whatever else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

HEADER = (
    "method",
    "official",
    "mask, layer 0",
    "layer 14",
    "layer 29",
    "zeros",
    "official",
    "perplexity",
    "official",
)
ROWS = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture
def agreement(request: pytest.FixtureRequest) -> Callable[[tuple[str, ...]], None]:
    """Takes a row of the table, one text for each of `HEADER`."""
    rows: list[tuple[str, ...]] = request.config.stash.setdefault(ROWS, [])
    return rows.append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    lines = [HEADER, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    terminalreporter.section(
        "agreement with the official implementations (share of mask bits that differ)"
    )
    for line in lines:
        terminalreporter.line(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
