"""Instruction data: examples of {instruction, input, output}, and the prompt that they are put in.

No torch and no numpy, because suites are planned with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.text.user_files import check_once, json_items, json_rows, parquet_rows, text_fault

_KEYS = "each example needs the texts `instruction` and `output`; `input` is optional"


@dataclass(frozen=True)
class Example:
    """One example of instruction data."""

    instruction: str
    input: str
    """More to work on, such as a text to summarise; often empty."""
    output: str
    """The answer."""


def alpaca_prompt(example: Example) -> str:
    """The text in front of the answer, as Stanford Alpaca and Alpaca-LoRA were trained."""
    task = "Below is an instruction that describes a task"
    ask = "Write a response that appropriately completes the request."
    if not example.input:
        return f"{task}. {ask}\n\n### Instruction:\n{example.instruction}\n\n### Response:\n"
    return (
        f"{task}, paired with an input that provides further context. {ask}\n\n"
        f"### Instruction:\n{example.instruction}\n\n### Input:\n{example.input}\n\n"
        "### Response:\n"
    )


PROMPTS: Mapping[str, Callable[[Example], str]] = {"alpaca": alpaca_prompt}
"""From the name of a prompt in a suite to what writes it."""


def read_examples(path: Path) -> list[Example]:
    """The examples of a file: .jsonl, .jsonl.gz, .json (an array of objects) or .parquet.

    Raises PrunebenchError that names the file and the line, item or row at fault.
    """
    return list(_examples(path))


def check_examples(path: Path, sha256: str) -> None:
    """Raise what `read_examples` would raise; ``sha256`` is the file's hash."""
    check_once(path, "examples", sha256, _examples(path))


def checked_examples(rows: Iterable[Any], label: str) -> list[Example]:
    """The examples of a corpus; ``label`` names it in messages."""
    return [example_of(row, f"{label}: example {n}") for n, row in enumerate(rows, start=1)]


def example_of(row: Any, where: str) -> Example:
    """A mapping as an example. Raises PrunebenchError that begins with ``where``."""
    if not isinstance(row, Mapping):
        raise PrunebenchError(f"{where}: {type(row).__name__}, not a mapping", hint=_KEYS)
    values: dict[str, Any] = {}
    for key in ("instruction", "input", "output"):
        value = row.get(key)
        if key == "input" and value is None:
            value = ""
        elif key not in row:
            keys = ", ".join(f"'{name}'" for name in row) or "none"
            raise PrunebenchError(f"{where}: no key '{key}'; keys: {keys}", hint=_KEYS)
        if fault := text_fault(value):
            raise PrunebenchError(f"{where}: '{key}' {fault}", hint=_KEYS)
        values[key] = value
    return Example(**values)


def _examples(path: Path) -> Iterator[Example]:
    name, found = path.name.lower(), False
    if name.endswith(".parquet"):
        rows, unit = parquet_rows(path), ": row "
    elif name.endswith(".json"):
        rows, unit = json_items(path), ": item "
    elif name.removesuffix(".gz").endswith(".jsonl"):
        rows, unit = json_rows(path), ":"
    else:
        raise PrunebenchError(
            f"{path} holds no examples of instruction, input and output",
            hint="name a .jsonl, .json or .parquet file",
        )
    for number, row in rows:
        found = True
        yield example_of(row, f"{path}{unit}{number}")
    if not found:
        raise PrunebenchError(f"{path} holds no examples", hint="name a file that does")
