"""Compare the execution forms with each other and with `generate()`: what Python costs a token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import Form
from prunebench.measure.speed.execution import choose
from prunebench.measure.speed.rounds import one_round
from prunebench.measure.speed.summary import paired_ratio
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.measure.speed.weight_pages import put_side_by_side
from prunebench.measure.synchronise import synchroniser
from prunebench.record.speed import FormTime

GENERATE = "generate()"


@torch.inference_mode()
def compare_forms(
    model: Any, prompt: Tensor, new_tokens: int, forms: Sequence[Form], *, rounds: int = 6
) -> list[FormTime]:
    """Median seconds per token in `generate()` and in each form, in rounds that alternate.

    ``prompt`` is int64 [batch, prompt] on the model's device. `speedup` is over `generate()`,
    paired round by round. A form that the model cannot run has the reason instead of figures.
    The first round, which compiles, does not count.
    """
    wait = synchroniser(prompt.device.type)
    put_side_by_side(model)
    decoders: dict[str, Any] = {}
    notes: dict[str, str] = {}
    same: dict[str, bool | None] = {}
    copied: dict[str, int] = {}
    for form in forms:
        try:
            chosen = choose([model], prompt, new_tokens, form)
        except PrunebenchError as error:
            if not isinstance(error.__cause__, UnavailableError):
                raise
            notes[form] = str(error.__cause__)
            continue
        decoders[form] = chosen.decoders[0]
        copied[form] = chosen.products.copied_bytes if chosen.products else 0
        same[form] = chosen.same_tokens
        if chosen.notes:
            notes[form] = "; ".join(chosen.notes)
    steps: dict[str, list[float]] = {GENERATE: [], **{form: [] for form in decoders}}
    # Alternating, so that a change of the machine's load meets all forms alike.
    for _ in range(rounds + 1):
        steps[GENERATE].append(generate_s(model, prompt, new_tokens))
        for name, each in decoders.items():
            steps[name].append(median(one_round(each, prompt, new_tokens, wait)[1]))
    found = [FormTime(form=GENERATE, inter_token_s=median(steps[GENERATE][1:]))]
    for form in forms:
        times = steps.get(form, [])[1:]
        found.append(
            FormTime(
                form=form,
                inter_token_s=median(times) if times else None,
                speedup=paired_ratio(steps[GENERATE][1:], times) if times else None,
                same_tokens=same.get(form),
                second_copy_bytes=copied.get(form, 0),
                note=notes.get(form),
            )
        )
    return found


def generate_s(model: Any, prompt: Tensor, new_tokens: int) -> float:
    """Seconds per token in the generation phase of `generate()`.

    (seconds for ``new_tokens`` tokens - seconds for one token) / (``new_tokens`` - 1): the
    difference removes the prompt phase.
    """
    wait = synchroniser(prompt.device.type)

    def seconds(tokens: int) -> float:
        before = time.perf_counter()
        made = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, pad_token_id=0
        )
        wait()
        elapsed = time.perf_counter() - before
        assert made.shape[1] == prompt.shape[1] + tokens
        return elapsed

    with greedy_generation(model):
        return max(1e-9, seconds(new_tokens) - seconds(1)) / (new_tokens - 1)


@contextmanager
def greedy_generation(model: Any) -> Iterator[None]:
    """Let `generate()` decode greedily with a KV cache, whatever the checkpoint says.

    Its generation_config.json may ask for sampling, beams, another cache or a penalty. Arguments of
    `generate()` replace single settings, but keep the others, so the whole of it is replaced. It
    names no end-of-sequence token, so exactly as many tokens are generated as are asked for.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
