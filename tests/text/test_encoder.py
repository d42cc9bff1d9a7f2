"""The stable prefix of a text, compared with tokenising the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.text.document_files import read_documents
from prunebench.text.encoder import Encoder
from small_tokenizers import TEXT, gpt2_like, llama2_like, llama3_like

SPLITTING = [Encoder(gpt2_like()), Encoder(llama3_like())]
PIECES = [
    "word",
    "don't",
    " ",
    "  ",
    "\n",
    "\n\n",
    " \n",
    "\t",
    "12345678",
    "...",
    "é",
    "e\u0301",
    "漢",
    "<unk>",
    "<s",
    "<s>",
]


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(PIECES), max_size=60), st.lists(st.sampled_from(PIECES), max_size=60)
)
def test_the_stable_prefix_starts_the_ids_of_the_whole_text(
    end: list[str], more: list[str]
) -> None:
    before = TEXT[:3000] + "".join(end)
    for encode in SPLITTING:
        settled = encode.stable_prefix(before)
        assert len(settled) > 500
        assert encode(before + "".join(more))[: len(settled)] == settled


def test_nothing_is_stable_if_the_tokenizer_does_not_split() -> None:
    assert Encoder(llama2_like()).stable_prefix(TEXT) == []


def test_nothing_of_a_short_text_is_stable(tokenizer) -> None:
    assert Encoder(tokenizer).stable_prefix("a few words") == []


def test_the_stable_prefix_of_wikitext_starts_the_whole(gpt2_tokenizer, data) -> None:
    rows = read_documents(data / "wikitext-2-raw" / "rows" / "test.parquet")
    text = "\n\n".join(rows)[:160_000]
    encode = Encoder(gpt2_tokenizer)
    whole = encode(text)
    for cut in range(20_000, 160_000, 27_777):
        settled = encode.stable_prefix(text[:cut])
        assert len(settled) > cut // 10
        assert whole[: len(settled)] == settled


@pytest.mark.parametrize(("kind", "bos"), [(gpt2_like, None), (llama3_like, 1), (llama2_like, 1)])
def test_bos_is_what_the_tokenizer_adds(kind, bos) -> None:
    assert Encoder(kind()).bos == bos
