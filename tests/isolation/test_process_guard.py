"""What a plugin changes in its process is undone and flagged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from prunebench.isolation.flags import Flags
from prunebench.isolation.global_settings import Setting, global_settings
from prunebench.isolation.process_guard import guarded

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def test_code_that_changes_nothing_has_no_flags() -> None:
    flags = Flags()
    with guarded("the method", flags):
        torch.ones(3).sum()
    assert flags.found == []


def test_settings_are_restored_and_named() -> None:
    before, seed = torch.get_default_dtype(), torch.initial_seed()
    flags = Flags()
    with guarded("the method", flags):
        torch.set_default_dtype(torch.float16)
        torch.manual_seed(seed + 1)
    assert torch.get_default_dtype() == before
    assert torch.initial_seed() == seed
    assert flags.found == [
        "the method left the default dtype at torch.float16, it was torch.float32; restored",
        f"the method left torch's seed at {seed + 1}, it was {seed}; restored",
    ]


def test_environment_path_folder_and_signals_are_restored(tmp_path: Path) -> None:
    folder, path = Path.cwd(), list(sys.path)
    handler = signal.getsignal(signal.SIGUSR1)
    flags = Flags()
    with guarded("the method", flags):
        os.environ["UNTIDY"] = "1"
        os.chdir(tmp_path)
        sys.path.insert(0, "nowhere")
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert "UNTIDY" not in os.environ
    assert (Path.cwd(), sys.path) == (folder, path)
    assert signal.getsignal(signal.SIGUSR1) == handler
    assert flags.found == [
        "the method changed the environment: UNTIDY; restored",
        "the method changed sys.path; restored",
        "the method changed what SIGUSR1 does; restored",
        "the method changed the working directory; restored",
    ]


def test_hooks_on_all_modules_are_removed() -> None:
    flags = Flags()
    with guarded("the method", flags):
        torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert flags.found == ["the method left a hook on all modules; removed"]
    assert not torch.nn.modules.module._global_forward_hooks


def test_side_effects_are_undone_after_an_exception_too() -> None:
    flags = Flags()
    with pytest.raises(ValueError, match="half way"), guarded("the method", flags):
        os.environ["UNTIDY"] = "1"
        raise ValueError("half way")
    assert "UNTIDY" not in os.environ


def test_a_thread_that_stays_is_named() -> None:
    flags, end = Flags(), threading.Event()
    with guarded("the method", flags):
        threading.Thread(target=end.wait, name="busy").start()
    end.set()
    assert [flag.partition(";")[0] for flag in flags.found] == [
        "the method left threads running: busy"
    ]


@LINUX
def test_a_process_that_stays_is_ended() -> None:
    flags = Flags()
    with guarded("the method", flags):
        left = subprocess.Popen(["sleep", "100"])
    assert "left 1 processes running, which were ended: sleep 100" in flags.found[0]
    # the guard has already collected its exit code, so subprocess cannot
    assert left.wait(5) is not None


@LINUX
def test_a_child_of_before_is_spared() -> None:
    flags = Flags()
    child = subprocess.Popen(["sleep", "100"])
    try:
        with guarded("the method", flags):
            pass
        assert flags.found == []
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_setting_that_cannot_be_restored_says_so() -> None:
    assert Setting("its niceness", lambda: 0, None).restore(0) == "that cannot be undone"

    def refuse(_: object) -> None:
        raise OSError("not permitted")

    assert (
        Setting("the cores", lambda: 0, refuse).restore(0)
        == "that could not be undone (not permitted)"
    )


def test_every_setting_can_be_read_twice_with_the_same_result() -> None:
    assert [one.value() for one in global_settings()] == [one.value() for one in global_settings()]
