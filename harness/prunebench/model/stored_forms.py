"""The tensors of a model in the form of weight files: under other names, split or joined.

transformers keeps the experts of a layer in one parameter and their matrices one by one on disk.
Here its own rules convert a few tensors at a time, so that no more than these are in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.safetensors_io import TensorFiles


@dataclass(frozen=True)
class _Group:
    """Stored tensors that become tensors of the model together, by a rule of transformers."""

    rule: Any
    first: str
    stored: tuple[tuple[str, str], ...]
    """(name on disk, the rule's pattern that it matches)."""

    def convert(self, tensors: Mapping[str, Any], model: Any) -> dict[str, torch.Tensor]:
        """The tensors of the model, from the stored ones by their names."""
        rule = copy.deepcopy(self.rule)  # a rule collects tensors and is used once
        for name, pattern in self.stored:
            rule.add_tensor(self.first, name, pattern, tensors[name])
        found = rule.convert(self.first, model=model, config=model.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in found.items()
        }


class StoredForms:
    """Where the tensors of ``model`` are in ``files``, and how they are read from there.

    Tied tensors may be stored under any of their names. Raises PrunebenchError if a tensor of the
    model is not stored.
    """

    def __init__(self, model: Any, files: TensorFiles) -> None:
        self._model, self._files = model, files
        self._state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self.plain: dict[str, str] = {}
        """Name in the model -> name on disk, of tensors that are stored as they are."""
        self._groups: dict[str, _Group] = {}
        self._find()
        # A tied head is often not stored at all: it is read as the embeddings are.
        shared: dict[int, str] = {}  # identity of a tied tensor -> name in the model
        for name, tensor in self._state.items():
            if name in self.plain or name in self._groups:
                shared.setdefault(id(tensor), name)
        for name, tensor in self._state.items():
            if name in self.plain or name in self._groups:
                continue
            if id(tensor) not in shared:
                raise PrunebenchError(
                    f"{name} is in no weight file, or in a form that is not known",
                    hint="load the model as a whole, without --stream",
                )
            if (other := shared[id(tensor)]) in self.plain:
                self.plain[name] = self.plain[other]
            else:
                self._groups[name] = self._groups[other]

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """These tensors of the model, in the type that they are stored in."""
        found: dict[str, torch.Tensor] = {}
        for name in names:
            if name in self.plain:
                found[name] = self._files.read(self.plain[name])
            elif name not in found:
                group = self._groups[name]
                tensors = {stored: self._files.read(stored) for stored, _ in group.stored}
                found |= group.convert(tensors, self._model)
        return found

    def stored_names(self, name: str) -> list[str]:
        """Names on disk of what a tensor of the model is made from."""
        if name in self.plain:
            return [self.plain[name]]
        return [stored for stored, _ in self._groups[name].stored]

    def _find(self) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        steps = get_model_conversion_mapping(self._model)
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        rules = {
            pattern: step
            for step in steps
            if isinstance(step, WeightConverter)
            for pattern in step.source_patterns
        }
        converters = list({id(rule): rule for rule in rules.values()}.values())
        prefix, state = self._model.base_model_prefix, self._state
        joined: dict[str, list[tuple[str, str]]] = {}
        for stored, entry in self._files.entries.items():
            name, pattern = rename_source_key(stored, renamings, converters, prefix, state)
            # A rule may rename what already has the model's own name; that one wins.
            if name not in state and stored in state:
                name, pattern = rename_source_key(stored, [], [], prefix, state)
            if pattern is not None:
                joined.setdefault(name, []).append((stored, pattern))
            elif name in state and entry.shape != tuple(state[name].shape):
                raise PrunebenchError(
                    f"{stored} has another form on disk than in memory",
                    hint="a model of this family must be loaded as a whole",
                )
            else:
                self.plain[name] = stored
        # On the meta device the rule tells which tensors of the model it makes, and their shapes.
        for first, pairs in joined.items():
            # In the order of expert numbers: the rule joins them as they come.
            group = _Group(rules[pairs[0][1]], first, tuple(sorted(pairs, key=_natural)))
            empty = {
                stored: torch.empty(self._files.entries[stored].shape, device="meta")
                for stored, _ in group.stored
            }
            for name, tensor in group.convert(empty, self._model).items():
                if name in state and tensor.shape != state[name].shape:
                    raise PrunebenchError(
                        f"{name} has the shape {list(state[name].shape)} in memory, but its parts"
                        f" on disk make {list(tensor.shape)}",
                        hint="take config and weights from the same checkpoint",
                    )
                self._groups[name] = group


def _natural(pair: tuple[str, str]) -> list[tuple[int, int | str]]:
    """Sort names with numbers in them by the numbers: expert 10 comes after expert 9."""
    return [(0, int(step)) if step.isdigit() else (1, step) for step in pair[0].split(".")]
