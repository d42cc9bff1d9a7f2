"""Makes matplotlib's SVG a part of the page: ids, colours, accessible names, tooltips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from prunebench_report.figures.plot import HEIGHT, METHODS, VARIABLES, WIDTH, Panel, Point, Text
from prunebench_report.text import clean, number


def inline(
    svg: str, texts: Sequence[Text], points: Sequence[Point], panel: Panel, desc: str
) -> str:
    """``svg`` as an element of the page with our labels; ``desc`` says in words what it shows."""
    svg = _strip(svg)
    svg = _prefix_ids(svg, panel.key)
    for colour, variable in (*VARIABLES.items(), *((c, f"--m{i}") for i, c in enumerate(METHODS))):
        svg = svg.replace(colour, f"var({variable})")
    svg = _add_tooltips(svg, points, panel)
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)  # hundredths of a pixel are enough
    head = (
        f'<svg class="plot" role="group" aria-labelledby="{panel.key}-t {panel.key}-d" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<title id="{panel.key}-t">{_text(panel.caption)}</title>'
        f'<desc id="{panel.key}-d">{_text(desc)}</desc>'
    )
    # SVG counts y from the top, matplotlib from the bottom.
    labels = "".join(
        f'<text class="{t.kind}" x="{t.x:.1f}" y="{HEIGHT - t.y:.1f}" text-anchor="{t.anchor}">'
        f"{_text(t.text)}</text>"
        for t in texts
    )
    # A function as replacement, because `head` may contain backslashes.
    svg = re.sub(r"\s*\n\s*", "\n", re.sub(r"^<svg[^>]*>", lambda _: head, svg))
    return svg.removesuffix("</svg>") + labels + "</svg>"


def _strip(svg: str) -> str:
    """Without prologue, comments, namespaces and whatever would affect the page around it."""
    svg = svg[svg.index("<svg") :].strip()
    # matplotlib's style rule applies to `*`, i.e. to the whole page; style.css has it for plots.
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<defs>\s*</defs>", "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    # The page has its own font; the size stays, so that the labels still fit.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return svg.replace(' target="_blank"', "")


def _prefix_ids(svg: str, prefix: str) -> str:
    """Ids are unique within a plot and have to be unique within the page."""
    # Longer ids first: one may be the beginning of another.
    for name in sorted(set(re.findall(r'\sid="([^"]+)"', svg)), key=len, reverse=True):
        own = f"{prefix}-{name}"
        svg = svg.replace(f'id="{name}"', f'id="{own}"').replace(f"url(#{name})", f"url(#{own})")
        svg = svg.replace(f'href="#{name}"', f'href="#{own}"')
    return svg


def _add_tooltips(svg: str, points: Sequence[Point], panel: Panel) -> str:
    for point in points:
        anchor = f'<g id="{panel.key}-at-{point.cell}">'
        tip = (
            f"{clean(point.name)}: {panel.x_label} {number(point.x)}, "
            f"{panel.y_label} {number(point.y)}"
        )
        svg = svg.replace(anchor, f"{anchor}<title>{escape(tip)}</title>")
        # Not a tab stop: the keyboard reaches the same rows through the table.
        link = f'<a tabindex="-1" aria-label="{_text(point.name)}" href="#row-{point.cell}"'
        svg = svg.replace(f'<a href="#row-{point.cell}"', link)
    return svg


def _text(text: str) -> str:
    return escape(clean(text))
