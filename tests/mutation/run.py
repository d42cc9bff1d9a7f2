"""Break every method, sampler and protocol in ten places each, and count what the tests notice.

    python tests/mutation/run.py [NAME ...] [--places 10] [--seed 0] [--jobs 2]

`tox run -e mutation` runs it. Each mutant is run in a fork of a process that has imported torch and
transformers, with the mutated module in place of the real one; nothing is written. A mutant is
killed if a test of its file fails or takes too long. `targets.py` has the files and their tests. The
table at the end counts the survivors; the exit code is 1 if fewer than 95 % were killed.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from mutants import Mutant, mutants
from targets import SPEED_ONLY, TARGETS

ROOT = Path(__file__).resolve().parents[2]
WANTED = 0.95
# Libraries that the parent has imported cannot be rewritten for pytest's asserts any more.
QUICKLY = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
LONGEST_S = 120


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module: the mutant."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def pytest_sessionstart(self) -> None:
        """As a plugin of pytest: go before the hook that rewrites asserts, which finds everything."""
        self.first()

    pytest_load_initial_conftests = pytest_sessionstart

    def first(self) -> None:
        sys.meta_path[:] = [self, *(one for one in sys.meta_path if one is not self)]

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def run(path: str, source: str, tests: Sequence[str]) -> int:
    """The process that runs these tests with ``source`` in place of the file's own."""
    process = os.fork()
    if process:
        return process
    os.setsid()  # so that a mutant that hangs can be ended with its children
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    name = path.partition("/")[2].removesuffix(".py").replace("/", ".")
    mutated = Mutated(name, ROOT / path, source)
    mutated.first()
    import pytest

    code = 1
    try:
        code = int(pytest.main([*QUICKLY, *tests], plugins=[mutated]))
    finally:
        os._exit(code)


def verdicts(jobs: list[tuple[str, Mutant, Sequence[str]]], at_once: int) -> list[bool]:
    """Whether each mutant was killed; a test that fails, hangs or cannot be collected kills it."""
    killed = [True] * len(jobs)
    running: dict[int, tuple[int, float]] = {}
    waiting = list(range(len(jobs)))[::-1]
    while waiting or running:
        while waiting and len(running) < at_once:
            index = waiting.pop()
            path, mutant, tests = jobs[index]
            running[run(path, mutant.source, tests)] = index, time.monotonic()
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            index, _ = running.pop(process)
            killed[index] = os.waitstatus_to_exitcode(status) != 0
            path, mutant, _ = jobs[index]
            mark = "killed  " if killed[index] else "SURVIVED" if mutant.line else "sound   "
            print(f"{mark} {path}:{mutant.line}: {mutant.words}", flush=True)
            continue
        time.sleep(0.05)
        for process, (_, begun) in running.items():
            if time.monotonic() - begun > LONGEST_S:
                os.killpg(process, signal.SIGKILL)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="parts of file names; default: every file")
    parser.add_argument("--places", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HYPOTHESIS_PROFILE"] = "unshrunk"
    targets = {
        path: tests
        for path, tests in TARGETS.items()
        if not given.names or any(name in path for name in given.names)
    }
    # Every fork would import them. None of them imports what is broken.
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    whole = [
        (path, Mutant(0, "nothing", (ROOT / path).read_text(encoding="utf-8")), tests)
        for path, tests in targets.items()
    ]
    if broken := [
        path for (path, *_), dead in zip(whole, verdicts(whole, given.jobs), strict=True) if dead
    ]:
        sys.exit(f"tests fail without any mistake: {', '.join(broken)}")
    jobs = [
        (path, mutant, tests)
        for path, tests in targets.items()
        for mutant in mutants(
            (ROOT / path).read_text(encoding="utf-8"),
            given.places,
            given.seed,
            SPEED_ONLY.get(path, ()),
        )
    ]
    if not jobs:
        sys.exit("there is no place for a mistake")
    killed = verdicts(jobs, given.jobs)
    print(f"\n{'file':58}  places  killed  survived")
    for path in targets:
        of = [dead for (file, _, _), dead in zip(jobs, killed, strict=True) if file == path]
        print(f"{path:58}  {len(of):6}  {sum(of):6}  {len(of) - sum(of):8}")
    share = sum(killed) / len(killed)
    print(
        f"{'all':58}  {len(killed):6}  {sum(killed):6}  {len(killed) - sum(killed):8}  {share:.1%}"
    )
    sys.exit(share < WANTED)


if __name__ == "__main__":
    main()
