"""The token windows of a training, and which of their tokens the loss counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class TrainingWindows:
    """Token ids, int64 [windows, length], to predict the next token of.

    ``counted``, bool [windows, length], marks the tokens whose prediction the loss counts: the
    answers of instruction data, for example. None counts all. The first token of a window is never
    predicted, so it never counts. Tokens after the last counted one are padding.
    """

    tokens: torch.Tensor
    counted: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 2 or self.tokens.shape[0] < 1 or self.tokens.shape[1] < 2:
            raise ValueError(f"tokens are [windows, length >= 2], not {list(self.tokens.shape)}")
        if self.counted is not None and self.counted.shape != self.tokens.shape:
            raise ValueError(
                f"counted has the shape {list(self.counted.shape)}, "
                f"tokens have {list(self.tokens.shape)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def pick(self, index: torch.Tensor | slice) -> Self:
        """The windows at ``index``, without the columns that are padding in all of them."""
        tokens = self.tokens[index]
        if self.counted is None:
            return type(self)(tokens)
        counted = self.counted[index]
        used = counted.any(0).nonzero()
        end = max(2, int(used[-1]) + 1) if len(used) else 2
        return type(self)(tokens[:, :end], counted[:, :end])

    def split(self, size: int) -> list[Self]:
        """Parts of up to ``size`` windows, each without columns of padding."""
        return [self.pick(slice(start, start + size)) for start in range(0, len(self.tokens), size)]

    def to(self, device: torch.device) -> Self:
        counted = None if self.counted is None else self.counted.to(device)
        return type(self)(self.tokens.to(device), counted)

    @property
    def targets(self) -> int:
        """Number of tokens whose prediction counts."""
        if self.counted is None:
            return len(self.tokens) * (self.tokens.shape[1] - 1)
        return int(self.counted[:, 1:].sum())

    @property
    def size(self) -> int:
        """Number of tokens, padding left out."""
        if self.counted is None:
            return self.tokens.numel()
        # [windows]: the last counted token of each, found as the first of the reversed window
        last = self.counted.flip(1).byte().argmax(1)
        used = self.counted.any(1) * (self.tokens.shape[1] - last)
        return int(used.sum())
