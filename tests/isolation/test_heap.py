"""Freed memory stays with the processes that compute, and goes back when it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc and /proc")

# Blocks of 8 MiB, as activations are, freed and asked for again; bytes and page faults.
CODE = """\
import ctypes, json, resource, sys
from prunebench.isolation.heap import (
    give_tensors_pages, keep_freed_memory, release_freed_memory,
)
if sys.argv[1] != "plain":
    keep_freed_memory()
if sys.argv[1] == "give":
    give_tensors_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def fill():
    blocks = [libc.malloc(8 << 20) for _ in range(6)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        libc.free(block)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
release_freed_memory()
print(json.dumps({"faults": faults, "released": kept - resident()}))
"""


def measured(way: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, way],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    plain, kept = measured("plain"), measured("keep")
    assert plain["faults"] >= 100  # five times 48 MiB, in pages of 2 MiB at most
    assert 10 * kept["faults"] < plain["faults"]


def test_it_goes_back_when_it_is_asked_for() -> None:
    assert measured("keep")["released"] > 40 << 20


def test_tensors_get_pages_of_their_own_again() -> None:
    given = measured("give")
    assert given["faults"] >= 100
    assert given["released"] < 1 << 20  # nothing was left to release


def test_the_users_word_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert measured("keep")["faults"] >= 100
