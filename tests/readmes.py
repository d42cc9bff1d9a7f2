"""The READMEs as tests see them: code blocks, words in backticks, links, tables and headings."""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

import click

from prunebench.cli import prunebench

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "suites/README.md",
    "plugins/README.md",
    "reports/README.md",
    "harness/README.md",
    ".github/CONTRIBUTING.md",
)


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.language}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """The code blocks of all pages in these languages; of every language if none is given."""
    found = []
    for page in PAGES:
        text = text_of(page)
        for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


def block(language: str, words: str) -> Block:
    """The one block in this language that contains these words."""
    [found] = [block for block in blocks(language) if words in block.code]
    return found


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", text_of(page), flags=re.MULTILINE)


def spans(page: str) -> list[str]:
    """What stands in backticks, code blocks left out; a line break inside counts as a space."""
    found = re.findall(r"`([^`]+)`", prose(page))
    return [" ".join(span.split()) for span in found]


def links(page: str) -> list[str]:
    """Targets of links and pictures."""
    inline = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", prose(page), re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What a link may name behind `#`: the headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


def tables(page: str) -> list[list[list[str]]]:
    """Every table of a page as rows of cells, its head first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not inside:
            found.append([])
        inside = True
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1].append(cells)
    return found


def table(page: str, row: str) -> list[list[str]]:
    """The rows below the head of the one table that has a row which begins with `row` in backticks."""
    [found] = [one for one in tables(page) if any(cells[0].startswith(f"`{row}`") for cells in one)]
    return found[1:]


def named(cell: str) -> list[str]:
    """The words in backticks of a cell."""
    return re.findall(r"`([^`]+)`", cell)


def parse(arguments: list[str]) -> click.Context:
    """The context of the innermost command. Raises a usage error if the command line refuses the words."""
    context = prunebench.make_context("prunebench", list(arguments))
    while isinstance(context.command, click.Group) and (rest := context._protected_args):
        name, command, left = context.command.resolve_command(context, [*rest, *context.args])
        assert command is not None
        context = command.make_context(name, left, parent=context)
    return context


def environments() -> set[str]:
    """Names that `tox run -e` takes."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    return {
        section.partition(":")[2] for section in tox.sections() if section.startswith("testenv:")
    }
