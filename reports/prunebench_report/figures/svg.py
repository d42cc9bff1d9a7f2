"""Makes matplotlib's SVG a part of the page: ids of its own, CSS variables for colours, an accessible name, tooltips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from prunebench_report.figures.plot import HEIGHT, METHODS, VARIABLES, WIDTH, Panel, Point, Text
from prunebench_report.text import clean, number


def inline(
    svg: str,
    texts: Sequence[Text],
    points: Sequence[Point],
    panel: Panel,
    *,
    prefix: str,
    caption: str,
    desc: str,
) -> str:
    """Make the file a part of the page: no prologue, ids of its own, CSS variables, accessible name, tooltips."""
    svg = svg[svg.index("<svg") :].strip()
    # Its style rule is for `*`, which would be the whole page; style.css has it for plots.
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<defs>\s*</defs>", "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    for name in sorted(set(re.findall(r'\sid="([^"]+)"', svg)), key=len, reverse=True):
        own = f"{prefix}-{name}"
        svg = svg.replace(f'id="{name}"', f'id="{own}"').replace(f"url(#{name})", f"url(#{own})")
        svg = svg.replace(f'href="#{name}"', f'href="#{own}"')
    for colour, variable in (*VARIABLES.items(), *((c, f"--m{i}") for i, c in enumerate(METHODS))):
        svg = svg.replace(colour, f"var({variable})")
    # The page's own font; the size stays, so that the label placement holds.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = svg.replace(' target="_blank"', "")
    for point in points:
        anchor = f'<g id="{prefix}-at-{point.cell}">'
        tip = f"{clean(point.name)}: {panel.x_label} {number(point.x)}, {panel.y_label} {number(point.y)}"
        svg = svg.replace(anchor, f"{anchor}<title>{escape(tip)}</title>")
        # By keyboard the same rows are reached from the table.
        link = f'<a tabindex="-1" aria-label="{escape(clean(point.name))}" href="#row-{point.cell}"'
        svg = svg.replace(f'<a href="#row-{point.cell}"', link)
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)  # hundredths of a pixel are enough
    head = (
        f'<svg class="plot" role="group" aria-labelledby="{prefix}-t {prefix}-d" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<title id="{prefix}-t">{escape(clean(caption))}</title><desc id="{prefix}-d">{escape(clean(desc))}</desc>'
    )
    written = "".join(
        f'<text class="{t.kind}" x="{t.x:.1f}" y="{HEIGHT - t.y:.1f}" text-anchor="{t.anchor}">{escape(clean(t.text))}</text>'
        for t in texts
    )
    svg = re.sub(r"\s*\n\s*", "\n", re.sub(r"^<svg[^>]*>", lambda _: head, svg))
    return svg.removesuffix("</svg>") + written + "</svg>"
