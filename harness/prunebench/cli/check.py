"""`prunebench check`: which engine will load a saved model, and what to do if one will not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunebench.cli.terminal import say, tell

if TYPE_CHECKING:
    from prunebench.serving.check import Answer


@click.command("check", short_help="Show which engine will load a saved model.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--for",
    "engines",
    multiple=True,
    metavar="ENGINE",
    help="transformers, vllm, sglang, llama.cpp, onnxruntime or openvino. Repeatable; without it, "
    "all. With it, the exit code is 1 if one of them will not load the model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--rules", is_flag=True, help="Show the rules, and where each was read.")
@click.pass_context
def command(
    ctx: click.Context,
    folder: Path | None,
    engines: tuple[str, ...],
    *,
    as_json: bool,
    rules: bool,
) -> None:
    """Show which engines will load FOLDER, by the rules of their readers.

    FOLDER is what `prunebench prune` or save_pretrained wrote, or a .gguf file. Only its config and
    the headers of its files are read, and no engine is needed here. 'unknown' means that no rule
    speaks against it, and that nobody looked whether the engine has code for it.
    """
    if rules:
        _show_rules(as_json=as_json)
        return
    if folder is None:
        raise click.UsageError("name a folder or a .gguf file, or add --rules")
    from prunebench.serving.check import check

    answers = check(folder, engines)
    if as_json:
        say(json.dumps([answer.model_dump() for answer in answers], indent=1))
    else:
        for answer in answers:
            _show(answer)
    # For scripts: of all engines some always refuse, so only those that were named count.
    if engines and any(answer.loads == "no" for answer in answers):
        ctx.exit(1)


def _show(answer: Answer) -> None:
    tell(f"{answer.loads:<8}{answer.engine:<14}{answer.text}", indent=22)
    for finding in answer.findings:
        mark = {"refuses": "rule", "wrong": "WRONG", "note": "note"}[finding.effect]
        if finding.text != answer.text:  # which the first line says already
            tell(f"        {mark}: {finding.text}", indent=14)
        tell(f"        fix: {finding.fix}", indent=13)
        tell(f"        read in: {finding.source}", indent=17)
    if answer.start is not None:
        say(f"        {answer.start}")


def _show_rules(*, as_json: bool) -> None:
    from prunebench.serving.engines import ENGINES
    from prunebench.serving.rules import RULES

    if as_json:
        table = [
            {
                "rule": r.name,
                "says": r.says,
                "effect": r.effect,
                "sources": {str(e): text for e, text in r.sources.items()},
            }
            for r in RULES
        ]
        say(json.dumps(table, indent=1))
        return
    for name, facts in ENGINES.items():
        tell(f"{name:<14}{facts.read}", indent=14)
    for rule in RULES:
        tell(f"{rule.name} ({rule.effect}): {rule.says}", indent=2)
        for engine, source in rule.sources.items():
            tell(f"  {engine:<14}{source}", indent=16)
