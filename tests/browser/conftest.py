from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import report_builder
from prunebench_report import write_report

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """A realistic report, with a failed cell and one that was not run."""
    folder = tmp_path_factory.mktemp("report") / "run"
    broken = report_builder.failed(
        report_builder.cell("sparsegpt", sparsity=0.5),
        log='</script><img src=x onerror="alert(1)">',
    )
    report_builder.store(
        folder,
        [*report_builder.quickstart(), broken],
        missing=[report_builder.cell("owl", sparsity=0.6)],
    )
    return write_report(folder)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium that logs its console and its network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip(
            "chromium or chromedriver is not installed (apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_page_load_timeout(60)
    yield started
    started.quit()


@pytest.fixture
def page(browser, report):
    """The report opened afresh in a wide window, logs emptied."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    still = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", still)
    browser.set_window_size(1280, 900)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(report.as_uri())
    return browser


@pytest.fixture
def requests(browser):
    """A function that gives the addresses asked for since the page was opened."""

    def asked() -> list[str]:
        messages = [
            json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
        ]
        return [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]

    return asked


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """The folder that PRUNEBENCH_SCREENSHOTS names; skips where it names none."""
    named = os.environ.get("PRUNEBENCH_SCREENSHOTS")
    if not named:
        pytest.skip("PRUNEBENCH_SCREENSHOTS names no folder for the pictures")
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
