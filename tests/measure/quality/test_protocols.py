"""Every perplexity protocol, as a suite resolves it, against an independent computation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from prunebench.errors import PrunebenchError
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.quality.protocols import PROTOCOLS
from prunebench.model.positions import max_positions
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import PluginEntry
from prunebench.suite.load import load_suite
from prunebench.text.corpus import Corpus
from prunebench.text.windows import evaluation_windows, with_length
from small_tokenizers import llama3_like
from tiny import tiny_model

ROWS = [f"Row {number} tells of {number * 7} birds and {number % 5} cats." for number in range(120)]


class Text(Corpus):
    summary = "rows"
    licence = "none"
    splits = ("train", "validation", "test")
    calibration_split = "train"
    evaluation_split = "test"
    sampler = "joined-random"

    def __init__(self, name: str, joiner: str, usual: int | None = None) -> None:
        self.name, self.joiner, self.evaluation_windows = name, joiner, usual

    def documents(self, split: str) -> list[str]:
        return ROWS if split == "test" else ROWS[::-1]


CORPORA = {
    "wikitext2": Text("wikitext2", "\n\n"),
    "ptb": Text("ptb", " "),
    "c4": Text("c4", " ", 256),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=600)


@pytest.fixture(scope="module")
def tokenizer():
    return llama3_like()


@pytest.fixture
def measured(model, tokenizer, tmp_path):
    """The result of what a suite's `perplexity:` resolves to, by the cell's own steps."""
    registry = load_plugins()
    for name, corpus in CORPORA.items():
        registry["corpus"][name] = PluginEntry("corpus", name, corpus, "dist", "1.0", "")

    def measured(entry: str):
        path = tmp_path / "s.yaml"
        path.write_text(
            f"name: s\nmodels: tiny-llama\nmethods: [dense]\nquality: {{perplexity: {entry}}}\n"
        )
        [spec] = load_suite(path, registry=registry).perplexity
        spec = with_length(spec, model)
        windows = evaluation_windows(spec, tokenizer, 600, CORPORA)
        return perplexity(model, windows, spec)

    return measured


def nll(model, block):
    """Mean over a block's predictions, by transformers' own loss. block: list of ids."""
    ids = torch.tensor([block])
    with torch.no_grad():
        return float(model(ids, labels=ids).loss.double())


def ids_of(tokenizer, rows, joiner):
    return tokenizer(joiner.join(rows))["input_ids"]


def blocks(ids, length):
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


@pytest.mark.parametrize("protocol", ["sparsegpt", "wanda"])
def test_the_mean_of_the_windows_means(protocol, model, tokenizer, measured):
    length = 100 if protocol == "sparsegpt" else model.config.max_position_embeddings
    found = measured(
        f"{{corpus: wikitext2, protocol: {protocol}{', length: 100' if protocol == 'sparsegpt' else ''}}}"
    )
    full = blocks(ids_of(tokenizer, ROWS, "\n\n"), length)
    losses = [nll(model, block) for block in full]
    # the released code sums mean * T and divides by n * T
    expected = math.exp(sum(loss * length for loss in losses) / (len(full) * length))
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert (found.protocol, found.window, found.stride, found.windows) == (
        protocol,
        length,
        length,
        len(full),
    )
    assert (found.tail_tokens, found.tokens_scored) == (0, len(full) * (length - 1))
    assert (found.split, found.bos) == ("test", "first window")


def test_wanda_on_c4_accepts_fewer_than_256_windows(model, tokenizer, measured):
    found = measured("{corpus: c4, protocol: wanda}")
    full = blocks(ids_of(tokenizer, ROWS, " ")[: 256 * 128], 128)
    assert 2 < found.windows == len(full) < 256
    assert found.nll == pytest.approx(
        sum(nll(model, block) for block in full) / len(full), rel=1e-6
    )


def test_llm_pruner_means_over_tokens_of_the_validation_split_joined_by_blank_lines(
    model, tokenizer, measured
):
    found = measured("{corpus: ptb, protocol: llm-pruner}")
    full = blocks(ids_of(tokenizer, ROWS[::-1], "\n\n"), 128)
    tokens = [loss for block in full for loss in [nll(model, block)] * 127]
    assert found.perplexity == pytest.approx(math.exp(sum(tokens) / len(tokens)), rel=1e-6)
    assert (found.split, found.window, found.protocol) == ("validation", 128, "llm-pruner")


@pytest.mark.parametrize("length", [4096, 300])
def test_disp_llm_counts_the_short_tail_by_its_tokens(length, model, tokenizer, measured):
    """With 4096 the whole text is one short window, with 300 the tail comes behind full ones."""
    found = measured(
        "{corpus: wikitext2, protocol: disp-llm" + ("}" if length == 4096 else ", length: 300}")
    )
    ids = ids_of(tokenizer, ROWS, "\n\n")[: 256 * 2048]
    assert len(ids) < 4096
    parts = [ids[start : start + length] for start in range(0, len(ids), length)]
    assert 1 < len(parts[-1]) < length
    total = sum(nll(model, part) * (len(part) - 1) for part in parts)
    scored = sum(len(part) - 1 for part in parts)
    assert found.perplexity == pytest.approx(math.exp(total / scored), rel=1e-6)
    assert (found.windows, found.tail_tokens, found.tokens_scored) == (
        len(parts),
        len(parts[-1]),
        scored,
    )


def test_the_standard_error_is_over_windows_of_any_length(model, measured):
    many = measured("{corpus: wikitext2, length: 300, tail: true}")
    none = measured("{corpus: wikitext2, length: 300}")
    assert many.tail_tokens > 0
    assert many.nll_stderr > 0
    assert many.tokens_sha256 != none.tokens_sha256
    assert measured("{corpus: wikitext2, protocol: disp-llm}").nll_stderr is None  # one window


def test_too_little_text_is_an_error_only_if_the_suite_names_the_number(measured):
    with pytest.raises(PrunebenchError, match="too little text"):
        measured("{corpus: c4, protocol: wanda, windows: 256}")


def test_a_model_without_positions_asks_for_a_length():
    with pytest.raises(PrunebenchError, match="max_position_embeddings") as caught:
        max_positions(SimpleNamespace(config=SimpleNamespace()))
    assert "length" in caught.value.hint


def test_disp_llm_takes_the_first_524288_tokens_and_others_all():
    protocol = PROTOCOLS["disp-llm"]
    assert protocol.tokens == 524_288
    assert [protocol.windows(length) for length in (4096, 4097, 10**9, 1)] == [128, 127, 1, 524_288]
    assert protocol.windows(None) is None
    for name in ("sparsegpt", "wanda", "llm-pruner"):
        assert PROTOCOLS[name].windows(2048) is None
    assert {name: protocol.length for name, protocol in PROTOCOLS.items()} == {
        "sparsegpt": 2048,
        "wanda": None,
        "llm-pruner": 128,
        "disp-llm": 4096,
    }
    assert [name for name, protocol in PROTOCOLS.items() if protocol.tail] == ["disp-llm"]
    assert PROTOCOLS["llm-pruner"].splits == {"ptb": "validation"}
    assert PROTOCOLS["llm-pruner"].joiners == {"ptb": "\n\n"}
