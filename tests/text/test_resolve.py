"""What a suite may name as a corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.text.corpus import Corpus
from prunebench.text.resolve import corpus_of, resolve_corpus


class Poems(Corpus):
    name = "poems"
    summary = "two poems"
    licence = "none"
    splits = ("train", "test")
    calibration_split = "train"
    evaluation_split = "test"
    sampler = "consecutive"
    revision = "r1"

    def documents(self, split: str) -> list[str]:
        return [split]


CORPORA = {"poems": Poems()}


def resolve(value, base: Path = Path()):
    return resolve_corpus(value, base=base, corpora=CORPORA)


@pytest.mark.parametrize("value", ["poems", {"corpus": "poems"}])
def test_a_registered_name_resolves_to_its_corpus(value) -> None:
    ref = resolve(value)
    assert corpus_of(ref, CORPORA) is CORPORA["poems"]
    assert ref.identity() == {"name": "poems", "revision": "r1"}


@pytest.mark.parametrize(
    "value", ["text.jsonl", "./text.jsonl", {"file": "text.jsonl"}, {"corpus": "text.jsonl"}]
)
def test_a_file_beside_the_suite_is_found(value, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    ref = resolve(value, tmp_path)
    assert ref.sha256 == hashlib.sha256((tmp_path / "text.jsonl").read_bytes()).hexdigest()
    corpus = corpus_of(ref, CORPORA)
    assert list(corpus.documents("all")) == ["a", "b"]
    assert (corpus.calibration_split, corpus.evaluation_split, corpus.sampler) == (
        "all",
        "all",
        "joined-rows",
    )


def test_the_same_file_elsewhere_is_the_same_experiment(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    first, second = resolve(str(tmp_path / "a.txt")), resolve(str(tmp_path / "b.txt"))
    assert first.identity() == second.identity()
    (tmp_path / "b.txt").write_text("something else")
    assert resolve(str(tmp_path / "b.txt")).identity() != first.identity()


def test_another_field_is_another_experiment(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "body": "b"}\n')
    body = resolve({"file": "a.jsonl", "field": "body"}, tmp_path)
    assert list(corpus_of(body, CORPORA).documents("all")) == ["b"]
    assert body.identity() != resolve("a.jsonl", tmp_path).identity()


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("poens", "unknown corpus 'poens'", "did you mean 'poems'?"),
        ("missing.txt", "no file", "relative to the suite's folder"),
        ("folder.txt", "is not a file", "name one file"),
        ("table.csv", "not a known kind of corpus file", ".jsonl"),
        ("empty.txt", "is empty", "holds text"),
        ({"file": "poems"}, "no file", "relative"),
        ({"file": "a.txt", "feild": "x"}, "unknown key 'feild'", "did you mean 'field'?"),
        (
            {"file": "note.txt", "field": "x"},
            "note.txt has no fields: `field` is for",
            "leave `field` out",
        ),
        ({"field": "x"}, "exactly one of", "file: text.jsonl"),
        ({"file": "a.txt", "corpus": "poems"}, "exactly one of", "file: text.jsonl"),
        ({"corpus": "poems", "field": "x"}, "`field` is for local files", "leave `field` out"),
        ({"file": 3}, "are strings", "quotes"),
        (7, "7 is not a corpus", "give a name"),
    ],
)
def test_mistakes_are_named(value, message: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "note.txt").write_text("a note")
    with pytest.raises(PrunebenchError) as caught:
        resolve(value, tmp_path)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_corpus_whose_plugin_was_removed_is_named() -> None:
    with pytest.raises(PrunebenchError, match="unknown corpus 'poems'"):
        corpus_of(resolve("poems"), {})
