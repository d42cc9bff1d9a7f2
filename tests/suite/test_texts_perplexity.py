"""`protocol:` of a perplexity: what each decides, what wins over it, and cells' ids."""

from __future__ import annotations

import pytest

from prunebench.errors import PrunebenchError
from prunebench.measure.quality.protocols import PROTOCOLS
from prunebench.plugin.registry import PluginEntry
from prunebench.suite.plan import plan
from prunebench.text.corpus import Corpus


class C4(Corpus):
    name = "c4"
    summary = "web text"
    licence = "ODC-BY"
    splits = ("train", "validation")
    calibration_split = "train"
    evaluation_split = "validation"
    sampler = "c4-gptq"
    joiner = " "
    evaluation_windows = 256

    def documents(self, split):
        raise NotImplementedError


class Ptb(C4):
    name = "ptb"
    splits = ("train", "validation", "test")
    evaluation_split = "test"
    evaluation_windows = None


@pytest.fixture
def registry(registry):
    for corpus in (C4(), Ptb()):
        registry["corpus"][corpus.name] = PluginEntry(
            "corpus", corpus.name, corpus, "dist", "1.0", ""
        )
    return registry


@pytest.fixture
def specs(load):
    def specs(perplexity: str):
        return load(
            f"name: s\nmodels: smollm2-135m-instruct\nmethods: [dense]\nquality: {{perplexity: {perplexity}}}\n"
        ).perplexity

    return specs


def test_sparsegpt_is_the_default(specs):
    [spec] = specs("{corpus: ptb}")
    assert (spec.protocol, spec.length, spec.windows, spec.split, spec.tail) == (
        "sparsegpt",
        2048,
        None,
        "test",
        False,
    )
    assert specs("{corpus: ptb}") == specs("{corpus: ptb, protocol: sparsegpt}")


def test_wanda_takes_the_models_length_and_at_most_256_windows_of_c4(specs):
    [spec] = specs("{corpus: c4, protocol: wanda}")
    assert (spec.length, spec.windows, spec.fewer, spec.tail) == (None, 256, True, False)


def test_llm_pruner_takes_ptbs_validation_split_joined_by_blank_lines(specs):
    ptb, c4 = specs("{corpus: [ptb, c4], protocol: llm-pruner}")
    assert (ptb.length, ptb.split, ptb.joiner) == (128, "validation", "\n\n")
    assert (c4.length, c4.split, c4.joiner) == (128, "validation", None)


def test_disp_llm_takes_its_first_tokens_and_the_short_tail(specs):
    [spec] = specs("{corpus: ptb, protocol: disp-llm}")
    assert (spec.length, spec.windows, spec.tail, spec.fewer) == (4096, 128, True, True)
    [half] = specs("{corpus: ptb, protocol: disp-llm, length: 2048}")
    assert half.windows * half.length == spec.windows * spec.length == 256 * 2048


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_keys_of_the_suite_win_over_the_protocol(name, specs):
    [spec] = specs(
        f"{{corpus: ptb, protocol: {name}, length: 64, windows: 7, split: train, tail: true}}"
    )
    assert (spec.length, spec.windows, spec.split, spec.tail, spec.fewer) == (
        64,
        7,
        "train",
        True,
        False,
    )


def test_lists_fan_out_and_every_cell_measures_them_all(specs):
    found = specs("{corpus: [c4, ptb], protocol: [sparsegpt, disp-llm], length: [64, 128]}")
    assert len(found) == 8
    assert {(spec.corpus.name, spec.protocol, spec.length) for spec in found} == {
        (corpus, protocol, length)
        for corpus in ("c4", "ptb")
        for protocol in ("sparsegpt", "disp-llm")
        for length in (64, 128)
    }


def test_a_misspelt_protocol_gets_the_nearest_name(specs):
    with pytest.raises(PrunebenchError, match="unknown value 'wnda'") as caught:
        specs("{corpus: c4, protocol: wnda}")
    assert "did you mean 'wanda'?" in str(caught.value)


def test_protocols_have_ids_of_their_own_and_the_default_keeps_old_ids(load, registry, calibrated):
    def first(change: str) -> str:
        return (
            plan(load(calibrated.replace("windows: 4,", f"windows: 4, {change}")), registry)
            .cells[0]
            .id
        )

    plain = first("")
    assert first("protocol: sparsegpt,") == plain
    assert (
        len({plain, first("protocol: wanda,"), first("protocol: disp-llm,"), first("tail: true,")})
        == 4
    )
    identity = plan(load(calibrated), registry).cells[0].identity()["perplexity"][0]
    assert identity.keys() == {"corpus", "split", "length", "windows"}


def test_the_work_is_unknown_if_the_model_decides_the_length(load, registry):
    from prunebench.suite.estimate import estimate

    text = "name: s\nmodels: smollm2-135m-instruct\nmethods: [dense]\nquality: {perplexity: {corpus: c4, protocol: wanda}}\n"
    assert estimate(plan(load(text), registry).cells[0], registry).tokens is None
