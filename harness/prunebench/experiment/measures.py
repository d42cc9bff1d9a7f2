"""What is measured: perplexity, tasks and latency, with all that decides the numbers."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from prunebench.experiment.text import CorpusRef
from prunebench.schema import Frozen

Form = Literal["eager", "static", "lean", "lean-packed", "compiled", "cuda-graph"]
"""How a generated token is computed; `prunebench.measure.speed.execution` describes each form."""

FASTEST: Final = "fastest"
"""The fastest form that needs no compiler and gives the same tokens as eager decoding."""

Execution = Literal["fastest", Form]
"""What a suite can ask for."""


class PerplexitySpec(Frozen):
    """Perplexity over consecutive windows that do not overlap."""

    corpus: CorpusRef
    split: str
    length: int | None = Field(
        gt=1, description="tokens per window; null: the model's max_position_embeddings"
    )
    windows: int | None = Field(
        None, gt=0, description="use only this many windows from the start; null: all"
    )
    protocol: str = Field("sparsegpt", description="the name that filled in the other fields")
    fewer: bool = Field(False, description="accept fewer windows if the text is too short")
    tail: bool = Field(False, description="score the last, incomplete window too")
    joiner: str | None = Field(
        None, description="text put between documents; null: the corpus's own"
    )

    def identity(self) -> dict[str, Any]:
        """The part that decides the number."""
        # These fields were added later. A default value is left out, so that such cells keep the
        # ids that they had in older runs.
        later = {"protocol": "sparsegpt", "tail": False, "joiner": None}
        data = self.model_dump(mode="json", exclude={"corpus", "fewer"})  # ``fewer`` only permits
        kept = {
            key: value for key, value in data.items() if key not in later or value != later[key]
        }
        return {**kept, "corpus": self.corpus.identity()}


class TaskDataRef(Frozen):
    """The source of a task's rows: lm-eval's own data set on the hub, a plugin's data, a folder."""

    name: str = Field(
        "hub", description="'hub', the name of registered data, or the name of the folder"
    )
    revision: str | None = Field(None, description="pins the rows of registered data")
    path: str | None = Field(None, description="absolute path of the folder")
    files: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the task's files by their path in the folder"
    )

    def identity(self) -> dict[str, Any]:
        """The part that decides the rows: file hashes for a folder, else name and revision.

        The folder's path is left out, so that a moved folder gives the same cells.
        """
        return (
            {"files": self.files} if self.path else {"name": self.name, "revision": self.revision}
        )


class TaskSpec(Frozen):
    """One task, group or tag of lm-eval."""

    name: str = Field(description="the name in lm-eval")
    data: TaskDataRef = TaskDataRef()
    limit: int | None = Field(
        None, gt=0, description="use only this many documents from the start; null: all"
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="examples in the prompt; null: the task's own number, else 0"
    )
    batch_size: int = Field(
        8, gt=0, description="requests that run together; does not change the outcome"
    )
    max_new_tokens: int | None = Field(
        None, gt=0, description="the most tokens of a written answer; null: the task's own number"
    )
    harness: str = Field(description="version of lm-eval, which defines the prompts and metrics")

    def identity(self) -> dict[str, Any]:
        """The part that decides the scores; what came later is left out at its default."""
        left_out = {"data", "batch_size"} | (
            {"max_new_tokens"} if self.max_new_tokens is None else set()
        )
        return {
            **self.model_dump(mode="json", exclude=left_out),
            "data": self.data.identity(),
        }


class LatencySpec(Frozen):
    """One shape to time: prompt phase and generation phase of greedy decoding with a KV cache."""

    prompt: int = Field(gt=0, description="prompt tokens")
    new_tokens: int = Field(gt=1, description="generated tokens")
    batch_size: int = Field(gt=0)
    min_rounds: int = Field(gt=0)
    min_time_s: float = Field(ge=0)
    execution: Execution = Field("fastest", description="how a generated token is computed")
    patience: float = Field(
        3.0,
        ge=1,
        description="repeat disturbed rounds until this many times the planned time has passed",
    )

    def identity(self) -> dict[str, Any]:
        """What decides the figures: patience only decides whether there are any."""
        return self.model_dump(mode="json", exclude={"patience"})
