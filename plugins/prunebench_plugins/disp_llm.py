"""DISP-LLM: every attention and MLP learns which channels it reads and writes (arXiv:2410.11988)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

import prunebench
from prunebench import (
    Field,
    Method,
    OnlyIf,
    PrunebenchError,
    Reference,
    TrainingOptions,
    anatomy,
    hookimpl,
    learning,
)
from prunebench_plugins.not_both import check_not_both

if TYPE_CHECKING:
    import torch

    from prunebench import Context
    from prunebench_plugins.disp_llm_budget import Budget


class HypernetworkTraining(TrainingOptions):
    """How the hypernetwork is trained."""

    min_learning_rate: float = Field(1e-3, ge=0)

    def rate(self, step: int, steps: int) -> float:
        if self.schedule == "constant":
            return self.learning_rate
        # That of torch's CosineAnnealingLR, which the released code uses.
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.min_learning_rate + falling * (self.learning_rate - self.min_learning_rate)


class DISPLLM(Method):
    """Each attention and MLP reads and writes channels of its own of the residual stream.

    A layer has five masks: the channels that its attention reads (S1) and writes (S2), those that
    its MLP reads (S3) and writes (S5), and the MLP's own channels (S4). No mask is shared, and
    heads stay whole. A bidirectional GRU with one linear for each mask gives logits h; the gates
    are s = sigmoid((h + base + noise) / T). With the model frozen it is trained to make small

        cross-entropy of the model with gates s + lam * log(max(r, p) / min(r, p))

    with p = 1 - ratio, and r the share of the weights of the layers' linears that rounded gates
    keep. These are drawn anew, and round(s) has the gradient of s. The gate of an MLP's channel
    counts twice while it is soft: as released, it multiplies both factors of a gated MLP.

    In the end the channels with h + base > t stay, with one t for all masks such that as many
    weights are kept as the budget allows. It is near the value at which a gate is as likely above
    one half as below if the training met the budget: 0, or ln(ln 2) = -0.37 for the released
    noise. What is removed
    leaves the matrices: a sub-block selects its channels behind the norm, and adds its output to
    those that it writes. The record has what was learned beside what was asked for, and what the
    training took.

    `gates: straight-through` runs the model with rounded gates. `gates: reinmax` is a
    reconstruction: the paper names that estimator, and the released code does not have it.
    `masks: sampled` draws the final masks as the released code does, so that they miss the budget
    by chance. That code counts the query and output projections of models with grouped queries at
    the width of the keys; here they count as they are.
    """

    name = "disp-llm"
    reference = Reference(
        title="DISP-LLM: Dimension-Independent Structural Pruning for Large Language Models",
        arxiv="2410.11988",
        code="https://github.com/gaosh/DISP-LLM-Dimension-Independent-Structural-Pruning",
    )
    structure: ClassVar = frozenset({"width"})
    needs_calibration = True
    uses_seed = True
    published_calibration: ClassVar = {"corpus": "wikitext2", "windows": 1024, "length": 2048}

    class Options(prunebench.Options):
        ratio: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the weights of attentions and MLPs to remove, 1 - p; 0.5 if"
            " neither ratio nor target_parameters is given",
        )
        target_parameters: float | None = Field(
            None, ge=0, lt=1, description="share of the whole model's parameters to remove instead"
        )
        lam: float = Field(
            16.0, ge=0, le=1e6, description="weight of the budget (the paper says 6)"
        )
        total_n_step: int = Field(10_000, ge=1, le=10_000_000, description="training steps")
        batch_size: int = Field(
            1, ge=1, le=4096, description="windows in each step; each draws gates of its own"
        )
        hn_lr: float = Field(1e-3, gt=0, le=10, description="learning rate of AdamW")
        use_sch: bool = Field(False, description="lower the learning rate along a cosine")
        min_hn_lr: Annotated[float, OnlyIf(use_sch=True)] = Field(
            1e-3, ge=0, le=10, description="learning rate that the cosine ends at"
        )
        weight_decay: float = Field(0.05, ge=0, le=10, description="of AdamW")
        T: float = Field(0.4, gt=0, le=100, description="temperature of the gates")
        base: float = Field(
            3.0, ge=-100, le=100, description="added to all logits: training begins near dense"
        )
        hidden_size: int = Field(
            32, ge=1, le=4096, description="size of the GRU's inputs; half of its states"
        )
        train_inputs: bool = Field(
            True, description="also train the GRU's inputs, as the released code does on one GPU"
        )
        gates: Literal["soft", "straight-through", "reinmax"] = Field(
            "soft", description="gates that the model runs with, or how gradients pass rounded ones"
        )
        noise: Annotated[
            Literal["gumbel", "logistic"], OnlyIf(gates=("soft", "straight-through"))
        ] = Field(
            "gumbel",
            description="of the gates: one Gumbel as released, whose mean is above zero, or the"
            " difference of two",
        )
        masks: Literal["deterministic", "sampled"] = Field(
            "deterministic", description="how the final masks are made; sampled: as released"
        )

        @model_validator(mode="after")
        def _one_amount(self) -> Self:
            check_not_both(self, ("ratio", "target_parameters"))
            return self

        @property
        def even(self) -> float:
            """The h + base at which a gate is as likely above one half as below."""
            skewed = self.gates != "reinmax" and self.noise == "gumbel"
            return math.log(math.log(2)) if skewed else 0.0

        def training(self, windows: int) -> HypernetworkTraining:
            """The training on ``windows`` windows: all of them again in each epoch, in another order."""
            return HypernetworkTraining(
                learning_rate=self.hn_lr,
                min_learning_rate=self.min_hn_lr,
                schedule="cosine" if self.use_sch else "constant",
                max_steps=self.total_n_step,
                epochs=math.ceil(self.total_n_step * self.batch_size / windows) + 1,
                batch_size=self.batch_size,
                micro_batch_size=1,  # so that each window has gates of its own
                weight_decay=self.weight_decay,
                max_grad_norm=None,
            )

    @classmethod
    def training_for(cls, options: Any, windows: int) -> HypernetworkTraining:
        settings: HypernetworkTraining = options.training(windows)
        return settings

    def prune(self, model: Any, context: Context) -> None:
        """Notes: what was learned, what was kept, and what the training took.

        ``asked_ratio``, ``learned_ratio`` (of the gates that are likely above one half) and
        ``ratio`` are shares of the weights of attentions and MLPs that are removed; ``threshold``
        is t. ``widths`` has for each layer how many channels stay in S1 to S5, and ``budget_curve``
        [window, cross-entropy, share removed by the rounded gates]; the rest is that of a training.
        """
        from prunebench_plugins.disp_llm_budget import Budget, blocks_of

        budget = Budget.of(anatomy(model))
        ratio = self._ratio(model, budget)
        context.notes["asked_ratio"] = ratio
        if not ratio:
            return
        budget.check(1 - ratio)
        # Now, so that a family that cannot be cut like this says so before the training.
        context.index_residual(model, {}, {})
        theta = self._train(model, budget, 1 - ratio, context)
        # From here on nothing is random, unless the masks are to be drawn.
        options, chosen = self.options, budget.within(theta, 1 - ratio)
        masks = chosen.masks
        if options.masks == "sampled":
            masks = self._sampled(theta, budget, context)
        reads, writes, channels = blocks_of(budget, masks)
        context.index_residual(model, reads, writes)
        context.keep_groups(model, channels)
        context.notes |= {
            "learned_ratio": 1 - budget.kept(budget.at_least_one(theta, theta > options.even)),
            "ratio": 1 - budget.kept(masks),
            "threshold": chosen.threshold if options.masks == "deterministic" else None,
            "widths": budget.widths(masks),
        }

    def _ratio(self, model: Any, budget: Budget) -> float:
        """The share of the weights of attentions and MLPs to remove."""
        target = self.options.target_parameters
        if target is None:
            return 0.5 if self.options.ratio is None else float(self.options.ratio)
        total: int = sum(parameter.numel() for parameter in model.parameters())
        ratio = float(target) * total / budget.total
        if ratio >= 1:
            raise PrunebenchError(
                f"`target_parameters: {target}` is more than attentions and MLPs have, which are"
                f" {budget.total / total:.1%} of the parameters",
                hint="choose less",
            )
        return ratio

    def _train(self, model: Any, budget: Budget, p: float, context: Context) -> torch.Tensor:
        """Train the hypernetwork; returns h + base of all masks, float32 on the CPU."""
        import torch

        from prunebench_plugins.disp_llm_training import GatedModel, HyperNetwork

        options = self.options
        with torch.random.fork_rng(devices=[]):  # the cell's seed decides where it begins
            torch.manual_seed(context.seed)
            network = HyperNetwork(budget.sizes, options.hidden_size, options.base)
        # Where the model is: its gates are multiplied with states there.
        network.to(model.get_input_embeddings().weight.device)
        parameters = dict(network.named_parameters())
        if not options.train_inputs:
            del parameters["inputs"]
        settings = options.training(len(context.windows))
        gated = GatedModel(model, network, budget, p, options)
        with learning(model, []):  # gradients pass through it, and it has none itself
            log = context.train(network, parameters, settings, objective=gated)
        context.notes |= {
            **log.notes,
            **gated.notes(),
            "tokens_per_second": round(log.tokens / log.seconds, 1),
            "seconds_per_step": round(log.seconds / len(log.losses), 4),
        }
        with torch.no_grad():
            theta: torch.Tensor = network().float().cpu()
        return theta

    def _sampled(self, theta: torch.Tensor, budget: Budget, context: Context) -> torch.Tensor:
        """Masks drawn as in the training, whatever they keep."""
        from prunebench_plugins.disp_llm_training import noise

        kind = "logistic" if self.options.gates == "reinmax" else self.options.noise
        scores = theta + noise(kind, len(theta), context.generator)
        return budget.at_least_one(scores, scores > 0)


@hookimpl
def prunebench_register_method() -> type[Method]:
    return DISPLLM
