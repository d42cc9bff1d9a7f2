"""What a cell takes from a branch of the hub: tomorrow the branch may be another commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.measure.quality.task_data import HUB
from prunebench.model.hub_cache import COMMIT, MAIN, Kind, cached_commit
from prunebench.text.hub import HubCorpus

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CorpusRef
    from prunebench.text.corpus import Corpus


@dataclass(frozen=True)
class Unpinned:
    """A model, a corpus or the rows of a task that no commit pins."""

    what: str
    """'model org/name', 'corpus ptb' or 'task piqa'."""
    revision: str
    commit: str | None
    """What the revision is in the cache of this machine; None if it is not there, or for tasks."""


def unpinned(cell: Cell, corpora: Mapping[str, Corpus]) -> list[Unpinned]:
    """Everything in ``cell`` that no commit pins; nothing is asked of the hub."""
    found = []
    model = cell.model
    if model.kind == "hub" and not _is_commit(model.revision):
        found.append(_moving(f"model {model.location}", "model", model.location, model.revision))
    for ref in dict.fromkeys(_corpora(cell)):
        corpus = corpora.get(ref.name)
        if ref.path is None and isinstance(corpus, HubCorpus) and not _is_commit(ref.revision):
            what = f"corpus {ref.name}"
            found.append(_moving(what, "dataset", corpus.repository, ref.revision))
    for task in cell.tasks:
        if task.data.name == HUB and task.data.path is None:
            found.append(Unpinned(f"task {task.name}", MAIN, None))
    return found


def _moving(what: str, kind: Kind, repository: str, revision: str | None) -> Unpinned:
    return Unpinned(what, revision or MAIN, cached_commit(kind, repository, revision))


def _corpora(cell: Cell) -> Iterator[CorpusRef]:
    if cell.calibration is not None:
        yield cell.calibration.corpus
    yield from (spec.corpus for spec in cell.perplexity)
    yield from (ref.data.corpus for ref in cell.metrics if ref.data is not None)
    if cell.recovery is not None:
        yield cell.recovery.data.corpus


def _is_commit(revision: str | None) -> bool:
    return revision is not None and COMMIT.fullmatch(revision) is not None
