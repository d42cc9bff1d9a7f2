"""Prove on a small random model what belongs together: masked logits equal sliced logits.

If a group of an attention or MLP is cut off, the rest must compute what the whole model computes
when the group's part of the last linear is zero. If a sub-block is removed, the rest must compute
what the whole model computes when the last linear is zero. Both are compared in float32 on random
weights, with a KV cache and without. A guess that is wrong cannot pass by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from prunebench.model.coupling.one_layer import OneLayer, copied
from prunebench.model.coupling.removal import put, replacements
from prunebench.model.coupling.rules import cut_guesses, sub_blocks
from prunebench.model.coupling.slices import is_transposed, narrow, owned, width
from prunebench.model.coupling.sub_block import Kind, SubBlock
from prunebench.model.coupling.trace import LayerTrace, is_at, tensors, trace

TOLERANCE = 1e-4
"""Largest difference of logits that counts as none, as a share of the largest logit."""
EFFECT = 1e-3
"""A mask must change the logits by this share of the largest one: else the proof shows nothing."""
GUESSES = 100
"""What is not found by then is not looked for: each guess takes milliseconds."""
LENGTH = 12
CALLS = ((8, 3, 1), (8, 1, 1, 1, 1))
"""Tokens of the calls that share a KV cache. State spaces take one token after the first call."""

Proved = dict[Kind, SubBlock]


class ProofModel:
    """A small random model, with its logits on random tokens."""

    def __init__(self, model: Any, layers: torch.nn.ModuleList) -> None:
        self.model = model
        self.layers = layers
        entries = int(model.get_input_embeddings().weight.shape[0])
        seeded = torch.Generator().manual_seed(11)
        self.tokens = torch.randint(min(10, entries // 2), entries, (2, LENGTH), generator=seeded)
        before = [dict(layer.named_modules()) for layer in layers]
        self.traces: list[LayerTrace] = trace(model, layers, self.tokens)
        # BigBird's first forward on a short text builds another attention, of the config's size.
        self.rebuilt = [
            {path for path, module in layer.named_modules() if known.get(path) is not module}
            for layer, known in zip(layers, before, strict=True)
        ]
        self.logits = self.run()
        self.scale = max(float(self.logits.abs().max()), 1e-6)
        self.calls = [calls for calls in CALLS if self._cache_works(calls)]
        self.generates = not self.calls and self.generates_alike()

    def run(self) -> torch.Tensor:
        """Logits of all tokens without a KV cache, [batch, length, vocabulary]."""
        return self.logits_of(self.model)

    def logits_of(self, model: Any) -> torch.Tensor:
        """The same for a variant of the model."""
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=self.tokens, use_cache=False).logits
            return logits.float()

    def run_cached(self, calls: tuple[int, ...]) -> torch.Tensor:
        """The same logits from several calls that share a KV cache, ``calls`` has their tokens."""
        found, cache = [], None
        with torch.no_grad():
            for part in torch.split(self.tokens, list(calls), dim=1):
                output = self.model(input_ids=part, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                found.append(output.logits.float())
        return torch.cat(found, dim=1)

    def differs(self, one: torch.Tensor, other: torch.Tensor) -> float:
        """Largest difference of two logits, by the largest logit; inf if shapes differ."""
        if one.shape != other.shape:
            return float("inf")
        found = float((one - other).abs().max()) / self.scale
        return float("inf") if math.isnan(found) else found

    def generates_alike(self) -> bool:
        """Whether a generation gives the same logits with a KV cache, up to the first other token.

        It is asked only if the cache does not work without what `generate` prepares.
        """
        runs = []
        for use_cache in (True, False):
            try:
                output = self.model.generate(
                    self.tokens[:1],
                    max_new_tokens=4,
                    do_sample=False,
                    use_cache=use_cache,
                    eos_token_id=None,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            except Exception:
                return False
            runs.append(output.logits)
        for one, other in zip(*runs, strict=True):
            if self.differs(one.float(), other.float()) > TOLERANCE:
                return False
            if not torch.equal(one.argmax(-1), other.argmax(-1)):
                break
        return True

    def _cache_works(self, calls: tuple[int, ...]) -> bool:
        try:
            return self.differs(self.run_cached(calls), self.logits) < TOLERANCE
        except Exception:
            return False

    @contextmanager
    def changed(self, index: int) -> Iterator[Any]:
        """A copy of one layer in its place, to change, until the block ends."""
        before = self.layers[index]
        self.layers[index] = copied(before, weights=True)
        try:
            yield self.layers[index]
        finally:
            self.layers[index] = before


def prove(proof: ProofModel, index: int, config: Any) -> Proved:
    """The attention and MLP of layer ``index``, with what holds and why the rest does not."""
    layer = proof.layers[index]
    found: Proved = {}
    for block in sub_blocks(layer, proof.traces[index]):
        if any(is_at(path, each) for path in proof.rebuilt[index] for each in block.modules):
            why = f"{block.modules[-1]} is built anew when the model first runs"
            found[block.kind] = replace(block, no_removal=why, no_cut=why)
            continue
        removable = _prove_removal(proof, index, block)
        found[block.kind] = _prove_cuts(proof, index, removable, config)
    return found


def confirm(proof: ProofModel, index: int, found: Proved) -> Proved:
    """What was ``found`` in a layer that is built alike, with what does not hold in layer ``index``.

    Only the guess that was right there is tried.
    """
    alone = OneLayer(proof.layers[index], proof.traces[index].of(""))
    confirmed: Proved = {}
    for kind, block in found.items():
        again = _prove_removal(proof, index, block)
        if again.no_removal is None and again.answer != block.answer:
            name = block.modules[-1]
            again = replace(block, no_removal=f"not every {name} returns the same if it is removed")
        groups = _groups(proof.layers[index], block)
        if block.no_cut is None and groups > 1:
            reason = _prove_guess(proof, index, block, groups, alone)
            again = replace(again, no_cut=reason and _uncut(block, reason))
        confirmed[kind] = again
    return confirmed


def _groups(layer: torch.nn.Module, block: SubBlock) -> int:
    """KV groups or channels of a sub-block that has cuts; 0 if it has none."""
    if not block.cuts:
        return 0
    if block.heads is not None:
        return block.heads.keys
    return width(layer.get_submodule(block.cuts[-1].linear), 1)


def is_parallel(proof: ProofModel, index: int, blocks: Proved) -> bool:
    """Whether the MLP of layer ``index`` reads the same if the attention adds nothing."""
    if len(blocks) < 2 or blocks["attention"].no_removal:
        return False
    path = blocks["mlp"].modules[0]
    call = proof.traces[index].of(path)
    seen: list[torch.Tensor] = []
    with proof.changed(index) as layer:
        for name, module in replacements(layer, blocks["attention"], index):
            put(layer, name, module)
        layer.get_submodule(path).register_forward_pre_hook(
            lambda _, args, kwargs: seen.extend(tensors((*args, *kwargs.values()))),
            with_kwargs=True,
        )
        proof.run()
    return call is not None and torch.equal(call.inputs[0], seen[0])


def _prove_removal(proof: ProofModel, index: int, block: SubBlock) -> SubBlock:
    if block.no_removal:
        return block
    reason: str | None = None
    try:
        masked, block = _silenced(proof, index, block)
        for guess in (block, replace(block, answer=block.answer._replace(full=True))):
            reason = _without(proof, index, guess, masked)
            if reason is None:
                return guess
    except Exception as error:
        reason = failure(error)
    name = block.modules[-1]
    return replace(block, no_removal=reason and f"{name} cannot be removed: {reason}")


def _without(proof: ProofModel, index: int, block: SubBlock, masked: torch.Tensor) -> str | None:
    try:
        with proof.changed(index) as layer:
            for path, module in replacements(layer, block, index):
                put(layer, path, module)
            return _compared(proof, masked)
    except Exception as error:
        return f"the layer does not run without it ({failure(error)})"


def _silenced(proof: ProofModel, index: int, block: SubBlock) -> tuple[torch.Tensor, SubBlock]:
    """The logits when the sub-block adds nothing, and the sub-block with what it then returns."""
    seen: list[tuple[Any, Any, Any]] = []

    def note(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if block.writer is None:  # experts: no single linear to silence
            output = _zeroed(output)
        # Some layers add to the output in place, so keep a copy.
        seen.append((args, kwargs, next(tensors(output)).clone()))
        return output

    with proof.changed(index) as layer:
        if block.writer is not None:
            writer = layer.get_submodule(block.writer)
            writer.weight.zero_()
            if writer.bias is not None:
                writer.bias.zero_()
        for path in block.norms:
            bias = getattr(layer.get_submodule(path), "bias", None)
            if bias is not None:  # a norm after the sub-block would add it
                bias.zero_()
        last = layer.get_submodule(block.modules[-1])
        last.register_forward_hook(note, with_kwargs=True)
        masked = proof.run()
    args, kwargs, first = seen[0]
    if not bool(first.any()):
        return masked, block
    for position, value in enumerate(args):
        if _same(value, first):
            return masked, replace(block, answer=block.answer._replace(position=position))
    for name, value in kwargs.items():
        if _same(value, first):
            return masked, replace(block, answer=block.answer._replace(name=name))
    message = f"it returns something else than zero when {block.writer} is zero"
    raise ValueError(message)


def _zeroed(output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _same(value: Any, first: torch.Tensor) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.shape == first.shape
        and bool((value == first).all())
    )


def _prove_cuts(proof: ProofModel, index: int, block: SubBlock, config: Any) -> SubBlock:
    if block.no_cut:
        return block
    reason, first = None, None
    alone = OneLayer(proof.layers[index], proof.traces[index].of(""))
    # The guesses go from likely to unlikely. The reason of the first is the one that people see.
    guesses = cut_guesses(block, proof.layers[index], proof.traces[index], config)
    for guess, groups in islice(guesses, GUESSES):
        if groups == 1:
            return guess
        found = _prove_guess(proof, index, guess, groups, alone)
        if found is None:
            return guess
        if first is None:
            first, reason = guess, found
    reason = reason or "no rule says which rows and columns belong together"
    return replace(block, no_cut=_uncut(block, reason))


def _uncut(block: SubBlock, reason: str) -> str:
    what = "KV groups" if block.kind == "attention" else "channels"
    return f"{what} of {block.modules[-1]} cannot be removed: {reason}"


def _prove_guess(
    proof: ProofModel, index: int, guess: SubBlock, groups: int, alone: OneLayer
) -> str | None:
    # Regular choices, such as the first half, are the same rows in several orders.
    # An irregular choice, which no other order of the rows would give as well
    kept = [group for group in range(groups) if group % 3 == 1] or [groups - 1]
    gone = [group for group in range(groups) if group not in kept]
    try:
        if (reason := alone.contradicts(guess, groups, kept, gone)) is not None:
            return reason
        with proof.changed(index) as layer:
            out = guess.cuts[-1]
            writer = layer.get_submodule(out.linear)
            matrix = writer.weight.T if is_transposed(writer) else writer.weight  # [out, in]
            matrix[:, owned(layer, guess, out, groups, gone)] = 0
            masked = proof.run()
        with proof.changed(index) as layer:
            narrow(layer, guess, groups, kept)
            return _compared(proof, masked)
    except Exception as error:
        return f"the layer does not run with fewer ({failure(error)})"


def _compared(proof: ProofModel, masked: torch.Tensor) -> str | None:
    """Why the changed model is not the masked one; None if it is."""
    # If the mask does nothing, the comparison would hold for any guess.
    effect = proof.differs(masked, proof.logits)
    if effect < EFFECT:
        return f"masking it changes the logits by {effect:.1g} of the largest only"
    wrong = proof.differs(proof.run(), masked)
    if wrong > TOLERANCE:
        return f"sliced and masked logits differ by {wrong:.1g} of the largest"
    for calls in proof.calls:
        wrong = proof.differs(proof.run_cached(calls), masked)
        if wrong > TOLERANCE:
            return f"with a KV cache the logits differ by {wrong:.1g} of the largest"
    if proof.generates and not proof.generates_alike():
        return "generation gives other logits with a KV cache than without"
    return None


def failure(error: Exception) -> str:
    """An error that torch or transformers raised, in one line."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:200]
