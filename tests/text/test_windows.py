"""Token windows of a cell, from text and from token files."""

from __future__ import annotations

import hashlib
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.model.cache import cache_dir
from prunebench.text.corpus import Corpus
from prunebench.text.resolve import resolve_corpus
from prunebench.text.windows import calibration_windows, evaluation_windows
from small_tokenizers import TEXT, gpt2_like

VOCABULARY = 1000
SMOLLM2 = (
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # sha256 of its GGUF file
)


class Words(Corpus):
    name = "words"
    summary = "the words of the test text"
    licence = "none"
    splits = ("train", "test")
    calibration_split = "train"
    evaluation_split = "test"
    sampler = "c4-gptq"
    joiner = " "
    revision = "r1"

    def documents(self, split: str) -> list[str]:
        return TEXT.split("\n\n") if split == "train" else [TEXT]


CORPORA = {"words": Words()}
WORDS = CorpusRef(name="words", revision="r1")


def calibrate(
    ref: CorpusRef,
    tokenizer,
    *,
    split="all",
    sampler="as-is",
    windows=2,
    length=8,
    seed=0,
    vocabulary=VOCABULARY,
):
    spec = CalibrationSpec(corpus=ref, split=split, sampler=sampler, windows=windows, length=length)
    return calibration_windows(spec, tokenizer, vocabulary, seed, CORPORA)


def evaluate(
    ref: CorpusRef, tokenizer, *, split="all", windows=None, length=8, vocabulary=VOCABULARY
):
    spec = PerplexitySpec(corpus=ref, split=split, length=length, windows=windows)
    return evaluation_windows(spec, tokenizer, vocabulary, CORPORA)


def token_file(path: Path, array: np.ndarray) -> CorpusRef:
    np.save(path, array)
    return resolve_corpus(str(path), base=Path(), corpora={})


def test_evaluation_windows_are_the_joined_text_from_the_start(tokenizer) -> None:
    found = evaluate(WORDS, tokenizer, split="train", windows=5, length=16)
    whole = tokenizer(" ".join(TEXT.split("\n\n")), verbose=False)["input_ids"]
    assert found.tokens.tolist() == torch.tensor(whole[: 5 * 16]).view(5, 16).tolist()
    assert found.tokens.dtype == torch.int64
    everything = evaluate(WORDS, tokenizer, split="train", length=16)
    assert len(everything.tokens) == len(whole) // 16


def test_a_text_longer_than_the_models_context_gives_no_warning(caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = gpt2_like()
    evaluate(WORDS, tokenizer, split="test", length=128)
    assert caplog.text == ""
    tokenizer(TEXT)
    assert "longer than the specified maximum" in caplog.text


def test_the_seed_decides_the_draw(gpt2_tokenizer) -> None:
    draw = [
        calibrate(WORDS, gpt2_tokenizer, split="train", sampler="c4-gptq", seed=seed).sha256
        for seed in (0, 0, 1)
    ]
    assert draw[0] == draw[1] != draw[2]


@pytest.mark.parametrize(
    ("sampler", "bos"),
    [
        ("consecutive", "first window"),
        ("joined-rows", "first window"),
        ("joined-random", "where a text starts"),
    ],
)
def test_the_position_of_the_bos_is_recorded(
    sampler: str, bos: str, llama3_tokenizer, gpt2_tokenizer
) -> None:
    found = calibrate(WORDS, llama3_tokenizer, split="train", sampler=sampler, windows=4)
    assert found.bos == bos
    assert (found.tokens[:, 1:] != 1).all()
    if bos == "first window":
        assert (found.tokens[:, 0] == 1).tolist() == [True, False, False, False]
    assert calibrate(WORDS, gpt2_tokenizer, split="train", sampler=sampler).bos == "none"


def test_a_token_file_is_used_as_it_is(tmp_path: Path, gpt2_tokenizer) -> None:
    array = np.arange(24, dtype=np.int64).reshape(3, 8)
    ref = token_file(tmp_path / "a.npy", array)
    for found in (calibrate(ref, gpt2_tokenizer), evaluate(ref, gpt2_tokenizer, windows=2)):
        assert found.tokens.tolist() == array[:2].tolist()
        assert (found.bos, found.documents) == ("as in the file", None)
    assert evaluate(ref, gpt2_tokenizer).tokens.tolist() == array.tolist()


def test_the_hash_is_of_shape_and_little_endian_ids(tmp_path: Path, gpt2_tokenizer) -> None:
    found = calibrate(token_file(tmp_path / "a.npy", np.arange(16).reshape(2, 8)), gpt2_tokenizer)
    assert found.sha256 == hashlib.sha256(b"2x8\n" + struct.pack("<16q", *range(16))).hexdigest()
    flat = calibrate(
        token_file(tmp_path / "b.npy", np.arange(16).reshape(1, 16)),
        gpt2_tokenizer,
        windows=1,
        length=16,
    )
    assert flat.sha256 != found.sha256


GOOD = np.zeros((2, 8), dtype=np.int64)


@pytest.mark.parametrize(
    ("array", "asked", "message"),
    [
        (GOOD.astype(np.int32), {}, "holds int32 [2, 8], not int64 [windows, length]"),
        (GOOD.astype(">i8"), {}, "holds >i8 [2, 8], not int64"),
        (GOOD[0], {}, "holds int64 [8], not int64"),
        (np.array([["a", None]], dtype=object), {}, "not a valid token file"),
        (GOOD, {"length": 16}, "its windows have 8 tokens, 16 asked"),
        (GOOD, {"windows": 3}, "has 2 windows, 3 asked"),
        (GOOD[:0], {"windows": 1}, "has 0 windows, 1 asked"),
        (GOOD + 7, {"vocabulary": 7}, "gives token id 7, but the model has ids 0 to 6"),
        (GOOD - 1, {}, "gives token id -1"),
    ],
)
def test_a_token_file_that_does_not_fit_is_named(
    array, asked, message: str, tmp_path: Path, gpt2_tokenizer
) -> None:
    ref = token_file(tmp_path / "a.npy", array)
    for call in (calibrate, evaluate):
        with pytest.raises(PrunebenchError) as caught:
            call(ref, gpt2_tokenizer, **asked)
        assert message in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("damage", ["cut", "zip", "text"])
def test_a_damaged_token_file_is_named(damage: str, tmp_path: Path, gpt2_tokenizer) -> None:
    path = tmp_path / "a.npy"
    if damage == "zip":
        np.savez(tmp_path / "a.npz", GOOD)
        (tmp_path / "a.npz").rename(path)
    else:
        np.save(path, GOOD)
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"not an array at all")
    with pytest.raises(PrunebenchError, match=r"a\.npy"):
        calibrate(resolve_corpus(str(path), base=Path(), corpora={}), gpt2_tokenizer)


def test_a_spec_that_does_not_fit_its_corpus_is_refused(tmp_path: Path, gpt2_tokenizer) -> None:
    ref = token_file(tmp_path / "a.npy", GOOD)
    with pytest.raises(PrunebenchError, match="it is used as it is, not by the sampler 'c4-gptq'"):
        calibrate(ref, gpt2_tokenizer, sampler="c4-gptq")
    with pytest.raises(PrunebenchError, match="did you mean 'train'"):
        calibrate(WORDS, gpt2_tokenizer, split="trian", sampler="consecutive")
    with pytest.raises(PrunebenchError, match="did you mean 'test'"):
        evaluate(WORDS, gpt2_tokenizer, split="tset")
    with pytest.raises(PrunebenchError, match="is for token files"):
        calibrate(WORDS, gpt2_tokenizer, split="train")
    with pytest.raises(
        PrunebenchError, match=r"corpus 'words' \(test\) has too little text: 999 windows of 999"
    ):
        evaluate(WORDS, gpt2_tokenizer, split="test", windows=999, length=999)
    with pytest.raises(PrunebenchError, match="but the model has ids 0 to 9"):
        evaluate(WORDS, gpt2_tokenizer, split="test", vocabulary=10)


def test_text_that_changed_since_the_plan_is_refused(tmp_path: Path, gpt2_tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    ref = resolve_corpus(str(path), base=Path(), corpora={})
    assert len(calibrate(ref, gpt2_tokenizer, sampler="joined-random").tokens) == 2
    path.write_text(TEXT.upper())
    with pytest.raises(PrunebenchError, match="has changed since the suite was planned"):
        calibrate(ref, gpt2_tokenizer, sampler="joined-random")
    with pytest.raises(PrunebenchError, match="at revision r1, but the cell was planned with r0"):
        evaluate(CorpusRef(name="words", revision="r0"), gpt2_tokenizer, split="test")


@pytest.mark.parity
def test_windows_of_wikitext_equal_the_reference(data: Path) -> None:
    """The reference's evaluation tokens are the rows of the test split joined by blank lines."""
    reference = data.parent / "reference" / "eval.npy"
    folders = sorted(cache_dir().glob(f"models/{SMOLLM2}*/tokenizer.json"))
    if not reference.is_file() or not folders:
        pytest.skip("needs the reference tokens, and SmolLM2 in prunebench's cache")
    tokenizer = AutoTokenizer.from_pretrained(folders[0].parent)
    rows = data / "wikitext-2-raw" / "rows" / "test.parquet"
    found = evaluate(
        resolve_corpus(str(rows), base=Path(), corpora={}),
        tokenizer,
        windows=64,
        length=1024,
        vocabulary=49152,
    )
    assert np.array_equal(found.tokens.numpy(), np.load(reference))
    assert found.bos == "none"
