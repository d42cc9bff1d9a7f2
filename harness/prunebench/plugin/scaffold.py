"""Write the package of a new plugin, which works as it is written.

The texts are in `templates/`; `$name` and the like are filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.user_path import user_path

if TYPE_CHECKING:
    from prunebench.plugin.registry import Kind

FOLDER = Path(__file__).parent / "templates"

_TINY = "tiny-llama # two layers, random weights; smollm2-135m-instruct is a real model"
_SMALL_MODEL = """
The model in `compare.yaml` has two layers with random weights, so that a run takes seconds. For
figures that mean something, put `smollm2-135m-instruct` there, then a model of your own.
"""
_RAISE_VERSION = """
The version of the package is part of every result's id. Raise it in `pyproject.toml` whenever
results change: a finished cell is not run again as long as the version is the same.
"""


@dataclass(frozen=True)
class Scaffold:
    """How the package of one kind of plugin differs from the others."""

    kind: Kind
    methods: str
    """The `methods:` of the suite that compares it; `{name}` is the new plugin."""
    contract: bool = False
    """Whether the kind has a contract, which `prunebench plugins check` tries."""
    model: str = _TINY
    corpus: str = "tiny-text"
    metrics: str = ""
    """The end of the suite's `quality:`."""
    profile: str = ""
    """The end of the suite's `profile:`."""
    engine: str = ""
    """Option of `prunebench run`."""
    structure: str | None = None
    """What the method of the template removes."""


SCAFFOLDS: Mapping[str, Scaffold] = {
    "method": Scaffold(
        "method",
        "  - magnitude: {sparsity: 0.5}\n  - wanda: {sparsity: 0.5}\n  - {name}: {sparsity: 0.5}",
        contract=True,
        structure="unstructured",
    ),
    "method-layers": Scaffold(
        "method",
        "  - shortgpt: {count: 1}\n  - {name}: {count: 1}",
        contract=True,
        structure="layers",
    ),
    "method-blocks": Scaffold(
        "method",
        "  - blockpruner: {count: 1}\n  - {name}: {count: 1}",
        contract=True,
        structure="blocks",
    ),
    "method-width": Scaffold(
        "method",
        "  - llm-pruner: {ratio: 0.25}\n  - {name}: {ratio: 0.25}",
        contract=True,
        structure="width",
    ),
    "allocation": Scaffold(
        "allocation",
        "  - wanda: {sparsity: 0.7, allocation: [null, owl, {name}]}",
        contract=True,
    ),
    "recovery": Scaffold(
        "recovery",
        "  - magnitude: {sparsity: 0.5, recovery: [null, lora, {name}]}",
        contract=True,
    ),
    "corpus": Scaffold(
        "corpus",
        "  - magnitude: {sparsity: 0.5}\n  - wanda: {sparsity: 0.5}",
        corpus="{name}",
    ),
    "model-source": Scaffold("model", "  - magnitude: {sparsity: 0.5}", model="{name}"),
    "metric": Scaffold(
        "metric",
        "  - wanda: {sparsity: [0.3, 0.5]}",
        contract=True,
        metrics="\n  metrics: [kl-divergence, {name}]",
    ),
    "engine": Scaffold(
        "engine",
        "  - magnitude: {sparsity: 0.5}\n  - wanda: {sparsity: 0.5}",
        engine=" --engine {name}",
    ),
    "runtime": Scaffold(
        "runtime",
        "  - shortgpt: {count: 1}",
        contract=True,
        profile="\n  runtimes: {name}",
    ),
    "report-section": Scaffold(
        "section",
        "  - magnitude: {sparsity: [0.3, 0.5]}\n  - wanda: {sparsity: [0.3, 0.5]}",
    ),
}
"""By the names of the templates."""

STRUCTURES: Mapping[str, str] = {
    scaffold.structure: name for name, scaffold in SCAFFOLDS.items() if scaffold.structure
}
"""The templates of methods by what they remove."""


def write_package(name: str, template: str, parent: Path) -> Path:
    """Write the package of a plugin called ``name`` into a new folder in ``parent``; return that.

    Raises PrunebenchError if the name is not valid, or there is no such template, or the folder
    exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PrunebenchError(
            f"'{name}' cannot name a plugin",
            hint="use lower-case letters, digits and single hyphens: my-method",
        )
    if template not in SCAFFOLDS:
        raise PrunebenchError(
            f"there is no template for a {template}", hint=did_you_mean(template, SCAFFOLDS)
        )
    words = _words(name, template, SCAFFOLDS[template])
    hint = "take another name, or another folder with --in"
    folder = user_path(parent / words["distribution"], what="the new folder", hint=hint)
    if folder.exists():
        raise PrunebenchError(f"{folder} exists already", hint=hint)
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "compare.yaml": "compare.yaml",
        f"{words['module']}.py": f"{template}.py",
        f"tests/test_{words['module']}.py": f"test_{template}.py",
    }
    for target, source in files.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (FOLDER / f"{source}.txt").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(words), encoding="utf-8")
    return folder


def _words(name: str, template: str, scaffold: Scaffold) -> dict[str, str]:
    """What the templates call `$name`, `$module` and so on."""
    parts = name.split("-")
    # `replace`, not `format`: the braces of YAML are no fields.
    of_kind = {
        field: getattr(scaffold, field).replace("{name}", name)
        for field in ("methods", "model", "corpus", "metrics", "profile", "engine")
    }
    return of_kind | {
        "name": name,
        "distribution": f"prunebench-{name}",
        "module": f"prunebench_{'_'.join(parts)}",
        "class": "".join(part.capitalize() for part in parts),
        "kind": scaffold.kind if scaffold.structure else template.replace("-", " "),
        "article": "An" if template[0] in "aeiou" else "A",
        "try_it": f"prunebench plugins {'check' if scaffold.contract else 'show'} {name}",
        "tests": "its contract as tests, and a whole cell" if scaffold.contract else "its tests",
        "small_model": _SMALL_MODEL if scaffold.model == _TINY else "",
        # The kinds with a contract are those whose version is part of a cell's id.
        "raise_version": _RAISE_VERSION if scaffold.contract else "",
    }
