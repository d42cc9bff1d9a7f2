"""One reader for all text of users: what it accepts, and the line it names for what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CorpusRef
from prunebench.measure.quality.task_data import read_splits
from prunebench.text.corpus import Corpus
from prunebench.text.document_files import read_documents
from prunebench.text.resolve import resolve_corpus
from prunebench.text.windows import evaluation_windows
from small_tokenizers import gpt2_like

MARK = b"\xef\xbb\xbf"
ROWS = b'{"text": "one"}\n{"text": "two"}\n'


def read(path: Path, content: bytes) -> list[str]:
    packed = gzip.compress(content) if path.suffix == ".gz" else content
    path.write_bytes(packed)
    return read_documents(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_is_no_text(suffix: str, tmp_path: Path) -> None:
    assert read(tmp_path / f"a.txt{suffix}", MARK + b"one\ntwo") == ["one\ntwo"]
    assert read(tmp_path / f"a.jsonl{suffix}", MARK + ROWS) == ["one", "two"]
    # Two files with marks, joined by `cat`.
    joined = 2 * (MARK + ROWS)
    assert read(tmp_path / f"b.jsonl{suffix}", joined) == ["one", "two", "one", "two"]
    task = tmp_path / f"test.jsonl{suffix}"
    read(task, MARK + ROWS)
    assert read_splits([task]) == {"test": [{"text": "one"}, {"text": "two"}]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_another_encoding_is_named(encoding: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match=r"UTF-16 or UTF-32, not UTF-8 \(save the file"):
        read(tmp_path / name, '{"text": "one"}'.encode(encoding))


def test_a_compressed_file_under_a_plain_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match=r"compressed with gzip .*ends in \.gz"):
        read(tmp_path / "a.jsonl", gzip.compress(ROWS))


KINDS: dict[str, tuple[pa.DataType, Any]] = {
    "strings": (pa.string(), ["one", "two"]),
    "large strings": (pa.large_string(), ["one", "two"]),
    "string views": (pa.string_view(), ["one", "two"]),
    "bytes": (pa.binary(), [b"one", b"two"]),
    "large bytes": (pa.large_binary(), [b"one", b"two"]),
    "byte views": (pa.binary_view(), [b"one", b"two"]),
    "categories": (pa.dictionary(pa.int8(), pa.string()), ["one", "two"]),
    "ordered categories": (pa.dictionary(pa.int32(), pa.large_string(), ordered=True), ["a", "b"]),
    "categories of bytes": (pa.dictionary(pa.int8(), pa.binary()), [b"one", b"two"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_text_column_is_text(kind: str, tmp_path: Path) -> None:
    arrow, values = KINDS[kind]
    column = pa.array(values)
    column = column.dictionary_encode().cast(arrow) if "cat" in kind else pa.array(values, arrow)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": column}), path)
    assert read_documents(path) == [
        value if isinstance(value, str) else value.decode() for value in values
    ]


def test_a_category_of_pandas_is_text(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": pd.Categorical(["b", "a", "b"])}).to_parquet(path)
    assert read_documents(path) == ["b", "a", "b"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2]).dictionary_encode(),
        pa.array([["one"], ["two"]]),
        pa.array([{"text": "one"}, {"text": "two"}]),
        pa.array([True, False]),
    ],
)
def test_other_columns_are_not_text(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(PrunebenchError, match=r"column 'text' is .*, not text"):
        read_documents(tmp_path / "a.parquet")


def parquet_with(path: Path, values: list[bytes | None]) -> Path:
    """A file whose strings Arrow never checked."""
    schema = pa.schema({"text": pa.string()})
    unchecked = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(pa.table([unchecked], schema=schema), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_row_without_text_is_refused_alike(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet_with(path, [b"one", None])
    elif suffix == ".jsonl":
        path.write_text('{"text": "one"}\n{"text": null}\n')
    else:
        path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": null}\n'))
    with pytest.raises(PrunebenchError) as caught:
        read_documents(path)
    assert f"{path}{': row ' if suffix == '.parquet' else ':'}2: 'text' is null" in str(
        caught.value
    )
    assert caught.value.hint == "leave rows without text out"


def test_a_column_of_nulls_is_refused_as_such(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    with pytest.raises(PrunebenchError, match="row 1: 'text' is null"):
        read_documents(tmp_path / "a.parquet")


@pytest.mark.parametrize("half", [r"\ud83d", r"\uDE00", r"\ud83dx\ude00"])
def test_half_a_surrogate_pair_is_refused_with_its_line(half: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(PrunebenchError, match=r"a\.jsonl:2: 'text' holds half of a surrogate pair"):
        read(path, rb'{"text": "\ud83d\ude00 is whole"}' + f'\n{{"text": "{half}"}}'.encode())
    task = tmp_path / "test.jsonl"
    task.write_text(f'{{"question": "", "choices": {{"text": ["{half}"]}}}}')
    with pytest.raises(PrunebenchError, match=r"test\.jsonl:1: 'choices' holds half of a surrog"):
        read_splits([task])


def test_a_surrogate_in_another_column_does_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", rb'{"text": "one", "author": "\ud83d"}') == ["one"]


def test_a_string_of_parquet_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    path = parquet_with(tmp_path / "test.parquet", [b"one", b"tw\xff"])
    message = r"row 2: 'text' is not UTF-8 \(byte 3 of the value\)"
    with pytest.raises(PrunebenchError, match=message):
        read_documents(path)
    with pytest.raises(PrunebenchError, match=message):
        read_splits([path])
    pq.write_table(pa.table({"text": [b"one", b"tw\xff"]}), path)
    with pytest.raises(PrunebenchError, match=message):
        read_documents(path)


@pytest.mark.parametrize("content", [MARK, b"\n \t\n", MARK + b"\r\n"])
def test_a_file_of_blanks_holds_no_text(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="holds no text"):
        read(tmp_path / "a.txt", content)
    with pytest.raises(PrunebenchError, match="holds no text"):
        read(tmp_path / "a.jsonl", content + b'{"text": " "}')


def test_empty_rows_are_documents(tmp_path: Path) -> None:
    """WikiText has thousands of them."""
    assert read(tmp_path / "a.jsonl", b'{"text": ""}\n' + ROWS) == ["", "one", "two"]


def test_text_is_checked_when_a_suite_is_planned(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(PrunebenchError, match=r"a\.jsonl:2: 'text' holds half"):
        resolve_corpus("a.jsonl", base=tmp_path, corpora={})


def test_a_large_file_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "word " * 300_000, "body": None}) + "\n")
    first = resolve_corpus("a.jsonl", base=tmp_path, corpora={})
    monkeypatch.setattr("prunebench.text.document_files.json_rows", pytest.fail)
    assert resolve_corpus("a.jsonl", base=tmp_path, corpora={}) == first
    # Another field is another text, which was not checked.
    monkeypatch.undo()
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PrunebenchError, match="'body' is null"):
        resolve_corpus({"file": "a.jsonl", "field": "body"}, base=tmp_path, corpora={})


class Given(Corpus):
    """A corpus of a plugin."""

    name = "given"
    summary = "what a test gives"
    licence = "none"
    splits = ("all",)
    calibration_split = evaluation_split = "all"
    sampler = "consecutive"

    def __init__(self, documents: Any) -> None:
        self.given = documents

    def documents(self, split: str) -> Any:
        return self.given


def windows_of(documents: Any) -> Any:
    spec = PerplexitySpec(corpus=CorpusRef(name="given"), split="all", length=4, windows=None)
    return evaluation_windows(spec, gpt2_like(), 1000, {"given": Given(documents)}).tokens.tolist()


@pytest.mark.parametrize("wrap", [list, tuple, iter])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, r"corpus 'given' \(all\): document 2 is null"),
        (7, "document 2 is int, not text"),
        (b"two", "document 2 is bytes, not text"),
        ("\ud83d", "document 2 holds half of a surrogate pair"),
        ("x\udcff", r"half of a surrogate pair \(U\+DCFF\) at character 2"),
    ],
)
def test_documents_of_a_plugin_are_checked_too(wrap: Any, bad: Any, message: str) -> None:
    with pytest.raises(PrunebenchError, match=message):
        windows_of(wrap(["one text " * 5, bad]))


@pytest.mark.parametrize("documents", ["one text", b"one text", None, 7])
def test_a_plugin_that_gives_no_list_is_named(documents: Any) -> None:
    with pytest.raises(PrunebenchError, match="instead of a list of texts"):
        windows_of(documents)


def test_checked_documents_are_the_documents() -> None:
    texts = ["one text " * 5, "", "two texts " * 5]
    assert windows_of(texts) == windows_of(iter(texts))
