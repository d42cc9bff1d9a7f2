"""What the layer walk prunes with, and what it says about each linear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from prunebench.errors import PluginError, PrunebenchError

if TYPE_CHECKING:
    import torch

    from prunebench.layerwise.statistics import Statistic

GROUPS = ("row", "matrix")
"""What the weights of a linear can compete within."""


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
    gathered: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The statistics that were asked for, by name."""
    sparsity: float | str | None = None
    """Share of this linear's weights to remove, or N:M, if an allocation decided it."""
    tokens: int | None = None
    """Rows of its input: tokens of the calibration, or those routed to its expert.

    None if no statistic of the input was asked for."""

    def __getitem__(self, statistic: str) -> torch.Tensor:
        """A statistic by its name. Raises PluginError if ``statistics`` do not ask for it."""
        if statistic not in self.gathered:
            raise PluginError(
                f"the method reads `{statistic}` without asking for it",
                hint=f'set `statistics = frozenset({{"{statistic}"}})` in the method',
            )
        return self.gathered[statistic]

    @property
    def input_norm(self) -> torch.Tensor:
        """L2 norm of each input feature over the calibration tokens, float32 [in].

        It is sqrt(sum over tokens of x^2 / windows), as in Wanda's code.
        """
        return self["input_norm"]

    @property
    def hessian(self) -> torch.Tensor:
        """2 / windows * sum over tokens of x x^T, float32 [in, in], as in SparseGPT's code."""
        return self["hessian"]

    @property
    def input_mean(self) -> torch.Tensor:
        """Mean of each input feature over the calibration tokens, float32 [in]."""
        return self["input_mean"]

    @property
    def input_variance(self) -> torch.Tensor:
        """Mean over the calibration tokens of (x - mean)^2 of each input feature, float32 [in]."""
        return self["input_variance"]

    @property
    def input_max(self) -> torch.Tensor:
        """Largest |x| of each input feature over the calibration tokens, float32 [in]."""
        return self["input_max"]

    @property
    def gradient(self) -> torch.Tensor:
        """Gradient of the loss by the weight, mean over the windows, float32 [out, in].

        The loss is the mean cross-entropy of a window's next tokens in the dense model. Gradients
        of all linears are in memory together, and streaming has none.
        """
        return self["gradient"]

    @property
    def gradient_norm(self) -> torch.Tensor:
        """Root of the sum over the windows of the squared `gradient` of each, float32 [out, in]."""
        return self["gradient_norm"]

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Add layer and linear to an error that is raised in the block."""
        where = f"layer {self.layer}, {self.name}"
        try:
            with naming_code(where):
                yield
        except PluginError:
            raise
        except PrunebenchError as error:
            raise PrunebenchError(f"{where}: {error.message}", hint=error.hint) from error


@contextmanager
def naming_code(where: str) -> Iterator[None]:
    """Add ``where`` to a mistake in a plugin's code that is raised in the block.

    What says already where it was raised keeps that.
    """
    try:
        yield
    except PluginError as error:
        raise error.at(where=where) from error
    except PrunebenchError:
        raise
    except Exception as error:
        if not hasattr(error, "__notes__"):
            error.add_note(where)
        raise


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
