"""Cells without a result: where they failed, why, and how to run them again."""

from __future__ import annotations

from prunebench_report import render
from prunebench_report.data.load_runs import load_runs
from prunebench_report.sections import failures, header, main_table


def test_a_failure_says_where_why_and_how_to_run_again(build):
    broken = build.failed(build.cell("sparsegpt", sparsity=0.5), "out-of-memory")
    [failure] = failures.section(build.given([*build.quickstart(), broken]))["failures"]
    assert (failure["status"], failure["phase"], failure["type"]) == (
        "out-of-memory",
        "prune",
        "IndexError",
    )
    assert failure["command"].endswith(f"specs/{failure['id']}.json")
    assert failure["peak"] == "1.30 GB"
    assert len(failure["log"].splitlines()) == 20


def test_a_damaged_record_is_a_row_and_a_failure(build, tmp_path):
    records = build.quickstart()
    store = build.store(tmp_path / "run", records)
    store.record_path(records[3].id).write_text('{"schema": 1', encoding="utf-8")
    given = load_runs([store])
    assert header.section(given)["totals"][-1] == {"status": "damaged", "count": 1}
    assert failures.section(given)["damaged"][0]["name"] == "wanda sparsity=0.5"
    statuses = [row["status"] for row in main_table.section(given)["rows"]]
    assert statuses.count("damaged") == 1


def test_the_error_is_said_once(build, tmp_path):
    """Not again at the end of the log, and not in the card, which links to the failure."""
    message = "mat1 and mat2 shapes cannot be multiplied"
    log = f"Traceback (most recent call last):\n  File x, line 3\nRuntimeError: {message}\n"
    broken = build.failed(build.cell("sparsegpt"), message=message, log=log)
    page = render(build.store(tmp_path / "run", [*build.quickstart(), broken]))
    [failure] = failures.section(build.given([broken]))["failures"]
    assert failure["log"].splitlines()[-1] == "  File x, line 3"
    shown = page.partition('<script type="application/json"')[0]
    assert shown.count(message) == 1
    card = shown.partition(f'id="cell-{broken.id}"')[2].partition("</details>")[0]
    assert f'href="#failure-{broken.id}"' in card
    assert "IndexError" not in card
    assert failure["command"] not in card
