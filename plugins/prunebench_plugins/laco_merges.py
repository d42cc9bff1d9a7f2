"""LaCo's search: which layers to merge into one, and how similar the model stays.

A trial merges layers and compares the last hidden states with those of the dense model. The
released code copies the whole model for each trial and runs both in full. Here the dense states are
computed once, and a trial runs only what is above the merge, because the search goes downwards: all
below is still dense. Weights change places for the length of a run, and nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from prunebench import PrunebenchError, anatomy

if TYPE_CHECKING:
    from prunebench import Context

How = Literal["code", "paper"]
Weights = Mapping[str, "torch.Tensor"]
"""A layer's weights by the name of the linear, [out, in] each."""
Merges = tuple[tuple[int, int], ...]
"""What was merged so far, as (lay, number) of `Trial`."""

ALWAYS = -2.0
"""A threshold below every cosine."""


class Layer(NamedTuple):
    """One layer of the merged model: the layer ``origin`` of the dense one with these weights."""

    origin: int
    weights: Weights | None = None
    """None: its own. Norms and biases are always its own."""


class Trial(NamedTuple):
    """Merging the ``number`` layers above layer ``lay`` into it; ``lay`` counts layers left."""

    lay: int
    number: int
    layers_before: int
    cosine: float
    """With the dense model; NaN if the merged model gives no finite states."""
    accepted: bool


class Walk(NamedTuple):
    """A whole search with one threshold."""

    threshold: float
    trials: list[Trial]
    layers: list[Layer]
    """Those of the merged model."""

    @property
    def accepted(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.accepted]

    @property
    def removed(self) -> int:
        return sum(trial.number for trial in self.accepted)


class Space(NamedTuple):
    """Which merges a search tries: the options of the same names."""

    layers: int
    """Those that a merge makes one; C of the paper."""
    interval: int
    lowest: int
    highest: int


class Merger:
    """Tries merges on a model that is the same afterwards. `walk` is one search.

    ``looked_at`` is called with the number of trials so far.
    """

    def __init__(
        self, model: Any, context: Context, how: How, looked_at: Callable[[int], None]
    ) -> None:
        self._parts = anatomy(model)
        self._how = how
        self._looked_at = looked_at
        self._check_shapes()
        self.forward = context.partial_forward(model)
        self._prefix = _Prefix(self.forward)
        self._ends = self._dense_ends()
        self._known: dict[Merges, float] = {}
        self.trials = 0
        """How many were evaluated; searches with several thresholds share them."""

    def walk(self, threshold: float, space: Space) -> Walk:
        """Go down from the highest layer and keep every merge whose cosine is above ``threshold``.

        Algorithm 1 of the paper, with the steps of the released notebooks.
        """
        layers = [Layer(index) for index in range(self.forward.layers)]
        trials: list[Trial] = []
        merges: Merges = ()
        lay = space.highest - space.layers
        while lay >= space.lowest:
            # Near the top fewer layers than asked for are left above this one.
            number = min(space.layers - 1, len(layers) - lay - 1)
            merged = self._merged(layers[lay : lay + number + 1])
            candidate = [*layers[:lay], merged, *layers[lay + number + 1 :]]
            cosine = self._cosine((*merges, (lay, number)), candidate, lay)
            accepted = cosine > threshold
            trials.append(Trial(lay, number, len(layers), cosine, accepted))
            if accepted:
                layers, merges = candidate, (*merges, (lay, number))
            # Always down: so all layers below `lay` are as in the dense model.
            lay -= space.interval if accepted else 1
        return Walk(threshold, trials, layers)

    def commit(self, layers: Sequence[Layer]) -> None:
        """Write the weights of merged layers into the model."""
        for layer in layers:
            for name, weight in (layer.weights or {}).items():
                self._linears(layer.origin)[name].weight.copy_(weight)

    def _linears(self, index: int) -> dict[str, torch.nn.Linear]:
        return self._parts.linears(self._parts.layers[index])

    def _check_shapes(self) -> None:
        """Raise PrunebenchError if some layers cannot become one."""
        shapes = [
            {name: linear.weight.shape for name, linear in self._linears(index).items()}
            for index in range(len(self._parts.layers))
        ]
        for index, its in enumerate(shapes):
            if its != shapes[0]:
                raise PrunebenchError(
                    f"layers 0 and {index} cannot be merged: their linears differ in shape",
                    hint="merge layers before anything else is pruned",
                )

    def _weights(self, layer: Layer) -> Weights:
        if layer.weights is not None:
            return layer.weights
        return {name: linear.weight.data for name, linear in self._linears(layer.origin).items()}

    def _merged(self, layers: Sequence[Layer]) -> Layer:
        """These neighbours as one layer.

        paper: theta_l + sum over k of (theta_{l+k} - theta_l), equation 1. code: each difference is
        taken from the sum so far, so that theta_{l+m} is left of it.
        """
        base, *others = layers
        if not others:
            return base
        if self._how == "code":
            return Layer(base.origin, self._weights(others[-1]))
        rest = [self._weights(other) for other in others]
        weights = {}
        for name, weight in self._weights(base).items():
            # In float32: in half precision each of the differences would round.
            total = weight.float()  # a copy only if the weight is not float32
            total = total + sum(other[name].float() - total for other in rest)
            weights[name] = total.to(weight.dtype)
        return Layer(base.origin, weights)

    def _cosine(self, merges: Merges, layers: Sequence[Layer], lay: int) -> float:
        """Mean over the windows of the cosine with the dense model's last states; NaN if undefined.

        ``layers``: what ``merges`` make of the model, dense below ``lay``. The states of a window
        are one vector, as in the code.
        """
        if merges not in self._known:
            cosines: list[float] = []
            for batch, state in enumerate(self._prefix.at(lay)):
                end = state  # [windows of the batch, length, hidden]
                for layer in layers[lay:]:
                    with self._lent(layer):
                        end = self.forward.run(layer.origin, batch, end)
                cosines += _cosines(self.forward.head_inputs(end), self._ends[batch])
            self._known[merges] = math.fsum(cosines) / len(cosines)
            self.trials += 1
            self._looked_at(self.trials)
        return self._known[merges]

    @contextmanager
    def _lent(self, layer: Layer) -> Iterator[None]:
        """Give the model's layer the weights of the merged one for the block."""
        linears = self._linears(layer.origin)
        lent = layer.weights or {}
        own = {name: linears[name].weight.data for name in lent}
        try:
            for name, weight in lent.items():
                linears[name].weight.data = weight  # the storage, not a copy
            yield
        finally:
            for name, weight in own.items():
                linears[name].weight.data = weight

    def _dense_ends(self) -> list[torch.Tensor]:
        """What the dense head reads, by batch. Raises PrunebenchError if a cosine is undefined."""
        ends = [self.forward.head_inputs(end) for end in self._prefix.at(self.forward.layers)]
        for end in ends:
            norms = torch.linalg.vector_norm(end.float(), dim=(1, 2))
            if not bool((norms.isfinite() & (norms > 0)).all()):
                raise PrunebenchError(
                    "the last hidden states of the dense model are zero or not finite on a"
                    " calibration window, so that they have no cosine",
                    hint="use float32 or bfloat16, or look for a damaged checkpoint",
                )
        return ends


class _Prefix:
    """The dense states before each layer.

    Those before every k-th layer are kept, with k the root of the depth, and between two of them
    those that were asked for last: so a way down needs each layer twice, and little memory.
    """

    def __init__(self, forward: Any) -> None:
        self._forward = forward
        self._stride = max(1, math.isqrt(forward.layers))
        self._kept: dict[int, list[torch.Tensor]] = {0: forward.start()}
        self._near: dict[int, list[torch.Tensor]] = {}

    def at(self, layer: int) -> list[torch.Tensor]:
        """By batch; ``layer`` may be the number of layers."""
        if layer in self._kept:
            return self._kept[layer]
        if layer not in self._near:
            # Run again from the nearest layer below whose states were kept.
            first = max(index for index in self._kept if index < layer)
            states = self._kept[first]
            self._near = {}
            for index in range(first, layer):
                states = [
                    self._forward.run(index, batch, state) for batch, state in enumerate(states)
                ]
                self._near[index + 1] = states
                if (index + 1) % self._stride == 0:
                    self._kept[index + 1], self._near = states, {}
        return self._kept[layer] if layer in self._kept else self._near[layer]


def bisected(walk: Callable[[float], Walk], wanted: int) -> Walk:
    """The search whose threshold removes about ``wanted`` layers.

    Found by bisection: with a higher threshold fewer merges are accepted. A bound moves on to the
    next cosine that decides anything. Of two equally close results the one that removes less.
    Raises PrunebenchError if too little is removed even if every merge is accepted.
    """
    best = walk(ALWAYS)
    if best.removed < wanted:
        raise PrunebenchError(
            f"{wanted} layers cannot be merged away: {best.removed} are if every merge is accepted",
            hint="lower `target` or `interval`, raise `C`, or widen `range`",
        )
    # The threshold is in [low, high): at 1 nothing is accepted, because no cosine is above.
    low, high = -1.0, 1.0
    while low < high and best.removed != wanted:
        middle = (low + high) / 2
        found = walk(middle)
        best = min(best, found, key=lambda one: (abs(one.removed - wanted), one.removed))
        cosines = [(trial.cosine, trial.accepted) for trial in found.trials]
        # All thresholds between these two give the same search.
        if found.removed > wanted:
            low = min(cosine for cosine, accepted in cosines if accepted)
        else:
            high = max((cosine for cosine, _ in cosines if cosine <= middle), default=middle)
    return best


def _cosines(ends: torch.Tensor, dense: torch.Tensor) -> list[float]:
    """The cosine of each window's states [windows, length, hidden]; NaN if one has no length."""
    a, b = ends.flatten(1).double(), dense.flatten(1).double()  # [windows, length * hidden]
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return ((a * b).sum(1) / norms).clamp(-1, 1).tolist()  # type: ignore[no-any-return]
