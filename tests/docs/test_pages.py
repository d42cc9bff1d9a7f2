"""The READMEs as pages: short, narrow, linked with each other, every link found."""

from __future__ import annotations

import re

import pytest

from readmes import PAGES, ROOT, anchors, block, blocks, links, text_of

LANGUAGES = {"sh", "bash", "yaml", "toml", "python", "text"}


def test_the_front_page_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_no_line_exceeds_100_columns(page: str) -> None:
    # Rows of the tables of model types and of methods cannot be broken.
    wide = r"<!-- (types|methods): .*?<!-- \1 end -->"
    text = re.sub(wide, "", text_of(page), flags=re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    """Links to files and headings; the web is not asked."""
    folder = (ROOT / page).parent
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), link


def test_the_front_page_leads_to_every_other_page() -> None:
    assert set(PAGES) - {"README.md"} <= set(links("README.md"))


def test_contributors_are_led_to_the_architecture() -> None:
    assert "../harness/README.md" in links(".github/CONTRIBUTING.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_reference_link_is_defined_and_used(page: str) -> None:
    text = text_of(page)
    defined = re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE)
    used = re.findall(r"\[(\d{4}\.\d{5})\](?![:(])", text)
    assert set(used) == set(defined)
    assert len(defined) == len(set(defined))


def test_every_code_block_names_a_language_that_a_test_runs() -> None:
    """`text` is for pictures made of letters; test_shell, test_yaml and test_python run the others."""
    assert {block.language for block in blocks()} <= LANGUAGES
    assert len([block for block in blocks() if block.language == "text"]) <= 1


def test_continuous_integration_runs_the_test_command_of_the_front_page() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    quickstart, tests = (
        found.code.strip()
        for found in blocks("sh")
        if found.page == "README.md" and found.code.startswith("python3 -m venv")
    )
    assert quickstart.endswith("tox run -e quickstart")
    assert tests.endswith("tox run -e tests")
    assert tests in commands


def test_the_slurm_job_is_a_shell_script() -> None:
    assert block("bash", "#SBATCH").code.startswith("#!/bin/bash\n")
