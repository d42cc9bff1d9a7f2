"""`prunebench compare`: two runs, cell by cell."""

from __future__ import annotations

from pathlib import Path

import click

from prunebench.cli.terminal import say, say_path, tell
from prunebench.errors import printable

HEADS = ("cell", "figure", "A to B", "change")


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--html", type=click.Path(path_type=Path), help="Also write the comparison to this file."
)
def command(a: Path, b: Path, html: Path | None) -> None:
    """Compare the run folders A and B: what changed from A to B.

    Cells are paired if they are the same experiment, apart from what differs between the runs as a
    whole (the device, a version, the model). A difference within its uncertainty is "no significant
    change".
    """
    from prunebench.cli.tables import Column, show
    from prunebench_report import compare

    found = compare(a, b, html)
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
