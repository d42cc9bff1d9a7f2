"""`prunebench report`: render the report of a run again, or of several runs as one."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Literal

import click

from prunebench.cli.options import plugin_option
from prunebench.cli.terminal import result_is_a_file, say, say_path


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
    type=click.Choice(["html", "markdown", "latex"]),
    default="html",
    show_default=True,
    help="markdown and latex print the main table, for papers.",
)
@click.option("--open", "show", is_flag=True, help="Open the report in a browser.")
def command(
    runs: tuple[Path, ...],
    out: Path | None,
    only: tuple[str, ...],
    form: Literal["html", "markdown", "latex"],
    show: bool,
) -> None:
    """Write RUN/report.html from the records in the run folder RUN.

    Several run folders make one report, report.html in the working folder; a cell that is in more
    than one of them is shown once.
    """
    from prunebench.plugin.host import load_chosen_plugins
    from prunebench_report import main_table, write_report

    if form != "html":
        text = main_table(runs, form, only=only)
        if out is None:
            say(text, nl=False)
        else:
            from prunebench.store.atomic import write_atomically

            write_atomically(out, text)
            say_path(out, err=True)
        return
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
    if show:
        webbrowser.open(path.resolve().as_uri())
