from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed import products
from prunebench.measure.speed.compare_forms import compare_forms
from prunebench.measure.speed.execution import choose
from prunebench.measure.speed.latency import measure_latency
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.measure.speed.products import KERNELS, PACKED, Products, fastest, seconds_of
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.model.checkpoint import memory_bytes
from prunebench.record.memory import NOT_THE_MODEL_ALONE
from tiny import tiny_model

NOT_VECTOR = [name for name in KERNELS if name != "vector"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no times in memory."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "_known", {})
    return tmp_path / "products"


def prefer(monkeypatch, kernel):
    """Every product is large enough to be timed, and this kernel is the fastest."""
    monkeypatch.setattr(products, "_SMALL", 0)
    monkeypatch.setattr(
        products, "seconds_of", lambda *_: {name: 1.0 + (name != kernel) for name in KERNELS}
    )


def prompt(batch=1):
    return torch.randint(0, 320, (batch, 7), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "batch"), [("vector", 1), *((k, b) for k in NOT_VECTOR for b in (1, 3))]
)
@pytest.mark.parametrize("biased", [False, True])
def test_every_kernel_gives_the_product(kernel, batch, dtype, biased):
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(24, 16, generator=generator), torch.randn(batch, 1, 16)
    bias = torch.randn(24, generator=generator).to(dtype) if biased else None
    weight, inputs = weight.to(dtype), inputs.to(dtype)
    found = KERNELS[kernel](weight, bias, batch)(inputs)
    assert found.shape == (batch, 1, 24)
    torch.testing.assert_close(found, functional.linear(inputs, weight, bias))


@pytest.mark.parametrize("kernel", sorted(PACKED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_give_eager_tokens_and_their_copies_are_stated(monkeypatch, kernel, dtype):
    prefer(monkeypatch, kernel)
    model = tiny_model("llama").to(dtype)
    before = memory_bytes(model)
    shape = LatencySpec(prompt=7, new_tokens=6, batch_size=1, min_rounds=6, min_time_s=0)
    found, _ = measure_latency(model, prompt(), shape)
    assert (found.execution, found.same_tokens, found.execution_notes) == ("lean-packed", True, [])
    linears = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    assert found.second_copy_bytes == sum(each.weight.nbytes for each in linears)
    assert found.products == dict.fromkeys(
        ("96 x 48", "48 x 48", "160 x 48", "48 x 80", "320 x 48"), kernel
    )
    # What the copies take is not the model's, nor in its peaks.
    assert memory_bytes(model) == before
    assert {"latency", "energy"} <= set(NOT_THE_MODEL_ALONE)


def test_a_copy_is_made_if_it_saves_five_percent_and_never_for_plain_lean(monkeypatch):
    weight = torch.zeros(32, 16)
    prefer(monkeypatch, "transposed")
    assert fastest(weight, 1, packed=True) == "transposed"
    assert fastest(weight, 1, packed=False) == "vector"
    times = {"general": 1.0, "vector": 1.05, "transposed": 1.0, "onednn": 1.0}
    monkeypatch.setattr(products, "seconds_of", lambda *_: times)
    assert fastest(weight, 1, packed=True) == "vector"
    times["onednn"] = 0.98
    assert fastest(weight, 1, packed=True) == "onednn"
    times["general"] = 0.9
    assert fastest(weight, 1, packed=True) == "general"


def test_times_are_taken_once_for_each_shape_dtype_and_batch(cache, monkeypatch):
    taken = []
    plain = products._timed

    def timed(weight, batch):
        taken.append((tuple(weight.shape), weight.dtype, batch))
        return plain(weight, batch)

    monkeypatch.setattr(products, "_timed", timed)
    weight = torch.zeros(32, 16)
    for _ in range(2):
        assert set(seconds_of(weight, 1)) == set(KERNELS)
        assert set(seconds_of(weight, 2)) == set(NOT_VECTOR)
        assert "transposed" in seconds_of(weight.bfloat16(), 1)
        products._known.clear()  # as in another process: the folder remembers
    assert len(taken) == 3
    # A broken entry is measured again.
    for path in cache.iterdir():
        path.write_text("[]")
    assert seconds_of(weight, 1)
    assert len(taken) == 4
    threads = torch.get_num_threads()
    key = products._key((32, 16), weight.dtype, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert products._key((32, 16), weight.dtype, 1) != key
    assert all(json.loads(path.read_text()) is not None for path in cache.iterdir())


def test_a_kernel_that_fails_or_gives_other_numbers_is_left_out(monkeypatch):
    def broken(*_):
        raise RuntimeError("this processor cannot")

    monkeypatch.setitem(KERNELS, "onednn", broken)
    monkeypatch.setitem(KERNELS, "transposed", lambda w, b, n: lambda x: 1.01 * (x @ w.t()))
    assert set(seconds_of(torch.randn(32, 16), 2)) == {"general"}


def test_a_large_weight_is_timed_on_some_of_its_rows(monkeypatch):
    monkeypatch.setattr(products, "_PIECE", 4 * 16 * 8)
    monkeypatch.setattr(products, "_TIMED", 4 * 16 * 16)
    seen = []
    monkeypatch.setitem(
        KERNELS, "general", lambda w, b, n: seen.append(tuple(w.shape)) or (lambda x: x @ w.t())
    )
    assert set(seconds_of(torch.randn(32, 16), 2)) == set(NOT_VECTOR)
    assert seen == [(8, 16), (8, 16)]


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", "/dev/null/no")
    assert seconds_of(torch.zeros(32, 16), 1)


def test_without_room_for_copies_the_next_form_is_taken(monkeypatch):
    prefer(monkeypatch, "transposed")
    monkeypatch.setattr(products, "_SPARE", 1.0)
    chosen = choose([tiny_model("llama")], prompt(), 4)
    assert chosen.form == "lean"
    assert "too little for second copies of the weights" in chosen.notes[0]
    with pytest.raises(UnavailableError, match="GB of memory are free"):
        Lean(tiny_model("llama"), 1, 8, packed=True)


def test_small_weights_are_not_timed():
    made = Products(1, packed=True)
    made.of(torch.zeros(8, 8), None)
    assert (made.kernels, made.copied_bytes) == ({"8 x 8": "vector"}, 0)
    assert products._known == {}


def test_a_model_without_copies_runs_in_the_form_of_another_that_has_some(monkeypatch):
    chosen = choose([tiny_model("llama")], prompt(), 4, "lean-packed")
    assert (chosen.form, chosen.same_tokens) == ("lean-packed", True)
    prefer(monkeypatch, "transposed")
    small = 40 << 10  # bytes: the head is larger, the matrices of the layers are not
    monkeypatch.setattr(products, "_SMALL", small)
    one, other = tiny_model("llama"), tiny_model("llama", vocab_size=32)
    ids = prompt() % 32
    assert choose([other, one], ids, 4).form == "lean-packed"
    assert choose([other], ids, 4).form == "lean"


def test_the_comparison_of_forms_states_the_copies(monkeypatch):
    prefer(monkeypatch, "transposed")
    found = compare_forms(tiny_model("llama"), prompt(), 4, ["lean", "lean-packed"], rounds=1)
    plain, packed = found[1:]
    assert (plain.second_copy_bytes, packed.same_tokens) == (0, True)
    assert packed.second_copy_bytes > 0


def test_second_copies_of_a_model_lie_side_by_side(monkeypatch):
    prefer(monkeypatch, "transposed")
    made = Products(1, packed=True)
    runs = [made.of(torch.randn(8, 6), None) for _ in range(3)]
    read = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: (read.append(b), product(a, b))[1])
    for run in runs:
        run(torch.randn(1, 1, 6))
    assert len({each.untyped_storage().data_ptr() for each in read}) == 1
    assert len({each.data_ptr() for each in read}) == 3
