"""Windows of which only some tokens count: padding, shares of micro-batches, and the gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import next_token_backward
from prunebench.training import loss as loss_module
from prunebench.training.windows import TrainingWindows
from tiny import VOCABULARY, tiny_model

TOKENS = torch.randint(2, VOCABULARY, (6, 16), generator=torch.Generator().manual_seed(0))


def some(seed: int = 0, padding: bool = True) -> torch.Tensor:
    """Answers of different lengths, followed by padding."""
    generator = torch.Generator().manual_seed(seed)
    counted = torch.zeros(6, 16, dtype=torch.bool)
    for row in range(6):
        start = int(torch.randint(1, 9, (), generator=generator))
        end = int(torch.randint(10, 17, (), generator=generator)) if padding else 16
        counted[row, start:end] = True
    return counted


def expected(model, counted: torch.Tensor) -> torch.Tensor:
    """Transformers' own loss, with -100 for tokens that do not count."""
    return model(input_ids=TOKENS, labels=TOKENS.masked_fill(~counted, -100)).loss


@pytest.mark.parametrize("slices", [1 << 30, 4 * VOCABULARY * 5])
def test_the_loss_and_its_gradient_are_those_of_labels_that_are_masked(monkeypatch, slices):
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", slices)
    counted = some()
    ours, plain = tiny_model("llama"), tiny_model("llama")
    for model in (ours, plain):
        model.requires_grad_(requires_grad=True)
    with torch.enable_grad():
        wanted = expected(plain, counted)
        wanted.backward()
        windows = TrainingWindows(TOKENS, counted)
        total = next_token_backward(ours, TOKENS, 1 / windows.targets, counted)
    assert total / windows.targets == pytest.approx(wanted.item(), rel=1e-5)
    for (name, each), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(each.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_padding_is_cut_off_and_changes_nothing():
    counted = some()
    short = TrainingWindows(TOKENS, counted).pick(slice(0, 2))
    ends = counted[:2].nonzero()[:, 1].max() + 1
    assert short.tokens.shape == short.counted.shape == (2, ends)
    model = tiny_model("opt")
    with torch.no_grad():
        whole = loss_module.mean_loss(model, TrainingWindows(TOKENS, counted), 6)
        alone = loss_module.mean_loss(model, TrainingWindows(TOKENS, counted), 1)
        assert whole == pytest.approx(float(expected(model, counted)), rel=1e-5)
    assert alone == pytest.approx(whole, rel=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 999), st.booleans())
def test_sizes_are_those_of_counting(seed, padding):
    counted = some(seed, padding)
    windows = TrainingWindows(TOKENS, counted)
    assert windows.targets == int(counted.sum())
    assert windows.size == sum(int(row.nonzero().max()) + 1 for row in counted)
    assert sum(part.targets for part in windows.split(4)) == windows.targets
    assert sum(part.size for part in windows.split(4)) == windows.size


def test_all_tokens_but_the_first_count_without_a_mask():
    windows = TrainingWindows(TOKENS)
    assert (windows.targets, windows.size, len(windows)) == (6 * 15, 6 * 16, 6)
    everything = TrainingWindows(TOKENS, torch.ones(6, 16, dtype=torch.bool))
    assert (everything.targets, everything.size) == (6 * 15, 6 * 16)
    none = TrainingWindows(TOKENS, torch.zeros(6, 16, dtype=torch.bool))
    assert (none.targets, none.size, none.pick(slice(0, 3)).tokens.shape) == (0, 0, (3, 2))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"counted has the shape \[6, 15\]"):
        TrainingWindows(TOKENS, some()[:, 1:])


@pytest.mark.parametrize("shape", [(16,), (0, 16), (6, 1), (6, 16, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="length >= 2"):
        TrainingWindows(torch.zeros(shape, dtype=torch.int64))


def test_windows_are_cut_behind_the_last_counted_token_but_keep_two():
    for last, width in ((1, 2), (2, 3), (15, 16)):
        counted = torch.zeros(6, 16, dtype=torch.bool)
        counted[3, last] = True
        assert TrainingWindows(TOKENS, counted).pick(slice(2, 5)).tokens.shape == (3, width)
    alone = TrainingWindows(TOKENS[:1, :2], torch.tensor([[False, True]]))
    assert (alone.targets, alone.size) == (1, 2)


def test_windows_move_with_what_counts():
    there = TrainingWindows(TOKENS, some()).to(torch.device("meta"))
    assert there.tokens.device.type == there.counted.device.type == "meta"
    assert TrainingWindows(TOKENS).to(torch.device("meta")).counted is None


@pytest.mark.parametrize(("rows", "parts"), [(7, [7] * 12 + [6]), (0, [1] * 90)])
def test_as_many_logits_as_are_allowed_are_in_memory_at_once(monkeypatch, rows, parts):
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", rows * 4 * VOCABULARY + 3)
    seen: list[int] = []
    softmax = torch.log_softmax

    def spy(logits, dim):
        seen.append(len(logits))
        return softmax(logits, dim=dim)

    monkeypatch.setattr(torch, "log_softmax", spy)
    with torch.no_grad():
        loss_module.mean_loss(tiny_model("llama"), TrainingWindows(TOKENS), 6)
    assert seen == parts
