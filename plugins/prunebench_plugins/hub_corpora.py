"""The corpora of the pruning papers: data sets on the Hugging Face hub, every file pinned.

Some of these data sets are loading scripts, which `datasets` no longer runs. We take their Parquet
conversion or a mirror instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench import Corpus, HubCorpus, hookimpl

if TYPE_CHECKING:
    from datasets import Dataset

_HELD_OUT = 100_000


class _Alpaca(HubCorpus):
    """Alpaca has one split, which SliceGPT and BlockPruner divide into 80 %, 10 % and 10 %."""

    def dataset(self, split: str) -> Dataset:
        # Their two calls, with their seed: the same rows must end up in the same split.
        first = super().dataset(split).train_test_split(test_size=0.2, seed=42)
        second = first["test"].train_test_split(test_size=0.5, seed=42)
        return {"train": first["train"], "test": second["train"], "validation": second["test"]}[
            split
        ]


class _AlpacaCleaned(HubCorpus):
    """Its rows have no text as a whole. LLM-Pruner and Alpaca-LoRA hold out 2000 of them."""

    def dataset(self, split: str) -> Dataset:
        rows = super().dataset(split)
        if split == "all":
            return rows
        # Their call, with their seed.
        parts = rows.train_test_split(test_size=min(2000, len(rows) // 2), shuffle=True, seed=42)
        return parts["train" if split == "train" else "test"]

    def documents(self, split: str) -> list[str]:
        columns = ("instruction", "input", "output")
        return [
            "\n\n".join(row[column] for column in columns if row[column])
            for row in self.examples(split)
        ]


class _BookCorpus(HubCorpus):
    """BookCorpus has one split with a sentence per row, book by book; we hold out the last rows."""

    def dataset(self, split: str) -> Dataset:
        rows = super().dataset(split)
        edge = max(0, len(rows) - _HELD_OUT)
        return rows.select(range(edge) if split == "train" else range(edge, len(rows)))


WIKITEXT2 = HubCorpus(
    name="wikitext2",
    summary="WikiText-2 raw, joined by blank lines: the perplexity of most pruning papers",
    licence="CC BY-SA 3.0 and GFDL",
    repository="Salesforce/wikitext",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    files={
        split: f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
        for split in ("train", "validation", "test")
    },
    calibration_split="train",
    evaluation_split="test",
    sampler="joined-random",
)

PTB = HubCorpus(
    name="ptb",
    summary="Penn Treebank, lower-cased text with <unk>, joined by spaces (Parquet conversion)",
    licence="LDC user agreement for non-members",
    repository="ptb-text-only/ptb_text_only",
    revision="refs/convert/parquet",
    files={
        split: f"penn_treebank/{split}/0000.parquet" for split in ("train", "validation", "test")
    },
    calibration_split="train",
    evaluation_split="test",
    sampler="joined-random",
    joiner=" ",
    column="sentence",
)

C4 = HubCorpus(
    name="c4",
    summary="C4 (en): the first training shard; 1100 documents of the first validation shard",
    licence="ODC-BY 1.0 and the Common Crawl terms",
    repository="allenai/c4",
    revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
    files={
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    },
    calibration_split="train",
    evaluation_split="validation",
    sampler="c4-gptq",
    joiner=" ",
    head={"validation": 1100},  # as in SparseGPT's released code
    evaluation_windows=256,
)

ALPACA = _Alpaca(
    name="alpaca",
    summary="Stanford Alpaca in the splits of SliceGPT and BlockPruner (non-commercial)",
    licence="CC BY-NC 4.0",
    repository="tatsu-lab/alpaca",
    revision="dce01c9b08f87459cf36a430d809084718273017",
    files=dict.fromkeys(
        ("train", "validation", "test"), "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"
    ),
    calibration_split="test",
    evaluation_split="validation",
    sampler="joined-rows",
    holds_examples=True,
)

ALPACA_CLEANED = _AlpacaCleaned(
    name="alpaca-cleaned",
    summary="Alpaca with faults mended, in the splits of LLM-Pruner, which trains on its answers",
    licence="CC BY 4.0",
    repository="yahma/alpaca-cleaned",
    revision="12567cabf869d7c92e573c7c783905fc160e9639",
    files=dict.fromkeys(("train", "validation", "all"), "alpaca_data_cleaned.json"),
    calibration_split="train",
    evaluation_split="validation",
    sampler="joined-rows",
    holds_examples=True,
)

PG19 = HubCorpus(
    name="pg19",
    summary="PG-19, books from before 1919: validation (ShortGPT calibrates on it) and test",
    licence="public domain (US)",
    repository="emozilla/pg19",
    revision="c021754c8e01c5b1cc83a1f549c1f97fbbb756b8",
    files={
        "validation": "data/validation-00000-of-00001-0f92e2337f79aeac.parquet",
        "test": "data/test-00000-of-00001-29a571947c0b5ccc.parquet",
    },
    calibration_split="validation",
    evaluation_split="test",
    sampler="consecutive",
)

BOOKCORPUS = _BookCorpus(
    name="bookcorpus",
    summary="BookCorpus, first tenth, one sentence per document (Parquet conversion): LLM-Pruner",
    licence="not stated; books of smashwords.com",
    repository="bookcorpus/bookcorpus",
    revision="refs/convert/parquet",
    files=dict.fromkeys(("train", "held-out"), "plain_text/train/0000.parquet"),
    calibration_split="train",
    evaluation_split="held-out",
    sampler="distinct",
    joiner=" ",
)


@hookimpl
def prunebench_register_corpus() -> list[Corpus]:
    return [WIKITEXT2, PTB, C4, ALPACA, ALPACA_CLEANED, PG19, BOOKCORPUS]
