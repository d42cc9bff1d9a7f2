"""All figures with their conditions as Markdown, for the README of a pruned model."""

from __future__ import annotations

from prunebench_report import load, main_table


def lines_of(build, tmp_path, records, **more):
    folder = build.store(tmp_path / "run", records).folder
    return main_table(load(folder, **more), "model-card").splitlines()


def test_figures_are_rows_and_models_are_columns(build, tmp_path):
    lines = lines_of(build, tmp_path, build.quickstart(), only=["dense", "shortgpt*0.25"])
    assert lines[0] == "## Evaluation"
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| smollm2-135m-instruct | dense | shortgpt ratio=0.25 |"
    assert table[1] == "| --- | ---: | ---: |"
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in table[2:]}
    protocol = next(name for name in rows if name.startswith("perplexity ("))
    assert "boolq-passages validation, 16 windows of 1024 tokens" in protocol
    assert rows[protocol] == ["25.05", "163.2 |"]
    assert rows["parameters"][1].endswith("M |")
    speed = next(name for name in rows if name.startswith("speed-up against dense"))
    assert rows[speed] == [
        "1.00\N{MULTIPLICATION SIGN}",
        "1.32\N{MULTIPLICATION SIGN} \\[1.30, 1.34\\] |",
    ]
    assert len({line.count(" | ") for line in table}) == 1
    assert "prunebench 0.1.0" in lines[-1]
    assert "95 % interval" in lines[-1]


def test_cells_without_a_result_have_no_column(build, tmp_path):
    records = [*build.quickstart()[:2], build.failed(build.cell("imp", sparsity=0.5))]
    lines = lines_of(build, tmp_path, records)
    assert not any("imp" in line for line in lines)


def test_every_model_has_its_table(build, tmp_path):
    records = [*build.quickstart()[:2], *build.quickstart("other")[:2]]
    heads = [line for line in lines_of(build, tmp_path, records) if "| dense |" in line]
    assert [line.split(" | ")[0] for line in heads] == ["| smollm2-135m-instruct", "| other"]
