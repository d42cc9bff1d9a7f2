"""What `import prunebench` and `prunebench --help` cost, beside Python and click alone."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.bench

ROUNDS = 15
COMMANDS = {
    "python": ["-c", "pass"],
    "import click": ["-c", "import click"],
    "import prunebench": ["-c", "import prunebench"],
    "prunebench --help": ["-c", "from prunebench.cli import main; main()", "--help"],
}


def cpu_ms(arguments: list[str]) -> float:
    """Milliseconds of CPU that a new interpreter uses, in user and system mode."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3


def test_help_costs_little_more_than_click() -> None:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            taken[name].append(cpu_ms(arguments))
    found = {name: statistics.median(times) for name, times in taken.items()}
    for name, milliseconds in found.items():
        print(f"\n{name}: {milliseconds:.0f} ms of CPU", end="")
    print()
    assert found["prunebench --help"] <= 1.4 * found["import click"]
    assert found["import prunebench"] <= 1.6 * found["python"]
