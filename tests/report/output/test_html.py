"""The HTML file: whole, offline, safe, readable, the same each time."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import prunebench_report
from prunebench.errors import PrunebenchError
from prunebench.record.codec import CHECKSUM, checksum
from prunebench_report import render, write_report

HOSTILE = (
    '</script></style><img src=x onerror="alert(1)">"\'><svg onload=alert(2)>'
    "{{ 7*7 }}\x00\x1b[31m\u202egnp\u2066"
)


class Page(HTMLParser):
    """Elements, attributes and texts of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.pictures: list[tuple[dict[str, str | None], list[str]]] = []
        """The outermost SVGs, each with the names of the elements in it."""
        self._depth = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if self._depth:
            self.pictures[-1][1].append(tag)
        elif tag == "svg":
            self.pictures.append((dict(attrs), []))
        self._depth += tag == "svg"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self._depth -= tag == "svg"

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(build, tmp_path_factory):
    records = [*build.quickstart(), build.failed(build.cell("sparsegpt", sparsity=0.5))]
    folder = tmp_path_factory.mktemp("document") / "run"
    return render(build.store(folder, records, missing=[build.cell("owl")]))


def test_the_report_is_written_into_the_run_folder(build, tmp_path):
    store = build.store(tmp_path / "run", build.quickstart()[:2])
    assert write_report(store.folder) == store.report_path
    assert store.report_path.read_text(encoding="utf-8") == render(store)
    with pytest.raises(PrunebenchError, match=r"no plan\.json"):
        write_report(tmp_path)


def test_the_same_store_gives_the_same_bytes_in_any_process(build, tmp_path):
    store = build.store(tmp_path / "run", build.quickstart())
    code = "import sys, pathlib, prunebench_report as r; r.write_report(pathlib.Path(sys.argv[1]))"
    files = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo"}
        command = [sys.executable, "-c", code, str(store.folder)]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
        files.append(store.report_path.read_bytes())
    assert files[0] == files[1] == render(store).encode()


def test_nothing_is_fetched(html):
    for _, attrs in Page(html).tags:
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href", "style"):
            assert not re.search(r"(?:https?:)?//", attrs.get(name) or ""), attrs
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    assert not Page(html).all("base")


def test_every_link_leads_somewhere_in_the_file_and_no_id_repeats(html):
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        if (attrs.get("href") or "").startswith("#"):
            assert attrs["href"][1:] in ids
        for name in (attrs.get("aria-labelledby") or "").split():
            assert name in ids


def test_the_policy_allows_exactly_the_script_that_is_there(html):
    (policy,) = [attrs["content"] for attrs in Page(html).all("meta") if "http-equiv" in attrs]
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_style_and_script_are_small(html):
    folder = Path(prunebench_report.__file__).parent / "output"
    assert (
        sum((folder / name).stat().st_size for name in ("style.css", "page.js", "table.js"))
        < 40_000
    )
    assert len(html.encode()) < 600_000


def test_fifty_cells_stay_below_two_megabytes(build, tmp_path):
    records = [record for seed in range(7) for record in build.quickstart(seed=seed)][:50]
    assert len(render(build.store(tmp_path / "run", records)).encode()) < 2_000_000


def test_the_page_has_a_structure_for_screen_readers(html):
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert page.pictures
    for attrs, inside in page.pictures:
        if attrs.get("aria-hidden") != "true":
            assert attrs.get("role") in ("img", "group"), attrs
            # Its title, which comes first, is its name.
            assert "aria-label" in attrs or inside[0] == "title", attrs
    assert all("scope" in attrs for attrs in page.all("th"))
    assert all(attrs.get("type") == "button" for attrs in page.all("button"))
    scrolled = [attrs for _, attrs in page.tags if "scroll" in (attrs.get("class") or "").split()]
    assert scrolled
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolled)
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    assert sum("aria-sort" in attrs for attrs in page.all("th")) == html.count('class="sort"')


def luminance(colour):
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_reaches_wcag_aa(theme):
    style = (Path(prunebench_report.__file__).parent / "output" / "style.css").read_text(
        encoding="utf-8"
    )
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", style)
    colours = {name: (light, dark)[theme] for name, light, dark in pairs}
    grounds = ("bg", "surface", "raised")
    for ground in grounds:
        for text in ("ink", "muted", "grey", "accent", "better", "worse"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text in ("warn", "muted", "accent"):
        assert contrast(colours[text], colours["warn-bg"]) >= 4.5, text
    for mark in [name for name in colours if re.fullmatch(r"m\d|heat", name)]:
        assert contrast(colours[mark], colours["surface"]) >= 3, mark


def embedded(html):
    return json.loads(gzip.decompress(base64.b64decode(re.search(r'id="data">(.*?)<', html)[1])))


def hostile_run(build, tmp_path):
    strange = build.cell("wanda", HOSTILE, sparsity=HOSTILE)
    bad = build.failed(build.cell(HOSTILE), message=HOSTILE, log=HOSTILE * 2000)
    bad.error.type = bad.error.phase = bad.error.hint = bad.error.command = HOSTILE
    good = build.record(build.cell("shortgpt", HOSTILE, ratio=0.1), 41.0, 1.2)
    good.flags = [HOSTILE]
    good.method_notes = {HOSTILE: [HOSTILE, {"deep": HOSTILE}]}
    good.provenance |= {"cpu": HOSTILE, HOSTILE: HOSTILE, "lone": "LONE"}
    good.quality.perplexity[0].corpus = HOSTILE
    good.audit.form = good.audit.note = HOSTILE
    for one in good.audit.linears:
        one.name = HOSTILE
    dense = build.quickstart(HOSTILE)[0]
    store = build.store(
        tmp_path / "run", [dense, good, bad], missing=[strange], title=HOSTILE, suite_text=HOSTILE
    )
    store.record_path(strange.id).write_text(HOSTILE, encoding="utf-8")
    data = json.loads(
        store.record_path(good.id).read_text(encoding="utf-8").replace("LONE", "\\ud800")
    )
    data.pop(CHECKSUM)
    store.record_path(good.id).write_text(
        json.dumps({**data, CHECKSUM: checksum(data)}), encoding="utf-8"
    )
    return store


def test_hostile_text_stays_text(build, tmp_path):
    html = render(hostile_run(build, tmp_path))
    page = Page(html)
    assert len(page.all("script")) == 2
    assert len(page.all("style")) == 1
    assert not page.all("img")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "{{ 7*7 }}" in html
    assert not set(html) & set("\x00\x1b\u202e\u2066")
    assert any("<img src=x" in text for text in page.texts)
    embedded(html)
    html.encode("utf-8")
    assert len(html) < 600_000


def test_a_megabyte_of_text_stays_short_and_text(build, tmp_path):
    huge = "</script>\u202e\x1b[0m" + "x<b>&" * 200_000
    bad = build.failed(build.cell("wanda", sparsity=0.5), message=huge, log=huge)
    bad.error.hint = bad.error.type = huge[:2000]
    good = build.record(build.cell("shortgpt", ratio=0.1), 41.0, 1.2)
    good.method_notes = {"note": huge}
    good.provenance["cpu"] = huge
    html = render(
        build.store(
            tmp_path / "run", [build.quickstart()[0], good, bad], title=huge[:200], suite_text=huge
        )
    )
    assert len(html) < 1_000_000
    assert len(Page(html).all("script")) == 2
    assert not set(html) & set("\x1b\u202e")


def test_a_large_run_shows_all_rows_and_the_cards_that_matter(build, tmp_path):
    records = [build.quickstart()[0], build.quickstart()[6]]
    records += [
        build.record(build.cell("wanda", sparsity=n / 100), 25 + n, 1.0) for n in range(1, 65)
    ]
    records += [build.failed(build.cell("owl", sparsity=n / 100)) for n in range(1, 46)]
    html = render(build.store(tmp_path / "run", records))
    page = Page(html)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert all(f"row-{record.id}" in ids for record in records)
    assert f"cell-{records[0].id}" in ids
    assert f"cell-{records[1].id}" in ids
    assert sum((one or "").startswith("cell-") for one in ids) == 28
    assert "28 of 111 cells" in html
    assert "5 more, without their logs" in html
    data = embedded(html)
    assert len(data["cells"]) == len(records)
    for _, attrs in page.tags:
        if (attrs.get("href") or "").startswith("#"):
            assert attrs["href"][1:] in ids


def test_a_running_report_reloads_itself_and_a_finished_one_does_not(build, tmp_path):
    store = build.store(tmp_path / "run", build.quickstart()[:2], missing=[build.cell("owl")])
    running = render(store, running=True)
    assert '<meta http-equiv="refresh" content="30">' in running
    assert "Still running." in running
    assert "Not run:" not in running
    assert 'http-equiv="refresh"' not in render(store)


def test_no_template_uses_the_filter_safe():
    folder = Path(prunebench_report.__file__).parent / "output" / "templates"
    for template in folder.glob("*.j2"):
        assert "safe" not in re.findall(r"\|\s*(\w+)", template.read_text(encoding="utf-8")), (
            template.name
        )


@pytest.mark.parametrize("count", [1, 2])
def test_runs_of_failures_only_are_reported(build, tmp_path, count):
    records = [build.failed(build.cell("wanda", sparsity=0.1 * n)) for n in range(1, count + 1)]
    html = render(build.store(tmp_path / "run", records))
    assert "No cell gave a result" in html
    assert not Page(html).all("figure")


@pytest.mark.parametrize("index", [0, 3])
def test_one_cell_alone_is_reported(build, tmp_path, index):
    html = render(build.store(tmp_path / "run", [build.quickstart()[index]]))
    assert "25.05" in html or "52.31" in html


def test_an_empty_run_is_reported(build, tmp_path):
    page = Page(
        render(
            build.store(tmp_path / "run", [], missing=[build.cell("dense"), build.cell("wanda")])
        )
    )
    assert [attrs.get("data-status") for attrs in page.all("span")].count(
        "not run"
    ) == 3  # in the totals and two rows


PARTS = ["audit", "quality", "speed", "memory", "io", "cost", "samples", "provenance"]


@pytest.mark.parametrize(
    ("who", "part"),
    [("all", part) for part in PARTS]
    + [(who, part) for who in ("dense", "pruned") for part in PARTS[:4]],
)
def test_records_without_some_parts_are_reported(build, tmp_path, part, who):
    records = [
        record
        for record in build.quickstart()
        if record.cell.method.name in ("dense", "wanda", "shortgpt")
    ]
    for record in records:
        if who == "all" or (record.cell.method.name == "dense") == (who == "dense"):
            setattr(record, part, {} if part == "provenance" else None)
    page = Page(render(build.store(tmp_path / "run", records)))
    assert sum((attrs.get("id") or "").startswith("row-") for _, attrs in page.tags) == len(records)


def test_inner_values_may_be_missing(build, tmp_path):
    records = build.quickstart()
    for record in records:
        record.memory.peak_rss_bytes = record.memory.uss_bytes = (
            record.memory.baseline_rss_bytes
        ) = None
        record.io.load.disk_read_bytes = record.io.load.cache = None
        record.io.load.seconds = 0.0
        record.io.generation = []
        record.quality.perplexity[0].nll_stderr = None
        record.cost.phases = []
        record.samples.latency = []
        record.samples.memory = None
        record.started = record.finished = "yesterday"
    store = build.store(tmp_path / "run", records)
    store.suite_path.unlink()
    assert "n/a" in render(store)


def test_importing_the_package_is_cheap():
    code = (
        "import sys, prunebench_report; "
        "heavy = ('pandas', 'jinja2', 'numpy', 'torch'); "
        "sys.exit(any(module in sys.modules for module in heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
