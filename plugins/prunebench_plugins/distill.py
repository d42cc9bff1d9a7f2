"""Distillation: train the pruned model to predict what the dense model predicts.

The recovery of Minitron (arXiv:2407.14679, section 3.3; best practice 5: logits alone do as well as
more once few layers are gone), in plain PyTorch on transformers models.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from prunebench import Field, PrunebenchError, Recovery, Reference, TrainingOptions, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prunebench import Context


class Distill(Recovery):
    """Train all weights that are left on the dense model's distribution of the next token.

    L = KL(p_dense || p_pruned) at temperature T, times T^2, as a mean over the tokens, in nats.
    `next_token_weight` adds the cross-entropy of the text itself, and `states_weight` the mean
    square error of the hidden states before the head, over the mean square of the dense ones; the
    latter needs a model that kept its hidden size. Zeros of sparse linears stay zero.

    The dense model runs beside the trained one, without gradients, and its logits are in memory in
    slices. `gradient_checkpointing` computes each layer a second time instead of keeping what its
    backward pass needs; `bfloat16` runs both models in that type, while weights, gradients and
    updates stay in their own.
    """

    name = "distill"
    reference = Reference(
        title="Compact Language Models via Pruning and Knowledge Distillation",
        arxiv="2407.14679",
        code="https://github.com/NVIDIA/Model-Optimizer",
    )

    class Options(TrainingOptions):
        temperature: float = Field(
            1.0, gt=0, description="both models' logits are divided by it before the softmax"
        )
        next_token_weight: float = Field(
            0.0, ge=0, description="weight of the cross-entropy of the next token"
        )
        states_weight: float = Field(
            0.0, ge=0, description="weight of the error of the hidden states before the head"
        )
        learning_rate: float = Field(1e-4, gt=0, description="peak of the learning-rate schedule")
        min_learning_rate: float = Field(
            1e-5, ge=0, description="learning rate at the end of the schedule"
        )
        schedule: Literal["linear", "cosine", "constant"] = Field(
            "cosine", description="learning rate after the warm-up"
        )
        gradient_checkpointing: bool = Field(
            default=False, description="less memory for activations, one more forward pass"
        )
        bfloat16: bool = Field(
            default=False, description="products in bfloat16; weights stay in their type"
        )

        @model_validator(mode="after")
        def _falls(self) -> Self:
            if self.min_learning_rate > self.learning_rate:
                raise ValueError("`min_learning_rate` is above `learning_rate`")
            return self

        def rate(self, step: int, steps: int) -> float:
            rate = super().rate(step, steps)
            if self.schedule == "constant" or step < self.warmup(steps):
                return rate
            share = rate / self.learning_rate
            return self.min_learning_rate + share * (self.learning_rate - self.min_learning_rate)

    def recover(self, model: Any, context: Context) -> None:
        """Notes: those of the training, and ``tokens_per_second``."""
        # Here, because it imports torch.
        from prunebench_plugins.distill_objective import Distillation

        masks = context.zeros(model)
        with context.dense(model) as dense, _checkpointing(model, self.options):
            _check(model, dense, self.options)
            log = context.train(
                model,
                dict(model.named_parameters()),
                self.options,
                masks=masks,
                objective=Distillation(model, dense, self.options),
            )
        context.notes |= {
            **log.notes,
            "masked_linears": len(masks),
            "tokens_per_second": round(log.tokens / log.seconds, 1),
        }


def _check(model: Any, dense: Any, options: Any) -> None:
    sizes = [tuple(each.get_input_embeddings().weight.shape) for each in (model, dense)]
    if sizes[0][0] != sizes[1][0]:
        raise PrunebenchError(
            f"the pruned model predicts {sizes[0][0]:,} tokens and the dense one {sizes[1][0]:,}",
            hint="distillation needs one vocabulary",
        )
    if options.states_weight and sizes[0][1] != sizes[1][1]:
        raise PrunebenchError(
            f"the hidden states have {sizes[0][1]} channels, and those of the dense model"
            f" {sizes[1][1]}",
            hint="leave out `states_weight`, or keep the hidden size",
        )


@contextmanager
def _checkpointing(model: Any, options: Any) -> Iterator[None]:
    """Gradient checkpointing during the block, if it is asked for."""
    if not options.gradient_checkpointing:
        yield
        return
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


@hookimpl
def prunebench_register_recovery() -> type[Recovery]:
    return Distill
