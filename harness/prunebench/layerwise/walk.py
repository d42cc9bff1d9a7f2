"""Walks the decoder layer by layer over the calibration windows.

A layer's inputs are captured once from the model itself, then only hidden states travel:

    states = inputs of layer 0
    for each layer:  run it dense, tap its linears' inputs -> prune its linears -> run it again -> states

so a layer is measured behind pruned predecessors, as SparseGPT and Wanda do it. Two runs a layer are the floor;
the first one ends at the last tapped input, since the layer's output is not needed before it is pruned.
The states stay on the model's device; with a compute device, one layer and one batch at a time lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.layerwise.capture import Call, bare, batches_of, capture, run
from prunebench.layerwise.device_moves import LayerSource, at_work, framed, moved, placed
from prunebench.layerwise.shares import Shares, at_share, by_share
from prunebench.layerwise.statistics import STATISTICS, InputStatistic
from prunebench.model.anatomy import Anatomy, anatomy

if TYPE_CHECKING:
    from torch import nn

    from prunebench.plugin.api.method import LayerwiseMethod

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

    def copied(self) -> LinearStats:
        """The same with tensors of its own."""
        copies = [
            None if kept is None else kept.clone() for kept in (self.norm, self.second_moment)
        ]
        return replace(self, norm=copies[0], second_moment=copies[1])

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within, the message of a PrunebenchError gets the layer and the linear in front."""
        try:
            yield
        except PrunebenchError as error:
            raise PrunebenchError(
                f"layer {self.layer}, {self.name}: {error.message}", hint=error.hint
            ) from error


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
    shares: Shares | None = None,
    lender: LayerSource | None = None,
) -> None:
    """Let ``method`` prune every linear of the decoder layers in place; tokens int64 [windows, length] or None.

    ``device`` is where layers compute and are pruned, one at a time; None: each where it lies. ``shares`` stand, linear
    by linear, for the method's option `sparsity`. ``lender``: where layers come from and go to, if not from memory.
    """
    parts = anatomy(model)
    states, calls = ([], []) if tokens is None else _captured(model, parts, tokens, lender)
    for index, layer in enumerate(parts.layers):
        batches = list(zip(states, calls[index], strict=True)) if calls else []
        inputs = parts.inputs_of(layer)
        with at_work(layer, index, device, lender, changes=True):
            for groups in [(group,) for group in inputs] if method.true_sequential else [inputs]:
                _prune(
                    method,
                    (index, f"{parts.layers_path}.{index}"),
                    layer,
                    groups,
                    batches,
                    generator,
                    device,
                    shares,
                )
            if index + 1 < len(parts.layers):  # nobody reads the last layer's output
                for batch, call in batches:
                    batch.copy_(_run(layer, batch, call, device))
        progress(index + 1, len(parts.layers))


def _captured(
    model: Any, parts: Anatomy, tokens: torch.Tensor, lender: LayerSource | None
) -> tuple[list[torch.Tensor], list[list[Call]]]:
    with framed(lender):
        return capture(model, parts, tokens)


def _prune(
    method: LayerwiseMethod,
    place: tuple[int, str],
    layer: nn.Module,
    groups: tuple[tuple[str, ...], ...],
    batches: Batches,
    generator: torch.Generator,
    device: torch.device | None,
    shares: Shares | None,
) -> None:
    """Let ``method`` prune the linears of a layer, the one at ``place`` (index, path), that read these inputs."""
    index, path = place
    tapped: list[Any] = [layer.get_submodule(group[0]) for group in groups]
    gathered = _gather(layer, tapped, method.statistics if batches else (), batches, device)
    for group in groups:
        found = gathered.pop(0)  # one Hessian less while the next input's linears are pruned
        stats = _stats_of(index, group[0], found, generator)
        parts = by_share(group, path, shares)
        for number, (share, names) in enumerate(parts, start=1):
            own = stats if number == len(parts) else stats.copied()  # a method may compute in place
            linears: list[Any] = [layer.get_submodule(name) for name in names]
            with at_share(method, share):
                method.prune_group(
                    [linear.weight for linear in linears],
                    [replace(own, name=name) for name in names],
                )


def _stats_of(
    index: int, name: str, found: Mapping[str, InputStatistic], generator: torch.Generator
) -> LinearStats:
    """What was gathered of one input. Raises PrunebenchError where that is not finite."""
    for statistic in found.values():
        if not statistic.finite():
            raise PrunebenchError(
                f"layer {index}: the input of {name} is not finite on the calibration windows",
                hint="use float32, or look for a damaged checkpoint",
            )
    results = {kind: statistic.result() for kind, statistic in found.items()}
    return LinearStats(index, name, generator, results.get("input_norm"), results.get("hessian"))


def _gather(
    layer: nn.Module,
    tapped: list[Any],
    wanted: Collection[str],
    batches: Batches,
    device: torch.device | None,
    *,
    whole: bool = False,
) -> list[dict[str, InputStatistic]]:
    """The wanted statistics of the inputs of the tapped linears, one dict for each linear, over all batches.

    ``whole``: the layer is run to its end, and its outputs take the batches' places.
    """
    taps = [
        {
            name: STATISTICS[name](linear.in_features, linear.weight.device)
            for name in sorted(wanted)
        }
        for linear in tapped
    ]
    seen = windows = 0

    def hook_of(tap: dict[str, InputStatistic]) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal seen
            inputs = args[0].reshape(
                -1, args[0].shape[-1]
            )  # [tokens, in]; OPT gives its MLP two dimensions
            for statistic in tap.values():
                statistic.add(inputs, windows)
            seen += 1
            if seen == len(tapped) and not whole:
                raise _Enough

        return hook

    if not (wanted and tapped) and not whole:
        return taps
    handles = [
        linear.register_forward_pre_hook(hook_of(tap))
        for linear, tap in zip(tapped, taps, strict=True)
    ]
    try:
        for batch, call in batches:
            seen, windows = 0, len(batch)
            try:
                after = _run(layer, batch, call, device)
            except _Enough:
                continue
            if whole:
                batch.copy_(after)
    finally:
        for handle in handles:
            handle.remove()
    return taps


def _run(
    layer: nn.Module, batch: torch.Tensor, call: Call, device: torch.device | None
) -> torch.Tensor:
    """The layer's output for a batch, computed on ``device``."""
    return run(
        layer, moved(batch, device), Call(moved(call.args, device), moved(call.kwargs, device))
    )


def observe_linears(
    model: Any,
    statistics: Collection[str],
    tokens: torch.Tensor,
    see: Callable[[Mapping[str, nn.Linear], Mapping[str, LinearStats]], None],
    generator: torch.Generator,
    progress: Progress,
    device: torch.device | None = None,
    lender: LayerSource | None = None,
) -> None:
    """Call ``see(linears, stats)``, both by name, for every layer of the model as it is; each layer is run once."""
    parts = anatomy(model)
    states, calls = _captured(model, parts, tokens, lender)
    for index, layer in enumerate(parts.layers):
        inputs = parts.inputs_of(layer)
        with at_work(layer, index, device, lender, changes=False):
            tapped: Sequence[Any] = [layer.get_submodule(group[0]) for group in inputs]
            batches = list(zip(states, calls[index], strict=True))
            gathered = _gather(layer, list(tapped), statistics, batches, device, whole=True)
            stats: dict[str, LinearStats] = {}
            for group, found in zip(inputs, gathered, strict=True):
                shared = _stats_of(index, group[0], found, generator)
                stats |= {name: replace(shared, name=name) for name in group}
            see(parts.linears(layer), stats)
        progress(index + 1, len(parts.layers))


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
