"""`prunebench compare`: two runs, cell by cell."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunebench.cli.terminal import say, say_path, tell
from prunebench.errors import printable

if TYPE_CHECKING:
    from prunebench_report.data.losses import Loss

LOST = 1
"""Exit code: B surely lost more than --fail-on allows."""
VERDICTS = ("within", "beyond", "cannot tell")
HEADS = ("cell", "figure", "A to B", "change")


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--html", type=click.Path(path_type=Path), help="Also write the comparison to this file."
)
@click.option(
    "--fail-on",
    "limits",
    metavar="WHAT:LOSS,...",
    callback=lambda *arguments: _limits(arguments[2]),
    help="For CI: end with 1 if B surely lost more than this, for example quality:1%,speed:5%. "
    "Quality, speed, memory and disk can have a limit.",
)
def command(a: Path, b: Path, html: Path | None, limits: dict[str, float]) -> None:
    """Compare the run folders A and B: what changed from A to B.

    Cells are paired if they are the same experiment, apart from what differs between the runs as a
    whole (the device, a version, the model). A difference within its uncertainty is "no significant
    change".

    With --fail-on, the exit code is 1 if the whole 95 % interval of a loss is beyond its limit, or
    if a cell has no result any more. A limit inside the interval is "cannot tell", and the exit
    code 0. Quality is perplexity and the mean of the tasks, speed the speed-up over dense, memory
    and disk the bytes of the model.
    """
    from prunebench.cli.tables import Column, show
    from prunebench_report import compare

    found = compare(a, b, html, limits)
    say(printable(f"A: {found['a']}   B: {found['b']}"))
    for name, before, after in found["differs"]:
        tell(printable(f"  {name}: {before} in A, {after} in B"), indent=4)
    # Insignificant changes are left out, apart from figures that a reader always looks for.
    rows = [
        [row["name"], head, cell["values"], cell["note"]]
        for row in found["rows"]
        for head, cell in zip(found["heads"], row["cells"], strict=True)
        if cell["significant"] or head in found["always"]
    ]
    if rows:
        show([Column(head, words=True, keep=True) for head in HEADS], rows)
    for name, there in (("A", found["only_a"]), ("B", found["only_b"])):
        if there:
            tell(printable(f"only in {name}: {', '.join(there)}"))
    tell(printable(found["summary"]))
    if html is not None:
        say_path(html)
    if limits:
        _judge(found["losses"], limits)


def _judge(losses: Sequence[Loss], limits: dict[str, float]) -> None:
    """Print what is not within its limit; ends with `LOST` if a loss is sure."""
    from prunebench.cli.tables import Column, show
    from prunebench.errors import PrunebenchError
    from prunebench_report.sections.limits import table

    if not losses:
        raise PrunebenchError(
            f"nothing to judge: no cell of both runs has a figure for {', '.join(limits)}",
            hint="compare runs of the same suite that measured it",
        )
    counts: Counter[str] = Counter(one.verdict for one in losses)
    open_ = [one for one in losses if one.verdict != "within"]
    if open_:
        heads = ("cell", "figure", "loss", "limit", "verdict")
        say()
        show([Column(head, words=True, keep=True) for head in heads], table(open_))
    words = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    tell(f"limits: {', '.join(words)}", err=bool(counts["beyond"]))
    if counts["beyond"]:
        sys.exit(LOST)


def _limits(text: str | None) -> dict[str, float]:
    """'quality:1%,speed:5%' as shares by quantity."""
    from prunebench.errors import did_you_mean
    from prunebench_report.data.losses import QUANTITIES

    found: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        name, _, amount = (word.strip() for word in part.partition(":"))
        if name not in QUANTITIES:
            raise click.UsageError(f"--fail-on: no '{name}' ({did_you_mean(name, QUANTITIES)})")
        if name in found:
            raise click.UsageError(f"--fail-on: {name} is given twice")
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", amount)
        if match is None:
            raise click.UsageError(
                f"--fail-on {part.strip()}: '{amount}' is no share; write {name}:1% or {name}:0.01"
            )
        found[name] = float(match[1]) / (100 if match[2] else 1)
    return found
