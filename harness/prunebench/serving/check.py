"""Ask the rules about a saved model: will an engine load it, and what to do if it will not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.schema import Part
from prunebench.serving.engines import ENGINES, Engine
from prunebench.serving.rules import RULES, Effect, Rule
from prunebench.serving.saved import Saved, read_saved


class Finding(Part):
    """A rule of an engine's reader, and what of the saved model it is about."""

    rule: str
    effect: Effect = Field(description="refuses, wrong (it computes another model), or note")
    text: str
    fix: str
    source: str = Field(description="where the rule was read, and in which version")


class Answer(Part):
    """What an engine will do with a saved model."""

    engine: Engine
    loads: Literal["yes", "no", "unknown"]
    text: str = Field(description="the reason, in one sentence")
    findings: list[Finding] = Field(default_factory=list)
    start: str | None = Field(description="the command that serves it; null unless it loads")


def check(path: Path, engines: Iterable[str] = ()) -> list[Answer]:
    """One answer for each of ``engines``; all of them without any.

    Nothing is loaded but configs and headers of files. Raises PrunebenchError if ``path`` is no
    model, or if an engine is unknown.
    """
    # Each once, and in our order: answers of two calls can be compared line by line.
    names = list(dict.fromkeys(engines)) or list(ENGINES)
    for name in names:
        if name not in ENGINES:
            raise PrunebenchError(
                f"no rules for the engine '{name}'", hint=did_you_mean(name, ENGINES)
            )
    saved = read_saved(path)
    return [_answer(saved, engine) for engine in ENGINES if engine in names]


def _answer(saved: Saved, engine: Engine) -> Answer:
    findings = [
        _finding(rule, text, engine, saved)
        for rule in RULES
        if engine in rule.sources and (text := rule.look(saved)) is not None
    ]
    if stops := [finding for finding in findings if finding.effect != "note"]:
        return _no(engine, findings, stops[0])
    # The only engine that reads no folder: the question is whether one can be converted.
    if engine == "llama.cpp" and saved.folder:
        return _llama_cpp(saved, findings)
    loads, text = _known(saved, engine)
    return Answer(
        engine=engine,
        loads=loads,
        text=text,
        findings=findings,
        start=_start(saved, engine) if loads != "no" else None,
    )


def _finding(rule: Rule, text: str, engine: Engine, saved: Saved) -> Finding:
    return Finding(
        rule=rule.name,
        effect=rule.effect,
        text=text,
        fix=rule.fix_for(engine, saved),
        source=rule.sources[engine],
    )


def _no(engine: Engine, findings: list[Finding], first: Finding) -> Answer:
    silently = "it loads and computes another model: " if first.effect == "wrong" else ""
    return Answer(
        engine=engine, loads="no", text=f"{silently}{first.text}", findings=findings, start=None
    )


def _known(saved: Saved, engine: Engine) -> tuple[Literal["yes", "no", "unknown"], str]:
    """Whether the engine has code for such a model, once no rule speaks against it."""
    facts = ENGINES[engine]
    if not saved.folder:
        if engine in {"llama.cpp", "transformers"}:
            return "yes", "it reads GGUF files"
        return "unknown", "its reading of GGUF files was not looked at"
    if saved.quantised:
        method = saved.quantised.get("quant_method") or "no method named"
        return "unknown", f"the weights are quantised ({method}), and the rules are for plain ones"
    # Whether remote code runs in an engine depends on that code.
    if saved.config.get("auto_map") and saved.kind == "plain":
        return "unknown", "the model comes with its own code"
    if engine == "transformers":
        return "yes", f"{saved.architecture or 'the model'} loads with all its weights"
    if saved.architecture in facts.classes:
        return "yes", f"it has code for {saved.architecture}"
    name = saved.architecture or "a config without `architectures`"
    if facts.others is None:
        return "no", f"it has no code for {name}"
    return "unknown", f"{name} is not in the list that was read; {facts.others}"


def _llama_cpp(saved: Saved, findings: list[Finding]) -> Answer:
    """A folder is converted first: by prunebench, which writes layers that differ, or llama.cpp."""
    from prunebench.model.gguf_write import gguf_refusal
    from prunebench.model.gguf_write_config import FAMILIES

    engine: Engine = "llama.cpp"
    refusal = "it is in the DeciLM format" if saved.kind == "decilm" else gguf_refusal(saved.path)
    knows = saved.architecture in ENGINES[engine].classes
    # Of these families the writer knows what llama.cpp would compute otherwise.
    ours = saved.config.get("model_type") in FAMILIES
    if refusal is None:
        text = "prunebench writes it as GGUF"
        start = f"prunebench prune {saved.quoted} dense --format gguf --precision f16 --out NEW"
    elif knows and not ours and saved.kind != "uneven" and _does_load(saved):
        text = f"llama.cpp's own converter knows {saved.architecture}"
        start = f"python convert_hf_to_gguf.py {saved.quoted}"
    else:
        refused = Finding(
            rule="gguf-writer",
            effect="refuses",
            text=refusal,
            fix="load it with prunebench.load_pruned; llama.cpp has no code for such a model",
            source="prunebench's GGUF writer, and the files of llama.cpp that it names",
        )
        return _no(engine, [refused, *findings], refused)
    return Answer(engine=engine, loads="yes", text=text, findings=findings, start=start)


def _does_load(saved: Saved) -> bool:
    return saved.kind == "decilm" or saved.transformers_says is None


def _start(saved: Saved, engine: Engine) -> str:
    trusted = saved.kind == "decilm" and engine in {"vllm", "sglang"}
    if engine == "transformers":  # Python, not a shell
        file = "" if saved.folder else f", gguf_file={saved.path.name!r}"
        folder = str(saved.path if saved.folder else saved.path.parent)
        return ENGINES[engine].start.format(folder=f"{folder!r}{file}")
    command = ENGINES[engine].start.format(folder=saved.quoted, file=saved.quoted)
    return f"{command} --trust-remote-code" if trusted else command
