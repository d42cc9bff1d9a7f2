"""Make the one environment that the tox environments share, or leave it alone where it is up to date.

tox gives every environment name a virtual environment of its own and wipes one that two names point at; with torch in
it that would be gigabytes and minutes twice. Called with the folder of the shared environment.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path) -> None:
    wanted = hashlib.sha256(sys.version.encode())
    for path in (ROOT / "pyproject.toml", ROOT / ".ci" / "constraints.txt"):
        wanted.update(path.read_bytes())
    stamp = folder / ".prunebench-environment"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted.hexdigest():
        return
    print(
        f"installing prunebench and what it needs into {folder} (once, a few minutes)", flush=True
    )
    stamp.unlink(missing_ok=True)
    if not (folder / "bin" / "python").exists():
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    subprocess.run(
        [*pip, "-c", str(ROOT / ".ci" / "constraints.txt"), "-e", f"{ROOT}[hub,dev]"], check=True
    )
    stamp.write_text(wanted.hexdigest(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
