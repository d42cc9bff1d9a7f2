"""What is to be timed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prunebench.experiment.text import CorpusRef
from prunebench.schema import Frozen

Form = Literal["eager", "static", "lean", "compiled", "cuda-graph"]
"""How a generated token is computed; `prunebench.measure.speed.execution` says what each does."""

FASTEST = "fastest"
"""The fastest form, of those that need no compiler, which gives the same tokens as eager decoding."""


class PerplexitySpec(Frozen):
    """Perplexity over consecutive windows that do not overlap."""

    corpus: CorpusRef
    split: str
    length: int | None = Field(
        gt=1, description="tokens per window; the model's max_position_embeddings where null"
    )
    windows: int | None = Field(
        None, gt=0, description="the first so many windows; all where absent"
    )
    protocol: str = Field("sparsegpt", description="the name under which the rest was filled in")
    fewer: bool = Field(False, description="fewer windows are no mistake where the text is short")
    tail: bool = Field(False, description="the last, incomplete window counts too")
    joiner: str | None = Field(
        None, description="stands between documents instead of the corpus's own"
    )

    def identity(self) -> dict[str, Any]:
        """What decides the number. Defaults that came later are left out: such cells keep the ids of older runs."""
        later = {"protocol": "sparsegpt", "tail": False, "joiner": None}
        data = self.model_dump(mode="json", exclude={"corpus", "fewer"})
        kept = {
            key: value for key, value in data.items() if key not in later or value != later[key]
        }
        return {**kept, "corpus": self.corpus.identity()}


class TaskDataRef(Frozen):
    """Where the rows of a task come from: lm-eval's own data set on the hub, a plugin's data, or a folder."""

    name: str = Field(
        "hub", description="'hub', the name of registered data, or the name of the folder"
    )
    revision: str | None = Field(None, description="of registered data: what pins its rows")
    path: str | None = Field(None, description="absolute path of the folder")
    files: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the task's files by their path in the folder"
    )

    def identity(self) -> dict[str, Any]:
        """What decides the rows: the hashes of a folder's files wherever it lies, else name and revision."""
        return (
            {"files": self.files} if self.path else {"name": self.name, "revision": self.revision}
        )


class TaskSpec(Frozen):
    """One task, group or tag of lm-eval."""

    name: str = Field(description="as lm-eval has it")
    data: TaskDataRef = TaskDataRef()
    limit: int | None = Field(
        None, gt=0, description="the first so many documents; all where absent"
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="the task's own number where absent, 0 if it has none"
    )
    batch_size: int = Field(
        8, gt=0, description="requests side by side; does not decide the outcome"
    )
    harness: str = Field(description="version of lm-eval, whose prompts and metrics these are")

    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        return {
            **self.model_dump(mode="json", exclude={"data", "batch_size"}),
            "data": self.data.identity(),
        }


class LatencySpec(Frozen):
    """One shape to time: prompt phase and generation phase of greedy decoding with a KV cache."""

    prompt: int = Field(gt=0, description="prompt tokens")
    new_tokens: int = Field(gt=1, description="generated tokens")
    batch_size: int = Field(gt=0)
    min_rounds: int = Field(gt=0)
    min_time_s: float = Field(ge=0)
    execution: Literal["fastest", "eager", "static", "lean", "compiled", "cuda-graph"] = Field(
        "fastest", description="how a generated token is computed"
    )
