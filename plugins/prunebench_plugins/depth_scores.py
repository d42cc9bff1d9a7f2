"""What the weights of each decoder layer contribute to the loss: for methods that rank layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench import anatomy
from prunebench_plugins.llm_pruner_scores import Member, norm_vectors, taylor_vectors

if TYPE_CHECKING:
    import torch

    from prunebench import Context

OfLayers = list[list["torch.Tensor"]]
"""Sums over the rows of each weight of each layer, float32 [rows]; a norm's weights as they are."""


def magnitudes(model: Any, power: int) -> OfLayers:
    """Sums of abs(w)^power. Raises PrunebenchError if a weight is not finite."""
    members = _members(model)
    return _by_layer(members, norm_vectors(_flat(members), power))


def saliences(
    model: Any, context: Context, power: int = 1, batch_size: int | None = None
) -> OfLayers:
    """Sums of abs(w * dL/dw)^power on the calibration windows; see `taylor_vectors`."""
    members, windows = _members(model), context.windows

    def seen(done: int) -> None:
        context.progress(done, len(windows))

    vectors = taylor_vectors(
        model, _flat(members), windows, "param_first", seen, power=power, batch_size=batch_size
    )
    return _by_layer(members, vectors)


def _members(model: Any) -> list[list[Member]]:
    """The matrices and norms of each layer; biases do not count, as in Shortened LLaMA's code."""
    # Dimension 0: the scores are sums over the rows of a matrix.
    return [
        [
            Member(f"layer {index}, {name}", parameter, 0)
            for name, parameter in layer.named_parameters()
            if not name.endswith("bias")
        ]
        for index, layer in enumerate(anatomy(model).layers)
    ]


def _flat(members: list[list[Member]]) -> list[Member]:
    return [member for of_layer in members for member in of_layer]


def _by_layer(members: list[list[Member]], vectors: list[torch.Tensor]) -> OfLayers:
    rest = iter(vectors)
    return [[next(rest) for _ in of_layer] for of_layer in members]
