"""SliceGPT: keep the principal components of the residual stream (arXiv:2401.15024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

import prunebench
from prunebench import Field, Method, PrunebenchError, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import Context

RELEASED_EPSILON = 1e-5
DAMPING = 0.01
"""Share of the Gram matrix's mean diagonal that is added to its diagonal, as released."""


class SliceGPT(Method):
    """Rotate the residual stream to its principal components, and slice off the smallest.

    The weights of the norms are folded into the linears that read them. At the embeddings, behind
    every attention and every MLP, the eigenvectors Q of the sum of x x^T, in float64, are the new
    basis; only the first int((1 - ratio) * hidden) of them stay, rounded down to a multiple of
    `round_interval`. Each is computed behind the slices before it. Linears become Q^T W and W Q,
    with smaller matrices, and the residual of each sub-block passes a matrix Q_before^T Q_after.
    The last MLP is not sliced, unless `do_slice_head` is set.

    These matrices, and a head that is tied no more, are new weights: a small model may have more
    parameters than before, and its speed is measured with them. `ratio` (their `sparsity`) is the
    share of channels, not of parameters. With a ratio of 0 the logits stay the same.

    `mode=reference` follows the released code: it subtracts the mean of each embedding, which is
    right for models with LayerNorm only, and its norms add 1e-5 whatever the model's own do. Only
    models with root-mean-square norms before one attention and one MLP are covered. Others are
    refused; the paper also rotates OPT, by subtracting means in its linears.
    """

    name = "slicegpt"
    reference = Reference(
        title="SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
        arxiv="2401.15024",
        code="https://github.com/microsoft/TransformerCompression",
    )
    structure: ClassVar = frozenset({"width"})
    published_calibration: ClassVar = {"corpus": "wikitext2", "windows": 128, "length": 2048}
    needs_calibration = True

    class Options(prunebench.Options):
        ratio: float = Field(
            0.25, ge=0, lt=1, description="share of the residual channels to remove (`sparsity`)"
        )
        round_interval: int = Field(
            8, gt=0, le=65_536, description="the width that stays is a multiple of this"
        )
        final_orientation: Literal["pca", "random"] = Field(
            "pca",
            description="turn the kept basis at random as released, or leave its axes at the"
            " components; it computes the same",
        )
        do_slice_head: bool = Field(False, description="slice the last MLP and the head, too")
        mode: Literal["clean", "reference"] = Field(
            "clean", description="rotate the model as it is, or after the released code's changes"
        )

        def width(self, hidden: int) -> int:
            """How many of ``hidden`` channels stay."""
            kept = int((1 - self.ratio) * hidden)
            return kept - kept % self.round_interval

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        return bool(options.final_orientation == "random")

    def prune(self, model: Any, context: Context) -> None:
        """Notes: what stays of the stream, and which parameters are new.

        ``width``, ``explained_variance`` (share of the sum of eigenvalues that is kept, at every
        place), ``rotation_parameters`` and ``head_untied``.
        """
        hidden = prunebench.anatomy(model).embeddings.weight.shape[1]
        width = self.options.width(hidden)
        if width < 1:
            raise PrunebenchError(
                f"slicegpt: {1 - self.options.ratio:.3g} of {hidden} channels, rounded down to a"
                f" multiple of {self.options.round_interval}, are none",
                hint="lower `ratio` or `round_interval`",
            )
        places = 2 * len(context.kept_layers)
        explained: list[float] = []

        def choose(place: int, gram: torch.Tensor) -> torch.Tensor:
            whole = place == places and not self.options.do_slice_head
            kept = hidden if whole else width
            values, vectors = principal(gram)
            explained.append(float(values[:kept].sum() / values.sum()))
            basis = vectors[:, :kept]
            if self.options.final_orientation == "random" and not whole:
                basis = basis @ _rotation(kept, context.generator).to(basis)
            return basis

        tied = _is_tied(model)
        reference = self.options.mode == "reference"
        context.rotate_residual(
            model,
            choose,
            centre_embeddings=reference,
            epsilon=RELEASED_EPSILON if reference else None,
        )
        context.notes |= {
            "width": width,
            "explained_variance": explained,
            "rotation_parameters": sum(
                parameter.numel()
                for name, parameter in model.named_parameters()
                if name.endswith("_rotation")
            ),
            "head_untied": tied,
        }


def principal(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [hidden] and eigenvectors [hidden, hidden] of a damped Gram matrix, descending.

    Raises PrunebenchError if it is not finite.
    """
    if not bool(torch.isfinite(gram.diagonal()).all()):
        raise PrunebenchError(
            "slicegpt: the residual stream is not finite on the calibration windows",
            hint="use float32 or bfloat16, or look for a damaged checkpoint",
        )
    damped = gram.clone()
    damped.diagonal().add_(DAMPING * gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(damped)
    return values.flip(0), vectors.flip(1)


def _rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix, float64 [size, size]."""
    drawn = torch.rand(size, size, generator=generator, dtype=torch.float64)
    basis: torch.Tensor = torch.linalg.qr(drawn).Q
    return basis


def _is_tied(model: Any) -> bool:
    parts = prunebench.anatomy(model)
    return parts.head.weight is parts.embeddings.weight


@hookimpl
def prunebench_register_method() -> type[Method]:
    return SliceGPT
