"""BESA: learn how much each row or each linear of a decoder layer loses (arXiv:2402.16880)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import field_validator

import prunebench
from prunebench import (
    Allocation,
    Field,
    LayerwiseOptions,
    Method,
    OnlyIf,
    Reference,
    hookimpl,
)
from prunebench_plugins.c4_text import C4

if TYPE_CHECKING:
    from prunebench import Context
    from prunebench_plugins.besa_training import LayerResult, SparsityLearner

REFERENCE = Reference(
    title="BESA: Pruning Large Language Models with Blockwise Parameter-Efficient Sparsity"
    " Allocation",
    arxiv="2402.16880",
    code="https://github.com/OpenGVLab/LLMPrune-BESA",
)


class LearningOptions(prunebench.Options):
    """How sparsities are learned, for the method and the allocation."""

    metric: Literal["wanda", "magnitude", "sparsegpt", "sparsegpt-released", "ria"] = Field(
        "wanda",
        description="score that ranks the weights; sparsegpt is w^2 / U_jj^2 (SparseGPT-Git in the"
        " released code), sparsegpt-released w^2 / U_jj (SparseGPT there)",
    )
    sparsity_step: float = Field(
        0.01, gt=0, le=0.5, description="distance of the candidate sparsities 1, 1 - step, ..., 0"
    )
    sigmoid_smooth: bool = Field(
        True,
        description="coefficients are softmax(sigmoid(theta)) instead of softmax(theta): the"
        " sparsity of a unit stays within about 0.12 of where it begins",
    )
    epochs: int = Field(1, ge=0, le=1000, description="times that each layer sees all windows")
    prune_batch_size: int = Field(1, gt=0, le=4096, description="windows in each step")
    l2_alpha: float = Field(1.0, ge=0, le=1e6, description="weight of the reconstruction loss")
    sparsity_beta: float = Field(
        5.0,
        ge=0,
        le=1e6,
        description="weight of ((mean sparsity - sparsity) / sparsity)^2 (5 in the released"
        " recipes, 1 by default in their code)",
    )
    norm_all: bool = Field(
        False, description="scale output channels by their norm in all windows, not in the batch"
    )
    fix_layers: list[str] | None = Field(
        None,
        min_length=1,
        description="linears with one of these texts in their name get `sparsity` and are not"
        " learned; all: every linear",
    )
    optimizer: Literal["adamw", "prodigy"] = Field(
        "adamw", description="prodigy is the released recipes'; pip install 'prunebench[besa]'"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1e3, description="null: 0.01 for adamw, 1 for prodigy, as released"
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="of the optimiser")
    d_coef: Annotated[float, OnlyIf(optimizer="prodigy")] = Field(
        5.0,
        gt=0,
        le=1e6,
        description="factor of Prodigy's step estimate: 0.05 to 50 in the released recipes, by"
        " model",
    )
    decouple: Annotated[bool, OnlyIf(optimizer="prodigy")] = Field(
        True, description="weight decay as in AdamW"
    )
    use_bias_correction: Annotated[bool, OnlyIf(optimizer="prodigy")] = Field(
        False, description="Adam's bias correction in Prodigy"
    )
    safeguard_warmup: Annotated[bool, OnlyIf(optimizer="prodigy")] = Field(
        False, description="leave the learning rate out of Prodigy's step estimate"
    )
    use_cos_sche: bool = Field(
        False, description="lower the learning rate from epoch to epoch along a cosine"
    )
    clip_grad: float | None = Field(None, gt=0, le=1e6, description="clip gradients at this size")
    clip_mode: Annotated[Literal["norm", "value", "agc"], OnlyIf(clip_grad=bool)] = Field(
        "norm", description="what is clipped: the norm, each value, or adaptively by unit"
    )
    mode: Literal["clean", "reference"] = Field(
        "clean", description="begin at the sparsity asked for, or at one half as released"
    )
    trim: Annotated[bool, OnlyIf(mode="clean")] = Field(
        True, description="in the end, shift the sparsities of each decoder layer to `sparsity`"
    )


class BESA(Method):
    """Learn the sparsity of every row, or every linear, against the layer's dense outputs.

    The weights of a row are ranked by a score, by default Wanda's. A row (`blocksize: 1`), a
    number of rows or a linear (-1) has coefficients beta for the candidate sparsities p_d, and
    loses the share sum_d beta_d p_d of the lowest weights of each row. The coefficients are
    trained layer by layer behind pruned predecessors; see `prunebench_plugins.besa_training` for
    the loss. With `prune_dense` the outputs to reach are the dense model's, not those of the dense
    layer for the same input; the released recipes for linears (`blocksize: -1`) use it.

    The loss only draws the mean sparsity of a layer to `sparsity`. So with few steps the released
    code misses it, and with `sigmoid_smooth` it cannot reach sparsities beyond 0.38 to 0.62,
    because it begins at one half. `mode=clean` begins at `sparsity`, and trims: one number is added
    to all learned sparsities of a layer so that the budget is exact. At one half both begin alike.
    `mode=reference` follows the released code, and counts in float32 as that does; for columns with
    a `blocksize` the gradient then goes to other ranks and columns, as released. The record has
    the sparsity that was learned beside the one asked for.

    The optimiser is AdamW, or Prodigy as in the released recipes, if it is installed. The released
    LoRA option is left out: both of its factors begin at zero, so that neither has a gradient.
    """

    name = "besa"
    reference = REFERENCE
    structure: ClassVar = frozenset({"unstructured"})
    published_calibration = C4
    needs_calibration = True

    class Options(LearningOptions, LayerwiseOptions):
        sparsity: float = Field(
            0.5, ge=0, lt=1, description="mean share of weights set to zero in each decoder layer"
        )
        blocksize: int = Field(
            1,
            ge=-1,
            description="rows that share a sparsity: 1 learns each apart, -1 all of a linear"
            " together",
        )
        wise_dim: Literal["row", "column"] = Field(
            "row", description="weights compete within their row or within their column"
        )
        prune_dense: bool = Field(
            False,
            description="reach the outputs of the dense model, not those of the dense layer for the"
            " inputs that the pruned layers give",
        )

        @field_validator("sparsity", mode="before")
        @classmethod
        def _is_a_share(cls, sparsity: Any) -> Any:
            if isinstance(sparsity, str | dict):
                raise ValueError(
                    f"{sparsity} is a pattern, and besa learns shares: give one such as 0.5"
                )
            return sparsity

        @field_validator("blocksize")
        @classmethod
        def _is_a_size(cls, blocksize: int) -> int:
            if blocksize == 0:
                raise ValueError("0 rows share nothing: 1 learns each row apart, -1 each linear")
            return blocksize

    @classmethod
    def refuses_allocation(cls, options: Any) -> str | None:
        del options
        return "it learns itself how much each row or linear loses"

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        del options
        return None

    def prune(self, model: Any, context: Context) -> None:
        """Notes: sparsities, losses, and what the training took.

        ``asked_sparsity``, ``learned_sparsity`` (before it is trimmed) and ``achieved_sparsity``
        are of all chosen weights, the next of each layer: ``layer_learned_sparsity``,
        ``reconstruction_loss`` under the final masks and ``training_loss`` (mean over the steps of
        the last epoch). ``sparsity`` is that of every linear, ``lowest_line`` and ``highest_line``
        those of its rows or columns.
        """
        from prunebench_plugins.besa_training import SparsityLearner

        options = self.options
        learner = SparsityLearner(
            options,
            options.sparsity,
            blocksize=options.blocksize,
            columns=options.wise_dim == "column",
        )
        _learn(learner, model, context, dense=options.prune_dense, changes=True)
        results = learner.results
        note_learning(learner, context)
        zeros = by_path(model, {layer: one.zeros for layer, one in results.items()})
        context.notes |= {
            "achieved_sparsity": _mean(
                {path: float(lines.mean()) for path, lines in zeros.items()}, model, context
            ),
            "sparsity": {path: float(lines.mean()) for path, lines in zeros.items()},
            "lowest_line": {path: float(lines.min()) for path, lines in zeros.items()},
            "highest_line": {path: float(lines.max()) for path, lines in zeros.items()},
        }


class BESAAllocation(Allocation):
    """Learn the sparsity of every linear against the outputs of its decoder layer, as BESA does.

    It is the method `besa` with `blocksize: -1` and without its masks: the sparsities go to
    another method, such as SparseGPT. The weights that a linear loses while they are learned are
    the lowest by `metric`: choose the method's own score if it has one. Rows of a linear cannot
    differ; for that, use the method. With `trim` the mean of each layer is exact.
    """

    name = "besa"
    reference = REFERENCE
    published_calibration = C4
    needs_calibration = True

    class Options(LearningOptions):
        prune_dense: bool = Field(
            True,
            description="reach the outputs of the dense model, not those of the dense layer for the"
            " inputs that the pruned layers give",
        )

    def shares(self, model: Any, sparsity: float, context: Context) -> dict[str, float]:
        """Notes: as the method's, without those of the lines."""
        from prunebench_plugins.besa_ranking import shifted
        from prunebench_plugins.besa_training import SparsityLearner

        if not sparsity:
            return dict.fromkeys(context.linears(model), 0.0)
        learner = SparsityLearner(self.options, sparsity)
        _learn(learner, model, context, dense=self.options.prune_dense, changes=False)
        note_learning(learner, context)
        found: dict[int, dict[str, torch.Tensor]] = {}
        for layer, result in learner.results.items():
            found[layer] = self._of_layer(result, sparsity)
        shares = by_path(model, found)
        if self.options.mode == "clean" and self.options.trim:
            sizes = context.linears(model)
            for layer in learner.results:
                paths = list(by_path(model, {layer: found[layer]}))
                weights = torch.tensor([sizes[path].weight.numel() for path in paths]).double()
                budget = sparsity * float(weights.sum())
                trimmed = shifted(torch.stack([shares[path] for path in paths]), weights, budget)
                shares |= dict(zip(paths, trimmed, strict=True))
        return {path: float(share) for path, share in shares.items()}

    def _of_layer(self, result: LayerResult, sparsity: float) -> dict[str, torch.Tensor]:
        """The learned sparsity of each linear; of those that are fixed, the one asked for."""
        fixed = torch.tensor(sparsity, dtype=torch.float64)
        return {
            name: result.sparsities[name].mean() if name in result.sparsities else fixed
            for name in result.zeros
        }


def _learn(
    learner: SparsityLearner, model: Any, context: Context, *, dense: bool, changes: bool
) -> None:
    """Train all layers, and count the tokens. Raises PrunebenchError before any work if it can."""
    from prunebench_plugins.besa_optimiser import prodigy

    options = learner.options
    if options.optimizer == "prodigy":
        prodigy()
    learner.check(context.chosen_linears(model, options))
    context.train_layers(
        model, learner, windows=options.prune_batch_size, dense_inputs=dense, changes=changes
    )


def note_learning(learner: SparsityLearner, context: Context) -> None:
    """Put what the method and the allocation learned on the record."""
    results = list(learner.results.values())
    context.notes |= {
        "asked_sparsity": learner.sparsity,
        "learned_sparsity": sum(one.learned for one in results) / len(results),
        "layer_learned_sparsity": [one.learned for one in results],
        "reconstruction_loss": [sum(one.losses) / len(one.losses) for one in results],
        "training_steps": learner.steps,
        "trained_tokens": learner.options.epochs * context.windows.numel(),
    }
    if learner.steps:
        context.notes["training_loss"] = [
            one.training_loss[-1] for one in results if one.training_loss
        ]


def by_path(
    model: Any, of_layers: Mapping[int, Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What is known of linears by layer and name, by their path in the model."""
    prefix = prunebench.anatomy(model).layers_path
    return {
        f"{prefix}.{layer}.{name}": value
        for layer, some in of_layers.items()
        for name, value in some.items()
    }


def _mean(shares: Mapping[str, float], model: Any, context: Context) -> float:
    """The share of all weights of these linears."""
    linears = context.linears(model)
    sizes = {path: linears[path].weight.numel() for path in shares}
    return sum(shares[path] * size for path, size in sizes.items()) / sum(sizes.values())


@hookimpl
def prunebench_register_method() -> type[Method]:
    return BESA


@hookimpl
def prunebench_register_allocation() -> type[Allocation]:
    return BESAAllocation
