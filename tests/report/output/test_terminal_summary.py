"""The end of a run in the terminal."""

from __future__ import annotations

from prunebench_report.output.terminal_summary import terminal_summary


def test_the_terminal_shows_what_the_report_shows_first(build):
    failed = build.failed(build.cell("sparse|gpt", sparsity=0.5))
    found = terminal_summary(build.given([*build.quickstart(), failed]))
    assert found.head[:2] == ["cell", "Perplexity"]
    assert len(found.rows) == 9
    assert any("shortgpt ratio=0.25" in sentence for sentence in found.sentences)
    rows = {row[0]: row[1:] for row in found.rows}
    assert any(value.endswith("<") for value in rows["wanda sparsity=0.5"])
    assert "sparse|gpt sparsity=0.5: failed" in rows


def test_what_was_removed_is_zeros_or_parameters(build):
    found = terminal_summary(build.given(build.quickstart()))
    assert found.head[-1] == "Removed"
    removed = {row[0]: row[-1] for row in found.rows}
    assert removed["dense"] == "nothing"
    assert removed["wanda sparsity=0.5"] == "50.0 % zeros"
    assert removed["shortgpt ratio=0.25"].endswith(" % params")
    assert not removed["shortgpt ratio=0.25"].startswith("0.0 ")


def test_a_long_run_is_cut_off(build):
    records = [build.failed(build.cell("wanda", sparsity=n / 100)) for n in range(1, 41)]
    found = terminal_summary(build.given(records))
    assert (len(found.rows), found.left) == (30, 10)
