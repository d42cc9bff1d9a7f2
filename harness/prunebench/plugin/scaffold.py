"""Writes the package of a new plugin, which works as it is written: the templates stand in `templates/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from prunebench.errors import PrunebenchError, did_you_mean

TEMPLATES = Path(__file__).parent / "templates"

_TRIED = "prunebench plugins check {name}"
_BASE = "  - magnitude: {sparsity: 0.5}\n"
_RAISED = """ Raise `version` in `pyproject.toml` whenever results change: finished cells are never run
again under the same version."""
KINDS: Mapping[str, tuple[str, str, str]] = {
    "method": (
        _TRIED,
        _BASE + "  - wanda: {sparsity: 0.5}\n  - {name}: {sparsity: 0.5}",
        "tiny-text",
    ),
    "allocation": (
        _TRIED,
        "  - wanda: {sparsity: 0.7, allocation: [null, owl, {name}]}",
        "tiny-text",
    ),
    "recovery": (
        _TRIED,
        "  - magnitude: {sparsity: 0.5, recovery: [null, lora, {name}]}",
        "tiny-text",
    ),
    "corpus": ("prunebench plugins show {name}", _BASE + "  - wanda: {sparsity: 0.5}", "{name}"),
    "report-section": (
        "prunebench plugins show {name}",
        "  - magnitude: {sparsity: [0.3, 0.5]}\n  - wanda: {sparsity: [0.3, 0.5]}",
        "tiny-text",
    ),
    "metric": (_TRIED, "  - wanda: {sparsity: [0.3, 0.5]}", "tiny-text"),
    "engine": ("prunebench plugins show {name}", _BASE + "  - wanda: {sparsity: 0.5}", "tiny-text"),
    "model-source": ("prunebench plugins show {name}", _BASE.rstrip("\n"), "tiny-text"),
}
"""How the README tries it, the methods of its suite, and the suite's text."""


def write_package(name: str, kind: str, parent: Path) -> Path:
    """Write the package of a plugin called ``name`` into a new folder in ``parent``, and give that folder.

    Raises PrunebenchError where the name is none, the kind is unknown, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PrunebenchError(
            f"'{name}' cannot name a plugin",
            hint="small letters, digits and single hyphens: my-method",
        )
    if kind not in KINDS:
        raise PrunebenchError(f"there is no template for a {kind}", hint=did_you_mean(kind, KINDS))
    check, methods, corpus = (text.replace("{name}", name) for text in KINDS[kind])
    tried = KINDS[kind][0] == _TRIED
    words = {
        "name": name,
        "distribution": f"prunebench-{name}",
        "module": f"prunebench_{name.replace('-', '_')}",
        "class": "".join(part.capitalize() for part in name.split("-")),
        "kind": kind.replace("-", " "),
        "article": "An" if kind[0] in "aeiou" else "A",
        "check": check,
        "tests": "the same promises as tests, and a whole cell" if tried else "its tests",
        "counts": "; its version is part of every result's id" if tried else "",
        "raised": _RAISED if tried else "",
        "methods": methods,
        "corpus": corpus,
        "engine": f" --engine {name}" if kind == "engine" else "",
        "metrics": f"\n  metrics: [kl-divergence, {name}]" if kind == "metric" else "",
    }
    folder = parent / words["distribution"]
    if folder.exists():
        raise PrunebenchError(
            f"{folder} is there already", hint="take another name, or another folder with --in"
        )
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "compare.yaml": "compare.yaml",
        f"{words['module']}.py": f"{kind}.py",
        f"tests/test_{words['module']}.py": f"test_{kind}.py",
    }
    for target, template in files.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(words), encoding="utf-8")
    if kind == "model-source":
        suite = folder / "compare.yaml"
        suite.write_text(
            re.sub(r"models: .*", f"models: {name}", suite.read_text(encoding="utf-8")),
            encoding="utf-8",
        )
    return folder
