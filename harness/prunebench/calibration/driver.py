"""Walks the decoder layer by layer over the calibration windows.

A layer's inputs are captured once from the model itself, then only hidden states travel:

    states = inputs of layer 0
    for each layer:  run it dense, tap its linears' inputs -> prune its linears -> run it again -> states

so a layer is measured behind pruned predecessors, as SparseGPT and Wanda do it. Two runs a layer are the floor;
the first one ends at the last tapped input, since the layer's output is not needed before it is pruned.
The states stay on the model's device; with a compute device, one layer and one batch at a time lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunebench.calibration.capture import Call, bare, batches_of, capture, run
from prunebench.calibration.placement import moved, placed
from prunebench.calibration.statistics import STATISTICS, InputStatistic
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy

if TYPE_CHECKING:
    from torch import nn

    from prunebench.plugin.method import LayerwiseMethod

    Batches = list[tuple["torch.Tensor", Call]]
    """Hidden states [windows of the batch, length, hidden] of every batch, and how the layer is called with them."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LinearStats:
    """What is known of one linear when it is pruned. Linears that share an input share its statistics."""

    layer: int
    name: str
    generator: torch.Generator
    norm: torch.Tensor | None = None
    second_moment: torch.Tensor | None = None

    @property
    def input_norm(self) -> torch.Tensor:
        """L2 norm of each input feature over the calibration tokens, float32 [in], divided by sqrt(windows).

        Raises PrunebenchError where the method's ``statistics`` do not ask for it.
        """
        return _asked_for("input_norm", self.norm)

    @property
    def hessian(self) -> torch.Tensor:
        """2 / windows * sum over the calibration tokens of x x^T, float32 [in, in], as in SparseGPT's released code.

        Raises PrunebenchError where the method's ``statistics`` do not ask for it.
        """
        return _asked_for("hessian", self.second_moment)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within, the message of a PrunebenchError gets the layer and the linear in front."""
        try:
            yield
        except PrunebenchError as error:
            raise PrunebenchError(f"layer {self.layer}, {self.name}: {error.message}", hint=error.hint) from error


def _asked_for(name: str, value: torch.Tensor | None) -> torch.Tensor:
    if value is None:
        raise PrunebenchError(
            f"the method reads `{name}` without asking for it",
            hint=f'set `statistics = frozenset({{"{name}"}})` in the method',
        )
    return value


class _Enough(Exception):  # noqa: N818
    """Ends a forward when every input has been seen."""


def prune_linears(
    model: Any,
    method: LayerwiseMethod,
    tokens: torch.Tensor | None,
    generator: torch.Generator,
    progress: Progress,
    device: torch.device | None = None,
) -> None:
    """Let ``method`` prune every linear of the decoder layers in place; tokens int64 [windows, length] or None.

    ``device`` is where layers compute and are pruned, one at a time; None: each where it lies.
    """
    parts = anatomy(model)
    states, calls = ([], []) if tokens is None else capture(model, parts, tokens)
    for index, layer in enumerate(parts.layers):
        batches = list(zip(states, calls[index], strict=True)) if calls else []
        inputs = parts.inputs_of(layer)
        with placed(layer, device):
            for groups in [(group,) for group in inputs] if method.true_sequential else [inputs]:
                _prune(method, index, layer, groups, batches, generator, device)
            if index + 1 < len(parts.layers):  # nobody reads the last layer's output
                for batch, call in batches:
                    batch.copy_(_run(layer, batch, call, device))
        progress(index + 1, len(parts.layers))


def _prune(
    method: LayerwiseMethod,
    index: int,
    layer: nn.Module,
    groups: tuple[tuple[str, ...], ...],
    batches: Batches,
    generator: torch.Generator,
    device: torch.device | None,
) -> None:
    """Let ``method`` prune the linears of a layer that read these inputs."""
    tapped: list[Any] = [layer.get_submodule(group[0]) for group in groups]
    gathered = _gather(layer, tapped, method.statistics if batches else (), batches, device)
    for group in groups:
        found = gathered.pop(0)  # one Hessian less while the next input's linears are pruned
        for statistic in found.values():
            if not statistic.finite():
                raise PrunebenchError(
                    f"layer {index}: the input of {group[0]} is not finite on the calibration windows",
                    hint="use float32, or look for a damaged checkpoint",
                )
        results = {name: statistic.result() for name, statistic in found.items()}
        norm, hessian = results.get("input_norm"), results.get("hessian")
        stats = [LinearStats(index, name, generator, norm, hessian) for name in group]
        linears: list[Any] = [layer.get_submodule(name) for name in group]
        method.prune_group([linear.weight for linear in linears], stats)


def _gather(
    layer: nn.Module,
    tapped: list[Any],
    wanted: Collection[str],
    batches: Batches,
    device: torch.device | None,
) -> list[dict[str, InputStatistic]]:
    """The wanted statistics of the inputs of the tapped linears, one dict for each linear, over all batches."""
    taps = [
        {name: STATISTICS[name](linear.in_features, linear.weight.device) for name in sorted(wanted)}
        for linear in tapped
    ]
    seen = windows = 0

    def hook_of(tap: dict[str, InputStatistic]) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal seen
            inputs = args[0].reshape(-1, args[0].shape[-1])  # [tokens, in]; OPT gives its MLP two dimensions
            for statistic in tap.values():
                statistic.add(inputs, windows)
            seen += 1
            if seen == len(tapped):
                raise _Enough

        return hook

    if not (wanted and tapped):
        return taps
    handles = [linear.register_forward_pre_hook(hook_of(tap)) for linear, tap in zip(tapped, taps, strict=True)]
    try:
        for batch, call in batches:
            seen, windows = 0, len(batch)
            try:
                _run(layer, batch, call, device)
            except _Enough:
                continue
    finally:
        for handle in handles:
            handle.remove()
    return taps


def _run(layer: nn.Module, batch: torch.Tensor, call: Call, device: torch.device | None) -> torch.Tensor:
    """The layer's output for a batch, computed on ``device``."""
    return run(layer, moved(batch, device), Call(moved(call.args, device), moved(call.kwargs, device)))


def observe_layers(
    model: Any,
    tokens: torch.Tensor,
    see: Callable[[int, torch.Tensor, torch.Tensor], None],
    progress: Progress,
    device: torch.device | None = None,
) -> None:
    """Call ``see(layer, before, after)`` for every layer and batch; states [windows of the batch, length, hidden].

    With a ``device``, layers compute there one at a time, and all batches go through one before the next.
    """
    if device is not None:
        _observe_one_by_one(model, tokens, see, progress, device)
        return
    parts = anatomy(model)
    handles = []
    for index, layer in enumerate(parts.layers):

        def hook(_: Any, args: Any, kwargs: Any, output: Any, index: int = index) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            see(index, before, bare(output))

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        batches = batches_of(model, tokens)
        for done, batch in enumerate(batches):
            parts.decoder(batch, use_cache=False)
            progress(done + 1, len(batches))
    finally:
        for handle in handles:
            handle.remove()


def _observe_one_by_one(
    model: Any,
    tokens: torch.Tensor,
    see: Callable[[int, torch.Tensor, torch.Tensor], None],
    progress: Progress,
    device: torch.device,
) -> None:
    parts = anatomy(model)
    states, calls = capture(model, parts, tokens)
    for index, layer in enumerate(parts.layers):
        with placed(layer, device):
            for batch, call in zip(states, calls[index], strict=True):
                after = _run(layer, batch, call, device)
                see(index, moved(batch, device), after)
                batch.copy_(after)
        progress(index + 1, len(parts.layers))
