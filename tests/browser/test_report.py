"""The report in a real browser: it sorts, opens, turns dark, fits a phone, and asks the network for nothing."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.browser


def column(page, index):
    script = (
        "return [...document.querySelectorAll('#cells tbody tr')].map(r => r.cells[arguments[0]].dataset.v ?? null)"
    )
    return [None if value is None else float(value) for value in page.execute_script(script, index)]


def names(page):
    return page.execute_script("return [...document.querySelectorAll('#cells tbody th')].map(h => h.dataset.t)")


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
        page.execute_script("document.querySelector('button.sort[data-column=\"1\"]').click()")
        return column(page, 1), page.execute_script(
            "return document.querySelectorAll('#cells [aria-sort]')[1].ariaSort"
        )

    for direction in (1, -1):
        values, said = sort()
        assert said == ("ascending" if direction == 1 else "descending")
        assert names(page)[0] == "dense"
        known = [value for value in values[1:] if value is not None]
        assert known == sorted(known, reverse=direction < 0)
        assert values[-2:] == [None, None]
    assert (
        page.execute_script("return document.getElementById('said').textContent") == "Sorted by Perplexity, descending"
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


@pytest.mark.parametrize("form", ["csv", "json"])
def test_downloads_hold_the_table(page, form):
    page.execute_script(
        "window.saved = []; const make = URL.createObjectURL;"
        "URL.createObjectURL = blob => { window.saved.push(blob); return make(blob); };"
        "HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; };"
    )
    press(page, f"#save-{form}")
    text = page.execute_async_script("window.saved[0].text().then(arguments[0])")
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
