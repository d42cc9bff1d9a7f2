"""What the layer walk prunes with, and what it says about each linear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from prunebench.errors import PrunebenchError

if TYPE_CHECKING:
    import torch

    from prunebench.layerwise.statistics import Statistic


@dataclass(frozen=True)
class LinearStats:
    """What is known about one linear when it is pruned.

    Linears that read the same input share the tensors of its statistics, so change none in place
    unless you prune all these linears with it.
    """

    layer: int
    """Index of the decoder layer."""
    name: str
    """Path of the linear inside its layer, such as ``self_attn.q_proj``."""
    generator: torch.Generator
    """Randomness on the CPU, seeded by the cell."""
    norm: torch.Tensor | None = None
    """What `input_norm` returns; None if not gathered."""
    second_moment: torch.Tensor | None = None
    """What `hessian` returns; None if not gathered."""
    sparsity: float | str | None = None
    """Share of this linear's weights to remove, or N:M, if an allocation decided it."""

    @property
    def input_norm(self) -> torch.Tensor:
        """L2 norm of each input feature over the calibration tokens, float32 [in].

        It is sqrt(sum over tokens of x^2 / windows), as in Wanda's code. Raises PrunebenchError
        if the method's ``statistics`` do not ask for it.
        """
        return _gathered("input_norm", self.norm)

    @property
    def hessian(self) -> torch.Tensor:
        """2 / windows * sum over tokens of x x^T, float32 [in, in], as in SparseGPT's code.

        Raises PrunebenchError if the method's ``statistics`` do not ask for it.
        """
        return _gathered("hessian", self.second_moment)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Put layer and linear in front of the message of a PrunebenchError raised in the block."""
        try:
            yield
        except PrunebenchError as error:
            raise PrunebenchError(
                f"layer {self.layer}, {self.name}: {error.message}", hint=error.hint
            ) from error


def _gathered(name: str, value: torch.Tensor | None) -> torch.Tensor:
    if value is None:
        raise PrunebenchError(
            f"the method reads `{name}` without asking for it",
            hint=f'set `statistics = frozenset({{"{name}"}})` in the method',
        )
    return value


class GroupPruner(Protocol):
    """What `LayerWalk.prune` needs of a pruning method."""

    statistics: ClassVar[frozenset[Statistic]]
    """What to gather of each input."""

    @property
    def true_sequential(self) -> bool:
        """Whether to run a layer again after each group, so that the next sees it pruned."""

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        """Prune in place the weights, each [out, in], of the linears that read the same input.

        ``stats`` has one item for each weight.
        """
