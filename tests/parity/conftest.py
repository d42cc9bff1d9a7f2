"""The agreement tables, printed at the end whatever else is."""

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
FIGURES = pytest.StashKey[list[tuple[str, ...]]]()
FIGURES_HEADER = ("what", "ours", "official", "difference", "allowed")


@pytest.fixture
def agreement(request: pytest.FixtureRequest) -> Callable[[tuple[str, ...]], None]:
    """Takes a row of the table, one text for each of `HEADER`."""
    rows: list[tuple[str, ...]] = request.config.stash.setdefault(ROWS, [])
    return rows.append


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a figure to the second table, then asserts that it agrees."""
    rows: list[tuple[str, ...]] = request.config.stash.setdefault(FIGURES, [])

    def add(what: str, ours: object, official: object, *, differs: float, allowed: float) -> None:
        """``differs``: by how much, in the unit of ``allowed``."""
        rows.append((what, str(ours), str(official), f"{differs:.2e}", f"{allowed:.0e}"))
        assert differs <= allowed, what

    return add


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    title = "agreement with the official implementations"
    masks = f"{title} (share of mask bits that differ)"
    print_table(terminalreporter, masks, HEADER, config.stash.get(ROWS, []))
    print_table(terminalreporter, title, FIGURES_HEADER, config.stash.get(FIGURES, []))


def print_table(
    terminalreporter: pytest.TerminalReporter,
    title: str,
    header: tuple[str, ...],
    rows: list[tuple[str, ...]],
) -> None:
    if not rows:
        return
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    terminalreporter.section(title)
    for line in lines:
        terminalreporter.line(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
