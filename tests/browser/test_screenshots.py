"""Pictures of the whole report: PRUNEBENCH_SCREENSHOTS=folder pytest tests/browser -k pictures.

PRUNEBENCH_REPORT=path/to/report.html takes pictures of that report instead of the sample.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

VIEWS = [
    ("light", 1280, "light"),
    ("dark", 1280, "dark"),
    ("phone", 360, "light"),
    ("phone-dark", 360, "dark"),
]


@pytest.mark.parametrize("cards", ["closed", "open"])
@pytest.mark.parametrize("view", VIEWS, ids=[view[0] for view in VIEWS])
def test_pictures(screenshots, browser, report, view, cards):
    name, width, scheme = view
    named = os.environ.get("PRUNEBENCH_REPORT")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(Path(named).resolve().as_uri() if named else report.as_uri())
    if cards == "open":
        browser.execute_script(
            "[...document.querySelectorAll('details.card')].slice(0, 9).forEach(d => d.open = true)"
        )
    height = browser.execute_script("return document.documentElement.scrollHeight")
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot",
        {
            "captureBeyondViewport": True,
            "clip": {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1},
        },
    )
    path = screenshots / f"{name}-{cards}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    assert path.stat().st_size > 10_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
