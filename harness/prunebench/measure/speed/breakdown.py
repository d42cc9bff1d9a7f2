"""Split time and bytes by part: attention, MLP, norms, head and the rest, in both phases.

Hooks on the model's own modules take the times. So this always runs eagerly, whatever form the
latency was measured in; the cost of the hooks themselves is part of the rest. On a GPU the marks
are CUDA events: if the GPU waits for a kernel launch, the wait counts for that kernel's part.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.measure.devices import disturbance
from prunebench.measure.devices.disturbance import DisturbedError, Watch, undisturbed
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.speed.execution import Eager
from prunebench.measure.speed.io import experts_read, text_modules
from prunebench.measure.speed.kv_cache import kv_cache_bytes
from prunebench.measure.speed.rounds import one_round
from prunebench.measure.synchronise import synchroniser
from prunebench.model.anatomy import Anatomy, anatomy
from prunebench.model.coupling.rules import MIXER
from prunebench.model.coupling.sub_block import KINDS, Kind
from prunebench.model.experts import find_experts
from prunebench.model.positions import check_positions
from prunebench.model.replacement import ReplacementLayer
from prunebench.record.speed import OF_MIXTURES, Breakdown, PartShare

PARTS = ("attention", "mlp", "norms", "head", "rest")
"""'rest': embedding, residual additions, positions, mask, sampling, and the cost of the hooks."""
_ROUTERS = ("gate", "router")
_MLP = re.compile(r"mlp|feed_?forward|ffn|moe", re.IGNORECASE)


HOOK_S = 20e-6
"""What one module's two hooks may cost beyond that."""


@torch.inference_mode()
def breakdown(
    model: Any, prompt: Tensor, new_tokens: int, *, rounds: int = 3, watch: Watch | None = None
) -> Breakdown:
    """Split the seconds and bytes of one ``prompt``, int64 [batch, prompt], and of one new token.

    Medians over ``rounds`` undisturbed rounds after one warm-up round, in the generation phase over
    all tokens of these rounds. Bytes are what a generated token reads: weights as stored, and for
    the attention the KV cache too.

    Raises PrunebenchError if the model has too few positions. Raises DisturbedError if something
    else used the machine in every try, as ``watch`` tells (by default it watches the model's
    device), or if the parts do not add up to the whole.
    """
    check_positions(model, prompt.shape[1] + new_tokens, "the latency shape")
    parts = anatomy(model)
    decoder = Eager(model.eval())
    one_round(decoder, prompt, new_tokens)
    watch = watch or watch_of(str(prompt.device))
    wait = synchroniser(prompt.device.type)
    for last in (False, True):
        prompts: list[dict[str, float]] = []
        steps: list[dict[str, float]] = []
        wholes: list[tuple[float, float]] = []
        for _ in range(rounds):
            first, others = undisturbed(lambda: _split(parts, decoder, prompt, new_tokens), watch)
            whole = undisturbed(lambda: one_round(decoder, prompt, new_tokens, wait), watch)
            prompts.append(first)
            steps += others
            wholes.append((whole[0], median(whole[1])))
        found = _result(parts, prompt, new_tokens, rounds, (prompts, steps))
        problem = _does_not_add_up(found, wholes, hooked=len(list(_modules(parts))))
        if problem is None:
            return found
        if last:
            raise DisturbedError(problem)
    raise AssertionError("unreachable")


def _split(
    parts: Anatomy, decoder: Eager, prompt: Tensor, new_tokens: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """(seconds by part of the prompt phase, the same of each step) of one round with hooks."""
    steps = []
    with _marks(parts) as marks:
        first, tokens = marks.during(decoder.prompt, prompt)
        for _ in range(new_tokens - 1):
            taken, tokens = marks.during(decoder.step, tokens)  # tokens: [batch, 1]
            steps.append(taken)
    return first, steps


def _result(
    parts: Anatomy,
    prompt: Tensor,
    new_tokens: int,
    rounds: int,
    taken: tuple[list[dict[str, float]], list[dict[str, float]]],
) -> Breakdown:
    prompts, steps = taken
    batch, length = prompt.shape
    held = _weight_bytes(parts, batch)
    held["attention"] += kv_cache_bytes(parts.model, length, new_tokens, batch)
    return Breakdown(
        prompt=length,
        new_tokens=new_tokens,
        batch_size=batch,
        rounds=rounds,
        parts=[
            PartShare(
                part=part,
                prompt_s=median(one.get(part, 0.0) for one in prompts),
                token_s=median(one.get(part, 0.0) for one in steps),
                token_bytes=held[part],
            )
            for part in held
        ],
    )


def _does_not_add_up(
    found: Breakdown, wholes: list[tuple[float, float]], hooked: int
) -> str | None:
    """Why the parts cannot be right: the same round without hooks took another time."""
    prompts, steps = zip(*wholes, strict=True)
    for phase, total, whole in (
        ("a prompt", found.prompt_s, median(prompts)),
        ("a token", found.token_s, median(steps)),
    ):
        if abs(total - whole) > disturbance.TOLERANCE * whole + HOOK_S * hooked:
            return f"the parts of {phase} add up to {total:.3g} s, the whole takes {whole:.3g} s"
    return None


class _Marks:
    """Points in time that hooks set; `during` adds up the time between them, by part."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        # The GPU stamps the event when it gets there, so a mark makes nobody wait.
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def span(self, part: str, start: Any) -> None:
        self._spans.append((part, start, self.mark()))

    def during(
        self, call: Callable[[Tensor], Tensor], tokens: Tensor
    ) -> tuple[dict[str, float], Tensor]:
        """(seconds by part of ``call(tokens)``, its result)."""
        self._spans.clear()
        start = self.mark()
        result = call(tokens)
        end = self.mark()
        if self._cuda:
            torch.cuda.synchronize()  # events can only be read once the GPU has passed them
        taken = dict.fromkeys(PARTS, 0.0)
        for part, before, after in self._spans:
            taken[part] = taken.get(part, 0.0) + self._seconds(before, after)
        taken["rest"] = max(0.0, self._seconds(start, end) - sum(taken.values()))
        return taken, result

    def _seconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000 if self._cuda else float(end - start)


@contextmanager
def _marks(parts: Anatomy) -> Iterator[_Marks]:
    """Put hooks on the modules of every part, and remove them at the end."""
    marks = _Marks(parts.embeddings.weight.device.type == "cuda")
    handles = []
    for part, module in _modules(parts):
        begun: list[Any] = []  # a stack, bound to this module by the default arguments below
        handles.append(
            module.register_forward_pre_hook(lambda *_, begun=begun: begun.append(marks.mark()))
        )
        handles.append(
            module.register_forward_hook(
                lambda *_, begun=begun, part=part: marks.span(part, begun.pop())
            )
        )
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def _modules(parts: Anatomy) -> Iterator[tuple[str, nn.Module]]:
    """(part, module) for every part except the rest; no module is inside another one."""
    for layer in parts.layers:
        blocks = [
            (kind, layer.get_submodule(path))
            for kind in KINDS
            if (block := parts.sub_block(layer, kind)) is not None
            for path in block.modules
        ]
        if not isinstance(layer, ReplacementLayer):
            blocks += _unproved(layer, [block for _, block in blocks])
        for kind, outer in blocks:
            yield from _inside(kind, outer)
        if isinstance(layer, ReplacementLayer):
            yield "mlp", layer.network
        # A norm inside attention or MLP (q_norm, k_norm) is already counted there.
        inside = {id(each) for _, block in blocks for each in block.modules()}
        for module in layer.modules():
            if id(module) not in inside and _is_norm(module):
                yield "norms", module
    if parts.final_norm is not None:
        yield "norms", parts.final_norm
    yield "head", parts.head


def _unproved(layer: nn.Module, known: list[nn.Module]) -> list[tuple[Kind, nn.Module]]:
    """(kind, child of the layer) by names of classes alone: a time needs no proof.

    A layer that has some has two mixers or two MLPs side by side.
    """
    found: list[tuple[Kind, nn.Module]] = []
    for child in layer.children():
        inside = any(child is each for block in known for each in block.modules())
        if inside or _is_norm(child) or not list(child.parameters()):
            continue
        name = type(child).__name__
        if _MLP.search(name) or find_experts(child):
            found.append(("mlp", child))
        elif MIXER.search(name):
            found.append(("attention", child))
    return found


def _inside(kind: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(part, module) of a sub-block: itself, or if there are routed experts in it, its pieces."""
    experts = [each.module for each in find_experts(block).values()]
    if not experts:
        yield kind, block
        return
    around = {
        id(module)
        for module in block.modules()
        if any(inner is each for each in experts for inner in module.modules())
    }
    waiting = [("", block)]
    while waiting:
        name, module = waiting.pop()
        if any(module is each for each in experts):
            yield "experts", module
        elif id(module) in around:
            waiting += module.named_children()
        else:
            yield "router" if name in _ROUTERS else kind, module


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _weight_bytes(parts: Anatomy, batch: int) -> dict[str, int]:
    """Bytes of weights that a generation step reads, by part.

    A shared tensor counts once, for the part that comes first: tied embeddings count for the head.
    """
    held = dict.fromkeys(PARTS, 0)
    seen: set[int] = set()
    shares = experts_read(parts.model, batch)
    if shares:
        held |= dict.fromkeys(OF_MIXTURES, 0)
    for part, module in _modules(parts):
        for parameter in module.parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                size = parameter.numel() * parameter.element_size()
                held[part] += round(size * shares.get(parameter, 1.0))
    for module in text_modules(parts.model):
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                size = round(
                    parameter.numel() * parameter.element_size() * shares.get(parameter, 1.0)
                )
                rows = batch * parameter[0].numel() * parameter.element_size()
                held["rest"] += min(size, rows) if isinstance(module, nn.Embedding) else size
    return held
