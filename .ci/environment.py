"""Make the virtual environment that all tox environments share; do nothing if it is up to date.

tox makes a virtual environment for every environment name, and wipes one that two names share. With
torch in each of them that would cost gigabytes and minutes. The argument is the folder.
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
    # The stamp says which Python and which requirements the environment was made for.
    stamp = folder / ".prunebench-environment"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted.hexdigest():
        return
    print(
        f"installing prunebench and its requirements into {folder} (once, a few minutes)",
        flush=True,
    )
    stamp.unlink(missing_ok=True)  # an installation that is interrupted is not taken for complete
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
