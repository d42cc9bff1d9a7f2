"""Fine-tune the weights of a pruned model; zeros stay zero (arXiv:1506.02626, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prunebench import Field, Recovery, Reference, TrainingOptions, hookimpl

if TYPE_CHECKING:
    from prunebench import Context


class FineTune(Recovery):
    """Train all remaining weights; linears that pruning made sparse keep their zeros."""

    name = "finetune"
    reference = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        arxiv="1506.02626",
    )

    class Options(TrainingOptions):
        scope: Literal["linears", "all"] = Field(
            "linears",
            description="the weights of the layers' linears, or all parameters: also embeddings,"
            " norms and biases",
        )
        learning_rate: float = Field(1e-5, gt=0, description="peak of the learning-rate schedule")

    def recover(self, model: Any, context: Context) -> None:
        if self.options.scope == "all":
            parameters = dict(model.named_parameters())
        else:
            parameters = {
                f"{path}.weight": linear.weight for path, linear in context.linears(model).items()
            }
        masks = context.zeros(model)
        log = context.train(model, parameters, self.options, masks=masks)
        context.notes |= {**log.notes, "masked_linears": len(masks)}


@hookimpl
def prunebench_register_recovery() -> type[Recovery]:
    return FineTune
