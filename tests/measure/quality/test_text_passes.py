"""Measures of one text share the passes over it, and cells of one model the dense model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import SPEC, windows_of
from prunebench.measure.quality import final_states, text_passes
from prunebench.measure.quality.choice_scores import ChoiceScores
from prunebench.measure.quality.greedy import greedy_continuations
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.quality.text_passes import TextPasses
from prunebench.testing.trial import sparse_model
from tiny import tiny_model

TOKENS = torch.randint(2, 320, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    return tmp_path / text_passes.FOLDER


def cell(model: str = "one model", **options: bool) -> TextPasses:
    return TextPasses(lambda: model, **options)


def never() -> Any:
    pytest.fail("the dense model was loaded")


def rows_seen(model: Any) -> list[int]:
    """The tokens of each pass of the decoder, while it is watched."""
    seen: list[int] = []
    model.base_model.register_forward_hook(
        lambda _, given, out: seen.append(out.last_hidden_state[..., 0].numel())
    )
    return seen


def logits(passes: TextPasses, model: Any, dense: Callable[[], Any], tokens: int = 7) -> Any:
    """All logits of both models, [windows x length, vocabulary] each."""
    with torch.no_grad():
        pairs = list(passes.both_logits(model, dense, TOKENS, tokens))
    assert max(len(ours) for _, ours in pairs) <= tokens
    return [torch.cat(each) for each in zip(*pairs, strict=True)]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_logits_are_those_of_both_models_and_a_later_cell_loads_no_dense_model(family) -> None:
    dense, model = tiny_model(family), sparse_model(family)
    first = logits(cell(), model, lambda: dense)
    for found, one in zip(first, (dense, model), strict=True):
        with torch.no_grad():
            whole = one(TOKENS).logits.flatten(0, 1)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    later = logits(cell(), model, never)
    assert all(torch.equal(*pair) for pair in zip(first, later, strict=True))


def test_another_model_text_or_way_of_running_finds_nothing(monkeypatch) -> None:
    dense, model = tiny_model("llama"), sparse_model("llama")
    logits(cell(), model, lambda: dense)
    for other in (cell("another model"), TextPasses()):
        seen = rows_seen(dense)
        logits(other, model, lambda: dense)
        assert sum(seen) >= TOKENS.numel()
    monkeypatch.setattr(text_passes, "FORM", text_passes.FORM + 1)
    with pytest.raises(pytest.fail.Exception):
        logits(cell(), model, never)


def test_a_model_with_another_head_needs_the_dense_head_but_no_pass() -> None:
    dense, model = tiny_model("llama"), sparse_model("llama")
    first = logits(cell(), model, lambda: dense)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1)
    seen = rows_seen(dense)
    theirs, ours = logits(cell(), model, lambda: dense)
    assert torch.equal(theirs, first[0])
    assert not torch.equal(ours, first[1])
    assert seen == [text_passes.PROBE_TOKENS]


def test_a_metric_takes_the_pass_of_perplexity_and_the_same_logits_come_out() -> None:
    dense, model = tiny_model("llama"), sparse_model("llama")
    alone = logits(cell(), model, lambda: dense)
    passes = cell()
    keep = passes.keep(model, TOKENS)
    tail = TOKENS[:1, :9]
    perplexity(model, windows_of(TOKENS, tail), SPEC, keep=keep)
    seen = rows_seen(model)
    shared = logits(passes, model, never)
    assert seen == [text_passes.PROBE_TOKENS]
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))
    other = tiny_model("llama")  # not the cell's: its own pass
    assert torch.equal(logits(passes, other, never)[1], alone[0])
    passes.close()
    logits(passes, model, never)
    assert sum(seen[1:]) == text_passes.PROBE_TOKENS + TOKENS.numel()


def test_states_of_a_pass_that_did_not_reach_its_end_are_not_used() -> None:
    model = sparse_model("llama")
    alone = logits(TextPasses(), model, lambda: model)
    passes = TextPasses()
    keep = passes.keep(model, TOKENS)
    assert keep is not None
    keep(torch.zeros(1, TOKENS.shape[1], 48))
    assert torch.equal(logits(passes, model, lambda: model)[1], alone[1])
    passes.close()


def test_the_dense_cell_leaves_its_states_to_the_others() -> None:
    dense = tiny_model("llama")
    theirs, ours = logits(cell(own_is_dense=True), dense, never)
    assert torch.equal(theirs, ours)
    assert torch.equal(logits(cell(), sparse_model("llama"), never)[0], theirs)


def test_bfloat16_is_kept_bit_by_bit() -> None:
    dense, model = (one("llama").bfloat16() for one in (tiny_model, sparse_model))
    first = logits(cell(), model, lambda: dense)
    assert first[0].dtype == torch.bfloat16
    assert all(torch.equal(*p) for p in zip(first, logits(cell(), model, never), strict=True))


def test_too_many_states_or_more_than_a_head_means_a_pass_of_whole_windows(monkeypatch) -> None:
    dense, model = tiny_model("llama"), sparse_model("llama")
    kept = logits(cell(), model, lambda: dense)
    scaled = tiny_model("llama"), sparse_model("llama")
    for one in scaled:
        forward = one.forward
        monkeypatch.setattr(one, "forward", lambda *a, f=forward, **k: twice(f(*a, **k)))
    found = logits(cell("scaled"), scaled[1], lambda: scaled[0])
    torch.testing.assert_close(found[1], 2 * kept[1], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(final_states, "LARGEST_BYTES", 100)
    assert cell().keep(model, TOKENS) is None
    seen = rows_seen(model)
    plain = logits(cell(), model, lambda: dense)
    assert seen == [TOKENS.shape[1]] * len(TOKENS)
    torch.testing.assert_close(plain, kept, rtol=1e-5, atol=1e-5)


def twice(out: Any) -> Any:
    out.logits = 2 * out.logits
    return out


def test_a_folder_that_cannot_be_written_costs_passes_and_nothing_else(
    monkeypatch, tmp_path
) -> None:
    dense, model = tiny_model("llama"), sparse_model("llama")
    first = logits(cell(), model, lambda: dense)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(blocked))
    passes = cell()
    perplexity(model, windows_of(TOKENS), SPEC, keep=passes.keep(model, TOKENS))
    found = logits(passes, model, lambda: dense)
    assert all(torch.equal(*pair) for pair in zip(first, found, strict=True))
    passes.close()
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(final_states, "SPARE_BYTES", 1 << 60)
    spool = final_states.StatesOnDisk(1)
    spool(torch.zeros(1, 20, 48))
    assert spool.tensor() is None


def test_continuations_of_the_dense_model_are_decoded_once_also_if_they_end(monkeypatch) -> None:
    dense, prompts = tiny_model("llama"), TOKENS[:, :12]
    open_ended = greedy_continuations(dense, prompts, 6)
    end = {int(open_ended[1][2])}
    first = cell().continuations(lambda: dense, prompts, 6, end)
    later = cell().continuations(never, prompts, 6, end)
    assert [row.tolist() for row in later] == [row.tolist() for row in first]
    assert len(later[1]) <= 3
    assert len(cell().continuations(lambda: dense, prompts, 6, ())[1]) == 6
    assert len(cell().continuations(lambda: dense, prompts, 5, ())[1]) == 5
    written = [torch.tensor([0, 5, 0]), torch.tensor([7])]  # token 0 is a token
    monkeypatch.setattr(text_passes, "greedy_continuations", lambda *_: written)
    cell().continuations(lambda: dense, prompts[:2], 3, ())
    found = cell().continuations(never, prompts[:2], 3, ())
    assert [row.tolist() for row in found] == [[0, 5, 0], [7]]


def test_choice_scores_are_kept_exactly_if_the_questions_are_pinned() -> None:
    scores = {"arc": [ChoiceScores((0.1, 1 / 3), True), ChoiceScores((2.0,), False)]}
    for questions in (None, "pinned"):
        assert cell().choice_scores(lambda: "dense", lambda _: scores, questions) == scores
    found = cell().choice_scores(never, never, "pinned")
    assert found == scores
    assert isinstance(found["arc"][0], ChoiceScores)
    with pytest.raises(pytest.fail.Exception):
        cell().choice_scores(never, never, None)


def test_progress_reaches_its_end_and_never_goes_back() -> None:
    moved: list[tuple[int, int]] = []
    dense, model = tiny_model("llama"), sparse_model("llama")
    for passes in (cell(), cell()):
        moved.clear()
        with torch.no_grad():
            pairs = passes.both_logits(
                model, lambda: dense, TOKENS, 7, lambda *step: moved.append(step)
            )
            assert len(list(pairs)) == 9
        assert moved == sorted(moved)
        assert moved[-1] == (9, 9)
