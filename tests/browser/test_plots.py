"""Plots in a real browser: text of at least 11 px that nothing covers, and full rows."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

WIDTHS = [1280, 768, 360]
KINDS = ("name", "hint", "tick")
"""The classes of labels, which are those of the text or of its group."""

TEXTS = """
return [...document.querySelectorAll('svg.plot')].filter(s => s.checkVisibility()).map(svg => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const seen = e => e.getClientRects().length > 0;
  return {
    name: svg.querySelector('title').textContent,
    box: box(svg),
    texts: [...svg.querySelectorAll('text')].filter(seen).map(t => ({
      text: t.textContent, kind: t.className.baseVal || t.parentElement.className.baseVal,
      size: parseFloat(getComputedStyle(t).fontSize) * (t.getScreenCTM()?.a ?? 1), box: box(t)})),
    lines: [...svg.querySelectorAll('line.gate, line.dense')].map(box),
  };
})
"""


def plots(page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    found = page.execute_script(TEXTS)
    assert len(found) >= 4
    return found


def overlap(one, other, room=1.0):
    return (
        one[0] < other[2] - room
        and other[0] < one[2] - room
        and one[1] < other[3] - room
        and other[1] < one[3] - room
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_text_has_11_pixels_and_stays_on_the_page(page, width):
    for plot in plots(page, width):
        for text in plot["texts"]:
            assert text["size"] >= 11, (plot["name"], text)
            assert text["box"][0] >= 0, (plot["name"], text)
            assert text["box"][2] <= width, (plot["name"], text)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_label_covers_another_or_the_lines_of_gate_and_dense(page, width):
    for plot in plots(page, width):
        labels = [one for one in plot["texts"] if one["kind"].split()[0] in KINDS]
        for index, one in enumerate(labels):
            for other in labels[index + 1 :]:
                # A line of text is higher than its letters: two pixels of it may overlap.
                assert not overlap(one["box"], other["box"], 2.5), (plot["name"], one, other)
            if one["kind"].startswith("name"):
                left, top, right, bottom = one["box"]
                for x0, y0, x1, y1 in plot["lines"]:
                    line = (x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5)
                    letters = (left, top + 2, right, bottom - 2)
                    assert not overlap(letters, line, 0), (plot["name"], one)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_row_of_plots_is_full(page, width):
    plots(page, width)
    rows = page.execute_script(
        "return [...document.querySelectorAll('.figures')].map(grid => {"
        "  const r = grid.getBoundingClientRect(), tops = {};"
        "  for (const f of grid.children) { const b = f.getBoundingClientRect();"
        "    tops[Math.round(b.top)] = Math.max(tops[Math.round(b.top)] ?? 0, b.right); }"
        "  return [r.right, Object.values(tops)]; })"
    )
    assert rows
    for right, ends in rows:
        assert all(abs(end - right) < 2 for end in ends)
