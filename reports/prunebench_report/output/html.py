"""View-model -> one HTML document: template, style and script inlined, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from prunebench_report.text import clean


def document(view: dict[str, Any]) -> str:
    """The whole report. Every text passes through `clean` and is escaped; only our own style, script and SVG are not."""
    from markupsafe import Markup

    script = _own("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = [{**figure, "svg": Markup(figure["svg"])} for figure in view["figures"]]  # noqa: S704 - figures.py drew it
    return _render(
        "report.html.j2",
        {**view, "figures": figures, "data": Markup(view["data"])},  # noqa: S704 - view.data escaped it
        script=Markup(script),  # noqa: S704 - ours
        script_sha256=digest,
    )


def comparison_document(view: dict[str, Any]) -> str:
    """A comparison of two runs as one file, without a script."""
    return _render("compare.html.j2", view)


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").strip()


def _render(template: str, view: dict[str, Any], **more: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def harmless(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(_own("style.css"))  # noqa: S704 - ours
    return environment.get_template(template).render(view, style=style, **more)
