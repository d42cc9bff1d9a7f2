"""What a method gets besides the model: calibration tokens, randomness, and the harness's tools."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from prunebench.callbacks import ignore, measured_now
from prunebench.errors import PrunebenchError
from prunebench.layerwise.partial_forward import PartialForward
from prunebench.layerwise.statistics import GRADIENTS, input_statistics
from prunebench.layerwise.walk import ExpertsObserver, LayersObserver, LayerWalk, LinearsObserver
from prunebench.measure.devices.disturbance import DisturbedError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.biases import add_biases
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.expert_removal import keep_experts
from prunebench.model.restore import restore_layers, restored_layers, share_configs
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups, keep_hidden
from prunebench.plugin.api.options import LayerwiseOptions
from prunebench.training.gradients import weight_gradients
from prunebench.training.loop import train
from prunebench.training.objective import NextToken
from prunebench.training.optimiser import Trainable
from prunebench.training.watch import Watch
from prunebench.training.whole_parameters import whole_parameters
from prunebench.training.windows import TrainingWindows

if TYPE_CHECKING:
    from prunebench.layerwise.device_moves import LayerSource
    from prunebench.layerwise.expert_tokens import ExpertTokens
    from prunebench.layerwise.layer_training import LayerTrainer
    from prunebench.layerwise.pruner import GroupPruner
    from prunebench.layerwise.residual_basis import ChooseBasis
    from prunebench.layerwise.statistics import Statistic
    from prunebench.model.adapter import Adapter
    from prunebench.model.dense_source import DenseSource
    from prunebench.model.replacement import Network
    from prunebench.training.checkpoint import TrainingCheckpoints
    from prunebench.training.log import TrainingLog
    from prunebench.training.objective import Objective
    from prunebench.training.optimiser import Penalty
    from prunebench.training.settings import TrainingSettings


SPARSE_FROM = 0.01
"""A linear with a smaller share of zeros counts as dense.

Quantised checkpoints have a few zeros that no method made.
"""


@dataclass
class Context:
    """What surrounds one cell; valid while `Method.prune` or `Recovery.recover` runs."""

    calibration: torch.Tensor | None
    """Token ids, int64 [windows, length], to calibrate or train on; None if none are needed."""
    seed: int
    kept_layers: list[int]
    """Indices, in the dense model, of the decoder layers that are still there."""
    progress: Callable[[int, int], None] = ignore
    """Call with (done, total) to move the progress bar."""
    say: Callable[[str], None] = ignore
    """Call with a few words on how it goes, such as a loss: they are shown beside the bar."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the method wants on the record, as JSON values."""
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prunebench"))
    device: torch.device | None = None
    """Where decoder layers compute, one at a time; None: where the model is."""

    remember: Callable[[str, Callable[[], Any]], Any] = measured_now
    """``remember(name, measure)`` gives what ``measure()`` returned, a value of JSON, when the cell
    ran for the first time. So a cell that was interrupted chooses the same again, although it would
    measure other times."""

    shares: Mapping[str, float | str] | None = None
    """The sparsity of each linear by its path, if an allocation decides it."""
    layer_source: LayerSource | None = None
    """Lends layers one at a time if the model is not in memory: see `_needs_whole`."""
    used_shares: bool = False
    """Whether `prune_linears` passed `shares` on, so that the allocation was not in vain."""
    trained_tokens: int = 0
    """Tokens that went through the model in `train`, each as often as it was seen."""
    draw: Callable[[int], torch.Tensor] | None = None
    """Draws calibration windows: see `fresh_windows`. None if the tokens were given as they are."""
    adapter: Adapter | None = None
    """A recovery that does not merge its updates leaves them here, and the linears as they were.

    The harness measures the model with them, and saves them beside it."""
    counted: torch.Tensor | None = None
    """Which calibration tokens the loss of a training counts, bool [windows, length]; None: all.

    Of instruction data only the answers count, and tokens after them are padding."""

    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    """While a block runs, no other cell of the run computes on this machine."""
    dense_source: DenseSource | None = None
    """Where removed layers can be read again; None if the model came without a checkpoint."""

    checkpoints: TrainingCheckpoints | None = None
    """Where trainings keep their state, so that a run that was killed goes on; None: nowhere."""

    def __post_init__(self) -> None:
        self.dense_indices = DenseIndices(self.kept_layers)
        """What is left of the dense model; the tools below keep it up to date."""
        # On the CPU, so that a cell draws the same numbers whatever device it runs on.
        self.generator = torch.Generator().manual_seed(self.seed)
        """Randomness, seeded by the cell."""

    @property
    def windows(self) -> torch.Tensor:
        """The calibration tokens, int64 [windows, length]; PrunebenchError if there are none."""
        if self.calibration is None:
            raise PrunebenchError(
                "the method asks for calibration tokens and the cell has none",
                hint="set `needs_calibration = True` in the method, and `calibration:` in the"
                " suite",
            )
        return self.calibration

    def fresh_windows(self, number: int) -> torch.Tensor:
        """The windows that come after ``number`` samples of the calibration, int64 [windows, length].

        `fresh_windows(0)` is `windows`, and `fresh_windows(1)` the sample that the same sequence of
        random numbers gives next; if the calibration is a number of rows, the sample of the next
        seed. Raises PrunebenchError if the text is too short, or if no text is
        known, because the caller gave tokens.
        """
        if number == 0:
            return self.windows
        if self.draw is None:
            raise PrunebenchError(
                "no other calibration windows can be drawn, because they were given as token ids",
                hint="choose options that need one sample only, or name a corpus",
            )
        return self.draw(number)

    def prune_linears(self, model: Any, pruner: GroupPruner) -> None:
        """Prune every linear of every decoder layer, each measured behind pruned predecessors.

        ``pruner``: a `LayerwiseMethod`, or anything with ``statistics``, ``true_sequential`` and
        ``prune_group``. If it has `LayerwiseOptions`, they choose the linears.
        """
        # A cell whose method never comes here has ignored its allocation, and fails.
        self.used_shares = self.shares is not None
        only = self.chosen_linears(model, getattr(pruner, "options", None))
        walk = self._walk(self.windows if pruner.statistics else None)
        gradients = self._gradients(model, pruner.statistics, only)
        replace(walk, gradients=gradients).prune(model, pruner, self.shares, only)
        self._note_experts(walk.expert_tokens)

    def train_layers(
        self,
        model: Any,
        trainer: LayerTrainer,
        *,
        windows: int = 1,
        dense_inputs: bool = False,
        changes: bool = True,
    ) -> None:
        """Learn new weights layer by layer: each layer is to give its dense outputs.

        ``trainer`` has the methods of `prunebench.LayerTrainer`. If it has `LayerwiseOptions`, they
        choose the linears. A layer reads what the changed layers before it give, and each batch
        has that many ``windows``. Its target is its dense output for the same input, or with
        ``dense_inputs`` that of the dense model. Without ``changes`` the model stays as it is: the
        new weights only decide what the next layer reads. It works with streaming: two sets of
        hidden states and one layer are in memory.
        """
        only = self.chosen_linears(model, getattr(trainer, "options", None))
        walk = self._walk(self.windows)
        gradients = self._gradients(model, trainer.statistics, only)
        replace(walk, gradients=gradients).train(
            model, trainer, only, windows=windows, dense_inputs=dense_inputs, changes=changes
        )
        self._note_experts(walk.expert_tokens)

    def observe_linears(
        self,
        model: Any,
        statistics: Collection[Statistic],
        see: LinearsObserver,
        *,
        only: Collection[str] | None = None,
    ) -> None:
        """Run the dense decoder over the calibration windows; call ``see(linears, stats)``.

        It is called for each layer. Both arguments are by the linear's name in the layer: the
        linears, and their `LinearStats`, which know the layer's index. It must not change the
        model. ``only``: the names of the linears to gather statistics for; None: all. Without
        ``statistics`` it needs no calibration windows, and no layer runs.
        """
        gradients = self._gradients(model, statistics)
        walk = replace(self._walk(self.windows if statistics else None), gradients=gradients)
        walk.observe_linears(model, statistics, see, only)

    def observe_layers(self, model: Any, see: LayersObserver) -> None:
        """Run the dense decoder over the calibration windows; call ``see(layer, before, after)``.

        before, after: hidden states [windows of the batch, length, hidden], as the layer reads and
        writes them, on the device where it computes. So the last layer's output has not passed the
        final norm.
        """
        self._needs_whole("context.observe_layers")
        self._walk(self.windows).observe_layers(model, see)

    def observe_experts(self, model: Any, see: ExpertsObserver, *, logits: bool = False) -> None:
        """Run the dense decoder over the calibration windows; call ``see(path, rows)``.

        It is called for each module with routed experts, expert and batch. path: of the module in
        the model; rows: a `prunebench.ExpertRows`, of the tokens that the expert got. ``logits``:
        the rows have the router's logits too.
        """
        self._needs_whole("context.observe_experts")
        self._walk(self.windows).observe_experts(model, see, logits=logits)

    def rotate_residual(
        self,
        model: Any,
        choose: ChooseBasis,
        *,
        centre_embeddings: bool = False,
        epsilon: float | None = None,
    ) -> None:
        """Give the residual stream another, narrower basis at every place, in smaller matrices.

        ``choose(place, gram)`` returns the basis, float64 [hidden, kept] with orthonormal columns.
        The Gram matrix, float64 [hidden, hidden], is the sum of x x^T over the calibration tokens,
        behind the places before it. Place 0 is the embeddings, 2 * layer + 1 the attention's
        output and 2 * layer + 2 the MLP's. Norms are folded into the linears that read them, a
        tied head gets a weight of its own, and each sub-block gets a matrix that rotates its
        residual. With bases of all columns the logits stay the same. ``centre_embeddings``
        subtracts the mean of each embedding first, and ``epsilon`` replaces that of the norms: both
        change the logits. Raises PrunebenchError, with the model unchanged, if the norms of this
        model cannot be folded.
        """
        # Here, because it loads torch.
        from prunebench.layerwise.residual_basis import ResidualBasis

        self._needs_whole("context.rotate_residual")
        basis = ResidualBasis(model, self.windows, self.device, self.progress)
        basis.change(choose, centre_embeddings=centre_embeddings, epsilon=epsilon)

    def index_residual(
        self,
        model: Any,
        reads: Mapping[Block, Sequence[int]],
        writes: Mapping[Block, Sequence[int]],
    ) -> None:
        """Let attentions and MLPs read and write only these channels of the residual stream.

        Both are ascending indices by sub-block; one that is not named keeps all channels. A
        sub-block selects its channels behind the norm, which still sees all, and its output is
        added to those that it writes: linears get smaller, and the stream keeps its width. Raises
        PrunebenchError, with the model unchanged, unless every layer is one attention and one MLP,
        each behind a norm and added to the stream.
        """
        # Here, because it loads torch.
        from prunebench.model.indexed import index_residual

        self._needs_whole("context.index_residual")
        index_residual(model, reads, writes)

    def partial_forward(self, model: Any, windows: torch.Tensor | None = None) -> PartialForward:
        """Run the model over windows in pieces, to compare variants of it.

        ``windows``: int64 [windows, length], by default those of the calibration.
        """
        self._needs_whole("context.partial_forward")
        windows = self.windows if windows is None else windows
        return PartialForward(model, windows, self.device)

    def step_seconds(
        self, model: Any, others: Iterable[Any], *, batch_size: int, prompt: int, new_tokens: int
    ) -> list[tuple[float, float]]:
        """Seconds of a generation step of ``model`` and of each of the others, side by side.

        They are medians of rounds of ``new_tokens`` steps, in which the two take turns. A step
        gives one token to each of ``batch_size`` sequences, behind ``prompt`` tokens. Only rounds
        count that nothing else on the machine disturbed; PrunebenchError if there are too few.
        ``others`` may be made one by one, so that one of them is in memory at a time.
        """
        # Here, because it loads transformers.
        from prunebench.measure.speed.step_seconds import step_seconds

        try:
            with self.alone():
                return step_seconds(
                    model, others, batch_size=batch_size, prompt=prompt, new_tokens=new_tokens
                )
        except DisturbedError as error:
            raise PrunebenchError(
                f"a step cannot be timed: {error}",
                hint="run it when nothing else uses this machine",
            ) from error

    def remove_layers(self, model: Any, layers: Iterable[int]) -> None:
        """Remove these decoder layers (current indices) from the model."""
        self._needs_whole("context.remove_layers")
        gone = set(layers)
        if len(gone) >= len(anatomy(model).layers):
            raise PrunebenchError(
                f"all {len(gone)} layers would be removed",
                hint="ask for a smaller share, so that at least one layer is left",
            )
        remove_layers(model, gone)
        self.dense_indices.remove_layers(gone)  # and so `kept_layers`, which is the same list

    def linears(self, model: Any) -> dict[str, torch.nn.Linear]:
        """The prunable linears of the remaining layers by module path, in forward order."""
        parts = anatomy(model)
        return {
            f"{parts.layers_path}.{index}.{name}": linear
            for index, layer in enumerate(parts.layers)
            for name, linear in parts.linears(layer).items()
        }

    def chosen_linears(self, model: Any, options: Any) -> dict[str, torch.nn.Linear]:
        """Those of `linears` that a method with these options prunes.

        All of them, unless `LayerwiseOptions` choose. Raises PrunebenchError if they choose none.
        """
        found = self.linears(model)
        if not isinstance(options, LayerwiseOptions):
            return found
        parts = anatomy(model)
        names = {index: list(parts.linears(layer)) for index, layer in enumerate(parts.layers)}
        chosen = {
            f"{parts.layers_path}.{index}.{name}"
            for index, some in options.chosen(names).items()
            for name in some
        }
        return {path: linear for path, linear in found.items() if path in chosen}

    def zeros(self, model: Any) -> dict[str, torch.Tensor]:
        """Where the prunable weights are zero, bool [out, in], by parameter path.

        Linears with less than 1 % zeros are left out: they were not pruned, a few of their weights
        happen to be zero.
        """
        self._needs_whole("context.zeros")
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
        part: range | None = None,
        objective: Objective | None = None,
    ) -> TrainingLog:
        """Train these parameters (by path) to predict the next token of the windows, with AdamW.

        ``masks`` by the same paths, True for weights to hold at zero; ``penalty`` is added to the
        loss. ``part``: the optimiser steps of the schedule to take; None: all. ``objective``:
        another loss than that of the next token. A run that is killed keeps the state of the last
        minutes; the same training then goes on from there, with the same result, and
        `resumed_after` in its log says so. Raises PrunebenchError if the loss or a gradient is not
        finite.
        """
        self._needs_whole("context.train")
        whole, held = whole_parameters(model, self.linears, parameters, masks or {})
        log = train(
            NextToken(model) if objective is None else objective,
            Trainable(whole, held, penalty),
            TrainingWindows(self.windows, self.counted),
            settings,
            generator=self.generator,
            watch=Watch(self.progress, self.say, self.log),
            part=part,
            checkpoint=None if self.checkpoints is None else self.checkpoints.next(),
        )
        self.trained_tokens += log.tokens
        return log

    def remove_blocks(self, model: Any, blocks: Iterable[Block]) -> None:
        """Remove these attentions and MLPs (current indices), and layers that then have neither.

        Raises PrunebenchError, with the model unchanged, if no block would be left.
        """
        self._needs_whole("context.remove_blocks")
        removed = list(blocks)
        if removed and set(removed) >= set(anatomy(model).blocks):
            raise PrunebenchError(
                "all attentions and MLPs would be removed", hint="leave at least one of them"
            )
        remove_blocks(model, removed)
        self.dense_indices.remove_blocks(removed)
        parts = anatomy(model)
        # A layer without both sub-blocks only hands its input on: remove it too.
        left = {block.layer for block in parts.blocks}
        left |= {index for index, layer in enumerate(parts.layers) if _is_replaced(layer)}
        if empty := set(range(len(parts.layers))) - left:
            self.remove_layers(model, empty)

    @property
    def removed_layers(self) -> list[int]:
        """Indices, in the dense model, of the decoder layers that were removed."""
        return self.dense_indices.removed_layers

    @contextmanager
    def restored_layers(self, model: Any) -> Iterator[None]:
        """Give the model all decoder layers of the dense model while the block runs.

        Those that were removed or replaced are read from the checkpoint again; the others are the
        model's own. Raises PrunebenchError if the checkpoint cannot be read layer by layer.
        """
        replaced = self.dense_indices.replaced
        named = dict(zip(self.kept_layers, anatomy(model).layers, strict=True))
        kept = {index: layer for index, layer in named.items() if index not in replaced}
        with (
            self._dense(model, [*self.removed_layers, *replaced]) as dense,
            restored_layers(model, kept, dense),
        ):
            yield

    def replace_layers(
        self, model: Any, layers: range, network: Network | None = None, width: int = 0
    ) -> torch.nn.Module:
        """Put one layer in the place of these consecutive layers; some may be removed already.

        ``layers`` and the result count in the dense model: the new layer is the first of them. It
        is a decoder layer with the weights of the first, or with ``network`` a network without a
        residual path and with random weights: "mlp" (W2 relu(W1 x)) or "swiglu", with ``width``
        channels inside. Returns the new layer, which is part of the model.
        """
        self._needs_whole("context.replace_layers")
        first = layers[0]
        if first not in self.kept_layers:
            self._put_back(model, first)
        rest = [now for now, dense in enumerate(self.kept_layers) if dense in layers[1:]]
        if rest:
            remove_layers(model, rest)
        self.dense_indices.replace_layers(layers, blocks=network is None)
        parts, index = anatomy(model), self.kept_layers.index(first)
        if network is not None:
            # Here, because it defines torch modules.
            from prunebench.model.replacement import Replacement, replace_layer

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                replace_layer(parts, index, Replacement(network=network, width=width))
        return parts.layers[index]

    def _put_back(self, model: Any, layer: int) -> None:
        """Put a removed layer (its index in the dense model) back, with its dense weights."""
        named = dict(zip(self.kept_layers, anatomy(model).layers, strict=True))
        with self._dense(model, [layer]) as dense:
            found = copy.deepcopy(anatomy(dense).layers[layer])
            restore_layers(model, {**named, layer: found}, dense)
            if others := [each for each in self.removed_layers if each != layer]:
                remove_layers(model, others)
        self.kept_layers[:] = sorted([*self.kept_layers, layer])
        share_configs(model, found)

    def dense(self, model: Any) -> AbstractContextManager[Any]:
        """The dense model, on the device of ``model``, while the block runs. Do not change it.

        It is loaded from the checkpoint again and is in memory beside ``model``. Raises
        PrunebenchError if the model came without its checkpoint.
        """
        return self._source().whole(str(model.device))

    def _dense(self, model: Any, layers: Collection[int]) -> AbstractContextManager[Any]:
        """The dense model, with the weights of these layers."""
        return self._source().lent(layers, str(model.device))

    def _source(self) -> DenseSource:
        if self.dense_source is None:
            raise PrunebenchError(
                "the dense weights cannot be read again, because the model came without its"
                " checkpoint",
                hint="give the model's name or folder instead of a model in memory",
            )
        return self.dense_source

    def keep_groups(self, model: Any, kept: Mapping[Block, Sequence[int]]) -> None:
        """Keep only these KV groups (with their query heads) or MLP channels, in smaller matrices.

        ``kept``: current indices in ascending order, for each sub-block that changes. Raises
        PrunebenchError if none would be left.
        """
        self._needs_whole("context.keep_groups")
        keep_groups(model, kept)
        self.dense_indices.keep_groups(kept)

    def keep_experts(self, model: Any, kept: Mapping[str, Sequence[int]]) -> None:
        """Keep only these routed experts of each module, with their part of the routers.

        ``kept``: current indices in ascending order, by the path of every module with experts; the
        same number in each. Raises PrunebenchError if too few are left for a token, or if the
        experts of this model cannot be removed.
        """
        self._needs_whole("context.keep_experts")
        keep_experts(model, kept)
        self.dense_indices.keep_experts(anatomy(model).by_layer(kept))

    def add_biases(self, model: Any, biases: Mapping[str, torch.Tensor]) -> None:
        """Add to the biases of these linears, by their paths in `linears`; each is [out].

        A linear without a bias gets one, which is saved and loaded with the model.
        """
        self._needs_whole("context.add_biases")
        add_biases(model, biases)

    def keep_hidden(self, model: Any, kept: Sequence[int]) -> None:
        """Keep only these channels of the residual stream (current indices), in the whole model."""
        self._needs_whole("context.keep_hidden")
        keep_hidden(model, kept)
        self.dense_indices.keep_hidden(kept)

    def _gradients(
        self, model: Any, statistics: Collection[Statistic], only: Collection[str] | None = None
    ) -> dict[str, dict[str, torch.Tensor]]:
        """The gradients among ``statistics`` of the dense model, by the linear's path."""
        input_statistics(statistics)  # a wrong name is an error before the passes
        asked = [name for name in GRADIENTS if name in statistics]
        if not asked:
            return {}
        self._needs_whole(f"statistics: {asked[0]}")
        linears = {
            path: linear
            for path, linear in self.linears(model).items()
            if only is None or path in only
        }
        return weight_gradients(model, linears, self.windows, asked, self.progress)

    def _note_experts(self, found: ExpertTokens) -> None:
        """Say on the record how many tokens experts got, and which got too few."""
        self.notes |= (notes := found.notes())
        if "experts_by_magnitude" in notes:
            few = notes["experts_by_magnitude"]
            self.log.warning(
                "%d of %d experts got fewer than %d calibration tokens: they are pruned by the"
                " magnitude of their weights",
                few["experts"],
                few["of"],
                few["fewer_tokens_than"],
            )

    def _walk(self, tokens: torch.Tensor | None) -> LayerWalk:
        return LayerWalk(tokens, self.generator, self.progress, self.device, self.layer_source)

    def _needs_whole(self, tool: str) -> None:
        """Refuse a tool that needs several layers if only one is in memory at a time."""
        if self.layer_source is not None:
            raise PrunebenchError(
                f"`{tool}` needs the whole model in memory, and this one is pruned layer"
                " by layer from its files",
                hint="leave out --stream; the author can say so before any work, by"
                " `refuses_streaming`",
            )


def _is_replaced(layer: torch.nn.Module) -> bool:
    # Here, because it defines torch modules, and plugins import this one before torch is loaded.
    from prunebench.model.replacement import is_replaced

    return is_replaced(layer)
