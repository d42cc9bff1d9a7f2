"""From the view to one HTML document: template, style and script inlined, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from prunebench_report.text import clean

_FOLDER = Path(__file__).parent


def report_document(view: dict[str, Any]) -> str:
    """The whole report.

    Every text passes through `clean` and is escaped, except our own style, script, JSON and SVG.
    """
    return _render("report.html.j2", view, _script("page.js", "table.js"))


def comparison_document(view: dict[str, Any]) -> str:
    """A comparison of two runs as one file."""
    return _render("compare.html.j2", view, _script("page.js"))


def _script(*names: str) -> str:
    """These files as one function, which then shows what the page's address asks for."""
    parts = "\n".join(_read(name) for name in names)
    return f'"use strict";\n(() => {{\n{parts}\n  read();\n  restore();\n  reveal();\n}})();'


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


def _render(template: str, view: dict[str, Any], script: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def harmless(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    # `finalize` sees every value that a template prints, so no text can be forgotten.
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(_read("style.css"))  # noqa: S704 - ours
    # The content security policy allows exactly this script.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        view,
        style=style,
        script=Markup(script),  # noqa: S704 - ours
        script_sha256=digest,
    )
