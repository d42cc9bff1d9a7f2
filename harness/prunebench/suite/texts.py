"""The texts of a suite: calibration, perplexity, and the `data:` of recoveries and metrics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.measure.quality.protocols import DEFAULT, PROTOCOLS, ProtocolName
from prunebench.suite.field_types import Section
from prunebench.suite.lookup import Lookup
from prunebench.suite.problems import EMPTY, fields_of, hint_of
from prunebench.suite.schema import (
    CalibrationEntry,
    PerplexityEntry,
    SuiteFile,
    TextEntry,
    TrainingEntry,
)
from prunebench.text.corpus import SAMPLER_NAMES, Corpus
from prunebench.text.resolve import corpus_of, resolve_corpus

if TYPE_CHECKING:
    from prunebench.suite.yaml import KeyPath

AS_IS = "as-is"
"""The sampler of token files, whose windows are fixed."""
ROWS = "joined-rows"
"""The sampler that can draw a number of rows."""
EXAMPLES = "examples"
"""What stands for the sampler of instruction data: every window is one example."""

S = TypeVar("S", bound=Section)


def _merged(shared: CalibrationEntry | None, written: Any) -> Any:
    """A method's own calibration, with keys that it leaves out from one of the suite's."""
    if not isinstance(written, dict):
        return written  # refused, with the reason, when it is checked
    usual = {} if shared is None else shared.model_dump(exclude_unset=True)
    # Split and sampler belong to the suite's corpus, and rows to a sampler; an amount of text is
    # either windows or rows.
    other = {"corpus": {"split", "sampler", "rows"}, "windows": {"rows"}, "rows": {"windows"}}
    replaced = {key for name in written for key in other.get(name, ())}
    return {**{key: value for key, value in usual.items() if key not in replaced}, **written}


class Texts:
    """Looks up the texts that one suite names; what cannot be found goes to the problems.

    ``incomplete`` says that sections of the file are wrong and missing in ``file``. Then nobody is
    told to add a calibration or a perplexity: it may be the section that is wrong.
    """

    def __init__(self, file: SuiteFile, lookup: Lookup, *, incomplete: bool) -> None:
        self._problems = lookup.problems
        self._registry = lookup.registry
        self._corpora: dict[str, Corpus] = lookup.registry.registered("corpus")
        self._shared = file.calibration
        self.calibration: tuple[CalibrationSpec, ...] = tuple(
            spec
            for index, entry in enumerate(file.calibration)
            for spec in self._calibration(entry, ("calibration", index))
        )
        self.has_calibration = bool(file.calibration) or incomplete
        entries = file.quality.perplexity if file.quality else []
        self.perplexity: tuple[PerplexitySpec, ...] = tuple(self._perplexity(entries))
        self.has_perplexity = bool(entries) or incomplete

    def own_calibration(self, written: Any, path: KeyPath) -> tuple[CalibrationSpec, ...]:
        """A method's own `calibration:`, one or a list; keys left out are as in the suite's.

        If the suite has several, there is one of the method's for each of them.
        """
        several = isinstance(written, list)
        if several and not written:
            self._problems.add(path, EMPTY)
        found: dict[CalibrationSpec, None] = {}  # a set that keeps its order
        for index, one in enumerate(written if several else [written]):
            at = (*path, index) if several else path
            shares: list[CalibrationEntry | None] = [*self._shared] or [None]
            for shared in shares:
                entry = self._checked(CalibrationEntry, _merged(shared, one), at)
                if entry is not None:
                    found |= dict.fromkeys(self._calibration(entry, at))
        return tuple(found)

    def training(self, written: Any, path: KeyPath) -> CalibrationSpec | None:
        """The windows of a recovery's `data:`; None if something is wrong with it."""
        entry = self._checked(TrainingEntry, written, path)
        if entry is None:
            return None
        # The defaults of training differ from those of calibration: they are given, not left out.
        given = entry.model_dump(exclude_unset=True, exclude={"prompt", "loss_on"}) | {
            "windows": entry.windows,
            "length": entry.length,
        }
        self._check_prompt(entry, path)
        calibration = CalibrationEntry.model_validate(given)
        examples = entry.prompt is not None
        spec = next(self._calibration(calibration, path, examples=examples), None)
        if spec is None or entry.prompt is None:
            return spec
        return spec.model_copy(
            update={
                "sampler": EXAMPLES,
                "prompt": entry.prompt,
                "loss_on": entry.loss_on or "answer",
            }
        )

    def _check_prompt(self, entry: TrainingEntry, path: KeyPath) -> None:
        """Note keys that have no effect beside the others."""
        if entry.prompt is None and entry.loss_on is not None:
            self._problems.add(
                (*path, "loss_on"),
                "has no effect without `prompt`",
                "leave it out, or write `prompt: alpaca`",
            )
        if entry.prompt is not None and entry.sampler is not None:
            self._problems.add(
                (*path, "sampler"),
                f"has no effect with `prompt: {entry.prompt}`, which takes whole examples",
                "leave it out",
            )

    def metric(self, written: Any, path: KeyPath) -> PerplexitySpec | None:
        """The windows of a metric's `data:`; None if something is wrong with it."""
        entry = self._checked(TextEntry, written, path)
        if entry is None:
            return None
        # What is None stays out: then the protocol decides it.
        given = PerplexityEntry.model_validate(entry.model_dump(exclude_none=True))
        for ref, corpus in self._named_corpora(given.corpus, path):
            for spec in self._protocol(DEFAULT, given, ref, corpus, path):
                return spec
        return None

    def _checked(self, section: type[S], written: Any, path: KeyPath) -> S | None:
        keys = fields_of(section)
        try:
            return section.model_validate(written)
        except ValidationError as error:
            self._problems.add_validation(path, written, error, lambda at: None if at else keys)
            return None

    def _calibration(
        self, entry: CalibrationEntry, path: KeyPath, *, examples: bool = False
    ) -> Iterator[CalibrationSpec]:
        for ref, corpus in self._named_corpora(entry.corpus, path, examples=examples):
            splits = self._splits(entry.split or [corpus.calibration_split], corpus, path)
            samplers = self._samplers(entry.sampler or [corpus.sampler], corpus, path)
            for split, sampler, (windows, rows), length in itertools.product(
                splits, samplers, self._amounts(entry, samplers, path), entry.length
            ):
                yield CalibrationSpec(
                    corpus=ref,
                    split=split,
                    sampler=sampler,
                    windows=windows,
                    rows=rows,
                    length=length,
                )

    def _amounts(
        self, entry: CalibrationEntry, samplers: Sequence[str], path: KeyPath
    ) -> list[tuple[int | None, int | None]]:
        """(windows, rows) of each sample: one of them is None."""
        if entry.rows is None:
            return [(windows, None) for windows in entry.windows]
        if "windows" in entry.model_fields_set:
            self._problems.add(
                (*path, "rows"), "`rows` and `windows` both say how much text", "give one of them"
            )
        if other := set(samplers) - {ROWS}:
            self._problems.add(
                (*path, "rows"),
                f"the sampler '{min(other)}' draws no number of rows",
                f"leave `rows` out, or use `sampler: {ROWS}`",
            )
        return [(None, rows) for rows in entry.rows]

    def _perplexity(self, entries: Sequence[PerplexityEntry]) -> Iterator[PerplexitySpec]:
        for index, entry in enumerate(entries):
            path = ("quality", "perplexity", index)
            for ref, corpus in self._named_corpora(entry.corpus, path):
                for name in dict.fromkeys(entry.protocol):
                    yield from self._protocol(name, entry, ref, corpus, path)

    def _protocol(
        self,
        name: ProtocolName,
        entry: PerplexityEntry,
        ref: CorpusRef,
        corpus: Corpus,
        path: KeyPath,
    ) -> Iterator[PerplexitySpec]:
        """What one protocol measures on one corpus; keys of the entry win over the protocol."""
        protocol = PROTOCOLS[name]
        usual_split, joiner = corpus.evaluation_split, None
        if ref.path is None:  # a local file may have a corpus's name, but is not that corpus
            usual_split = protocol.splits.get(ref.name, usual_split)
            joiner = protocol.joiners.get(ref.name)
        splits = self._splits(entry.split or [usual_split], corpus, path)
        lengths: Sequence[int | None] = entry.length or [protocol.length]
        for split, length in itertools.product(splits, lengths):
            usual = protocol.windows(length) or corpus.evaluation_windows
            windows_of: Sequence[int | None] = entry.windows or [usual]
            for windows in windows_of:
                yield PerplexitySpec(
                    corpus=ref,
                    split=split,
                    length=length,
                    windows=windows,
                    protocol=name,
                    # A number that the suite asks for must be met, a usual number need not be.
                    fewer=entry.windows is None,
                    tail=protocol.tail if entry.tail is None else entry.tail,
                    joiner=joiner,
                )

    def _named_corpora(
        self, written: Sequence[str | dict[str, Any]], path: KeyPath, *, examples: bool = False
    ) -> Iterator[tuple[CorpusRef, Corpus]]:
        for index, value in enumerate(written):
            at = (*path, "corpus", index)
            try:
                ref = resolve_corpus(
                    value,
                    base=self._problems.source.base(at),
                    corpora=self._corpora,
                    examples=examples,
                )
            except PrunebenchError as error:
                self._problems.add(at, error.message, hint_of(error, value, self._registry))
            else:
                yield ref, corpus_of(ref, self._corpora)

    def _splits(self, splits: list[str], corpus: Corpus, path: KeyPath) -> list[str]:
        # Wrong splits are returned all the same: the suite fails in the end, after all problems.
        for index, split in enumerate(splits):
            if split not in corpus.splits:
                hint = did_you_mean(split, corpus.splits)
                self._problems.add(
                    (*path, "split", index), f"'{corpus.name}' has no split '{split}'", hint
                )
        return splits

    def _samplers(self, samplers: list[str], corpus: Corpus, path: KeyPath) -> list[str]:
        for index, sampler in enumerate(samplers):
            at = (*path, "sampler", index)
            if sampler not in SAMPLER_NAMES:
                hint = did_you_mean(sampler, SAMPLER_NAMES)
                self._problems.add(at, f"unknown sampler '{sampler}'", hint)
            elif (sampler == AS_IS) != (corpus.sampler == AS_IS):
                holds = "windows of tokens" if corpus.sampler == AS_IS else "text"
                self._problems.add(
                    at,
                    f"the sampler '{sampler}' is not for '{corpus.name}', which holds {holds}",
                    f"leave `sampler` out, then '{corpus.sampler}' is used",
                )
        return samplers
