from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed.io import (
    disk_read_bytes,
    generation_io,
    kv_cache_bytes,
    load_io,
    weight_bytes,
)
from prunebench.measure.speed.latency import measure_latency
from prunebench.model.load import TransferTimes
from prunebench.model.surgery import remove_layers
from tiny import FAMILIES, tiny_model


def read_by_attention(model, prompt, new_tokens, batch):
    """Bytes of keys and values that the attentions get in a step of the real decode loop."""
    steps = []

    class Watched(DynamicCache):
        def update(self, *given, **more):
            keys, values = super().update(*given, **more)
            steps[-1] += keys.nbytes + values.nbytes
            return keys, values

    cache = Watched(config=model.config)
    ids = torch.ones(batch, prompt, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(new_tokens):
            steps.append(0)
            ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return sum(steps[1:]) / (new_tokens - 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("prompt", "new_tokens", "batch"), [(5, 2, 1), (12, 9, 3)])
def test_kv_bytes_are_those_that_attention_is_handed(family, prompt, new_tokens, batch):
    model = tiny_model(family)
    expected = read_by_attention(model, prompt, new_tokens, batch)
    assert kv_cache_bytes(model, prompt, new_tokens, batch) == pytest.approx(expected, abs=1)


def test_kv_bytes_follow_dtype_and_removed_layers():
    model = tiny_model("llama")
    whole = kv_cache_bytes(model, 8, 8)
    assert whole == 2 * 4 * 2 * 12 * 4 * (
        8 + 8 // 2
    )  # keys and values, layers, heads, width, float32, positions
    remove_layers(model, [0, 1])
    assert kv_cache_bytes(model.bfloat16(), 8, 8) == whole // 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reads_all_weights_but_embedding_rows_once(family):
    model = tiny_model(family)
    state = model.state_dict()
    tables = {
        name
        for name in state
        if "embed_tokens" in name or "embed_in" in name or "embed_positions" in name
    }
    rest = sum(
        value.numel() for name, value in state.items() if name not in tables | {"lm_head.weight"}
    )
    head = 320 * 48
    looked_up = sum(
        48 for name in tables if "positions" in name or not model.config.tie_word_embeddings
    )
    assert weight_bytes(model) == 4 * (rest + head + looked_up)
    assert weight_bytes(model, 3) == 4 * (rest + head + 3 * looked_up)
    assert weight_bytes(model.bfloat16()) == 2 * (rest + head + looked_up)


def test_the_floor_is_bytes_over_bandwidth():
    model = tiny_model("llama")
    spec = LatencySpec(prompt=6, new_tokens=5, batch_size=2, min_rounds=1, min_time_s=0)
    latency, _ = measure_latency(model, torch.ones(2, 6, dtype=torch.int64), spec)
    found = generation_io(model, latency, 1e9, "told")
    assert found.floor_s == pytest.approx(
        (weight_bytes(model, 2) + kv_cache_bytes(model, 6, 5, 2)) / 1e9
    )
    assert found.utilisation == pytest.approx(found.floor_s / latency.inter_token_s.median)
    assert (found.prompt, found.new_tokens, found.batch_size, found.bandwidth_source) == (
        6,
        5,
        2,
        "told",
    )


@pytest.mark.parametrize(
    ("read", "cache"),
    [(0, "warm"), (100, "warm"), (101, "mixed"), (899, "mixed"), (900, "cold"), (1300, "cold")],
)
def test_the_page_cache_is_warm_or_cold_by_the_bytes_from_the_disk(read, cache):
    found = load_io(1000, 0.5, read)
    assert (found.bytes, found.seconds, found.disk_read_bytes, found.cache) == (
        1000,
        0.5,
        read,
        cache,
    )


def test_the_legs_of_loading_are_kept_if_they_were_timed_apart():
    found = load_io(1000, 0.5, 0, transfers=TransferTimes(0.3, 0.2, 900))
    assert (found.host_s, found.device_s, found.device_bytes) == (0.3, 0.2, 900)
    assert load_io(1000, 0.5, 0).host_s is None


def test_an_unknown_count_is_not_available():
    assert load_io(1000, 0.5, None).cache is None


def test_the_kernels_count_is_read(tmp_path):
    file = tmp_path / "io"
    file.write_text("rchar: 12\nwchar: 5\nread_bytes: 4096\nwrite_bytes: 0\n")
    assert disk_read_bytes(file) == 4096
    assert disk_read_bytes(tmp_path) is None  # as where it may not be read
    assert disk_read_bytes(tmp_path / "absent") is None
    file.write_text("read_bytes: many\n")
    assert disk_read_bytes(file) is None
    file.write_text("rchar: 12\n")
    assert disk_read_bytes(file) is None
