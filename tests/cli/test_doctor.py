"""`prunebench doctor`: what this machine can measure, and why not the rest."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from prunebench.cli import prunebench as command


def invoke(*arguments: str | Path):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_doctor_lists_what_can_be_measured() -> None:
    found = json.loads(invoke("doctor", "--offline", "--json").output)
    by_name = {one["name"]: one for one in found}
    assert {"machine", "versions", "measured", "caches", "plugins"} == {
        one["topic"] for one in found
    }
    assert {one["status"] for one in found} <= {"ok", "no"}
    assert all(one["text"] for one in found)
    assert by_name["prunebench"]["status"] == "ok"
    text = invoke("doctor", "--offline").output
    assert "energy of the CPU" in text


def test_doctor_stops_waiting_for_a_hub_that_does_not_answer(monkeypatch) -> None:
    import threading
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: threading.Event().wait())
    monkeypatch.setattr("prunebench.cli.doctor.LIMIT_S", 0.2)
    found = {one["topic"]: one for one in json.loads(invoke("doctor", "--json").output)}
    assert found["network"]["status"] == "no"
    assert "no answer within 0.2 s" in found["network"]["text"]
