"""What the benchmarks found, in one table at the end: figures beside what is wanted, and seconds.

`PRUNEBENCH_BENCHMARKS=FILE` writes the table as Markdown too, as `harness/BENCHMARKS.md` is made.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch

from prunebench.isolation.heap import keep_freed_memory
from prunebench.isolation.huge_pages import ask_for_huge_pages

ask_for_huge_pages()  # as the processes of cells; before a test file makes a tensor

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
FIGURE = ("what", "found", "wanted")
ROWS = pytest.StashKey[list[tuple[str, ...]]]()
FIGURES = pytest.StashKey[list[tuple[str, ...]]]()
FOLDER = Path(__file__).parent.name
LATENCY = "test_latency_truth.py"

seconds: Counter[str] = Counter()
"""How long the tests of each file took."""
failed: Counter[str] = Counter()


@pytest.fixture(scope="session", autouse=True)
def _memory_as_in_cells() -> None:
    keep_freed_memory()


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes a row of the table of figures: what it is, what was found, and what is wanted."""
    rows: list[tuple[str, ...]] = request.config.stash.setdefault(FIGURES, [])

    def add(what: str, found: str, wanted: str = "") -> None:
        print(f"{what}: {found}" + (f" (wanted: {wanted})" if wanted else ""))
        rows.append((what, found, wanted))

    return add


@pytest.fixture
def cost(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes a row of the table of methods, keys of `HEADER`; what is left out is empty."""
    rows: list[tuple[str, ...]] = request.config.stash.setdefault(ROWS, [])
    figures: list[tuple[str, ...]] = request.config.stash.setdefault(FIGURES, [])

    def add(**row: str) -> None:
        rows.append(tuple(row.get(key.partition(" ")[0], "") for key in HEADER))
        if row.get("limit"):
            wanted = f"at most {row.get('wanted') or row['limit']}"
            figures.append(
                (
                    f"{row['method']} {row.get('dtype', '')}, beside its yardstick",
                    row["ratio"],
                    wanted,
                )
            )

    return add


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Latency comes first: cells time their models in a process without such a past, too."""
    items.sort(key=lambda item: item.path.name != LATENCY)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = Path(report.nodeid.partition("::")[0])
    if path.parent.name == FOLDER:
        seconds[path.name] += report.duration
        failed[path.name] += report.failed


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tables = [
        (HEADER, config.stash.get(ROWS, []), "what methods cost, each beside its yardstick"),
        (FIGURE, config.stash.get(FIGURES, []), "what the benchmarks found"),
        (("file", "seconds", "failed"), _files() if seconds else [], "how long they took"),
    ]
    for header, rows, title in tables:
        if rows:
            terminalreporter.section(title)
            for line in _aligned([header, *rows]):
                terminalreporter.line(line)
    path = os.environ.get("PRUNEBENCH_BENCHMARKS")
    if path and seconds:
        Path(path).write_text(_markdown([table for table in tables if table[1]]), encoding="utf-8")


def _files() -> list[tuple[str, ...]]:
    rows = [(name, f"{spent:.0f}", str(failed[name] or "")) for name, spent in seconds.items()]
    return [*sorted(rows), ("all", f"{seconds.total():.0f}", str(failed.total() or ""))]


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _markdown(
    tables: Sequence[tuple[tuple[str, ...], Sequence[tuple[str, ...]], str]],
) -> str:
    made = f"`tox run -e bench` on {datetime.now(UTC):%-d %B %Y}: {_machine()}."
    lines = ["# Benchmarks", "", f"{made} Ratios are of one run; times depend on the machine."]
    for header, rows, title in tables:
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += [_row(header), _row(["---"] * len(header)), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"{len(names)} cores of {names[0] if names else platform.machine()}{gpu}, {memory:.0f} GB, "
        f"torch {version('torch')}"
    )
