"""Run one cell in this process: `python -m prunebench.cell SPEC.json`.

The record goes to --record, or to the standard output.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prunebench.byte_path import shell_command
from prunebench.cell.events import EventWriter
from prunebench.experiment.cell import Cell
from prunebench.isolation.huge_pages import ask_for_huge_pages
from prunebench.isolation.interpreter import module_command
from prunebench.isolation.processes import adopt_orphans
from prunebench.plugin.files import plugin_files, with_files
from prunebench.store.atomic import write_atomically


def command(spec: Path) -> str:
    """The command that runs the cell of ``spec`` again."""
    files = [word for file in plugin_files() for word in ("--plugin", str(file.path))]
    return shell_command(module_command("prunebench.cell", str(spec.resolve()), *files))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cell; returns 0 if it gave a result and 1 if it failed."""
    parser = argparse.ArgumentParser(prog="python -m prunebench.cell", description=__doc__)
    parser.add_argument(
        "spec", type=Path, help="the cell, as `prunebench run` writes it under specs/"
    )
    parser.add_argument("--record", type=Path, help="write the record to this file")
    parser.add_argument(
        "--events", type=Path, help="append progress to this file, as one JSON line per event"
    )
    parser.add_argument(
        "--partial-results",
        type=Path,
        help="keep finished results in this file, and reuse those of an interrupted run",
    )
    parser.add_argument("--keep", type=Path, help="save the pruned model in this folder")
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], help="load this plugin file"
    )
    given = parser.parse_args(arguments)
    with with_files(given.plugin):
        return _run(given)


def _run(given: argparse.Namespace) -> int:
    cell = Cell.model_validate_json(given.spec.read_text(encoding="utf-8"))

    ask_for_huge_pages()
    adopt_orphans()
    # Only the record may go to the standard output: what a plugin or a library prints, also from C
    # code, goes to the standard error, which is the cell's log.
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    from prunebench.cell.run import run_cell

    with (given.events or Path(os.devnull)).open("a", encoding="utf-8") as file:
        record = run_cell(
            cell,
            events=EventWriter(file),
            command=command(given.spec),
            keep=given.keep,
            partial_results=given.partial_results,
            own_process=True,
        )
    text = record.model_dump_json(by_alias=True, indent=1) + "\n"
    if given.record is None:
        out.write(text)
        out.flush()
    else:
        write_atomically(given.record, text)
    return 0 if record.status == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
