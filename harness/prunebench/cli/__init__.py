"""The command line: one file per command, imported when that command runs.

So `prunebench --help` is quick. Commands parse, call `prunebench.app` or the report, and print.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from prunebench.cli.terminal import careful_streams, say

COMMANDS = {
    "run": "Run a suite and write its report.",
    "suites": "List the suites that come with prunebench.",
    "plan": "Show the cells of a suite, those that are done, and how much work is left.",
    "prune": "Prune one model and save it.",
    "check": "Show which engine will load a saved model, and what to do if one will not.",
    "profile": "Show where a model's time and bytes go.",
    "report": "Render the report of a run again, or of several as one.",
    "compare": "Compare two runs, cell by cell.",
    "export": "Print or write the records of a run as one table.",
    "families": "Show what works on a model, and why the rest does not.",
    "doctor": "Show what this machine can measure, and what it cannot and why.",
    "plugins": "List the plugins and what they offer.",
    "schema": "Print the JSON Schema of suite files, for editors.",
}


CONSOLE_SCRIPT = "console script"
"""The context's object if `main` runs a command: the process is its own, so are its allocator and
the like. A program that invokes a command itself keeps its settings."""


class LazyGroup(click.Group):
    """Knows the names and short helps of its commands; imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"prunebench.cli.{cmd_name}").command
        return command

    # Click's own message would name no suggestion.
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from prunebench.errors import did_you_mean

            ctx.fail(f"no command '{args[0]}' ({did_you_mean(args[0], COMMANDS)})")
        return super().resolve_command(ctx, args)

    # Click would import every command to ask for its short help.
    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: Any, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"prunebench {version('prunebench')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    callback=_version,
    expose_value=False,
    is_eager=True,
    help="Show the version.",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Log what happens, and show where an error comes from."
)
def prunebench(*, verbose: bool) -> None:
    """Benchmark pruning of large language models: quality, speed, memory and I/O, one protocol.

    Start with `prunebench run quickstart`.
    """
    if verbose:
        import logging

        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("prunebench").setLevel(logging.DEBUG)


def main() -> None:
    """The console script. Exit codes: 0 success, 1 a cell failed, 2 wrong usage or bad input.

    An output that cannot be written is 2 as well, if it is the command's result.
    """
    from prunebench.isolation.interpreter import leave_working_folder

    leave_working_folder()
    with careful_streams() as streams:
        code = _run()
    lost = streams.lost()
    if lost is not None and not code:
        with careful_streams():
            say(f"error: cannot write the output: {lost.strerror or lost}", err=True)
        code = 2
    sys.exit(code)


def _run() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    from prunebench.errors import PrunebenchError

    try:
        prunebench(prog_name="prunebench", obj=CONSOLE_SCRIPT)
    except SystemExit as end:  # click ends every command like this
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except PrunebenchError as error:
        import logging

        # Parameters of the command are gone by now; --verbose is still known by the log level.
        if logging.getLogger("prunebench").isEnabledFor(logging.DEBUG):
            import traceback

            traceback.print_exc()
        say(f"error: {error.message}", err=True)
        if error.hint:
            say(f"  fix: {error.hint}", err=True)
        return 2
    return 0
