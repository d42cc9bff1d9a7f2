"""`prunebench profile MODEL --runtime NAME`: the cell that it makes, and the table that it shows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prunebench import PrunebenchError
from prunebench.app import profile
from prunebench.cli.profile import NOT_MEASURABLE, _runtimes
from prunebench.experiment.measures import LatencySpec
from prunebench.record.runtimes import Conversion, RuntimeLatency, RuntimeResult, TokenAgreement
from prunebench.record.speed import Summary

SHAPE = LatencySpec(prompt=8, new_tokens=4, batch_size=1, min_rounds=2, min_time_s=0.0)


def cell(*runtimes, shape=SHAPE):
    return profile._cell("tiny-llama", shape, runtimes, "float32", "cpu")


def test_runtimes_are_named_as_in_a_suite():
    found = cell("llama-cpp", {"llama-cpp": {"precision": "q8_0"}})
    assert [ref.label for ref in found.runtimes] == ["llama-cpp", "llama-cpp precision=q8_0"]
    assert found.latency == (SHAPE,)
    assert cell().runtimes == ()
    assert cell().latency == ()


def test_what_a_suite_would_refuse_is_refused():
    with pytest.raises(PrunebenchError, match="unknown runtime 'lama-cpp'"):
        cell("lama-cpp")
    with pytest.raises(PrunebenchError, match="batch size 1"):
        cell("llama-cpp", shape=SHAPE.model_copy(update={"batch_size": 4}))


def summary(value):
    return Summary(
        count=1, **dict.fromkeys(("minimum", "median", "mean", "p90", "p99", "maximum"), value)
    )


def latency(seconds=None, difference=None, reason=None):
    return RuntimeLatency(
        prompt=8,
        new_tokens=4,
        threads=1,
        rounds=5,
        not_measurable=reason,
        ttft_s=seconds and summary(seconds),
        token_s=seconds and summary(seconds / 2),
        tokens=TokenAgreement(
            compared=4, first_difference=difference, margin=difference and 1.0, rounding=1e-5
        ),
    )


def test_each_runtime_has_a_row():
    results = [
        RuntimeResult(
            runtime="fast",
            precision="fp32",
            latency=[latency(0.02)],
            conversion=Conversion(seconds=1.5, bytes=3_000_000, earlier=False),
        ),
        RuntimeResult(runtime="small", precision="int8", latency=[latency(0.02, 2)]),
        RuntimeResult(runtime="busy", precision="fp32", latency=[latency(reason="others ran")]),
        RuntimeResult(runtime="gone", precision="fp32", reason="it is not installed"),
    ]
    assert list(_runtimes(SimpleNamespace(runtimes=results))) == [
        ("fast", "20.00 ms", "10.00 ms", "same tokens", "3.0 MB, converted in 1.5 s"),
        ("small", "20.00 ms", "10.00 ms", "others from 3 on, in int8", ""),
        ("busy", NOT_MEASURABLE, "", "", "others ran"),
        ("gone", "-", "-", "", "it is not installed"),
    ]
