"""View-model -> one HTML document: template, style and script inlined, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from prunebench_report.text import clean


def document(view: dict[str, Any]) -> str:
    """The whole file. Every text passes through `clean` and is escaped; only our own style, script and SVG are not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent

    def harmless(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(here / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (here / "script.js").read_text(encoding="utf-8").strip()
    style = (here / "style.css").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = [{**figure, "svg": Markup(figure["svg"])} for figure in view["figures"]]  # noqa: S704 - figures.py drew it
    return environment.get_template("report.html.j2").render(
        {**view, "figures": figures, "data": Markup(view["data"])},  # noqa: S704 - view.data escaped it
        style=Markup(style),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        script_sha256=digest,
    )
