"""Remove routed experts: their weights, their rows of the router, and their number in the config.

Afterwards the model gives the same logits as before with the router's logits of these experts at
minus infinity. That is checked on the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.mixture import OTHER_METHOD, Mixture, mixture_of, tensor_of, with_experts

PROBE_TOKENS = 16
"""Tokens that go through the model before and after a removal, to compare the logits."""
TOLERANCE = 1e-3
HALF_TOLERANCE = 0.1
"""Largest difference of two logits, as a share of the largest logit; the second for 16-bit types.

Rounding can send a token to another expert if two scores are nearly equal. A removal that takes a
wrong row gives logits that have nothing to do with the right ones."""


def keep_experts(model: Any, kept: Mapping[str, Sequence[int]]) -> None:
    """Keep only these experts of each module with experts, in smaller parameters.

    ``kept``: current indices in ascending order, by the path of the module in the model; the same
    number for all modules, and for all groups if the routers choose groups first.

    Raises PrunebenchError, with the model unchanged, if that is not so, if too few are left for a
    token, or if experts of this model cannot be removed. If the logits afterwards are not those of
    the model with these experts masked, it is raised too, and the model must not be used.
    """
    mixture = mixture_of(model)
    number = _checked(mixture, kept)
    if number == mixture.count:
        return
    _refuse_tables(model, mixture)
    with torch.no_grad():  # not a decorator, which would import torch when plugins are listed
        _keep(model, mixture, kept, number)


def _keep(model: Any, mixture: Mixture, kept: Mapping[str, Sequence[int]], number: int) -> None:
    from prunebench.model.routers import masked_experts  # here, because it imports torch

    _, smaller = with_experts(model, mixture.experts, mixture.count, number)
    tokens = _probe(model)
    with masked_experts(model, mixture, kept):
        wanted = model(tokens, use_cache=False).logits
    for name, dim in mixture.rows.items():
        tensor = tensor_of(model, name)
        staying = mixture.staying(tensor.shape[dim], kept[mixture.owner(name)])
        _replace(model, name, tensor.index_select(dim, staying.to(tensor.device)))
    _copy_numbers(model, smaller)
    for field in mixture.fields:
        setattr(model.config.get_text_config(), field, number)
    _check_logits(wanted, model(tokens, use_cache=False).logits)


def _checked(mixture: Mixture, kept: Mapping[str, Sequence[int]]) -> int:
    """How many experts every module keeps. Raises PrunebenchError if they cannot be removed."""
    if odd := sorted(set(mixture.experts) ^ set(kept)):
        raise PrunebenchError(
            f"{odd[0]}: name which experts to keep for every module with experts, and no other",
            hint=f"they are {', '.join(list(mixture.experts)[:3])} ...",
        )
    if any(list(each) != sorted(set(each)) for each in kept.values()):
        raise PrunebenchError("the experts to keep must be in ascending order, each once")
    numbers = sorted({len(each) for each in kept.values()})
    if len(numbers) > 1:
        raise PrunebenchError(
            f"one layer would keep {numbers[0]} experts and another {numbers[-1]}",
            hint="the config has one number for all layers: keep the same number everywhere",
        )
    if numbers[0] < mixture.fewest:
        raise PrunebenchError(
            f"{numbers[0]} of {mixture.count} experts would be left, and the routers need at least"
            f" {mixture.fewest}: each token goes to {mixture.top_k}"
            + (f", from groups of {mixture.groups}" if mixture.groups > 1 else ""),
            hint="remove fewer experts",
        )
    size = mixture.count // mixture.groups
    for path, experts in kept.items():
        of = [sum(each // size == group for each in experts) for group in range(mixture.groups)]
        if len(set(of)) > 1:
            raise PrunebenchError(
                f"{path}: its router chooses among {mixture.groups} groups of equal size, and they"
                f" would keep {', '.join(map(str, of))} experts",
                hint="remove the same number from every group",
            )
    return numbers[0]


def _refuse_tables(model: Any, mixture: Mixture) -> None:
    """Refuse a router that looks up the experts of a token in a table, instead of scoring them."""
    for path in mixture.experts:
        block = path.rpartition(".")[0]
        for name, buffer in model.get_submodule(block).named_buffers():
            if buffer.ndim == 2 and not buffer.is_floating_point():
                raise PrunebenchError(
                    f"{block}.{name} is a table of the experts of every token in the vocabulary, so"
                    " none can be removed",
                    hint=OTHER_METHOD,
                )


def _replace(model: Any, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if isinstance(old, torch.nn.Parameter):
        setattr(module, leaf, torch.nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        module._buffers[leaf] = tensor


def _copy_numbers(model: Any, made: Any) -> None:
    """Give each module the numbers, such as ``num_experts``, that it has in the model ``made``."""
    others = dict(made.named_modules())
    for name, module in model.named_modules():
        for key, value in vars(others[name]).items() if name in others else ():
            old = vars(module).get(key)
            # Not bool: a new model is in training mode.
            if type(value) in {int, tuple} and type(value) is type(old) and value != old:
                setattr(module, key, value)


def _probe(model: Any) -> torch.Tensor:
    """Tokens spread over the vocabulary, int64 [1, tokens]."""
    vocabulary = len(model.get_input_embeddings().weight)
    return torch.linspace(1, vocabulary - 1, PROBE_TOKENS).long()[None].to(model.device)


def _check_logits(wanted: torch.Tensor, found: torch.Tensor) -> None:
    largest, difference = float(wanted.abs().max()), float((found - wanted).abs().max())
    tolerance = TOLERANCE if found.element_size() >= 4 else HALF_TOLERANCE
    if not difference <= tolerance * largest:
        raise PrunebenchError(
            "the model without these experts is another one than with these experts masked: logits"
            f" differ by up to {difference:.3g}, and the largest is {largest:.3g}",
            hint=OTHER_METHOD,
        )
