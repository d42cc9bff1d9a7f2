"""Minitron's scores of everything that can go, from one forward pass with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from prunebench import PrunebenchError

if TYPE_CHECKING:
    from prunebench import Anatomy, Context

BATCH_TOKENS = 2048
"""Tokens of one forward pass."""


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

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None

    def add(self, x: torch.Tensor, windows: int) -> None:
        """x: [windows, length, channels], or [windows * length, channels]."""
        means = x.detach().float().abs().reshape(windows, -1, x.shape[-1]).mean(dim=1)
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
    layers = list(parts.layers)
    norms = {path: _Squares() for path in _norms(parts)}
    inner = {kind: [_Squares() for _ in layers] for kind in ("mlp", "attention")}
    turned = torch.zeros(len(layers), dtype=torch.float64)
    windows = 0

    def changed(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
        turned[index] += float((1 - cosine).double().sum())

    with ExitStack() as hooks, torch.no_grad():
        for path, squares in norms.items():
            module = parts.model.get_submodule(path)
            hooks.callback(module.register_forward_hook(_output(squares, lambda: windows)).remove)
        for index, layer in enumerate(layers):
            hooks.callback(
                layer.register_forward_hook(_layer(index, changed), with_kwargs=True).remove
            )
            readers = {"mlp": parts.channel_reader(layer), "attention": parts.head_reader(layer)}
            for kind, name in readers.items():
                hook = _input(inner[kind][index], lambda: windows)
                hooks.callback(layer.get_submodule(name).register_forward_pre_hook(hook).remove)
        batches = list(_batches(context.windows))
        for done, batch in enumerate(batches, start=1):
            windows = len(batch)
            parts.decoder(batch.to(parts.embeddings.weight.device), use_cache=False)
            context.progress(done, len(batches))
    heads = [
        squares.score.view(parts.groups(layer, "attention"), -1).sum(dim=1)
        for squares, layer in zip(inner["attention"], layers, strict=True)
    ]
    found = Importance(
        torch.stack([squares.score for squares in norms.values()]).sum(dim=0),
        [squares.score for squares in inner["mlp"]],
        heads,
        turned / context.windows.numel(),
    )
    _check(found)
    return found


def _norms(parts: Anatomy) -> list[str]:
    """Paths of the norms of the residual stream: of every layer, and the last one."""
    hidden = parts.embeddings.weight.shape[1]
    found = [
        f"{parts.layers_path}.{index}.{name}"
        for index, layer in enumerate(parts.layers)
        for name, child in layer.named_children()
        if "norm" in type(child).__name__.lower()
        and getattr(getattr(child, "weight", None), "shape", None) == (hidden,)
    ]
    return found if parts.where.norm is None else [*found, parts.where.norm]


def _batches(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    size = max(1, BATCH_TOKENS // tokens.shape[1])
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def _output(squares: _Squares, windows: Callable[[], int]) -> Any:
    def hook(_: Any, __: Any, output: torch.Tensor) -> None:
        squares.add(output, windows())

    return hook


def _input(squares: _Squares, windows: Callable[[], int]) -> Any:
    def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        squares.add(args[0], windows())

    return hook


def _layer(index: int, changed: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Any:
    def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        changed(index, before, output[0] if isinstance(output, tuple) else output)

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
