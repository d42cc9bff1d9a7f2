"""The table of what methods cost, printed at the end whatever else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

HEADER = (
    "method",
    "dtype",
    "seconds",
    "yardstick",
    "ratio",
    "floor",
    "limit",
    "memory beyond the model",
    "perplexity",
)
ROWS = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture
def cost(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes a row of the table, keys of `HEADER`; what is left out is empty."""
    rows: list[tuple[str, ...]] = request.config.stash.setdefault(ROWS, [])

    def add(**row: str) -> None:
        rows.append(tuple(row.get(key.partition(" ")[0], "") for key in HEADER))

    return add


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    lines = [HEADER, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    terminalreporter.section("what methods cost, each beside its yardstick in the same run")
    for line in lines:
        terminalreporter.line(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
