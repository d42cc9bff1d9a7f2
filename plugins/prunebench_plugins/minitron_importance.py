"""Minitron's scores of everything that can go, from one forward pass with hooks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunebench import PrunebenchError
from prunebench_plugins.layer_spans import cosine

if TYPE_CHECKING:
    from prunebench import Anatomy, Context


class Importance(NamedTuple):
    """The higher a score, the more it matters; float64 on the CPU."""

    hidden: torch.Tensor
    """[residual channels]."""
    channels: list[torch.Tensor]
    """Of each layer, [MLP channels]."""
    groups: list[torch.Tensor]
    """Of each layer, [KV groups]."""
    layers: torch.Tensor
    """1 - cos(input, output), [layers]."""


class _Squares:
    """Sum over the windows of (mean over a window's tokens of |x_j|)^2, for each channel j."""

    def __init__(self, length: int) -> None:
        self.length = length
        """Tokens of a window."""
        self.total: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """x: [windows, length, channels], or [windows * length, channels]."""
        means = x.detach().float().abs().reshape(-1, self.length, x.shape[-1]).mean(dim=1)
        squares = means.double().square().sum(dim=0).cpu()  # [channels]
        self.total = squares if self.total is None else self.total + squares

    @property
    def score(self) -> torch.Tensor:
        assert self.total is not None, "no window went through"
        return self.total.sqrt()


def observe(parts: Anatomy, context: Context) -> Importance:
    """Run the decoder once over the calibration windows.

    Raises PrunebenchError if a score is not finite.
    """
    layers, final = list(parts.layers), parts.final_norm
    length = context.windows.shape[1]
    norms = {path: _Squares(length) for path in _norms(parts)}
    last = _Squares(length)
    inner = {kind: [_Squares(length) for _ in layers] for kind in ("mlp", "attention")}
    turned = torch.zeros(len(layers), dtype=torch.float64)

    def changed(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        turned[index] += float((1 - cosine(before.float(), after.float())).double().sum())
        if final is not None and index == len(layers) - 1:
            # No hook: if layers compute on another device, the model itself does not run its norm.
            last.add(final(after.to(next(final.parameters(), after).device)))

    with ExitStack() as hooks, torch.no_grad():
        for path, squares in norms.items():
            module = parts.model.get_submodule(path)
            hooks.callback(module.register_forward_hook(_output(squares)).remove)
        for index, layer in enumerate(layers):
            readers = {"mlp": parts.channel_reader(layer), "attention": parts.head_reader(layer)}
            for kind, name in readers.items():
                hook = _input(inner[kind][index])
                hooks.callback(layer.get_submodule(name).register_forward_pre_hook(hook).remove)
        context.observe_layers(parts.model, changed)
    of_stream = [*norms.values(), *([] if final is None else [last])]
    heads = [
        squares.score.view(parts.groups(layer, "attention"), -1).sum(dim=1)
        for squares, layer in zip(inner["attention"], layers, strict=True)
    ]
    found = Importance(
        torch.stack([squares.score for squares in of_stream]).sum(dim=0),
        [squares.score for squares in inner["mlp"]],
        heads,
        turned / context.windows.numel(),
    )
    _check(found)
    return found


def _norms(parts: Anatomy) -> list[str]:
    """Paths of the layers' norms of the residual stream."""
    hidden = parts.embeddings.weight.shape[1]
    return [
        f"{parts.layers_path}.{index}.{name}"
        for index, layer in enumerate(parts.layers)
        for name, child in layer.named_children()
        if "norm" in type(child).__name__.lower()
        and getattr(getattr(child, "weight", None), "shape", None) == (hidden,)
    ]


def _output(squares: _Squares) -> Any:
    def hook(_: Any, __: Any, output: torch.Tensor) -> None:
        squares.add(output)

    return hook


def _input(squares: _Squares) -> Any:
    def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        squares.add(args[0])

    return hook


def _check(found: Importance) -> None:
    for name, scores in {
        "the residual stream": [found.hidden],
        "MLPs": found.channels,
        "attentions": found.groups,
        "layers": [found.layers],
    }.items():
        if not all(bool(torch.isfinite(each).all()) for each in scores):
            raise PrunebenchError(
                f"the activations of {name} are not finite on the calibration windows",
                hint="use float32 or bfloat16, or look for a damaged checkpoint",
            )
