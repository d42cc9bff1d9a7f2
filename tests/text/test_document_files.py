"""Documents of local files, and the errors for damaged ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.text.document_files import read_documents

texts = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5)


@settings(max_examples=40)
@given(texts)
def test_every_format_returns_the_written_documents(tmp_path: Path, documents: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents)
    )
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n\n" for text in documents
        )
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert read_documents(tmp_path / name) == documents
    whole = "\r\n".join(documents)
    (tmp_path / "a.txt").write_bytes(whole.encode())
    (tmp_path / "a.raw.gz").write_bytes(gzip.compress(whole.encode()))
    for name in ("a.txt", "a.raw.gz"):
        assert read_documents(tmp_path / name) == [whole]


def broken(folder: Path) -> None:
    (folder / "cut.txt.gz").write_bytes(gzip.compress(b"line\n" * 100_000)[:-40])
    (folder / "not.jsonl.gz").write_bytes(b'{"text": "not gzip"}\n')
    (folder / "latin.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    (folder / "bad.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    (folder / "list.jsonl").write_text('{"text": "a"}\n["b"]\n')
    (folder / "key.jsonl").write_text('{"text": "a"}\n{"body": "b", "id": 3}\n')
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    (folder / "blank.jsonl").write_text('{"text": ""}\n\n')
    (folder / "not.parquet").write_text("PAR1 but no more")
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), folder / "column.parquet")
    pq.write_table(pa.table({"text": [1]}), folder / "kind.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), folder / "null.parquet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.txt.gz", "damaged gzip data after line"),
        ("not.jsonl.gz", "damaged gzip data after line 0"),
        ("latin.txt", "latin.txt:2: not UTF-8 (byte 4 of the line)"),
        ("bad.jsonl", "bad.jsonl:3: not JSON"),
        ("list.jsonl", "list.jsonl:2: list, not an object"),
        ("key.jsonl", "key.jsonl:2: no key 'text'; keys: 'body', 'id'"),
        ("number.jsonl", "number.jsonl:1: 'text' is int, not text"),
        ("blank.jsonl", "holds no text"),
        ("not.parquet", "not a valid Parquet file"),
        ("column.parquet", "no column 'text'; columns: 'body', 'id'"),
        ("kind.parquet", "column 'text' is int64, not text"),
        ("null.parquet", "null.parquet: row 2: 'text' is null"),
        ("missing.jsonl", "cannot read"),
    ],
)
def test_the_error_for_a_damaged_file_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(PrunebenchError) as caught:
        read_documents(tmp_path / name)
    assert message in str(caught.value)
    assert str(tmp_path / name) in caught.value.message
    assert "\n" not in str(caught.value)


def test_real_files_have_the_documented_number_of_rows(data: Path) -> None:
    wikitext = data / "wikitext-2-raw"
    rows = read_documents(wikitext / "rows" / "test.parquet")
    assert len(rows) == 4358
    assert len(read_documents(wikitext / "pages" / "test.jsonl.gz", "page")) == 62
    assert len(read_documents(data / "c4" / "train_shard00000_first1000.jsonl.gz")) == 1000
    raw = read_documents(wikitext / "wiki.test.raw.gz")
    assert len(raw[0].encode()) == 1_290_590
    assert [row.strip() for row in rows] == [line.strip() for line in raw[0].split("\n")[:-1]]
