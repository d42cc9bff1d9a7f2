"""An NVML that answers as a file says, and a recorder that writes such a file from the real one.

A session is JSON: `origin` says where it comes from, `visible` is CUDA_VISIBLE_DEVICES, `calls`
maps `function(arguments)` to its answers: one for each call, and the last one for all later calls.
An answer is a number, a text, a list, `{"error": "NVML_ERROR_..."}`, `{"handle": name}`,
`{"gpm_sample": n}`, `{"gpm_percent": x}`, `{"hang": true}`, or else a structure. The pid "self" is
that of the watched process. A function that the file does not have is not found, as in an older
driver.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

FOLDER = Path(__file__).parent / "measure" / "devices" / "nvml"
_SHIM = """\
import importlib.util, sys
spec = importlib.util.spec_from_file_location("nvml_replay", {here!r})
module = importlib.util.module_from_spec(spec)
sys.modules["nvml_replay"] = module
spec.loader.exec_module(module)
sys.modules["pynvml"] = module.replay({session!r}, {pid})
"""


class Handle(str):
    __slots__ = ()


@cache
def real() -> ModuleType:
    """The installed pynvml, for its constants, structures and errors; these need no driver."""
    places = [place for place in sys.path if not (Path(place) / "replayed").exists()]
    found = importlib.machinery.PathFinder.find_spec("pynvml", places)
    spec = importlib.util.spec_from_file_location("real_pynvml", found.origin)
    # pynvml looks itself up in sys.modules.
    module = sys.modules["real_pynvml"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def replay(session: dict, pid: int | None = None) -> ModuleType:
    """A module pynvml that answers like the ``session``; ``pid`` is the watched process."""
    module = ModuleType("pynvml")
    asked = dict.fromkeys(session["calls"], 0)
    module.asked = asked

    def function(name):
        def call(*arguments):
            key = f"{name}({', '.join(map(_name, arguments))})"
            if key not in asked:
                raise real().NVMLError(real().NVML_ERROR_FUNCTION_NOT_FOUND)
            answers = session["calls"][key]
            answer = answers[min(asked[key], len(answers) - 1)]
            asked[key] += 1
            return _value(answer, pid or os.getpid(), arguments)

        return call

    def attribute(name):
        if name.startswith("nvml"):
            return function(name)
        return getattr(real(), name)

    module.__getattr__ = attribute
    return module


def shim(folder: Path, session: dict, pid: int | None = None) -> Path:
    """A folder for PYTHONPATH in which `import pynvml` finds the ``session``."""
    folder.mkdir()
    (folder / "replayed").touch()
    code = _SHIM.format(here=str(Path(__file__)), session=session, pid=pid or os.getpid())
    (folder / "pynvml.py").write_text(code, encoding="utf-8")
    return folder


def hang() -> None:
    """Wait for ever, as a call of a broken driver does."""
    print("NVML hangs", file=sys.stderr, flush=True)
    threading.Event().wait()


def _name(argument) -> str:
    return str(argument) if isinstance(argument, str | int) else "..."


def _value(answer, pid, arguments):
    if isinstance(answer, list):
        return [_value(one, pid, arguments) for one in answer]
    if not isinstance(answer, dict):
        return answer
    match answer:
        case {"error": code}:
            raise real().NVMLError(getattr(real(), code))
        case {"handle": name}:
            return Handle(name)
        case {"hang": _}:
            hang()
        case {"gpm_sample": _}:
            return real().c_nvmlGpmSample_t()
        case {"gpm_percent": percent}:
            arguments[0].metrics[0].value = percent
            return arguments[0]
    return SimpleNamespace(
        **{key: pid if value == "self" else value for key, value in answer.items()}
    )


class Recorder:
    """Passes calls on to pynvml and notes every answer; `save` writes the session."""

    def __init__(self, library: ModuleType, visible: str | None) -> None:
        self._library = library
        self._visible = visible
        self._calls: dict[str, list] = {}
        self._handles: dict[int, str] = {}
        self._kept: list[object] = []

    def __getattr__(self, name):
        attribute = getattr(self._library, name)
        return self._function(name, attribute) if name.startswith("nvml") else attribute

    def save(self, path: Path, origin: str) -> None:
        kept = {key: _shortened(answers) for key, answers in self._calls.items()}
        session = {"origin": origin, "visible": self._visible, "calls": kept}
        path.write_text(json.dumps(session, indent=1) + "\n", encoding="utf-8")

    def _function(self, name, function):
        def call(*arguments):
            known = [self._handles.get(id(argument), argument) for argument in arguments]
            answers = self._calls.setdefault(f"{name}({', '.join(map(_name, known))})", [])
            try:
                value = function(*arguments)
            except self._library.NVMLError as error:
                codes = [key for key in dir(real()) if key.startswith("NVML_ERROR_")]
                answers.append(
                    {"error": next(key for key in codes if getattr(real(), key) == error.value)}
                )
                raise
            answers.append(self._plain(value))
            return value

        return call

    def _plain(self, value):
        if value is None or isinstance(value, str | int | float):
            return value
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, list):
            return [self._plain(one) for one in value]
        kind = type(value).__name__
        if "Device" in kind:
            self._handles[id(value)] = f"gpu{len(self._handles)}"
            self._kept.append(value)  # as long as it lives, no other handle has its id
            return {"handle": self._handles[id(value)]}
        if "GpmSample" in kind:
            return {"gpm_sample": 0}
        if "MetricsGet" in kind:
            return {"gpm_percent": value.metrics[0].value}
        names = [field[0] for field in getattr(value, "_fields_", ())] or list(vars(value))
        found = {name: getattr(value, name) for name in names}
        plain = {
            name: one
            for name, one in found.items()
            if one is None or isinstance(one, str | int | float)
        }
        if plain.get("pid") == os.getpid():
            plain["pid"] = "self"
        return plain


def _shortened(answers: list, limit: int = 40) -> list:
    """At most ``limit`` answers; of equal ones at the end only the first."""
    kept = answers[:limit]
    while len(kept) > 1 and kept[-1] == kept[-2]:
        kept.pop()
    return kept
