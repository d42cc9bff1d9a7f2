"""Instruction data: files and their faults, the prompt, and windows whose answers alone count."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunebench.errors import PrunebenchError
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.model.cache import file_sha256
from prunebench.text.corpus import Corpus
from prunebench.text.document_files import read_documents
from prunebench.text.examples import Example, alpaca_prompt, read_examples
from prunebench.text.windows import calibration_windows
from small_tokenizers import gpt2_like

ROWS = [
    {"instruction": "Add.", "input": "2 and 3", "output": "5"},
    {"instruction": "Say hello.", "input": "", "output": "hello"},
    {"instruction": "Name a colour.", "output": "a deep blue"},
    {"instruction": "Count.", "input": None, "output": "one two three"},
]
EXAMPLES = [
    Example("Add.", "2 and 3", "5"),
    Example("Say hello.", "", "hello"),
    Example("Name a colour.", "", "a deep blue"),
    Example("Count.", "", "one two three"),
]


def written(folder: Path, suffix: str, rows: list[Any]) -> Path:
    path = folder / f"mine{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == ".parquet":
        keys = ("instruction", "input", "output")
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), path)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows, indent=1) if suffix == ".json" else lines)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path, suffix):
    assert read_examples(written(tmp_path, suffix, ROWS)) == EXAMPLES


FAULTS = [
    (".jsonl", [ROWS[0], {"instruction": "x"}], ":2: no key 'output'; keys: 'instruction'"),
    (".jsonl", [{**ROWS[0], "output": 5}], ":1: 'output' is int, not text"),
    (".json", [ROWS[0], {**ROWS[0], "output": None}], ": item 2: 'output' is null"),
    (".json", [ROWS[0], "x"], ": item 2: str, not an object"),
    (".json", [{**ROWS[0], "instruction": "\ud800"}], ": item 1: 'instruction' holds half of a"),
    (".jsonl", [{**ROWS[0], "input": ["a"]}], ":1: 'input' is list, not text"),
    (".parquet", [{"instruction": "a", "output": None}], ": row 1: 'output' is null"),
    (".json", [], " holds no examples"),
]


@pytest.mark.parametrize(("suffix", "rows", "said"), FAULTS)
def test_a_fault_is_named_by_file_and_place(tmp_path, suffix, rows, said):
    path = written(tmp_path, suffix, rows)
    with pytest.raises(PrunebenchError) as caught:
        read_examples(path)
    assert caught.value.message.startswith(f"{path}{said}")
    assert caught.value.hint


def test_a_json_file_must_be_one_array(tmp_path):
    path = tmp_path / "mine.json"
    for text, said in (
        ('{"a": 1}', ": dict, not an array"),
        ('[{"a": 1},\n', ":2: not JSON"),
        ('{"a": 1}\n{"a": 2}\n', ":2: not JSON"),
        ("[" * 100_000, ": not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(PrunebenchError) as caught:
            read_examples(path)
        assert caught.value.message.startswith(f"{path}{said}")
    (tmp_path / "mine.txt").write_text("text")
    with pytest.raises(PrunebenchError, match="holds no examples of instruction"):
        read_examples(tmp_path / "mine.txt")


def test_a_json_file_of_texts_is_a_corpus_too(tmp_path):
    path = written(tmp_path, ".json", [{"body": "one"}, {"body": "two"}])
    assert read_documents(path, "body") == ["one", "two"]
    with pytest.raises(PrunebenchError, match=r"mine\.json: item 1: no key 'text'; keys: 'body'"):
        read_documents(path)


def test_the_prompt_is_that_of_the_release():
    assert alpaca_prompt(EXAMPLES[0]) == (
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n"
    )
    assert alpaca_prompt(EXAMPLES[1]) == (
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nSay hello.\n\n### Response:\n"
    )


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = gpt2_like()
    tokenizer.eos_token = "<s>"
    return tokenizer


def spec(path: Path, **given: Any) -> CalibrationSpec:
    ref = CorpusRef(name=path.name, path=str(path), sha256=file_sha256(path))
    fields = {"windows": 4, "length": 400, "sampler": "examples", "prompt": "alpaca", **given}
    return CalibrationSpec(corpus=ref, split="all", **fields)


def drawn(tokenizer, path: Path, seed: int = 0, **given: Any):
    return calibration_windows(spec(path, **given), tokenizer, 10**6, seed, {})


def test_answers_and_the_end_count_and_prompts_and_padding_do_not(tmp_path, tokenizer):
    found = drawn(tokenizer, written(tmp_path, ".jsonl", ROWS))
    answers = set()
    for ids, counted in zip(found.tokens, found.counted, strict=True):
        inside = counted.nonzero().flatten()
        assert torch.equal(inside, torch.arange(inside[0], inside[-1] + 1))  # one piece
        assert ids[inside[-1]] == tokenizer.eos_token_id
        assert not ids[inside[-1] + 1 :].any()
        prompt = tokenizer.decode(ids[: inside[0]], skip_special_tokens=True)
        answer = tokenizer.decode(ids[inside], skip_special_tokens=True)
        [example] = [each for each in EXAMPLES if alpaca_prompt(each) == prompt]
        assert answer == example.output
        answers.add(answer)
    assert answers == {example.output for example in EXAMPLES}
    assert found.documents == 4


def test_everything_counts_if_the_suite_asks_for_it(tmp_path, tokenizer):
    path = written(tmp_path, ".jsonl", ROWS)
    answers, everything = drawn(tokenizer, path), drawn(tokenizer, path, loss_on="all")
    assert torch.equal(answers.tokens, everything.tokens)
    assert bool(everything.counted[:, 0].all())
    ends = [int(row.nonzero()[-1]) for row in answers.counted]
    assert ends == [int(row.nonzero()[-1]) for row in everything.counted]
    assert answers.sha256 != everything.sha256


def test_a_long_example_is_cut_and_has_no_end(tmp_path, tokenizer):
    path = written(tmp_path, ".jsonl", [{**ROWS[1], "output": "word " * 500}])
    found = drawn(tokenizer, path, windows=1)
    assert bool(found.counted[0, -1])
    assert tokenizer.eos_token_id not in found.tokens[0]


def test_the_seed_decides_which_examples_and_their_order(tmp_path, tokenizer):
    rows = [{"instruction": str(number), "output": str(number)} for number in range(40)]
    path = written(tmp_path, ".json", rows)
    one, again, other = (drawn(tokenizer, path, seed, windows=20) for seed in (0, 0, 1))
    assert torch.equal(one.tokens, again.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    assert len(one.tokens.unique(dim=0)) == 20


def test_too_few_examples_and_windows_without_answers_are_errors(tmp_path, tokenizer):
    path = written(tmp_path, ".jsonl", ROWS)
    with pytest.raises(PrunebenchError, match=r"has 4 examples, and 5 windows are asked for"):
        drawn(tokenizer, path, windows=5)
    with pytest.raises(PrunebenchError, match="no example has an answer within 8 tokens") as caught:
        drawn(tokenizer, path, length=8)
    assert caught.value.hint == "raise `length`"
    # As in the released code, one whose prompt fills the window is kept and counts nothing.
    path = written(tmp_path, ".jsonl", [ROWS[1], {**ROWS[0], "input": "word " * 500}])
    found = drawn(tokenizer, path, windows=2)
    assert sorted(found.counted.any(1).tolist()) == [False, True]


class Ours(Corpus):
    name, summary, licence = "ours", "examples", "CC0"
    splits = ("train",)
    calibration_split = evaluation_split = "train"
    sampler = "joined-rows"
    revision = "1"
    holds_examples = True

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def documents(self, split: str) -> Iterable[str]:
        raise NotImplementedError

    def examples(self, split: str) -> Iterable[Mapping[str, Any]]:
        return self.rows


def test_examples_of_a_plugin_are_checked_with_their_number(tokenizer):
    asked = CalibrationSpec(
        corpus=CorpusRef(name="ours", revision="1"),
        split="train",
        sampler="examples",
        windows=2,
        length=400,
        prompt="alpaca",
    )
    found = calibration_windows(asked, tokenizer, 10**6, 0, {"ours": Ours(ROWS)})
    assert found.tokens.shape == (2, 400)
    for row, said in (("x", "str, not a mapping"), ({"output": "x"}, "no key 'instruction'")):
        corpora = {"ours": Ours([ROWS[0], row])}
        with pytest.raises(PrunebenchError, match=rf"'ours' \(train\): example 2: {said}"):
            calibration_windows(asked, tokenizer, 10**6, 0, corpora)


def test_windows_of_text_keep_their_identity():
    text = CalibrationSpec(
        corpus=CorpusRef(name="a"), split="s", sampler="distinct", windows=1, length=2
    )
    assert text.identity().keys() == {"corpus", "split", "sampler", "windows", "length"}
    examples = text.model_copy(update={"prompt": "alpaca"})
    everything = examples.model_copy(update={"loss_on": "all"})
    assert len({str(one.identity()) for one in (text, examples, everything)}) == 3
