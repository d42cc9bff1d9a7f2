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
    from markupsafe import Markup

    script = _read("script.js")
    # The content security policy allows exactly this script.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = Markup(view["data"])  # noqa: S704 - escaped in output/embedded_data.py
    return _render(
        "report.html.j2",
        {**view, "data": data},
        script=Markup(script),  # noqa: S704 - ours
        script_sha256=digest,
    )


def comparison_document(view: dict[str, Any]) -> str:
    """A comparison of two runs as one file, without a script."""
    return _render("compare.html.j2", view)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


def _render(template: str, view: dict[str, Any], **more: Any) -> str:
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
    return environment.get_template(template).render(view, style=style, **more)
