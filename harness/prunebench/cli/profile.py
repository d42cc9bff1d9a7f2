"""`prunebench profile`: where a model's time and bytes go on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunebench.cli import completion
from prunebench.cli.options import TOKENS, Seconds
from prunebench.cli.terminal import say, tell

if TYPE_CHECKING:
    from prunebench.app.profile import ModelProfile
    from prunebench.record.runtimes import TokenAgreement
    from prunebench.record.speed import Latency

Row = tuple[str, ...]
NOT_MEASURABLE = "not measurable here"


@click.command("profile", short_help="Show where a model's time and bytes go.")
@click.argument("model", shell_complete=completion.models)
@click.option(
    "--prompt",
    default=128,
    show_default=True,
    type=click.IntRange(1, TOKENS),
    help="Prompt tokens.",
)
@click.option(
    "--new-tokens",
    default=32,
    show_default=True,
    type=click.IntRange(2, TOKENS),
    help="Tokens to generate.",
)
@click.option(
    "--batch-size",
    default=1,
    show_default=True,
    type=click.IntRange(1, TOKENS),
    help="Sequences in a batch.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Precision in which the weights run.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0 ...")
@click.option(
    "--min-time",
    default=5.0,
    show_default=True,
    type=Seconds(),
    help="Seconds to time at least.",
)
@click.option("--compiled", is_flag=True, help="Also time torch.compile, which compiles minutes.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.runtimes,
    help="Also time it in this engine: llama-cpp, or with options '{llama-cpp: {precision: q8_0}}'."
    " Repeatable; batch size 1 only.",
)
@click.option(
    "--json", "as_json", type=click.Path(path_type=Path), help="Also write everything to this file."
)
def command(
    model: str,
    prompt: int,
    new_tokens: int,
    batch_size: int,
    dtype: str,
    device: str,
    min_time: float,
    runtimes: tuple[str, ...],
    as_json: Path | None,
    *,
    compiled: bool,
) -> None:
    """Measure MODEL unpruned: load, prompt phase, generation phase, and what a token must read.

    MODEL is a registered name, a folder of safetensors or of a pruned model, a .gguf file or a Hub
    id. The ways to run it are timed against generate() of transformers in alternating rounds.
    """
    from prunebench.isolation.huge_pages import ask_for_huge_pages

    ask_for_huge_pages()
    from prunebench.app import profile_model
    from prunebench.experiment.measures import LatencySpec
    from prunebench.model.files import check_file_target
    from prunebench.store.atomic import write_atomically
    from prunebench.suite.yaml import parse_value
    from prunebench.user_path import user_path

    if as_json is not None:
        # Before minutes of measuring.
        as_json = user_path(as_json, what="--json", hint="name another file")
        check_file_target(as_json, option="--json")
    shape = LatencySpec(
        prompt=prompt,
        new_tokens=new_tokens,
        batch_size=batch_size,
        min_rounds=5,
        min_time_s=min_time,
    )
    found = profile_model(
        model,
        shape,
        dtype=dtype,
        device=device,
        compiled=compiled,
        runtimes=[parse_value(text, "--runtime") for text in runtimes],
        progress=_tell,
    )
    _show(found)
    if as_json is not None:
        write_atomically(as_json, found.model_dump_json(indent=2) + "\n")


# Phases go to stderr: stdout has only the tables.
def _tell(phase: str, done: int, total: int) -> None:  # noqa: ARG001
    if not done:
        say(f"{phase} ...", err=True)


def _show(found: ModelProfile) -> None:
    latency = found.latency
    threads = f", {found.threads} threads" if found.device == "cpu" else ""
    tell(
        f"{found.model}: {found.parameters:,} parameters, {found.dtype}, "
        f"{found.device}{threads}; prompt {latency.prompt}, {latency.new_tokens} new tokens, "
        f"batch {latency.batch_size}, {latency.execution}"
    )
    for note in _notes(found):
        tell(f"note: {note}")
    _table("", ("", "", ""), [*_timing(found), *_energy(found)])
    _table(
        "Where it goes (eager, hooks on the modules)",
        ("", "prompt", "a token", "a token reads"),
        _parts(found),
    )
    _table(
        "Ways to run it, alternating in one run",
        ("", "a token", "speed-up over generate()", ""),
        _forms(found),
    )
    if found.runtimes:
        _table(
            "In the engines that serve models",
            ("", "first token", "a token", "tokens", ""),
            _runtimes(found),
        )
    _table("What is widely cited of generation (Deja Vu, 2023)", ("", "", ""), _claims(found))


def _notes(found: ModelProfile) -> Iterator[str]:
    for file, settings in found.settings.get("ignored", {}).items():
        yield f"not used, because the benchmark chooses: {', '.join(settings)} of {file}"
    yield from found.flags


def _timing(found: ModelProfile) -> Iterator[Row]:
    load = found.load
    cache = "" if load.cache is None else f", page cache {load.cache}"
    files = f"{load.bytes / 1e6:,.0f} MB of files{cache}"
    if load.seconds is None:
        yield "load", NOT_MEASURABLE, f"{files}; {load.not_measurable}"
    else:
        yield "load", f"{load.seconds:.2f} s", files
    yield from _latency(found.latency)
    yield from _io_floor(found)


def _latency(latency: Latency) -> Iterator[Row]:
    first, between = latency.ttft_s, latency.inter_token_s
    if first is None or between is None:
        yield "time to first token", NOT_MEASURABLE, latency.not_measurable or ""
        yield "inter-token latency", NOT_MEASURABLE, ""
        return
    yield (
        "time to first token",
        _ms(first.median),
        f"p90 {_ms(first.p90)}, {latency.rounds} rounds",
    )
    yield (
        "inter-token latency",
        _ms(between.median),
        f"p90 {_ms(between.p90)}, {latency.tokens_per_s:,.1f} tokens/s",
    )


def _io_floor(found: ModelProfile) -> Iterator[Row]:
    io = found.generation
    if io is None:
        yield "I/O floor of a token", NOT_MEASURABLE, found.generation_reason or ""
        return
    token_bytes = io.weight_bytes + io.kv_cache_bytes
    yield (
        "I/O floor of a token",
        _ms(io.floor_s),
        f"{token_bytes / 1e6:,.1f} MB at {io.bandwidth_bytes_per_s / 1e9:.1f} GB/s",
    )
    if io.utilisation is not None:
        yield "bandwidth utilisation", f"{100 * io.utilisation:.0f} %", io.bandwidth_source


def _energy(found: ModelProfile) -> Iterator[Row]:
    energy = found.energy
    if energy is None:
        return
    if energy.joules_per_token is None:
        yield "energy", "not available", energy.reason or ""
    else:
        yield "energy of a token", f"{energy.joules_per_token:.3g} J", energy.source or ""


def _parts(found: ModelProfile) -> Iterator[Row]:
    split = found.breakdown
    if split is None:
        yield NOT_MEASURABLE, found.breakdown_reason or "", "", ""
        return
    total = sum(part.token_bytes for part in split.parts)
    for part in split.parts:
        yield (
            {"mlp": "MLP"}.get(part.part, part.part),
            f"{_ms(part.prompt_s)}  {part.prompt_s / split.prompt_s:4.0%}",
            f"{_ms(part.token_s)}  {part.token_s / split.token_s:4.0%}",
            f"{part.token_bytes / 1e6:,.1f} MB  {part.token_bytes / total:4.0%}",
        )


def _forms(found: ModelProfile) -> Iterator[Row]:
    tokens = {True: "same tokens", False: "other tokens", None: ""}
    for form in found.forms:
        copies = (
            f", {form.second_copy_bytes / 1e6:,.0f} MB of second copies"
            if form.second_copy_bytes
            else ""
        )
        yield (
            form.form,
            "-" if form.inter_token_s is None else _ms(form.inter_token_s),
            # As everywhere: above 1 is faster.
            "" if form.speedup is None else f"{form.speedup.estimate:.2f}x",
            (form.note or tokens[form.same_tokens]) + copies,
        )


def _runtimes(found: ModelProfile) -> Iterator[Row]:
    for result in found.runtimes:
        if result.reason is not None:
            yield result.runtime, "-", "-", "", result.reason
        for one in () if result.reason is not None else result.latency:
            about = (
                ""
                if result.conversion is None
                else (
                    f"{result.conversion.bytes / 1e6:,.1f} MB,"
                    f" converted in {result.conversion.seconds:.1f} s"
                )
            )
            if one.ttft_s is None or one.token_s is None:
                yield result.runtime, NOT_MEASURABLE, "", "", one.not_measurable or ""
                continue
            yield (
                result.runtime,
                _ms(one.ttft_s.median),
                _ms(one.token_s.median),
                "" if one.tokens is None else _agreement(one.tokens, result.precision),
                about,
            )


def _agreement(tokens: TokenAgreement, precision: str) -> str:
    if tokens.same:
        return "same tokens"
    return f"others from {(tokens.first_difference or 0) + 1} on, in {precision}"


def _claims(found: ModelProfile) -> Iterator[Row]:
    words = {True: "holds here", False: "does not hold here", None: "cannot be seen here"}
    for claim in found.findings:
        yield claim.claim, words[claim.holds], claim.evidence


def _table(title: str, heads: tuple[str, ...], rows: Iterable[Row]) -> None:
    from prunebench.cli.tables import Column, show

    say()
    if title:
        tell(title)
    # Every column is needed to read the others.
    show([Column(head, words=True, keep=True) for head in heads], list(rows))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms"
