"""Every sampler against ten lines of its own, written from the descriptions of the papers' code.

One token per letter, and documents of many lengths: a window that starts one letter later, or a row
drawn in another order, is another window.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from prunebench.errors import PrunebenchError
from prunebench.text.samplers import SAMPLERS, TextSource, sample, whole_rows

Draws = list[list[int]]


def documents(count: int, longest: int, seed: int = 0) -> list[str]:
    rng = random.Random(f"documents {seed}")
    return ["".join(rng.choices("abcdefghij", k=rng.randint(0, longest))) for _ in range(count)]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def c4_gptq(docs: list[str], windows: int, length: int, seed: int) -> Draws:
    """Draw a document, keep it if it is longer than the window, start anywhere but at the end."""
    random.seed(seed)
    found: Draws = []
    while len(found) < windows:
        ids = letters(docs[random.randint(0, len(docs) - 1)])
        if len(ids) > length:
            start = random.randint(0, len(ids) - length - 1)
            found.append(ids[start : start + length])
    return found


def distinct(docs: list[str], windows: int, length: int, seed: int) -> Draws:
    """Documents of at least the window's length, none of them twice, start anywhere."""
    random.seed(seed)
    found: Draws = []
    used: set[int] = set()
    while len(found) < windows:
        index = random.randint(0, len(docs) - 1)
        ids = letters(docs[index])
        if index not in used and len(ids) >= length:
            used.add(index)
            start = random.randint(0, len(ids) - length)
            found.append(ids[start : start + length])
    return found


def joined_by(joiner: str) -> Callable[[list[str], int, int, int], Draws]:
    def draw(docs: list[str], windows: int, length: int, seed: int) -> Draws:
        """One long text, random starts; the last possible one is never taken."""
        ids = letters(joiner.join(docs))
        random.seed(seed)
        starts = [random.randint(0, len(ids) - length - 1) for _ in range(windows)]
        return [ids[start : start + length] for start in starts]

    return draw


def joined_rows(docs: list[str], windows: int, length: int, seed: int) -> Draws:
    """256 rows by `random.sample`, joined by blank lines, cut from the start."""
    random.seed(seed)
    rows = random.sample(range(len(docs)), 256)
    ids = letters("\n\n".join(docs[row] for row in rows))
    return [ids[number * length : (number + 1) * length] for number in range(windows)]


def consecutive(docs: list[str], windows: int, length: int, seed: int) -> Draws:
    del seed
    ids = letters("|".join(docs))
    return [ids[number * length : (number + 1) * length] for number in range(windows)]


BY_HAND = {
    "c4-gptq": c4_gptq,
    "distinct": distinct,
    "joined-random": joined_by("|"),
    "space-joined-random": joined_by(" "),
    "joined-rows": joined_rows,
    "consecutive": consecutive,
}


def test_every_sampler_has_a_loop_of_its_own() -> None:
    assert set(BY_HAND) == set(SAMPLERS)


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize("name", BY_HAND)
def test_windows_are_those_of_the_loop(name: str, seed: int) -> None:
    docs = documents(600, 60)
    found = sample(name, TextSource(docs, letters, "|"), 50, 16, seed)
    assert found.tokens.tolist() == BY_HAND[name](docs, 50, 16, seed)


@pytest.mark.parametrize("count", [257, 1000, 5200])
def test_all_windows_of_256_rows_are_those_of_blockpruner(count: int) -> None:
    """Few rows of many are drawn by another algorithm than most of them: 5,200 are Alpaca's."""
    docs = documents(count, 40, seed=count)
    random.seed(42)
    chosen = [docs[row] for row in random.sample(range(count), 256)]
    windows = len("\n\n".join(chosen)) // 32
    found = sample("joined-rows", TextSource(docs, letters), windows, 32, 42)
    assert found.tokens.tolist() == joined_rows(docs, windows, 32, 42)
    assert found.documents == 256


def test_no_more_rows_are_drawn_if_256_fill_the_windows_exactly() -> None:
    docs = ["abcdefghij" * 3] * 300
    assert len("\n\n".join(docs[:256])) == 182 * 45
    found = sample("joined-rows", TextSource(docs, letters), 182, 45, 0)
    assert found.documents == 256
    more = sample("joined-rows", TextSource(docs, letters), 183, 45, 0)
    assert more.documents == int(1.1 * 256 * 183 / 182) == 283


@pytest.mark.parametrize("count", [400, 2000, 5200])
@pytest.mark.parametrize("more", [0.9, 1.12, 1.2, 1.5])
def test_windows_beyond_256_rows_are_those_of_a_larger_sample(count: int, more: float) -> None:
    """A tenth more rows than the text so far suggests, and another sample of all of them."""
    docs = documents(count, 40, seed=count)
    windows = int(256 * more * 22) // 32  # a row has 22 letters with its blank line
    rows = 256
    while True:
        random.seed(42)
        ids = letters("\n\n".join(docs[row] for row in random.sample(range(count), rows)))
        if len(ids) >= 32 * windows:
            break
        rows = min(count, max(rows + 1, int(1.1 * rows * 32 * windows / len(ids))))
    found = sample("joined-rows", TextSource(docs, letters), windows, 32, 42)
    assert (rows == 256) == (more < 1)
    assert found.tokens.reshape(-1).tolist() == ids[: 32 * windows]


@pytest.mark.parametrize(("count", "rows"), [(257, 256), (5200, 256), (5200, 7), (40, 40)])
def test_a_number_of_rows_gives_all_windows_that_blockpruner_has(count: int, rows: int) -> None:
    docs = documents(count, 40, seed=count)
    random.seed(42)
    text = "\n\n".join(docs[row] for row in random.sample(range(count), rows))
    ids = letters(text)
    found = whole_rows(TextSource(docs, letters), rows, 32, 42)
    assert found.tokens.tolist() == [
        ids[start : start + 32] for start in range(0, len(ids) - 31, 32)
    ]
    assert found.documents == rows


def test_more_rows_than_there_are_is_an_error() -> None:
    with pytest.raises(PrunebenchError, match="3 documents, 4 asked"):
        whole_rows(TextSource(["a", "b", "c"], letters), 4, 2, 0)
    with pytest.raises(PrunebenchError, match="too little text"):
        whole_rows(TextSource(["a", "b", "c"], letters), 2, 8, 0)


def test_a_document_of_exactly_the_windows_length_is_distinct_but_not_c4() -> None:
    docs = ["abcdefgh", "short"]
    for seed in range(10):
        assert sample("distinct", TextSource(docs, letters), 1, 8, seed).tokens.tolist() == [
            letters("abcdefgh")
        ]
    longer = [*docs, "abcdefghi"]
    for seed in range(10):
        [window] = sample("c4-gptq", TextSource(longer, letters), 1, 8, seed).tokens.tolist()
        assert window == letters("abcdefgh")  # of the nine letters: only one start is drawn


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("distinct", range(5)),
        ("joined-random", range(4)),
        ("space-joined-random", range(4)),
        ("c4-gptq", range(4)),
    ],
)
def test_the_last_start_is_drawn_by_distinct_alone(name: str, starts: range) -> None:
    """12 letters have five starts of windows of eight; all but `distinct` leave out the last."""
    text = "abcdefghijkl"
    found = {
        int(sample(name, TextSource([text], letters), 1, 8, seed).tokens[0, 0]) - ord("a")
        for seed in range(100)
    }
    assert found == set(starts)
