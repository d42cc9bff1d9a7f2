"""`prunebench report`: render the report of a run again, or of several runs as one."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from prunebench.cli.options import plugin_option
from prunebench.cli.terminal import result_is_a_file, say, say_path, tell


@click.command("report")
@click.argument("runs", metavar="RUN...", type=click.Path(path_type=Path), nargs=-1, required=True)
@plugin_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write here instead.  [default: RUN/report.html]"
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Keep cells by method, label, model or id. Repeatable.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "markdown", "latex", "model-card"]),
    default="html",
    show_default=True,
    help="markdown and latex print the main table, for papers; model-card prints all figures with "
    "their conditions, for the README of a pruned model.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="For CI: end with 4 if the report warns of something, or if a published figure that the "
    "suite expects is not reproduced.",
)
@click.option("--open", "show", is_flag=True, help="Open the report in a browser.")
def command(
    runs: tuple[Path, ...],
    out: Path | None,
    only: tuple[str, ...],
    form: Literal["html", "markdown", "latex", "model-card"],
    show: bool,
    strict: bool,
) -> None:
    """Write RUN/report.html from the records in the run folder RUN.

    Several run folders make one report, report.html in the working folder; a cell that is in more
    than one of them is shown once. The exit code is 4 with --strict if there are warnings.
    """
    if form == "html":
        path = _write_page(runs, out, only)
        if show:
            webbrowser.open(path.resolve().as_uri())
    else:
        _print_table(runs, out, only, form)
    _warn(runs, only, strict=strict)


def _print_table(
    runs: Sequence[Path],
    out: Path | None,
    only: Sequence[str],
    form: Literal["markdown", "latex", "model-card"],
) -> None:
    from prunebench.store.atomic import write_atomically
    from prunebench_report import main_table

    text = main_table(runs, form, only=only)
    if out is None:
        say(text, nl=False)
    else:
        write_atomically(out, text)
        say_path(out, err=True)


def _write_page(runs: Sequence[Path], out: Path | None, only: Sequence[str]) -> Path:
    from prunebench.plugin.host import load_chosen_plugins
    from prunebench_report import write_report

    result_is_a_file()
    # Plugins are loaded for their sections only; records are shown without the plugins they name.
    sections = list(load_chosen_plugins().registered("section").values())
    path = write_report(
        *runs,
        # A report of several runs belongs to none of their folders.
        out=out or (Path("report.html") if len(runs) > 1 else None),
        only=only,
        sections=sections,
    )
    say_path(path)
    return path


def _warn(runs: Sequence[Path], only: Sequence[str], *, strict: bool) -> None:
    from prunebench.cli.run import NOT_STRICT
    from prunebench.cli.run_end import show_warnings, strict_reason
    from prunebench_report import summary

    found = summary(*runs, only=only)
    warnings = [*([found.not_run] if found.not_run else []), *found.warnings]
    show_warnings(warnings, found.misses)
    if strict and (reason := strict_reason(warnings, found.misses)):
        tell(reason, err=True)
        sys.exit(NOT_STRICT)
