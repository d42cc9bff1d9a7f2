"""`prunebench prune`: prune one model and save it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli import CONSOLE_SCRIPT, completion
from prunebench.cli.options import LARGEST, assignments, plugin_option, plugin_words
from prunebench.cli.terminal import result_is_a_file, say, tell
from prunebench.errors import printable

if TYPE_CHECKING:
    from prunebench.app.prune import Pruned


@click.command("prune", short_help="Prune one model and save it.")
@click.argument("model", shell_complete=completion.models)
@click.argument("method", shell_complete=completion.methods)
@plugin_option
@plugin_words("method")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the pruned model."
)
@click.option("--force", is_flag=True, help="Replace the model that --out holds.")
@click.option(
    "--calibration",
    "calibration",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completion.calibration,
    help="Calibration text: corpus, windows, length, split, sampler. Repeatable. Without a corpus: "
    "the method's published calibration, which `plugins show` names; if the hub cannot be reached, "
    "corpus=boolq-passages windows=32 length=512.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, LARGEST),
    help="Of the calibration sample and of random methods.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Precision to prune and save in.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Where the model is loaded: auto, cpu, cuda, cuda:0 ...",
)
@click.option(
    "--layer-device",
    help="Where one decoder layer at a time is pruned: --device cpu --layer-device cuda prunes a "
    "model that is too big for the GPU.",
)
@click.option(
    "--stream",
    is_flag=True,
    help="Never hold the model: read a layer from its files, prune it, write it. For layer-wise "
    "methods; two layers, the embeddings and the calibration states must fit in memory.",
)
@click.option(
    "--shard-size",
    default="2 GB",
    show_default=True,
    help="Largest weight file that --stream writes.",
)
@click.option(
    "--format",
    "format_",
    default="prunebench",
    show_default=True,
    type=click.Choice(["prunebench", "decilm", "gguf"]),
    help="prunebench: a plain folder if all layers are alike. gguf: model.gguf for llama.cpp. "
    "decilm: for vLLM and SGLang (with --trust-remote-code), a Llama whose layers differ.",
)
@click.option(
    "--precision",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    help="Of --format gguf.  [default: that of --dtype]",
)
@click.option(
    "--uniform",
    is_flag=True,
    help="Fill narrower layers up with zeros until all are alike: the same logits, and a plain "
    "folder that every engine loads, at the price of the largest layer for all.",
)
def command(
    model: str,
    method: str,
    options: tuple[str, ...],
    out: Path,
    force: bool,
    calibration: tuple[str, ...],
    seed: int,
    dtype: str,
    device: str,
    layer_device: str | None,
    stream: bool,
    shard_size: str,
    format_: Any,
    precision: str | None,
    uniform: bool,
) -> None:
    """Prune MODEL with METHOD and save it in the folder --out, whole or not at all.

    MODEL is a registered name, a folder of safetensors, a .gguf file or a Hub id. Options are the
    method's; recovery=lora repairs the model afterwards. Values are YAML: sparsity=2:4,
    recovery='{lora: {rank: 16}}'.

    The result loads with prunebench.load_pruned(FOLDER), and as a model of a suite.
    """
    from prunebench.app.prune import PruneJob, prune_model
    from prunebench.isolation.heap import keep_freed_memory

    result_is_a_file()
    # A stream must not hold more than a layer.
    if click.get_current_context().obj == CONSOLE_SCRIPT and not stream:
        keep_freed_memory()
    job = PruneJob(
        model,
        method,
        options=assignments(options),
        calibration=assignments(calibration) or None,
        seed=seed,
        dtype=dtype,
        device=device,
        layer_device=layer_device,
        out=out,
        force=force,
        format=format_,
        precision=precision,
        uniform=uniform,
        stream=stream,
        shard_size=shard_size,
    )
    for line in summary(prune_model(job, _Progress()), out).splitlines():
        tell(line)
    say(next_steps(out) if format_ == "prunebench" else serving_steps(out, format_))


def next_steps(out: Path) -> str:
    """Commands for the model in ``out``: load it, profile it, measure its quality."""
    shown = printable(str(out))
    folder = shlex.quote(shown)
    # A model of a suite is a folder only if it is written as a path.
    path = shown if out.is_absolute() else f"./{shown}"
    return (
        "next:\n"
        f"  load it     python -c {shlex.quote(f'import prunebench; prunebench.load_pruned({shown!r})')}\n"
        f"  profile it  prunebench profile {folder}\n"
        f"  check it    prunebench run quickstart --set {shlex.quote(f'models={path}')} "
        f"--only dense --out {shlex.quote(f'runs/{Path(shown).name}')}\n"
        f"  serve it    prunebench check {folder}"
    )


def serving_steps(out: Path, format_: str) -> str:
    """Commands for a model in a format that only engines read."""
    # prunebench itself loads neither format, so there is nothing to profile or to run.
    if format_ == "gguf":
        return f"next:\n  serve it    llama-server -m {shlex.quote(printable(str(out / 'model.gguf')))}"
    folder = shlex.quote(printable(str(out)))
    return f"next:\n  serve it    vllm serve {folder} --trust-remote-code"


def summary(result: Pruned, out: Path) -> str:
    """What was counted on the pruned model, and what was odd about it; one line each."""
    audit = result.audit
    # Only what the method changed is shown: a structured method makes no zeros, and so on.
    facts = [f"{audit.parameters:,} of {audit.parameters_dense:,} parameters"]
    if audit.zeros > audit.zeros_dense:
        facts.append(f"{audit.sparsity:.1%} of the prunable weights are zero")
    if audit.removed_layers:
        facts.append(f"decoder layers removed: {', '.join(map(str, audit.removed_layers))}")
    if audit.removed_blocks:
        facts.append(f"attentions and MLPs removed: {', '.join(audit.removed_blocks)}")
    for kind, parts in (("attention", "KV groups"), ("mlp", "MLP channels")):
        if narrower := [one for one in audit.widths if one.kind == kind]:
            gone, dense = (
                sum(one.groups_dense - one.groups for one in narrower),
                sum(one.groups_dense for one in narrower),
            )
            facts.append(f"{gone:,} of {dense:,} {parts} removed in {len(narrower)} layers")
    if audit.hidden != audit.hidden_dense:
        facts.append(f"{audit.hidden} of {audit.hidden_dense} residual channels stay")
    flags = "".join(f"note: {flag}\n" for flag in result.flags)
    shown = printable(str(out))
    calibrated = f"calibrated on {result.calibration}\n" if result.calibration else ""
    return f"{calibrated}{'; '.join(facts)}\n{audit.note}\n{flags}saved in {shown}"


class _Progress:
    """One line for each phase; in a terminal it counts."""

    def __init__(self) -> None:
        self.phase = ""
        self.counts = sys.stderr.isatty()

    # To stderr: stdout has only the result.
    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self.phase:
            if self.counts and self.phase:
                say(err=True)
            self.phase = phase
            say(f"{phase} ...", err=True, nl=not self.counts)
        elif self.counts and total:
            # "\r" writes the count over the last one.
            say(f"\r{phase} ... {done}/{total}", err=True, nl=False)
            if done == total:
                say(err=True)
                self.phase = ""
