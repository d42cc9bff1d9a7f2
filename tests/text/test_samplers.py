"""Samplers: windows come from the text, draws are those of the papers' code, errors are clear."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.text.document_files import read_documents
from prunebench.text.encoder import Encoder
from prunebench.text.samplers import (
    SAMPLERS,
    TextSource,
    consecutive,
    consecutive_for_evaluation,
    sample,
)
from small_tokenizers import TEXT


def encode(text: str) -> list[int]:
    """One token per character, so that ids can be turned back into text."""
    return [ord(letter) for letter in text]


def texts(documents: list[str], joiner: str = "|") -> TextSource:
    return TextSource(documents, encode, joiner)


def read(window: np.ndarray) -> str:
    return "".join(map(chr, window))


documents = st.lists(st.text("abcdefgh", max_size=30), min_size=1, max_size=12)
asked = st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(0, 3))


@given(documents, asked, st.integers(1, 4), st.sampled_from(sorted(SAMPLERS)))
def test_more_windows_begin_with_those_that_fewer_would_be(
    docs: list[str], asked: tuple[int, int, int], more: int, name: str
) -> None:
    """LLM-Pruner draws its next sample from the same sequence of random numbers."""
    windows, length, seed = asked
    try:
        drawn = sample(name, texts(docs), windows + more, length, seed)
    except PrunebenchError:
        return
    fewer = sample(name, texts(docs), windows, length, seed)
    assert np.array_equal(drawn.tokens[:windows], fewer.tokens)


@given(documents, asked, st.sampled_from(sorted(SAMPLERS)))
def test_windows_are_text_of_the_corpus_and_reproducible(
    docs: list[str], asked: tuple[int, int, int], name: str
) -> None:
    windows, length, seed = asked
    try:
        drawn = sample(name, texts(docs), windows, length, seed)
    except PrunebenchError:
        return  # the next test says where that is right
    assert drawn.tokens.shape == (windows, length)
    assert drawn.tokens.dtype == np.int64
    again = sample(name, texts(docs), windows, length, seed)
    assert np.array_equal(drawn.tokens, again.tokens)
    found = [read(window) for window in drawn.tokens]
    if name in {"c4-gptq", "distinct"}:
        assert all(any(window in doc for doc in docs) for window in found)
    elif name == "joined-rows":
        assert all(piece in "\n".join(docs) for window in found for piece in window.split("\n"))
        assert sum(len(window.replace("\n", "")) for window in found) <= sum(map(len, docs))
    elif name.endswith("joined-random"):
        joiner = " " if name.startswith("space") else "|"
        assert all(window in joiner.join(docs) for window in found)
    else:
        assert "|".join(docs).startswith("".join(found))


@given(documents, asked)
def test_a_corpus_is_refused_only_if_its_text_is_too_short(
    docs: list[str], asked: tuple[int, int, int]
) -> None:
    windows, length, seed = asked
    have = {
        "c4-gptq": windows if any(len(doc) > length for doc in docs) else 0,
        "distinct": sum(len(doc) >= length for doc in docs),
        "joined-random": windows if len("|".join(docs)) > length else 0,
        "space-joined-random": windows if len(" ".join(docs)) > length else 0,
        "joined-rows": len("\n\n".join(docs)) // length,
        "consecutive": len("|".join(docs)) // length,
    }
    for name, can in have.items():
        if can >= windows:
            sample(name, texts(docs), windows, length, seed)
        else:
            with pytest.raises(
                PrunebenchError,
                match=f"{windows} windows of {length} tokens are wanted, it gives {can}",
            ):
                sample(name, texts(docs), windows, length, seed)


def test_distinct_draws_each_document_once() -> None:
    docs = [letter * 20 for letter in "abcdefghij"]
    drawn = sample("distinct", texts(docs), 10, 5, 0)
    assert sorted(read(window)[0] for window in drawn.tokens) == list("abcdefghij")


def test_c4_draws_as_sparsegpt_does() -> None:
    """Compared with SparseGPT's loop, which tokenises every document that it draws."""
    docs = [chr(97 + number % 26) * (number % 40) for number in range(200)]
    docs = [
        "".join(chr(97 + (index * 7 + len(doc)) % 26) for index in range(len(doc))) for doc in docs
    ]
    for seed in range(5):
        random.seed(seed)
        expected = []
        while len(expected) < 20:
            ids = encode(docs[random.randint(0, len(docs) - 1)])
            if len(ids) > 16:
                start = random.randint(0, len(ids) - 16 - 1)
                expected.append(ids[start : start + 16])
        assert sample("c4-gptq", texts(docs), 20, 16, seed).tokens.tolist() == expected


def test_a_document_is_tokenised_once() -> None:
    calls: list[str] = []

    def counted(text: str) -> list[int]:
        calls.append(text)
        return encode(text)

    sample("c4-gptq", TextSource(["abcdefghij" * 3, "short"], counted), 50, 8, 0)
    assert len(calls) == len(set(calls)) <= 2


def test_rows_are_drawn_until_the_windows_are_full() -> None:
    """If the tokenizer has a stable prefix, not all rows are read."""
    docs = [f"{number:03}" * 10 for number in range(500)]
    drawn = sample(
        "joined-rows",
        TextSource(docs, encode, stable_prefix=lambda text: encode(text)[:-10]),
        2,
        16,
        7,
    )
    assert drawn.documents < 20
    assert (
        drawn.tokens.tolist()
        == sample("joined-rows", TextSource(docs, encode), 2, 16, 7).tokens.tolist()
    )
    assert (
        drawn.tokens.tolist()
        != sample("joined-rows", TextSource(docs, encode), 2, 16, 8).tokens.tolist()
    )


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(2, 300), st.booleans())
def test_a_few_windows_are_the_first_ones_of_all(
    tokenizer, windows: int, length: int, one_document: bool
) -> None:
    docs = [TEXT] if one_document else TEXT.split("\n\n")
    encoder = Encoder(tokenizer)
    whole = np.asarray(encoder("\n\n".join(docs)))
    all_of_them = consecutive(TextSource(docs, encoder), None, length)
    assert np.array_equal(all_of_them.tokens.reshape(-1), whole[: len(whole) // length * length])
    if windows <= len(all_of_them.tokens):
        few = consecutive(
            TextSource(iter(docs), encoder, stable_prefix=encoder.stable_prefix), windows, length
        )
        assert np.array_equal(few.tokens, all_of_them.tokens[:windows])


@given(st.lists(st.integers(1, 12), min_size=40, max_size=60), st.integers(1, 8), st.integers(2, 5))
def test_only_the_stable_prefix_is_used(lengths: list[int], windows: int, length: int) -> None:
    """One token per word, so that a text cut anywhere ends with a wrong token."""
    docs = [str(number % 10) * letters for number, letters in enumerate(lengths)]

    def words(text: str) -> list[int]:
        return [int(word) for word in text.split()]

    few = consecutive(
        TextSource(docs, words, " ", stable_prefix=lambda text: words(text)[:-1]), windows, length
    )
    assert few.tokens.reshape(-1).tolist() == [int(doc) for doc in docs][: windows * length]


def test_only_a_part_of_a_long_text_is_tokenised(gpt2_tokenizer, data) -> None:
    rows = read_documents(data / "wikitext-2-raw" / "rows" / "validation.parquet")
    encoder, lengths = Encoder(gpt2_tokenizer), []

    def settled(text: str) -> list[int]:
        lengths.append(len(text))
        return encoder.stable_prefix(text)

    few = consecutive(TextSource(rows, encoder, stable_prefix=settled), 8, 512)
    assert sum(lengths) < 0.1 * sum(map(len, rows))
    whole = encoder("\n\n".join(rows[:1000]))
    assert few.tokens.reshape(-1).tolist() == whole[: 8 * 512]


@pytest.mark.parametrize(
    ("name", "hint"), [("c4gptq", "did you mean 'c4-gptq'"), ("as-is", "for text choose one of")]
)
def test_a_sampler_that_does_not_fit_is_named(name: str, hint: str) -> None:
    with pytest.raises(PrunebenchError) as caught:
        sample(name, texts(["abc"]), 1, 2, 0)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "windows", "cut", "tail"),
    [
        ("abcdefghij", None, ["abcd", "efgh"], "ij"),
        ("abcdefghi", None, ["abcd", "efgh"], None),  # one token predicts nothing
        ("abcdefgh", None, ["abcd", "efgh"], None),
        ("abcdefghij", 2, ["abcd", "efgh"], None),  # all windows are full
        ("abcdefghij", 1, ["abcd"], None),
        ("abcdefghij", 3, ["abcd", "efgh"], "ij"),
        ("abc", None, [], "abc"),
        ("abc", 1, [], "abc"),
    ],
)
def test_a_tail_is_what_is_left_of_the_text(text, windows, cut, tail) -> None:
    found = consecutive_for_evaluation(texts([text]), windows, 4, tail=True)
    assert [read(window) for window in found.tokens] == cut
    assert found.tokens.shape == (len(cut), 4)
    assert (None if found.tail is None else read(found.tail)) == tail


def test_neither_a_tail_nor_fewer_windows_unless_asked_for() -> None:
    source = texts(["abcdefghij"])
    assert consecutive_for_evaluation(source, None, 4).tail is None
    with pytest.raises(PrunebenchError, match="3 windows of 4 tokens are wanted, it gives 2"):
        consecutive_for_evaluation(source, 3, 4)
    fewer = consecutive_for_evaluation(source, 3, 4, fewer=True)
    assert [read(window) for window in fewer.tokens] == ["abcd", "efgh"]
    assert fewer.tail is None
    with pytest.raises(PrunebenchError, match="4 windows of 4 tokens are wanted, it gives 2"):
        consecutive_for_evaluation(source, 4, 4, tail=True)
    with pytest.raises(PrunebenchError, match="1 windows of 4 tokens are wanted, it gives 0"):
        consecutive_for_evaluation(texts(["abc"]), None, 4, fewer=True)


@pytest.mark.parametrize(
    ("per_token", "windows", "lengths", "read_documents"),
    [
        # The first guess is five characters a token; behind the tenth document there is no joiner.
        (2, 4, [99], 10),
        (5, 4, [99, 115], 12),  # 20 / 19 of 100 characters, and a tenth more
        (10, 8, [199, 463], 47),
        (20, 4, [99, 549], 55),
        (99 / 20, 4, [99], 10),  # exactly enough
    ],
)
def test_as_much_text_is_tokenised_as_the_tokens_so_far_suggest(
    per_token: float, windows: int, lengths: list[int], read_documents: int
) -> None:
    seen: list[int] = []

    def prefix(text: str) -> list[int]:
        seen.append(len(text))
        return [7] * int(len(text) / per_token + 1e-9)

    def whole(text: str) -> list[int]:
        raise AssertionError("all of the text is tokenised")

    docs = ["abcdefghi"] * 1000
    found = consecutive(TextSource(docs, whole, "|", prefix), windows, 5)
    assert found.tokens.tolist() == [[7] * 5] * windows
    assert (seen, found.documents) == (lengths, read_documents)
