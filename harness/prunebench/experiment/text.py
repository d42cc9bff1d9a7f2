"""Which text, and which token windows of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prunebench.schema import Frozen


class CorpusRef(Frozen):
    """A resolved source of text or tokens: a registered corpus, or a local file."""

    name: str = Field(description="registered name, or file name")
    path: str | None = Field(None, description="absolute path of a local file")
    sha256: str | None = Field(None, description="of that file")
    field: str = Field("text", description="column or key that holds the text")
    revision: str | None = Field(None, description="pins the text of a registered corpus")

    def identity(self) -> dict[str, Any]:
        """The part that decides the text: a local file's hash, else name and revision."""
        # Neither path nor file name: a moved or renamed file is still the same text.
        if self.sha256:
            return {"sha256": self.sha256, "field": self.field}
        return {"name": self.name, "revision": self.revision}


_DRAWN_ANEW = {"joined-rows": 2}
"""Samplers that drew other windows before: the number is part of an id, so cells of older runs
count as different."""


_SEEDLESS = ("as-is", "consecutive")
"""Samplers that give the same windows for every seed."""


class CalibrationSpec(Frozen):
    """The token windows that a method may look at."""

    corpus: CorpusRef
    split: str
    sampler: str
    windows: int | None = Field(gt=0, description="null: all windows that `rows` fill")
    length: int = Field(gt=1, description="tokens per window")
    rows: int | None = Field(None, gt=0, description="documents to draw, instead of `windows`")
    prompt: Literal["alpaca"] | None = Field(
        None, description="each window is an example of instruction data in this prompt; null: text"
    )
    loss_on: Literal["answer", "all"] = Field(
        "answer", description="which tokens of such an example a loss counts"
    )

    def identity(self) -> dict[str, Any]:
        """The part that decides the windows."""
        # These fields came later. Without them a cell keeps the id that it had in older runs.
        left_out = {"corpus"}
        if self.rows is None:
            left_out |= {"rows"}
        if self.prompt is None:
            left_out |= {"prompt", "loss_on"}
        data = self.model_dump(mode="json", exclude=left_out)
        if self.sampler in _DRAWN_ANEW:
            data["draws"] = _DRAWN_ANEW[self.sampler]
        return {**data, "corpus": self.corpus.identity()}

    @property
    def drawn(self) -> bool:
        """Whether the seed decides which windows these are."""
        return self.sampler not in _SEEDLESS

    @property
    def tokens(self) -> int | None:
        """Tokens of all windows; None if only the text tells how many windows there are."""
        return None if self.windows is None else self.windows * self.length

    @property
    def amount(self) -> str:
        """How much text: '16 windows of 2048 tokens'."""
        if self.windows is None:
            return f"{self.rows} rows in windows of {self.length} tokens"
        return f"{self.windows} windows of {self.length} tokens"
