"""Every YAML and TOML block of the READMEs: suites are loaded and planned, fragments inside a small suite."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prunebench.model.checkpoint import save
from prunebench.plugin.host import load_plugins
from prunebench.record.kept_units import KeptUnits
from prunebench.suite import yaml
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import shipped
from readmes import Block, blocks, text_of
from tiny import tiny_model, tiny_tokenizer

WHOLE = KeptUnits(layers="0-3 of 4", hidden="0-47 of 48")
AROUND_A_FRAGMENT: dict[str, Any] = {
    "name": "fragment",
    "models": "tiny-llama",
    "methods": ["dense"],
    "calibration": {"corpus": "tiny-text", "windows": 2, "length": 64},
    "quality": {"perplexity": {"corpus": "tiny-text", "windows": 2, "length": 64}},
}


def suite_text(block: Block) -> str:
    """The block itself if it is a whole suite; otherwise its keys in a suite that they fit."""
    if block.code.startswith("name:"):
        return block.code
    if block.code.startswith("expect:"):  # figures need the cells that they are about
        paper = shipped()["papers/wanda"].read_text(encoding="utf-8")
        return paper[: paper.index("expect:")] + block.code
    keys = re.findall(r"^(\w+):", block.code, re.MULTILINE)
    rest = {key: value for key, value in AROUND_A_FRAGMENT.items() if key not in keys}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in rest.items()) + block.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the blocks call their own: a folder of task rows and a pruned model."""
    rows = tmp_path / "my-data" / "hellaswag"
    rows.mkdir(parents=True)
    for split in ("train", "validation"):
        (rows / f"{split}.jsonl").write_text('{"ctx": "a"}\n')
    save(tiny_model("llama"), tiny_tokenizer(), tmp_path / "pruned", made_by={}, kept=WHOLE)
    return tmp_path


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_yaml_block_makes_a_plan(block: Block, folder: Path) -> None:
    path = folder / "suite.yaml"
    path.write_text(suite_text(block), encoding="utf-8")
    registry = load_plugins()
    suite = load_suite(path, registry=registry)
    planned = plan(suite, registry)
    assert planned.cells
    written = yaml.parse(block.code, "block").data
    if "expect" in written:
        assert len(planned.expect) == len(written["expect"])


def test_the_front_page_counts_its_cells(folder: Path) -> None:
    [block] = [one for one in blocks("yaml") if one.page == "README.md"]
    (folder / "suite.yaml").write_text(block.code)
    registry = load_plugins()
    cells = plan(load_suite(folder / "suite.yaml", registry=registry), registry).cells
    assert "This suite has six cells" in " ".join(text_of("README.md").split())
    assert len(cells) == 6


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_every_toml_block_names_a_plugin_as_the_scaffold_does(block: Block) -> None:
    from prunebench.plugin import NAME

    points = tomllib.loads(block.code)["project"]["entry-points"]
    assert set(points) == {NAME}
    assert points[NAME] == {"my-idea": "prunebench_my_idea"}
