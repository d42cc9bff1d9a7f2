"""LoRA recovery with peft: train low-rank updates of the linears and merge them.

arXiv:2106.09685; for pruned models arXiv:2305.11627. W' = W + (alpha / rank) B A, with B A set to
zero for weights that the method removed, in training too: the model that is trained is the model
that is merged. Without merging, W stays as it is and B A stays beside it, dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch

from prunebench import (
    Adapter,
    AddedLater,
    Field,
    PrunebenchError,
    Recovery,
    Reference,
    TrainingOptions,
    hookimpl,
    set_to_zero,
)

if TYPE_CHECKING:
    from prunebench import Context


_EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


class LoRA(Recovery):
    """Train low-rank updates of the pruned model's linears and merge them; zeros stay zero.

    The defaults are those of LLM-Pruner. Linears with less than 1 % zeros are trained by plain
    LoRA, sparse ones under their mask, which takes one more matrix product of full size in both
    passes. With `merge: false` all are trained by plain LoRA, and the updates stay a PEFT adapter
    beside the pruned weights: it is measured with them, and saved in a folder of its own. Routed
    experts that are fused in one parameter stay as they are.
    """

    name = "lora"
    reference = Reference(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        arxiv="2106.09685",
        code="https://github.com/huggingface/peft",
    )

    class Options(TrainingOptions):
        rank: int = Field(8, ge=1, description="rank of every update")
        alpha: float = Field(16.0, gt=0, description="updates are scaled by alpha / rank")
        dropout: float = Field(
            0.05, ge=0, lt=1, description="dropout of the updates' inputs while training"
        )
        targets: list[str] | None = Field(
            None,
            min_length=1,
            description="last components of the linears' names (q_proj); null: all linears of the"
            " layers",
        )
        learning_rate: float = Field(1e-4, gt=0, description="peak of the learning-rate schedule")
        epochs: int = Field(2, ge=1, description="passes over the training windows")
        batch_size: int = Field(64, ge=1, description="windows per optimiser step")
        warmup_steps: int = Field(
            100,
            ge=0,
            description="linear warm-up; never more than a tenth of all steps",
        )

        merge: Annotated[bool, AddedLater()] = Field(
            default=True,
            description="merge the updates into the weights; false: keep them as a PEFT adapter"
            " beside the pruned weights, so that the updates of sparse linears are dense",
        )

    def recover(self, model: Any, context: Context) -> None:
        from peft import LoraModel

        paths = self._paths(self._targets(model, context.linears(model)))
        zeros = context.zeros(model) if self.options.merge else {}
        masks = {path: zeros[f"{path}.weight"] for path in paths if f"{path}.weight" in zeros}
        # The initial values of A must not depend on what the method drew before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            # In a module without a config: of some mixtures PEFT takes the names of linears for
            # those of fused experts, and would train the experts without their masks.
            bare = torch.nn.ModuleDict({"model": model}) if self.options.merge else model
            adapted = LoraModel(bare, self._config(paths, model, masks), adapter_name="default")
        adapters = {name: each for name, each in model.named_parameters() if ".lora_" in name}
        for adapter in adapters.values():
            adapter.data = adapter.data.float()  # small updates are lost in half precision
        try:
            log = context.train(model, adapters, self.options)
        except BaseException:
            adapted.unload()  # restores the pruned model
            raise
        if self.options.merge:
            with torch.no_grad():
                adapted.merge_and_unload()
        else:
            adapted.unload()
            context.adapter = self._adapter(paths, adapters)
        context.notes |= {**log.notes, "targets": len(paths), "masked_targets": len(masks)}

    def _adapter(self, paths: list[str], trained: Mapping[str, torch.Tensor]) -> Adapter:
        """The updates as an adapter; ``trained`` by PEFT's parameter paths."""
        updates = {
            path: (
                trained[f"{path}.lora_A.default.weight"].detach(),
                trained[f"{path}.lora_B.default.weight"].detach(),
            )
            for path in paths
        }
        return Adapter(updates, self.options.alpha, self.options.dropout)

    def _targets(self, model: Any, linears: Mapping[str, Any]) -> dict[str, Any]:
        """The linears that PEFT can adapt; experts are parts of a parameter and no modules."""
        modules = dict(model.named_modules())
        found = {
            path: each
            for path, each in linears.items()
            if path in modules and _is_plain(modules[path])
        }
        if len(found) < len(linears) and not self.options.merge:
            # Merged updates need no names, because PEFT sees a module without a config.
            # Whoever loads the adapter has PEFT read these names as those of the fused experts.
            names = {path.rpartition(".")[2] for path in linears.keys() - found.keys()} | _EXPERTS
            found = {path: each for path, each in found.items() if path.split(".")[-1] not in names}
        turned = [path for path in found if _is_turned(modules[path])]
        if turned and not self.options.merge:
            raise PrunebenchError(
                f"lora: an update can only be kept beside a plain linear, not beside {turned[0]}",
                hint="leave out `merge: false`",
            )
        return found

    def _paths(self, linears: Mapping[str, torch.nn.Linear]) -> list[str]:
        """The module paths of the linears to train."""
        if not linears:
            raise PrunebenchError(
                "lora: the layers have no plain linears, and PEFT's updates need some",
                hint="use the recovery finetune",
            )
        wanted = self.options.targets
        if wanted is None:
            return list(linears)
        names = {path.rpartition(".")[2] for path in linears}
        if unknown := [name for name in wanted if name not in names]:
            raise PrunebenchError(
                f"lora: no linear of the layers is called {', '.join(unknown)}",
                hint=f"targets of this model are {', '.join(sorted(names))}",
            )
        return [path for path in linears if path.rpartition(".")[2] in wanted]

    def _config(self, paths: list[str], model: Any, masks: Mapping[str, torch.Tensor]) -> Any:
        from peft import LoraConfig

        config = LoraConfig(
            r=self.options.rank,
            lora_alpha=self.options.alpha,
            lora_dropout=self.options.dropout,
            target_modules=paths,
            fan_in_fan_out=all(_is_turned(model.get_submodule(path)) for path in paths),
        )
        if masks:
            held = {model.get_submodule(path): mask for path, mask in masks.items()}
            kinds = {type(module) for module in held}
            config._register_custom_module(dict.fromkeys(kinds, _layer_class(held)))
        return config


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether it computes what its weight says: not in groups, as one of DeepSeek-V4, or rounded."""
    return _is_turned(module) or type(module).forward is torch.nn.Linear.forward


def _is_turned(module: torch.nn.Module) -> bool:
    """Whether it stores its weight as [in, out]: the Conv1D of GPT-2."""
    return not isinstance(module, torch.nn.Linear)


def _layer_class(held: Mapping[torch.nn.Module, torch.Tensor]) -> Any:
    """A class of LoRA layers whose update is zero wherever their linear is.

    ``held``: masks by linear, bool [out, in], True for zeros.
    """
    from peft.tuners import lora

    class Update(torch.autograd.Function):
        """x ((scale B A) * mask)^T for x [..., in].

        The backward pass computes the matrix in brackets again: keeping it would take another copy
        of every linear.
        """

        @staticmethod
        def forward(ctx: Any, x: Any, a: Any, b: Any, scale: float, zero: Any) -> Any:
            ctx.save_for_backward(x, a, b, zero)
            ctx.scale = scale
            return x @ _masked(a, b, scale, zero).t().to(x.dtype)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            x, a, b, zero = ctx.saved_tensors
            update = _masked(a, b, ctx.scale, zero).to(x.dtype)  # [out, in]
            # d loss / d (B A), zero for masked weights: the chain rule gives A and B from it
            whole = (gradient.flatten(0, -2).t() @ x.flatten(0, -2)).to(a.dtype)  # [out, in]
            set_to_zero(whole, zero).mul_(ctx.scale)
            return gradient @ update, b.t() @ whole, whole @ a.t(), None, None

    class MaskedLinear(lora.Linear):  # type: ignore[misc]
        def __init__(self, base_layer: torch.nn.Linear, adapter_name: str, **kwargs: Any) -> None:
            super().__init__(
                base_layer, adapter_name, **{**kwargs, "fan_in_fan_out": _is_turned(base_layer)}
            )
            self.held = held.get(base_layer)

        def get_delta_weight(self, adapter: str) -> torch.Tensor:  # as the weight is stored
            delta: torch.Tensor = super().get_delta_weight(adapter)
            if self.held is None:
                return delta
            return delta.masked_fill(self.held.t() if self.fan_in_fan_out else self.held, 0)

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.held is None:
                plain: torch.Tensor = super().forward(x, *args, **kwargs)
                return plain
            result: torch.Tensor = self.base_layer(x)
            for name in self.active_adapters:
                a, b = self.lora_A[name].weight, self.lora_B[name].weight  # [rank, in], [out, rank]
                update: Any = Update.apply  # untyped in torch
                result = result + update(
                    self.lora_dropout[name](x), a, b, self.scaling[name], self.held
                )
            return result

    return MaskedLinear


def _masked(a: torch.Tensor, b: torch.Tensor, scale: float, zero: torch.Tensor) -> torch.Tensor:
    """The update scale * B A, zero where ``zero`` is True, [out, in]."""
    return set_to_zero((b @ a).mul_(scale), zero)


@hookimpl
def prunebench_register_recovery() -> type[Recovery]:
    return LoRA
