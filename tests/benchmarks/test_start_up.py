"""What `import prunebench` and `prunebench --help` cost, beside Python and click alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

import pytest

from cpu_time import cpu_seconds_of_children

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
    before = cpu_seconds_of_children()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return (cpu_seconds_of_children() - before) * 1e3


def test_help_costs_little_more_than_click(figure: Any) -> None:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            taken[name].append(cpu_ms(arguments))
    found = {name: statistics.median(times) for name, times in taken.items()}
    wanted = {"import prunebench": "1.6 x python", "prunebench --help": "1.4 x import click"}
    for name, milliseconds in found.items():
        figure(name, f"{milliseconds:.0f} ms of CPU", wanted.get(name, ""))
    assert found["prunebench --help"] <= 1.4 * found["import click"]
    assert found["import prunebench"] <= 1.6 * found["python"]
