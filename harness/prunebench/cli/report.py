"""`prunebench report`: render the report of a run again, or of several runs as one."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from prunebench.cli.options import plugin_option, strict_option
from prunebench.cli.terminal import result_is_a_file, say, say_path

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput


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
@strict_option
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
    from prunebench.model.files import check_file_target
    from prunebench_report import load

    path = out
    if form == "html" and out is None:
        path = _page_of(runs)
    if path is not None:
        check_file_target(path)
    given = load(*runs, only=only)
    if form != "html":
        _print_table(given, path, form)
    elif path is not None:
        _write_page(given, path)
        if show:
            webbrowser.open(path.resolve().as_uri())
    _warn(given, strict=strict)


def _page_of(runs: Sequence[Path]) -> Path:
    """Where the report goes: one of several runs belongs to none of their folders."""
    from prunebench.store.run_folder import RunStore

    return Path("report.html") if len(runs) > 1 else RunStore.open(runs[0]).report_path


def _print_table(
    given: ReportInput, out: Path | None, form: Literal["markdown", "latex", "model-card"]
) -> None:
    from prunebench.store.atomic import write_atomically
    from prunebench_report import main_table

    text = main_table(given, form)
    if out is None:
        say(text, nl=False)
    else:
        write_atomically(out, text)
        say_path(out, err=True)


def _write_page(given: ReportInput, path: Path) -> None:
    from prunebench.plugin.host import load_chosen_plugins
    from prunebench_report import write_page

    result_is_a_file()
    # Plugins are loaded for their sections only; records are shown without the plugins they name.
    write_page(given, path, list(load_chosen_plugins().registered("section").values()))
    say_path(path)


def _warn(given: ReportInput, *, strict: bool) -> None:
    from prunebench.cli.run_end import end_unless_clean, show_warnings, strict_reason
    from prunebench_report import summary

    found = summary(given)
    warnings = [*([found.not_run] if found.not_run else []), *found.warnings]
    show_warnings(warnings, found.misses)
    if strict:
        end_unless_clean(strict_reason(warnings, found.misses))
