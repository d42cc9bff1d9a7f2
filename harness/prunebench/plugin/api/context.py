"""What a method is given beside the model: calibration tokens, randomness, and the harness's tools."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.layerwise import walk as driver
from prunebench.layerwise.partial_forward import Stream
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups, keep_hidden
from prunebench.training.loop import Penalty, TrainingLog, train

if TYPE_CHECKING:
    from prunebench.layerwise.device_moves import LayerSource
    from prunebench.layerwise.walk import LinearStats
    from prunebench.plugin.api.method import LayerwiseMethod, Statistic
    from prunebench.training.settings import TrainingSettings


SPARSE_FROM = 0.01
"""A linear with a smaller share of zeros counts as dense: quantised checkpoints hold a few zeros of their own."""


@dataclass
class Context:
    """One cell's surroundings, valid while `Method.prune` or `Recovery.recover` runs."""

    calibration: torch.Tensor | None
    """Token ids, int64 [windows, length]: what to calibrate or train on. None where the method asks for none."""
    seed: int
    kept_layers: list[int]
    """Indices, in the dense model, of the decoder layers that are still there."""
    progress: Callable[[int, int], None] = ignore
    """Call with (done, total) to move the progress bar."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the method wants to have on the record, as JSON values."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prunebench"))
    device: torch.device | None = None
    """Where decoder layers compute, one at a time, if that is elsewhere than where the model lies; else None."""

    shares: Mapping[str, float] | None = None
    """The share of each linear, by its path, where an allocation decides it; `prune_linears` goes by them."""
    lender: LayerSource | None = None
    """Where layers come from, one at a time, if the model is not in memory; then only the tools that go layer by layer work."""
    went_by_shares: bool = False
    trained_tokens: int = 0
    """Tokens that went through the model in `train`, each as often as it was seen."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        """Randomness on the CPU, seeded by the cell."""

    @property
    def windows(self) -> torch.Tensor:
        """The calibration tokens, int64 [windows, length]. Raises PrunebenchError where the cell has none."""
        if self.calibration is None:
            raise PrunebenchError(
                "the method asks for calibration tokens and the cell has none",
                hint="set `needs_calibration = True` in the method, and `calibration:` in the suite",
            )
        return self.calibration

    def prune_linears(self, model: Any, method: LayerwiseMethod) -> None:
        """Prune every linear of every decoder layer, predecessors pruned before their successors are measured."""
        tokens = self.windows if method.statistics else None
        self.went_by_shares = self.shares is not None
        driver.prune_linears(
            model,
            method,
            tokens,
            self.generator,
            self.progress,
            self.device,
            self.shares,
            self.lender,
        )

    def observe_linears(
        self,
        model: Any,
        statistics: Collection[Statistic],
        see: Callable[[Mapping[str, torch.nn.Linear], Mapping[str, LinearStats]], None],
    ) -> None:
        """Run the dense decoder over the calibration windows and call ``see(linears, stats)`` for each layer in order.

        Both are by the linear's name in the layer; ``statistics`` are those of `LayerwiseMethod`. Nothing may be changed.
        """
        driver.observe_linears(
            model,
            statistics,
            self.windows,
            see,
            self.generator,
            self.progress,
            self.device,
            self.lender,
        )

    def observe_layers(
        self, model: Any, see: Callable[[int, torch.Tensor, torch.Tensor], None]
    ) -> None:
        """Run the dense decoder over the calibration windows and call ``see(layer, before, after)`` for each layer.

        before, after: hidden states [windows of the batch, length, hidden], as the layer gets and gives them, so
        that the last layer's output has not passed the final norm. They lie where the layer computes.
        """
        self._needs_whole("observe_layers")
        driver.observe_layers(model, self.windows, see, self.progress, self.device)

    def stream(self, model: Any) -> Stream:
        """The model over the calibration windows, layer by layer, for methods that compare variants of it."""
        self._needs_whole("stream")
        return Stream(model, self.windows, self.device)

    def remove_layers(self, model: Any, layers: Iterable[int]) -> None:
        """Take these decoder layers (current indices) out of the model for good."""
        self._needs_whole("remove_layers")
        gone = set(layers)
        if len(gone) >= len(anatomy(model).layers):
            raise PrunebenchError(
                f"all {len(gone)} layers would be removed",
                hint="ask for a smaller share, so that one layer stays",
            )
        remove_layers(model, gone)
        self.kept_layers[:] = [
            kept for index, kept in enumerate(self.kept_layers) if index not in gone
        ]

    def linears(self, model: Any) -> dict[str, torch.nn.Linear]:
        """The prunable linears of all decoder layers that are there, by module path, in forward order."""
        parts = anatomy(model)
        return {
            f"{parts.layers_path}.{index}.{name}": linear
            for index, layer in enumerate(parts.layers)
            for name, linear in parts.linears(layer).items()
        }

    def zeros(self, model: Any) -> dict[str, torch.Tensor]:
        """Where the prunable weights are zero, bool [out, in], by parameter path; without linears that are dense.

        A linear with less than 1 % zeros counts as dense: it was not made sparse, a few of its weights happen to be zero.
        """
        self._needs_whole("zeros")
        masks = {}
        for path, linear in self.linears(model).items():
            kept = linear.weight.detach().bool()  # many times faster to count than floats
            if kept.numel() - int(torch.count_nonzero(kept)) >= SPARSE_FROM * kept.numel() > 0:
                masks[f"{path}.weight"] = ~kept
        return masks

    def train(
        self,
        model: Any,
        parameters: Mapping[str, torch.Tensor],
        settings: TrainingSettings,
        *,
        masks: Mapping[str, torch.Tensor] | None = None,
        penalty: Penalty | None = None,
    ) -> TrainingLog:
        """Train these parameters (by path) on the windows, next token by next token, with AdamW.

        ``masks`` by the same paths, True where a weight is held at zero; ``penalty`` is added to the loss. Raises
        PrunebenchError where the loss or a gradient is not finite.
        """
        self._needs_whole("train")
        log = train(
            model,
            parameters,
            self.windows,
            settings,
            masks=masks,
            penalty=penalty,
            generator=self.generator,
            progress=self.progress,
        )
        self.trained_tokens += log.tokens
        return log

    def remove_blocks(self, model: Any, blocks: Iterable[Block]) -> None:
        """Take these attentions and MLPs out for good, and the layers that then have neither. Indices as they are now."""
        self._needs_whole("remove_blocks")
        remove_blocks(model, blocks)
        parts = anatomy(model)
        left = {block.layer for block in parts.blocks}
        if empty := set(range(len(parts.layers))) - left:
            self.remove_layers(model, empty)

    def keep_groups(self, model: Any, kept: Mapping[Block, Sequence[int]]) -> None:
        """Keep these KV groups (with their query heads) of attentions, or channels of MLPs; the matrices get smaller.

        ``kept``: indices as they are now, in order, for each sub-block that changes. Raises PrunebenchError where none would stay.
        """
        self._needs_whole("keep_groups")
        keep_groups(model, kept)

    def keep_hidden(self, model: Any, kept: Sequence[int]) -> None:
        """Keep these channels of the residual stream in all matrices, norms and embeddings; indices as they are now."""
        self._needs_whole("keep_hidden")
        keep_hidden(model, kept)

    def _needs_whole(self, tool: str) -> None:
        """Refuse a tool that looks at several layers, where only one is there at a time."""
        if self.lender is not None:
            raise PrunebenchError(
                f"`context.{tool}` needs the whole model in memory, and this one is pruned layer by layer from its files",
                hint="leave out --stream; the author can say so before any work, by `refuses_streaming`",
            )
