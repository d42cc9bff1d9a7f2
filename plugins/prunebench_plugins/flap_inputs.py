"""What FLAP observes of the channels that can go: their metric, and the mean of what they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from prunebench_plugins.flap_scores import (
    Fluctuation,
    Metric,
    ReleasedFluctuation,
    channel_metric,
)

if TYPE_CHECKING:
    from prunebench import Anatomy, Block, Context, LinearStats
    from prunebench_plugins.llm_pruner_groups import Pool


def reader_of(parts: Anatomy, block: Block) -> str:
    """The linear that reads the block's channels, by its path in the layer."""
    layer = parts.layers[block.layer]
    return parts.head_reader(layer) if block.kind == "attention" else parts.channel_reader(layer)


def observe(
    parts: Anatomy,
    pools: Sequence[Pool],
    context: Context,
    metrics: Metric,
    *,
    released: bool = False,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of the channels that each pool's groups own: their metric, and the mean of the input.

    Both are float32 [in]. The metric of attentions is squared once more. ``released``: with the
    variance of the released code.
    """
    wanted: set[Any] = {ReleasedFluctuation if released else Fluctuation}
    if metrics == "WIFN":
        wanted.add("input_norm")
    found: dict[Block, tuple[torch.Tensor, torch.Tensor]] = {}
    readers = {
        (pool.block.layer, reader_of(parts, pool.block)): pool.block
        for pool in pools
        if pool.block is not None
    }

    def see(linears: Mapping[str, Any], stats: Mapping[str, LinearStats]) -> None:
        for name, each in stats.items():
            mean, fluctuation = each["fluctuation"]
            norm = each.input_norm if metrics == "WIFN" else None
            metric = channel_metric(linears[name].weight, metrics, fluctuation, norm)
            block = readers[each.layer, name]
            metric = metric.square() if block.kind == "attention" else metric
            found[block] = metric, mean

    context.observe_linears(parts.model, wanted, see, only={name for _, name in readers})
    both = [found[pool.block] for pool in pools if pool.block is not None]
    return [metric for metric, _ in both], [mean for _, mean in both]


def removed_mean(linear: Any, mean: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """What the groups to remove add on average to the linear that reads them, float32 [out].

    ``mean``: of its inputs, [in]. ``gone``: bool [groups]; the inputs of a group follow each other.
    """
    channels = gone.repeat_interleave(len(mean) // len(gone)).to(mean.device)
    return linear.weight.float() @ (mean * channels)  # type: ignore[no-any-return]
