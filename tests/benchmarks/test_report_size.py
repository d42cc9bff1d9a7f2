"""The size of a report, and its times to render, to appear and to sort (`tox run -e bench`)."""

from __future__ import annotations

import shutil

import pytest

import report_builder
from cpu_time import cpu_timed
from prunebench_report import render

pytestmark = pytest.mark.bench

SECONDS = 5


def records(count):
    """Dense, and ``cells`` different cells of five methods."""
    found = [report_builder.quickstart()[0]]
    methods = ["magnitude", "wanda", "sparsegpt", "random", "owl"]
    for number in range(1, count):
        if number % 4 == 0:
            cell = report_builder.cell("shortgpt", ratio=round(number / (4 * count), 5))
            found.append(report_builder.record(cell, 25 + number * 0.3, 1 + number / count / 2))
        else:
            cell = report_builder.cell(methods[number % 5], sparsity=round(number / count, 5))
            found.append(
                report_builder.record(cell, 25 + (number % 97) * 3, 1 + (number % 7) / 1000)
            )
    return found


@pytest.fixture(scope="module", params=[50, 1000])
def rendered(request, tmp_path_factory):
    """(cells, CPU seconds, file) of a report."""
    folder = tmp_path_factory.mktemp("sizes")
    store = report_builder.store(folder / "run", records(request.param))
    text, spent = cpu_timed(lambda: render(store))
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return request.param, spent, path


def test_size_and_time_to_render(rendered, figure):
    cells, seconds, path = rendered
    size = path.stat().st_size
    most = {50: 1_000_000, 1000: 2_000_000}[cells]
    figure(
        f"report of {cells:,} cells",
        f"{size / 1e6:.2f} MB in {seconds:.1f} s",
        f"at most {most / 1e6:g} MB, {SECONDS} s",
    )
    assert size <= most
    assert seconds <= SECONDS


def test_first_paint_and_sorting(rendered, tmp_path, figure):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    cells, _, path = rendered
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip(
            "chromium or chromedriver is not installed (apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        browser.set_window_size(1280, 900)
        paints, sorts = [], []
        for _ in range(3):
            browser.get("about:blank")
            browser.get(path.as_uri())
            browser.execute_async_script(
                "requestAnimationFrame(() => setTimeout(arguments[0], 50))"
            )
            paints.append(
                browser.execute_script(
                    "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
                )
            )
            sorts += browser.execute_script(
                "return ['perplexity', 'cell', 'inter_token_speedup'].map(key => {"
                "  const begun = performance.now();"
                "  document.querySelector(`button.sort[data-key=${key}]`).click();"
                "  document.getElementById('cells').offsetHeight;"
                "  return performance.now() - begun; })"
            )
    finally:
        browser.quit()
    paint, sort = min(paints), min(sorts)
    figure(
        f"report of {cells:,} cells, first paint and sorting",
        f"{paint:.0f} ms, {sort:.0f} ms",
        "less than 500 ms, 100 ms",
    )
    assert paint < 500
    assert sort < 100
