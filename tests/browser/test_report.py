"""The report in a real browser: it sorts, filters, turns dark, fits a phone and fetches nothing."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

pytestmark = pytest.mark.browser


def column(page, index):
    script = (
        "return [...document.querySelectorAll('#cells tbody tr')]"
        ".map(r => r.cells[arguments[0]].dataset.v ?? null)"
    )
    return [None if value is None else float(value) for value in page.execute_script(script, index)]


def names(page):
    script = (
        "return [...document.querySelectorAll('#cells tbody tr:not([hidden]) th')]"
        ".map(h => h.firstChild.textContent)"
    )
    return page.execute_script(script)


def press(page, selector):
    page.find_element("css selector", selector).click()


def test_nothing_is_fetched_and_the_console_stays_empty(page, requests, report):
    press(page, "#theme")
    press(page, "#open-all")
    assert [url for url in requests() if not url.startswith("data:")] == [report.as_uri()]
    assert page.get_log("browser") == []


def test_the_policy_stops_what_the_page_does_not_need(page):
    """The test above can fail: a request is both refused and seen."""
    page.execute_script("new Image().src = 'http://127.0.0.1:9/x.png'")
    page.execute_async_script("setTimeout(arguments[0], 200)")
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_columns_sort_both_ways_with_dense_on_top_and_missing_values_last(page):
    def sort():
        page.execute_script(
            "document.querySelector('button.sort[data-key=\"perplexity\"]').click()"
        )
        return column(page, 1), page.execute_script(
            "return document.querySelectorAll('#cells [aria-sort]')[1].ariaSort"
        )

    for direction in (1, -1):
        values, direction_shown = sort()
        assert direction_shown == ("ascending" if direction == 1 else "descending")
        assert names(page)[0] == "dense"
        known = [value for value in values[1:] if value is not None]
        assert known == sorted(known, reverse=direction < 0)
        assert values[-2:] == [None, None]
    assert (
        page.execute_script("return document.getElementById('announcement').textContent")
        == "Sorted by Perplexity, descending"
    )


def test_the_table_sorts_from_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("css selector", "button.sort").send_keys(Keys.ENTER)
    assert names(page)[1:] == sorted(names(page)[1:])


def test_the_theme_follows_the_reader(page):
    def ground():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    press(page, "#theme")
    light = ground()
    press(page, "#theme")
    assert page.find_element("css selector", "#theme").text == "Theme: dark"
    assert light == "rgb(245, 246, 248)"
    assert ground() == "rgb(14, 19, 25)"


def test_a_link_opens_the_card_that_it_leads_to(page):
    link = page.find_element("css selector", "#cells tbody tr:nth-child(3) th a")
    target = link.get_attribute("href").partition("#")[2]
    link.click()
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert page.execute_script("return document.getElementById(arguments[0]).open", target)


def test_all_cards_open_and_close_and_print_opens_them(page):
    opened = "return [...document.querySelectorAll('details.card')].filter(d => d.open).length"
    count = page.execute_script("return document.querySelectorAll('details.card').length")
    press(page, "#open-all")
    assert page.execute_script(opened) == count == 9
    press(page, "#open-all")
    assert page.execute_script(opened) == 0
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script(opened) == count
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert page.execute_script(opened) == 0


def fragment(page):
    return page.execute_script("return location.hash")


def choose(page, selector, value):
    script = (
        "const e = document.querySelector(arguments[0]);"
        " e.value = arguments[1]; e.dispatchEvent(new Event('change'))"
    )
    page.execute_script(script, selector, value)


def test_rows_are_filtered_and_the_url_keeps_the_filter(page):
    choose(page, "select[data-filter=method]", "wanda")
    assert names(page) == ["wanda sparsity=0.5", "wanda sparsity=2:4", "wanda sparsity=0.1"]
    assert page.find_element("id", "count").text == "3 of 10 rows"
    choose(page, "select[data-filter=granularity]", "n:m")
    assert names(page) == ["wanda sparsity=2:4"]
    assert fragment(page) == "#method=wanda&granularity=n%3Am"
    press(page, "#reset")
    assert len(names(page)) == 10
    assert fragment(page) == ""
    page.find_element("id", "find").send_keys("SHORT")
    assert names(page) == ["shortgpt ratio=0.1", "shortgpt ratio=0.25"]


def test_status_is_a_filter(page):
    choose(page, "select[data-filter=status]", "failed")
    assert names(page) == ["sparsegpt sparsity=0.5"]


def test_columns_can_be_hidden_and_their_groups_shrink(page):
    script = (
        "const table = document.getElementById('cells');"
        "return [[...table.tBodies[0].rows[1].cells].filter(c => c.offsetParent).length,"
        " [...table.tHead.rows[0].cells].slice(1)"
        ".filter(c => !c.hidden).reduce((sum, c) => sum + c.colSpan, 1)]"
    )
    before, spans = page.execute_script(script)
    assert before == spans
    press(page, ".menu summary")
    for key in ("prune_s", "load_s", "ttft_p50_s"):
        press(page, f"input[data-column={key}]")
    assert page.execute_script(script) == [before - 3, before - 3]
    assert fragment(page) == "#hide=ttft_p50_s%2Cprune_s%2Cload_s"


def test_the_url_restores_every_choice(page, report):
    page.get("about:blank")
    page.get(f"{report.as_uri()}#sort=perplexity.down&hide=load_s&theme=dark&find=spars")
    assert page.find_element("css selector", "#theme").text == "Theme: dark"
    shown = names(page)
    assert shown[0] == "random sparsity=0.5"
    assert all("spars" in name for name in shown)
    hidden = "return getComputedStyle(document.querySelector('#cells tbody td:last-child')).display"
    assert page.execute_script(hidden) == "none"
    choose(page, "select[data-filter=method]", "wanda")
    assert "theme=dark" in fragment(page)


def test_a_link_to_a_row_keeps_the_other_choices(page):
    press(page, "button.sort[data-key=perplexity]")
    row = page.find_element("css selector", "#cells tbody tr:nth-child(4)")
    page.execute_script("location.hash = arguments[0]", row.get_attribute("id"))
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert "at" in row.get_attribute("class").split()
    assert fragment(page) == f"#sort=perplexity.up&at={row.get_attribute('id')}"


def test_head_and_first_column_stay_in_sight(page):
    page.set_window_size(900, 500)
    page.execute_script("document.querySelector('.tall').scrollTo(400, 300)")
    corner = (
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        " return [r.left, r.top]"
    )
    left, top = page.execute_script(corner, ".tall")
    head_left, head_top = page.execute_script(corner, "#cells thead tr:first-child .corner")
    assert head_left - left < 3
    assert head_top - top < 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page, theme):
    source = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    choose_theme = "document.documentElement.dataset.theme = arguments[0]"
    page.execute_script(choose_theme, theme)
    page.execute_script(
        "[...document.querySelectorAll('details.card')].slice(0, 2)"
        ".forEach(d => { d.open = true; })"
    )
    page.execute_script(source)
    found = page.execute_async_script(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
        ".then(result => arguments[0](result.violations))"
    )
    violations = [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found]
    assert violations == []


def test_the_print_view_is_light_and_does_not_scroll(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    page.execute_script("document.documentElement.dataset.theme = 'dark'")
    style = (
        "const s = getComputedStyle(document.querySelector(arguments[0])); return s[arguments[1]]"
    )
    assert page.execute_script(style, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert page.execute_script(style, ".tall", "overflowY") == "visible"
    assert (
        page.execute_script(style, "#theme", "display") == "none"
        or not page.find_element("id", "theme").is_displayed()
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize("form", ["csv", "json"])
def test_downloads_hold_the_table(page, form):
    page.execute_script(
        # The page decompresses its data first, so the file may come after the click has returned.
        "window.saved = new Promise(done => { const make = URL.createObjectURL;"
        "  URL.createObjectURL = blob => { done(blob); return make(blob); }; });"
        "HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; };"
    )
    press(page, f"#save-{form}")
    text = page.execute_async_script("window.saved.then(blob => blob.text()).then(arguments[0])")
    assert page.execute_script("return window.savedAs") == f"quickstart.{form}"
    if form == "json":
        assert len(json.loads(text)["cells"]) == 9
    else:
        head, *lines = text.splitlines()
        assert head.startswith("cell,name,status,model")
        assert len(lines) == 9


@pytest.mark.parametrize("width", [1280, 768, 360, 320])
def test_the_page_never_scrolls_sideways(page, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def at_width(page, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_async_script("setTimeout(arguments[0], 100)")


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_table_ends_at_the_edge_of_a_column_and_says_what_is_beyond(page, width):
    at_width(page, width)
    edge, ends = page.execute_script(
        "const box = document.querySelector('#cells').parentElement;"
        "const rect = box.getBoundingClientRect();"
        "const heads = [...box.querySelectorAll('thead tr:last-child > *')];"
        "return [rect.left + box.clientLeft + box.clientWidth,"
        " heads.map(head => head.getBoundingClientRect().right)]"
    )
    assert min(abs(end - edge) for end in ends) <= 1
    beyond = sum(end > edge + 1 for end in ends)
    hint = "return document.querySelector('#cells').parentElement.nextElementSibling.textContent"
    assert page.execute_script(hint) == f"{beyond} more columns to the right"
    more = "return document.querySelector('#cells').parentElement.dataset.more"
    assert page.execute_script(more) == "right"
    page.execute_script("document.querySelector('#cells').parentElement.scrollTo(9999, 0)")
    page.execute_async_script("setTimeout(arguments[0], 100)")
    assert page.execute_script(more) == "left"


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_menu_of_columns_stays_within_the_page(page, width):
    at_width(page, width)
    page.execute_script("document.querySelector('.menu').open = true")
    left, right = page.execute_script(
        "const r = document.querySelector('.menu > div').getBoundingClientRect();"
        "return [r.left, r.right]"
    )
    assert left >= 0
    assert right <= width


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_a_wide_figure_of_the_verdict_stays_beside_its_words(page, width):
    at_width(page, width)
    beside = page.execute_script(
        "return [...document.querySelectorAll('.verdict li')].map(one => {"
        "  const figure = one.querySelector('.figure'), words = one.querySelector('p');"
        "  figure.textContent = '10 of 199';"
        "  const range = document.createRange(); range.selectNodeContents(figure);"
        "  const text = range.getBoundingClientRect(), rest = words.getBoundingClientRect();"
        "  return text.right <= rest.left || text.bottom <= rest.top; })"
    )
    assert beside
    assert all(beside)


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_every_width_has_the_navigation(page, width):
    at_width(page, width)
    link = page.find_element("css selector", ".bar nav a")
    assert link.is_displayed()
    assert link.rect["height"] >= 24


def test_hostile_logs_run_nothing(page):
    assert page.execute_script("return document.querySelectorAll('img').length") == 0
    assert page.execute_script("return document.scripts.length") == 2


def test_no_target_is_smaller_than_24_pixels(page):
    small = page.execute_script(
        "return [...document.querySelectorAll('button, summary')].filter(e => e.offsetParent)"
        ".filter(e => e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"
    )
    assert small == []


def test_without_script_the_numbers_are_all_there(browser, report):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(report.as_uri())
        assert len(browser.find_elements("css selector", "#cells tbody tr")) == 10
        assert not browser.find_element("css selector", "#theme").is_displayed()
        assert browser.find_element("css selector", "svg.plot").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
