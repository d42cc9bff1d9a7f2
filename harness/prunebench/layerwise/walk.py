"""Walk the decoder layer by layer over the calibration windows.

The inputs of layer 0 are captured once from the model; from then on only hidden states travel:

    states = inputs of layer 0
    for each layer:
        run it dense and tap the inputs of its linears
        prune its linears
        run it again: states = its outputs

So each layer is measured behind pruned predecessors, as in SparseGPT and Wanda. Two runs per layer
are the minimum. The first one ends at the last tapped input, because nothing reads the layer's
output before it is pruned. States stay on the model's device; if layers compute on another one, a
single layer and a single batch are there at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.layerwise.capture import Captured, batches_of, capture, hidden_states
from prunebench.layerwise.device_moves import LayerSource, lent_frame, lent_layer, moved
from prunebench.layerwise.expert_tokens import ExpertTokens, expert_of, in_turns
from prunebench.layerwise.layer_run import Gathered, LayerRun
from prunebench.layerwise.layer_training import LayerTraining
from prunebench.layerwise.pruner import LinearStats, naming_code
from prunebench.model.anatomy import Anatomy, anatomy
from prunebench.model.experts import ExpertRows, find_experts, observed_experts
from prunebench.model.mixture import mixture_of

if TYPE_CHECKING:
    from torch import nn

    from prunebench.layerwise.capture import Call
    from prunebench.layerwise.layer_training import LayerTrainer
    from prunebench.layerwise.pruner import GroupPruner
    from prunebench.layerwise.statistics import Statistic

# Names in quotes: plugins import these modules before torch is loaded.
Progress = Callable[[int, int], None]
LinearsObserver = Callable[[Mapping[str, "nn.Linear"], Mapping[str, LinearStats]], None]
ExpertsObserver = Callable[[str, "ExpertRows"], None]
LayersObserver = Callable[[int, "torch.Tensor", "torch.Tensor"], None]


@dataclass(frozen=True)
class LayerWalk:
    """How to walk: what goes through the layers, and where they come from and compute."""

    tokens: torch.Tensor | None
    """Calibration windows, int64 [windows, length]; None if no statistics are asked for."""
    generator: torch.Generator
    """Passed on in the statistics of every linear."""
    progress: Progress = ignore
    """Called with (done, total) layers."""
    device: torch.device | None = None
    """Where layers compute, one at a time; None: where each of them is."""
    source: LayerSource | None = None
    """Lends the layers of a model that is not in memory."""
    gradients: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """Statistics of the weights [out, in], by the linear's path and their name."""
    expert_tokens: ExpertTokens = field(default_factory=ExpertTokens)
    """Counts the tokens that experts got; those with too few count as if all features were alike."""

    def prune(
        self,
        model: Any,
        pruner: GroupPruner,
        shares: Mapping[str, float | str] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Let ``pruner`` prune the linears of the decoder layers in place.

        ``shares``: the sparsity of each linear by its path in the model, if an allocation decided
        it. ``only``: the paths of the linears to prune, in any order; None: all of them. Raises
        PrunebenchError if an input is not finite.
        """
        parts = anatomy(model)
        captured = self._capture(model, parts) if self.tokens is not None else None
        groups_of = [
            _among(only, parts.inputs_of(layer), f"{parts.layers_path}.{index}.")
            for index, layer in enumerate(parts.layers)
        ]
        last = max((index for index, groups in enumerate(groups_of) if groups), default=0)
        # Layers that are not pruned are visited too: a streamed model is written layer by layer.
        for index, groups in enumerate(groups_of):
            # Each step runs the layer once to measure. One step for all inputs is enough unless a
            # group must see those before it in the same layer pruned.
            steps = [(group,) for group in groups] if pruner.true_sequential else [groups]
            with self._running(parts, index, captured, changes=True) as run:
                for together in steps:
                    self._prune_groups(pruner, run, together, shares)
                if index < last:  # nothing reads the output of the last layer that is pruned
                    run.advance()
            self.progress(index + 1, len(parts.layers))

    def observe_linears(
        self,
        model: Any,
        statistics: Collection[Statistic],
        see: LinearsObserver,
        only: Collection[str] | None = None,
    ) -> None:
        """Call ``see(linears, stats)``, both by name, for each layer of the unchanged model.

        Each layer runs once; without tokens none runs. ``only``: names in a layer; None: all
        linears. Raises PrunebenchError if an input is not finite.
        """
        parts = anatomy(model)
        captured = self._capture(model, parts) if self.tokens is not None else None
        for index, layer in enumerate(parts.layers):
            groups = _among(only, parts.inputs_of(layer), "")
            names = {name for group in groups for name in group}
            with self._running(parts, index, captured, changes=False) as run:
                gathered = run.gather([group[0] for group in groups], statistics, into=run.states)
                linears = {
                    name: linear for name, linear in parts.linears(layer).items() if name in names
                }
                see(linears, self._all_stats(run, groups, gathered))
            self.progress(index + 1, len(parts.layers))

    def train(
        self,
        model: Any,
        trainer: LayerTrainer,
        only: Collection[str] | None = None,
        *,
        windows: int = 1,
        dense_inputs: bool = False,
        changes: bool = True,
    ) -> None:
        """Let ``trainer`` learn new weights of one layer after the other.

        A layer is trained to give its dense outputs: those for the inputs that the changed layers
        before it give, or with ``dense_inputs`` those of the dense model. ``only``: as for `prune`.
        ``windows`` are in a batch. Without ``changes`` the model stays as it is, and the new
        weights only decide what the next layer reads. Two sets of states are in memory, and the
        weights of one layer. Raises PrunebenchError if an input is not finite.
        """
        parts = anatomy(model)
        captured = self._capture(model, parts, windows)
        # The states of the dense model, or room for one layer's targets.
        spare = [
            states.clone() if dense_inputs else torch.empty_like(states)
            for states in captured.states
        ]
        groups_of = [
            _among(only, parts.inputs_of(layer), f"{parts.layers_path}.{index}.")
            for index, layer in enumerate(parts.layers)
        ]
        last = max((index for index, groups in enumerate(groups_of) if groups), default=0)
        # Layers that are not trained are visited too if a streamed model is written.
        for index, groups in enumerate(groups_of if changes else groups_of[: last + 1]):
            with self._running(parts, index, captured, changes=changes) as run:
                if index <= last:
                    dense = replace(run, batches=_with_states(run, spare)) if dense_inputs else run
                    self._train_layer(trainer, run, dense, groups, spare, changes=changes)
            self.progress(index + 1, len(parts.layers))

    def _train_layer(
        self,
        trainer: LayerTrainer,
        run: LayerRun,
        dense: LayerRun,
        groups: Sequence[Sequence[str]],
        targets: Sequence[torch.Tensor],
        *,
        changes: bool,
    ) -> None:
        """Train the linears ``groups`` of a layer, and replace its states by the new outputs.

        ``dense``: the layer with the states whose outputs are to be reached; they are written
        into ``targets``.
        """
        names = [group[0] for group in groups]
        if dense is run and groups:  # one forward gives the statistics and the outputs
            gathered = run.gather(names, trainer.statistics, into=targets)
        else:
            gathered = run.gather(names, trainer.statistics)
            if dense is not run:
                dense.advance()
        weights: Mapping[str, torch.Tensor] = {}
        layer = self._training(run, groups, gathered, targets)
        if groups:
            with torch.enable_grad(), naming_code(f"layer {run.index}"):
                weights = trainer.train_layer(layer)
        if changes:
            # A copy into the old memory: a streamed layer is written from there.
            for name, weight in weights.items():
                run.linear(name).weight.data.copy_(weight)
            weights = {}
        # One forward gives the next layer's input and the error that is left.
        for batch, (states, call) in enumerate(run.batches):
            output = run.forward(states, call, weights)
            if groups:
                trainer.see_trained(layer, layer.target(batch), output)
            states.copy_(output)

    def _training(
        self,
        run: LayerRun,
        groups: Sequence[Sequence[str]],
        gathered: Sequence[Gathered],
        targets: Sequence[torch.Tensor],
    ) -> LayerTraining:
        stats = self._all_stats(run, groups, gathered)
        return LayerTraining(run, {name: run.linear(name) for name in stats}, stats, targets)

    def observe_experts(self, model: Any, see: ExpertsObserver, *, logits: bool = False) -> None:
        """Call ``see(path, rows)`` for each expert and batch of the unchanged model.

        path: of the module with experts in the model. ``logits``: the rows have the router's too.
        """
        parts = anatomy(model)
        weights = mixture_of(model).routers(model).values() if logits else ()
        seen: dict[str, torch.Tensor] = {}  # by module with experts: the latest logits
        keep = [(weight, partial(_kept, seen, path)) for path, weight in weights]
        observers = [
            {
                each: partial(_with_logits, see, seen, f"{parts.layers_path}.{index}.{path}")
                for path, each in find_experts(layer).items()
            }
            for index, layer in enumerate(parts.layers)
        ]
        # Here, because it imports torch, and plugins import this module before that.
        from prunebench.model.routers import RouterProducts

        with RouterProducts(keep) if keep else nullcontext():
            if self.device is None:
                everywhere = {
                    each: observer for some in observers for each, observer in some.items()
                }
                with observed_experts(everywhere):
                    self._forwards(model)
                return
            captured = self._capture(model, parts)
            for index, some in enumerate(observers):
                with (
                    self._running(parts, index, captured, changes=False) as run,
                    observed_experts(some),
                ):
                    run.advance()
                self.progress(index + 1, len(parts.layers))

    def observe_layers(self, model: Any, see: LayersObserver) -> None:
        """Call ``see(layer, before, after)`` for every layer and batch of the unchanged model.

        before, after: the layer's input and output [windows of the batch, length, hidden]. All
        batches of a layer come before those of the next if layers compute on another device,
        otherwise all layers of a batch come first.
        """
        if self.device is None:
            self._observe_forwards(model, see)
            return
        parts = anatomy(model)
        captured = self._capture(model, parts)
        for index in range(len(parts.layers)):
            with self._running(parts, index, captured, changes=False) as run:
                for states, call in run.batches:
                    after = run.forward(states, call)
                    see(index, moved(states, self.device), after)
                    states.copy_(after)  # the input of the next layer, in the same memory
            self.progress(index + 1, len(parts.layers))

    def _observe_forwards(self, model: Any, see: LayersObserver) -> None:
        """`observe_layers` where the model is: the model runs each batch as a whole."""
        parts = anatomy(model)
        handles = []
        for index, layer in enumerate(parts.layers):

            def hook(_: Any, args: Any, kwargs: Any, output: Any, index: int = index) -> None:
                # Families pass the hidden states by position or by name.
                before = args[0] if args else kwargs["hidden_states"]
                see(index, before, hidden_states(output))

            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        try:
            self._forwards(model)
        finally:
            for handle in handles:
                handle.remove()

    def _forwards(self, model: Any) -> None:
        """Run the decoder over all batches where the model is."""
        batches = batches_of(model, self._windows)
        for done, batch in enumerate(batches, start=1):
            anatomy(model).decoder(batch, use_cache=False)
            self.progress(done, len(batches))

    @property
    def _windows(self) -> torch.Tensor:
        assert self.tokens is not None, "this walk needs calibration tokens"
        return self.tokens

    def _capture(self, model: Any, parts: Anatomy, windows: int | None = None) -> Captured:
        with lent_frame(self.source):
            return capture(model, parts, self._windows, windows)

    @contextmanager
    def _running(
        self, parts: Anatomy, index: int, captured: Captured | None, *, changes: bool
    ) -> Iterator[LayerRun]:
        """Prepare a layer and its batches for the block; if ``changes``, write the layer back."""
        layer = parts.layers[index]
        batches = [] if captured is None else captured.batches(index)
        with lent_layer(layer, index, self.device, self.source, changes=changes):
            path = f"{parts.layers_path}.{index}"
            yield LayerRun(index, path, layer, batches, self.device, parts.linears(layer))

    def _prune_groups(
        self,
        pruner: GroupPruner,
        run: LayerRun,
        groups: Sequence[Sequence[str]],
        shares: Mapping[str, float | str] | None,
    ) -> None:
        """Prune the linears of a layer that read these inputs, measured in one run of the layer."""
        statistics = pruner.statistics if run.batches else ()
        *turns, last = in_turns(run, groups, statistics)
        # What comes last is measured first: it may read what the experts write.
        of_last = run.gather([group[0] for group in last], statistics)
        for turn in turns:
            gathered = run.gather([group[0] for group in turn], statistics)
            self._prune_gathered(pruner, run, turn, gathered, shares)
        self._prune_gathered(pruner, run, last, of_last, shares)

    def _prune_gathered(
        self,
        pruner: GroupPruner,
        run: LayerRun,
        groups: Sequence[Sequence[str]],
        gathered: list[Gathered],
        shares: Mapping[str, float | str] | None,
    ) -> None:
        for group in groups:
            # The call holds the only reference to what it is given: a Hessian, [in, in], is free
            # again before the next one is completed.
            self._prune_group(pruner, run, group, gathered.pop(0), shares)

    def _prune_group(
        self,
        pruner: GroupPruner,
        run: LayerRun,
        group: Sequence[str],
        found: Gathered,
        shares: Mapping[str, float | str] | None,
    ) -> None:
        """Prune the linears ``group``, which read the same input; ``found`` are its statistics."""
        shared = self._stats(run, group[0], found)
        stats = [
            self._of_linear(
                run, name, shared, None if shares is None else shares[f"{run.path}.{name}"]
            )
            for name in group
        ]
        with naming_code(f"layer {run.index}, {', '.join(group)}"):
            pruner.prune_group([run.linear(name).weight for name in group], stats)

    def _all_stats(
        self, run: LayerRun, groups: Sequence[Sequence[str]], gathered: Sequence[Gathered]
    ) -> dict[str, LinearStats]:
        """What is known of each linear of ``groups``, by its name in the layer."""
        stats: dict[str, LinearStats] = {}
        for group, found in zip(groups, gathered, strict=True):
            shared = self._stats(run, group[0], found)
            stats |= {name: self._of_linear(run, name, shared) for name in group}
        return stats

    def _of_linear(
        self, run: LayerRun, name: str, shared: LinearStats, sparsity: float | str | None = None
    ) -> LinearStats:
        """What is known of one linear: what its input shares with others, and its gradients."""
        gathered = {**shared.gathered, **self.gradients.get(f"{run.path}.{name}", {})}
        return replace(shared, name=name, gathered=gathered, sparsity=sparsity)

    def _stats(self, run: LayerRun, name: str, found: Gathered) -> LinearStats:
        """Complete what was gathered of the input of ``name``; raise if that is not finite."""
        for statistic in found.statistics.values():
            if not statistic.finite():
                # Here, because it loads torch: plugins import this module before that.
                from prunebench.model.finite import finite_hint

                raise PrunebenchError(
                    f"layer {run.index}: the input of {name} is not finite on the calibration"
                    " windows",
                    hint=finite_hint(run.layer),
                )
        few = (
            bool(found.statistics)
            and expert_of(name) is not None
            and self.expert_tokens.too_few(f"{run.path}.{name}", found.tokens)
        )
        # `result` works in place: completing a Hessian takes no second matrix.
        completed = found.statistics
        if few:
            linear = run.linear(name)
            completed = {
                kind: type(each).of_equal_features(linear.in_features, linear.weight.device)
                for kind, each in completed.items()
            }
        results = {kind: statistic.result() for kind, statistic in completed.items()}
        tokens = found.tokens if found.statistics else None
        return LinearStats(run.index, name, self.generator, results, tokens=tokens)


def _kept(seen: dict[str, torch.Tensor], path: str, logits: torch.Tensor) -> torch.Tensor:
    seen[path] = logits.reshape(-1, logits.shape[-1])  # [tokens, experts and more]
    return logits


def _with_logits(
    see: ExpertsObserver, seen: Mapping[str, torch.Tensor], path: str, rows: ExpertRows
) -> None:
    see(path, rows._replace(logits=seen[path][rows.tokens]) if path in seen else rows)


def _among(
    only: Collection[str] | None, groups: Sequence[Sequence[str]], prefix: str
) -> list[Sequence[str]]:
    """The linears of one layer that are in ``only``, in their groups; None: all."""
    if only is None:
        return list(groups)
    chosen = [[name for name in group if f"{prefix}{name}" in only] for group in groups]
    return [group for group in chosen if group]


def _with_states(run: LayerRun, states: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, Call]]:
    """The batches of ``run`` with other states."""
    return [(own, call) for own, (_, call) in zip(states, run.batches, strict=True)]
