"""What a mixture of experts has for each expert, in its whole model: found by comparison.

The same model is built on the meta device, with fewer experts in its config. Every tensor that gets
smaller by it has one row for each expert, every number of a module that changes counts them, and
the field of the config that did it is where their number is written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.experts import Experts, find_experts, unknown_experts

OTHER_METHOD = "prune this model by a method that removes no experts"
_NOT_A_COUNT = ("per_tok", "topk", "top_k", "shared", "zero", "group", "size", "dim", "layer")
"""Parts of names in a config that have 'expert' in them and are no number of routed experts."""
_TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_k",
)


@dataclass(frozen=True)
class Mixture:
    """The routed experts of a model, and what else has one row for each of them."""

    experts: Mapping[str, Experts]
    """The modules with experts, by path in the model."""
    count: int
    """Experts of each module."""
    top_k: int
    """Experts that a token goes to."""
    groups: int
    """Groups of experts that a router chooses from first; 1 if it has none."""
    chosen_groups: int
    """Groups that the experts of a token come from."""
    rows: Mapping[str, int]
    """The dimension that has one row for each expert, by the name of the tensor in the model."""
    fields: tuple[str, ...]
    """The fields of the decoder's config with the number of experts."""

    @property
    def fewest(self) -> int:
        """The fewest experts that a router can choose from."""
        if self.groups == 1:
            return self.top_k
        # Group-limited routers rank groups by the sum of their two best scores.
        return self.groups * max(2, -(-self.top_k // self.chosen_groups))

    def owner(self, name: str) -> str:
        """The module with experts that a tensor belongs to: the one with the longest common path."""
        parts = name.split(".")

        def common(path: str) -> int:
            pairs = enumerate(zip(path.split("."), parts, strict=False))
            return next((at for at, (a, b) in pairs if a != b), len(parts))

        return max(self.experts, key=common)

    def routers(self, model: Any) -> dict[str, tuple[str, torch.Tensor]]:
        """The weights of the routers, [experts and more, in], by name, with their module of experts."""
        found = {}
        for name, dim in self.rows.items():
            owner, tensor = self.owner(name), tensor_of(model, name)
            if not name.startswith(f"{owner}.") and tensor.ndim == 2 and dim == 0:
                found[name] = owner, tensor
        return found

    def staying(self, rows: int, kept: Sequence[int]) -> torch.Tensor:
        """The indices of the rows that stay of a tensor with this many, int64.

        Rows behind those of the experts belong to shared ones, or to those without weights.
        """
        return torch.tensor([*kept, *range(self.count, rows)])


def mixture_of(model: Any) -> Mixture:
    """The routed experts of a model, in all its layers.

    Raises PrunebenchError if it has none, if layers differ in their number, if a module with
    experts is of an unknown kind, or if the config does not say how many experts there are.
    """
    experts = _all_experts(model)
    count = next(iter(experts.values())).count
    config = model.config.get_text_config()
    fields, smaller = with_experts(model, experts, count, count - 1)
    return Mixture(
        experts,
        count,
        top_k=top_k_of(model),
        groups=_number(config, ("n_group",)),
        chosen_groups=_number(config, ("topk_group",)),
        rows=_rows(model, smaller, count),
        fields=fields,
    )


def _all_experts(model: Any) -> dict[str, Experts]:
    experts = find_experts(model)
    unknown = [path for path in unknown_experts(model) if "shared" not in path]
    if unknown:
        raise PrunebenchError(
            f"the experts in {unknown[0]} are of a kind that prunebench does not know",
            hint=OTHER_METHOD,
        )
    if not experts:
        raise PrunebenchError(
            f"{type(model).__name__} has no module with routed experts",
            hint="choose a mixture of experts, such as Qwen3-MoE or Mixtral",
        )
    few = min(experts, key=lambda path: experts[path].count)
    many = max(experts, key=lambda path: experts[path].count)
    if experts[few].count != experts[many].count:
        raise PrunebenchError(
            f"{few} has {experts[few].count} experts and {many} has {experts[many].count}, and the"
            " config of the result has one number for all layers",
            hint=OTHER_METHOD,
        )
    return experts


def top_k_of(model: Any) -> int:
    """The routed experts that a token goes to."""
    return _number(model.config.get_text_config(), _TOP_K)


def _number(config: Any, names: Sequence[str]) -> int:
    """The first of these fields that is a number; 1 if none is."""
    values = [getattr(config, name, None) for name in names]
    return next((value for value in values if type(value) is int and value > 0), 1)


def with_experts(
    model: Any, experts: Mapping[str, Experts], count: int, number: int
) -> tuple[tuple[str, ...], Any]:
    """The config's fields with the number of experts, ``count`` now, and a model with ``number``.

    That model is on the meta device. Raises PrunebenchError if no field changes the number.
    """
    for names in _candidates(model.config.get_text_config(), count):
        config = copy.deepcopy(model.config)
        for name in names:
            setattr(config.get_text_config(), name, number)
        try:
            with torch.device("meta"):
                made = type(model)._from_config(config)
        except Exception:  # noqa: S112 - of such a config no model can be made
            continue
        if all(len(made.get_submodule(path).down_proj) == number for path in experts):
            return names, made
    raise PrunebenchError(
        f"no field of the config of {type(model).__name__} changes its number of experts, {count}",
        hint=OTHER_METHOD,
    )


def _candidates(config: Any, count: int) -> Iterator[tuple[str, ...]]:
    """Fields that may hold the number of experts: each alone, then all together."""
    names = tuple(
        name
        for name, value in vars(config).items()
        if type(value) is int
        and value == count
        and "expert" in name
        and not any(part in name for part in _NOT_A_COUNT)
    )
    yield from ((name,) for name in names)
    if len(names) > 1:
        yield names


def _rows(model: Any, smaller: Any, count: int) -> dict[str, int]:
    expected = dict(tensors(smaller))
    found = {}
    for name, tensor in tensors(model):
        new = expected.get(name)
        if new is None or new.shape == tensor.shape:
            continue
        changed = [dim for dim in range(tensor.ndim) if tensor.shape[dim] != new.shape[dim]]
        if len(changed) > 1 or tensor.shape[changed[0]] - new.shape[changed[0]] != 1:
            raise PrunebenchError(
                f"{name} has the shape {tuple(tensor.shape)} with {count} experts and"
                f" {tuple(new.shape)} with one less, so it has no row for each of them",
                hint=OTHER_METHOD,
            )
        found[name] = changed[0]
    return found


def tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a model by name, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def tensor_of(model: Any, name: str) -> torch.Tensor:
    """The parameter or buffer of this name."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)  # type: ignore[no-any-return]
