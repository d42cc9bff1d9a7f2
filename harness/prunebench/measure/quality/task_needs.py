"""What tasks of lm-eval need beside their rows: Python packages, and special tokens.

Known from the files of lm-eval, without importing them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from pathlib import Path

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import TaskSpec
from prunebench.measure.quality.task_index import TaskIndex, task_index

_FUNCTION = re.compile(r"!function[ \t]+[\"']?([\w.]+)\.\w+")
_INCLUDE = re.compile(r"^include[ \t]*:[ \t]*[\"']?([^\s\"']+)", re.MULTILINE)
_UNSAFE = re.compile(r"^unsafe_code[ \t]*:[ \t]*true", re.MULTILINE | re.IGNORECASE)
_WRITES = re.compile(r"^output_type[ \t]*:[ \t]*[\"']?generate_until", re.MULTILINE)


def check_task(index: TaskIndex, name: str) -> None:
    """Raise PrunebenchError if ``name`` is, or contains, a task that cannot run here."""
    for task in index.leaves(name):
        files = _files(index, task)
        text = "".join(files.values())
        if _UNSAFE.search(text):
            raise PrunebenchError(
                f"the task '{task}' runs the code that a model writes",
                hint="leave it out: prunebench runs no such code",
            )
        missing = [module for module in sorted(_modules(index, files)) if not _is_there(module)]
        if missing:
            what = "packages" if missing[1:] else "package"
            raise PrunebenchError(
                f"the task '{task}' needs the Python {what} {', '.join(missing)}: not installed",
                hint=_how_to_install(missing),
            )


def task_fault(
    tasks: Sequence[TaskSpec], tokens: Mapping[str, str | None]
) -> PrunebenchError | None:
    """Why a tokenizer with these special tokens cannot serve ``tasks``; None if it can.

    lm-eval puts bos, else eos, before an empty prompt, and ends answers at eos.
    """
    if not tasks or tokens["eos"] is not None:
        return None
    if tokens["bos"] is None:
        return PrunebenchError(
            "its tokenizer has neither a bos nor an eos token, and tasks need one of them",
            hint="name one in its tokenizer_config.json, or leave `tasks` out",
        )
    index = task_index()
    for spec in tasks:
        if any(_writes(index, task) for task in index.leaves(spec.name)):
            return PrunebenchError(
                f"its tokenizer has no eos token, and the answers of the task '{spec.name}', "
                "which are written, end at it",
                hint="name one in its tokenizer_config.json, or leave this task out",
            )
    return None


def _writes(index: TaskIndex, task: str) -> bool:
    """Whether a model writes the answers of a task."""
    return _WRITES.search("".join(_files(index, task).values())) is not None


def _files(index: TaskIndex, task: str) -> dict[Path, str]:
    """The YAML file of a task and those that it includes, with their text."""
    found: dict[Path, str] = {}
    left = [index.folder / index.tasks[task]] if task in index.tasks else []
    while left:
        path = left.pop()
        if path in found:
            continue
        try:
            found[path] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # lm-eval says what is wrong with it
            continue
        left += [path.parent / name for name in _INCLUDE.findall(found[path])]
    return found


def _modules(index: TaskIndex, files: Mapping[Path, str]) -> set[str]:
    """The top-level modules that are imported with the functions that the files name."""
    found: set[str] = set()
    for path, text in files.items():
        for module in _FUNCTION.findall(text):
            found |= _imported(path.parent / f"{module.replace('.', '/')}.py", index.folder)
    return found


@cache
def _imported(path: Path, folder: Path) -> frozenset[str]:
    """The modules outside ``folder`` that are imported with a file, also through other files."""
    found: set[str] = set()
    seen: set[Path] = set()
    left = [path]
    while left:
        file = left.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for module in _imports(file):
            ours = list(_files_of(module, file, folder))
            left += ours
            if not ours and not module.startswith("."):
                found.add(module.partition(".")[0])
    return frozenset(found - sys.stdlib_module_names)


def _imports(file: Path) -> Iterator[str]:
    """The modules that a file imports when it is imported itself, 'a.b' or '.a'."""
    try:
        body = ast.parse(file.read_bytes()).body
    except SyntaxError:
        return
    while body:
        node = body.pop(0)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            # `from package import module`
            joiner = "" if module.endswith(".") else "."
            yield from (f"{module}{joiner}{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If):
            body = [*node.body, *node.orelse, *body]
        elif isinstance(node, ast.Try):
            # An import whose failure is caught is needed only if the handler raises again.
            caught = [each for handler in node.handlers for each in handler.body]
            needed = any(isinstance(each, ast.Raise) for each in caught)
            body = [*(node.body if needed or not caught else []), *node.orelse, *body]


def _files_of(module: str, file: Path, folder: Path) -> Iterator[Path]:
    """The files of lm-eval's tasks that ``module``, imported in ``file``, may be."""
    if module.startswith("."):
        name = module.lstrip(".")
        base = file
        for _ in range(len(module) - len(name)):
            base = base.parent
    elif module.startswith("lm_eval.tasks"):
        base, name = folder, module.removeprefix("lm_eval.tasks").lstrip(".")
    else:
        return
    place = base.joinpath(*name.split(".")) if name else base
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            yield path


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _how_to_install(modules: Sequence[str]) -> str:
    """The command that installs modules: by the extras of lm-eval that have them."""
    try:
        required = metadata("lm_eval").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        required = []
    extras: dict[str, str] = {}
    for line in required:
        if named := re.match(r"([\w.-]+).*; extra == [\"'](\w[\w-]*)[\"']", line):
            extras.setdefault(named[1].lower().replace("-", "_"), named[2])
    found: dict[str, None] = {}  # a set that keeps its order
    for module in modules:
        name = next((name for name in extras if _is_of(module.lower(), name)), None)
        found[f"'lm-eval[{extras[name]}]'" if name else module] = None
    return f"pip install {' '.join(found)}"


def _is_of(module: str, distribution: str) -> bool:
    """Whether a module may be that of a distribution: antlr4 of antlr4_python3_runtime."""
    return distribution == module or distribution.startswith(f"{module}_")
