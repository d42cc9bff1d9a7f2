"""Give the residual stream a narrower basis at every place, chosen from what passes through it.

The walk of arXiv:2401.15024, section 3.4: every basis is chosen from states that passed the
narrower places before it. There is one place for the embeddings and one behind each sub-block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.layerwise.capture import Call, capture, run_layer
from prunebench.layerwise.device_moves import moved, on_device
from prunebench.model.anatomy import anatomy
from prunebench.model.rotated import (
    PARTS,
    ROTATIONS,
    UnweightedNorm,
    check_parts,
    epsilon_of,
    gain_of,
    is_rotated,
    rotate,
)
from prunebench.model.surgery import configs, replace

if TYPE_CHECKING:
    from prunebench.model.anatomy import Anatomy

ChooseBasis = Callable[[int, "torch.Tensor"], "torch.Tensor"]
"""From a place and the Gram matrix there, float64 [hidden, hidden], to an orthonormal basis,
float64 [hidden, kept]."""


class ResidualBasis:
    """Rotates and narrows the residual stream of ``model``, in place, on calibration tokens.

    ``tokens``: int64 [windows, length]. ``device``: where layers compute; None: where they are.
    """

    def __init__(
        self, model: Any, tokens: torch.Tensor, device: torch.device | None, progress: Any
    ) -> None:
        self._model = model
        self._parts: Anatomy = anatomy(model)
        self._tokens = tokens
        self._device = device
        self._progress = progress
        self._epsilon: float | None = None
        self._groups = [self._parts.inputs_of(layer) for layer in self._parts.layers]

    def change(
        self, choose: ChooseBasis, *, centre_embeddings: bool, epsilon: float | None
    ) -> None:
        """Change the bases one place after the other.

        Raises PrunebenchError, with the model unchanged, if a norm cannot be folded or the layers
        compute something else.
        """
        parts = self._parts
        for index, layer in enumerate(parts.layers):
            check_parts(index, layer)
            self._check_linears(index)
        final = parts.final_norm
        gain = None if final is None else gain_of(final)
        if final is None or gain is None:
            raise PrunebenchError(
                "the residual stream cannot be rotated, because the norm after the last layer is no"
                " root-mean-square norm",
                hint="prune KV groups and MLP channels instead",
            )
        # Nothing has changed so far, so that a refusal leaves the model as it was.
        captured = capture(self._model, parts, self._tokens)
        self._prove(captured.states[0], captured.calls[0][0])
        own = epsilon_of(final) if epsilon is None else epsilon
        self._epsilon = epsilon
        self._untie()
        states = captured.states
        if centre_embeddings:
            # After the head has its own weight: only what enters the stream is centred.
            _centre(parts.embeddings.weight)
            states = capture(self._model, parts, self._tokens).states
        basis = choose(0, _gram(states))  # [hidden, kept]
        # From here on, states are in the basis of their place: [windows, length, kept].
        _columns(parts.embeddings, basis)
        parts.embeddings.embedding_dim = basis.shape[1]
        states = [_times(one, basis) for one in states]
        for index, layer in enumerate(parts.layers):
            calls = captured.calls[index]
            with on_device(layer, self._device):
                basis = self._layer(index, layer, states, calls, choose, basis)
            self._progress(index + 1, len(parts.layers))
        norm = UnweightedNorm(len(gain), own).train(final.training)
        replace(self._model, str(parts.where.norm), norm)
        _fold(parts.head, gain)
        _columns(parts.head, basis)

    def _layer(
        self,
        index: int,
        layer: Any,
        states: list[torch.Tensor],
        calls: Sequence[Call],
        choose: ChooseBasis,
        before: torch.Tensor,
    ) -> torch.Tensor:
        """Rotate one layer, replace the states by its outputs, and return their basis."""
        gains = [gain_of(getattr(layer, name)) for name in PARTS[::2]]
        rotate(layer, (before.shape[1],) * 3, self._epsilon)
        basis = before
        for step, (norm, block) in enumerate(zip(PARTS[::2], PARTS[1::2], strict=True)):
            readers, writer = self._readers(index, block), self._writer(index, block)
            gain = gains[step]
            assert gain is not None
            for reader in readers:
                # The norm's weights belong to the old channels: fold them before these mix.
                _fold(reader, gain)
                _columns(reader, basis)
            for batch, state in enumerate(states):
                call = calls[batch] if step == 0 else Call((), {})
                kwargs = moved(call.kwargs, self._device)
                here = moved(state, self._device)
                output = getattr(layer, block)(getattr(layer, norm)(here), **kwargs)
                output = output[0] if isinstance(output, tuple) else output
                # In all channels of the original basis, so that a new one can be chosen.
                states[batch] = moved(_times(here, basis.T) + output, state.device)
            after = choose(2 * index + 1 + step, _gram(states))
            # The product in float64: the residual passes one matrix, rounded once.
            rotation = getattr(layer, ROTATIONS[step])
            rotation.data = (basis.T @ after.to(basis)).to(rotation)
            _rows(writer, after)
            # What the sliced sub-block would give, without running it a second time.
            states[:] = [_times(one, after) for one in states]
            basis = after
        return basis

    def _readers(self, index: int, block: str) -> list[Any]:
        groups = [group for group in self._groups[index] if group[0].startswith(f"{block}.")]
        layer = self._parts.layers[index]
        return [layer.get_submodule(name) for name in groups[0]]

    def _writer(self, index: int, block: str) -> Any:
        groups = [group for group in self._groups[index] if group[0].startswith(f"{block}.")]
        return self._parts.layers[index].get_submodule(groups[-1][-1])

    def _check_linears(self, index: int) -> None:
        """Each sub-block reads the stream with its first linears, and writes with its last one."""
        layer = self._parts.layers[index]
        width = self._parts.embeddings.weight.shape[1]
        for block in PARTS[1::2]:
            groups = [group for group in self._groups[index] if group[0].startswith(f"{block}.")]
            linears = self._parts.linears(layer)
            ends = [linears[name] for name in (*(groups[0] if groups else ()), *groups[-1:][0])]
            plain = all(isinstance(linear, torch.nn.Linear) for linear in ends)
            if len(groups) < 2 or len(groups[-1]) != 1 or not plain or is_rotated(layer):
                raise PrunebenchError(
                    f"layer {index}: the residual stream cannot be rotated, because {block} is not"
                    " made of plain linears that read it and one that writes to it",
                    hint="prune KV groups and MLP channels instead",
                )
            assert ends[-1].out_features == width

    def _prove(self, states: torch.Tensor, call: Call) -> None:
        """Raise PrunebenchError unless the first layer computes the same after it is rotated."""
        layer: Any = self._parts.layers[0]
        expected = run_layer(layer, states, call)
        twin = copy.deepcopy(layer)
        gains = [gain_of(getattr(twin, name)) for name in PARTS[::2]]
        rotate(twin, (states.shape[-1],) * 3)
        for block, gain in zip(PARTS[1::2], gains, strict=True):
            groups = [group for group in self._groups[0] if group[0].startswith(f"{block}.")]
            for name in groups[0]:
                assert gain is not None
                _fold(twin.get_submodule(name), gain)
        found = twin(states, **call.kwargs)
        scale = float(expected.float().abs().max())
        difference = float((found.float() - expected.float()).abs().max())
        allowed = 1e-3 if states.dtype in {torch.float32, torch.float64} else 0.05
        if not difference <= allowed * scale or call.args:
            raise PrunebenchError(
                f"the residual stream cannot be rotated, because a {type(layer).__name__} computes"
                f" something else when its norms are folded (a difference of {difference:.2g})",
                hint="prune KV groups and MLP channels instead",
            )

    def _untie(self) -> None:
        """Give the head a weight of its own: it is rotated otherwise than the embeddings."""
        head: Any = self._parts.head
        if head.weight is self._parts.embeddings.weight:
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in configs(self._model):
            config.tie_word_embeddings = False


def _gram(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over all tokens of x x^T, float64 [hidden, hidden]."""
    total: torch.Tensor | None = None
    for one in states:
        # Small eigenvalues are differences of large sums, so that float32 would not do.
        x = one.flatten(0, -2).double()  # [tokens, hidden]
        total = x.T @ x if total is None else total.addmm_(x.T, x)
    assert total is not None
    return total


def _times(states: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """States times a float64 matrix, in the states' own type."""
    return states @ matrix.to(states)


def _fold(linear: Any, gain: torch.Tensor) -> None:
    """Multiply the columns of a weight [out, in] by the weights of the norm that it reads."""
    weight = linear.weight
    weight.data = (weight.detach().double() * gain.to(weight.device)).to(weight.dtype)


def _columns(module: Any, basis: torch.Tensor) -> None:
    """W Q for a weight [out, in] that reads the stream, or an embedding."""
    weight = module.weight
    changed = (weight.detach().double() @ basis.to(weight.device)).to(weight.dtype)
    module.weight = torch.nn.Parameter(changed, requires_grad=weight.requires_grad)
    if hasattr(module, "in_features"):
        module.in_features = basis.shape[1]


def _rows(linear: Any, basis: torch.Tensor) -> None:
    """Q^T W, and Q^T b, for a linear that writes to the stream."""
    for name in ("weight", "bias"):
        parameter = getattr(linear, name)
        if parameter is None:
            continue
        changed = (basis.T.to(parameter.device) @ parameter.detach().double()).to(parameter.dtype)
        setattr(linear, name, torch.nn.Parameter(changed, requires_grad=parameter.requires_grad))
    linear.out_features = basis.shape[1]


def _centre(weight: torch.Tensor) -> None:
    """Subtract the mean of each embedding, [vocabulary, hidden], in place."""
    exact = weight.detach().double()
    weight.data = (exact - exact.mean(-1, keepdim=True)).to(weight.dtype)
