"""Streamline: train one layer or a small network to do what removed layers did.

The second half of LLM-Streamline (arXiv:2403.19135, sections 3.2 and 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

import prunebench
from prunebench import Field, OnlyIf, PrunebenchError, Recovery, anatomy, hookimpl
from prunebench_plugins.llm_streamline import REFERENCE
from prunebench_plugins.streamline_training import Recipe, WindowStates

if TYPE_CHECKING:
    from torch import nn

    from prunebench import Context

SWIGLU_WIDTH = ("intermediate_size", "ffn_dim", "n_inner")
"""What configs call the channels of their MLPs."""


class Streamline(Recovery):
    """Train a replacement for consecutive layers that were removed; all other weights stay.

    The layer in front of the removed ones belongs to what is replaced, as in the released code, so
    that the model keeps its number of layers; if the first layers of the model were removed, or
    with `absorb: false` as in the paper, the replacement is one layer more. A replacement that is
    a decoder layer begins with the weights of the first replaced layer. The networks are those of
    the paper: random at the start, with no residual path, no attention and no norm.

    `loss: mse` compares what the replacement gives with the states behind the last removed layer
    of the dense model, which is read from the checkpoint again. One batch at a time goes through
    the layers, and its states are dropped after it. `loss: llm` is the cross-entropy of the next
    token of the whole pruned model.

    `mode: reference` trains as the released code happens to do: its learning rate never reaches
    `min_lr` (mse) or comes back to its peak (llm), micro-batches at the end of an epoch that fill
    no step are dropped (mse), the last weights are kept instead of the best ones (mse), a window
    that ends with the last layer is compared behind the final norm, OPT's replacement begins with
    random weights (mse), and all layers learn whose number begins with that of the replacement
    (llm).
    """

    name = "streamline"
    reference = REFERENCE
    replaces_layers = True

    class Options(prunebench.Options):
        replacement: Literal["layer", "mlp", "swiglu"] = Field(
            "layer",
            description="a decoder layer; or a network of two linears with ReLU; or a gated one",
        )
        intermediate_size: Annotated[int | None, OnlyIf(replacement=("mlp", "swiglu"))] = Field(
            None,
            ge=1,
            description="channels inside the network; null: 4 x the hidden size (mlp), those of"
            " the model's own MLPs (swiglu)",
        )
        absorb: bool = Field(
            default=True,
            description="replace the layer in front of the removed ones too, as in the released"
            " code; false: add a layer",
        )
        loss: Literal["mse", "llm"] = Field(
            "mse", description="mean square error of hidden states, or loss of the next token"
        )
        lr: float = Field(2e-4, gt=0, description="peak of the learning-rate schedule")
        min_lr: float = Field(
            5e-5, ge=0, description="learning rate at the end of its cosine schedule"
        )
        wd: float = Field(1e-3, ge=0, description="weight decay of AdamW (decoupled)")
        epoches: int = Field(1, ge=1, description="passes over the training windows")
        batch_size: int = Field(8, ge=1, description="windows in one forward pass")
        gradient_accumulation_step: int = Field(
            16, ge=1, description="forward passes per optimiser step"
        )
        max_norm: Annotated[float | None, OnlyIf(loss="mse")] = Field(
            5.0, gt=0, description="gradients are clipped to this L2 norm; null: not clipped"
        )
        val_share: float | None = Field(
            0.03,
            gt=0,
            lt=1,
            description="share of the windows, at the end, that is held out for validation; the"
            " weights with the lowest loss on them are kept; null: the last weights",
        )
        eval_steps: int | None = Field(
            None,
            ge=1,
            description="validate every so many optimiser steps, and after the last one; null:"
            " after each epoch",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="reference: repeat the accidents of the released code"
        )

    def recover(self, model: Any, context: Context) -> None:
        window = self._window(context)
        recipe = Recipe.of(self.options, len(context.windows))
        options = self.options
        network = None if options.replacement == "layer" else options.replacement
        width = self._width(model) if network else 0
        # From here on the model is a valid one, though nothing is trained yet.
        layer = context.replace_layers(model, window, network, width)
        index = context.kept_layers.index(window[0])
        if options.loss == "mse":
            if self._starts_random(model, network):
                _start_random(layer, context.seed)
            log = self._match_states(model, layer, window, recipe, context)
        else:
            log = context.train(model, self._learning(model, index), recipe)
        context.notes |= {
            **log.notes,
            "replaced_layers": [window[0], window[-1]],
            "layer": index,
            "replacement": options.replacement,
        }
        if log.validation:
            context.notes["first_validation_loss"] = log.validation[0][1]

    def _window(self, context: Context) -> range:
        """The layers to replace, by their indices in the dense model.

        Raises PrunebenchError if the removed layers are not consecutive.
        """
        removed = context.removed_layers
        if not removed:
            raise PrunebenchError(
                "streamline replaces removed layers, and no decoder layer was removed",
                hint="use it behind a method that removes layers, such as llm-streamline",
            )
        window = range(removed[0], removed[-1] + 1)
        if between := sorted(set(window) - set(removed)):
            raise PrunebenchError(
                f"streamline replaces consecutive layers, and layer {between[0]} is left between"
                f" the removed layers {', '.join(map(str, removed))}",
                hint="use a method that removes consecutive layers: llm-streamline, shortgpt with"
                " `metric: angular`, or apply",
            )
        if self.options.absorb and window[0] > 0:
            return range(window[0] - 1, window[-1] + 1)
        return window

    def _width(self, model: Any) -> int:
        """Channels inside the network."""
        if self.options.intermediate_size is not None:
            size: int = self.options.intermediate_size
            return size
        hidden = int(anatomy(model).embeddings.weight.shape[1])
        if self.options.replacement == "mlp":
            return 4 * hidden
        config = model.config.get_text_config(decoder=True)
        return next(
            (int(getattr(config, name)) for name in SWIGLU_WIDTH if getattr(config, name, None)),
            4 * hidden,
        )

    def _match_states(
        self, model: Any, layer: nn.Module, window: range, recipe: Recipe, context: Context
    ) -> Any:
        """Train the layer on the states in front of the window and behind it."""
        # Inside, the model has its dense layers; the one to train is outside of it.
        with context.restored_layers(model):
            parts = anatomy(model)
            last = window[-1] == len(parts.layers) - 1
            states = WindowStates(
                parts,
                window,
                layer,
                parts.final_norm if last and self.options.mode == "reference" else None,
            )
            return context.train(model, dict(layer.named_parameters()), recipe, objective=states)

    def _learning(self, model: Any, index: int) -> dict[str, torch.Tensor]:
        """The parameters of layer ``index``, by their paths in the model."""
        prefix = f"{anatomy(model).layers_path}.{index}"
        # The released code looks for the number as a text: 2 is also in "layers.20".
        end = "" if self.options.mode == "reference" else "."
        return {
            name: each
            for name, each in model.named_parameters()
            if name.startswith(f"{prefix}{end}")
        }

    def _starts_random(self, model: Any, network: str | None) -> bool:
        return (
            self.options.mode == "reference"
            and network is None
            and anatomy(model).model_type == "opt"
        )


def _start_random(layer: nn.Module, seed: int) -> None:
    """Draw all weights of a layer as torch does for a new module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in layer.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()


@hookimpl
def prunebench_register_recovery() -> type[Recovery]:
    return Streamline
