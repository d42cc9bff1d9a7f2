"""How many decoder layers to remove: options that methods of whole layers share."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import model_validator

import prunebench
from prunebench import Field, PrunebenchError
from prunebench_plugins.not_both import check_not_both


def share_of_layers(usual: float) -> Any:
    """The field of the option `ratio`, with the ratio that holds if nothing is given."""
    return Field(
        None,
        ge=0,
        lt=1,
        description="share of the decoder layers to remove, rounded to whole layers;"
        f" {usual:g} if neither ratio nor count is given",
    )


class DepthOptions(prunebench.Options):
    """A share of the decoder layers, or a number of them."""

    usual_ratio: ClassVar[float] = 0.2
    """The ratio if neither `ratio` nor `count` is given."""

    ratio: float | None = share_of_layers(0.2)
    count: int | None = Field(None, ge=0, description="number of decoder layers to remove")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        check_not_both(self, ("ratio", "count"))
        return self

    def layers(self, total: int) -> int:
        """How many of ``total`` layers to remove. Raises PrunebenchError if none would be left."""
        ratio = self.usual_ratio if self.ratio is None else self.ratio
        count = int(total * ratio + 0.5) if self.count is None else self.count
        if count >= total > 0:
            raise PrunebenchError(
                f"all {total} layers would be removed"
                if count == total
                else f"{count} layers cannot be removed: the model has {total}",
                hint="ask for a smaller share, so that at least one layer is left",
            )
        return count
