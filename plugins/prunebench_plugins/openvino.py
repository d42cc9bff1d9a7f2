"""OpenVINO on the CPU, in an environment of its own.

Its exporter (optimum-intel) needs an older transformers than prunebench, so another interpreter
converts and generates, which the option `python` names. `openvino_process.py` is what it runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from prunebench import (
    Field,
    PrunebenchError,
    Reference,
    Runtime,
    RuntimeOptions,
    Session,
    hookimpl,
)

_PROCESS = Path(__file__).with_name("openvino_process.py")
_ERROR = re.compile(r"[\w.]+(Error|Exception): .")


class OpenVino(Runtime):
    """OpenVINO on the CPU. The layers of a model must have one shape."""

    name = "openvino"
    reference = Reference("OpenVINO", code="https://github.com/openvinotoolkit/openvino")

    class Options(RuntimeOptions):
        precision: Literal["fp32", "bf16", "int8"] = Field(
            "fp32", description="what it computes in; int8 stores weights in 8 bits"
        )
        python: str | None = Field(
            None,
            description="interpreter with openvino, optimum-intel and the transformers that they"
            " need; default: prunebench's own",
        )

    def refuses(self, folder: Path) -> str | None:
        pruned = folder / "pruning.json"
        if pruned.is_file() and not json.loads(pruned.read_text(encoding="utf-8"))["plain"]:
            return (
                "its layers have different shapes, and OpenVINO's exporter reads plain transformers"
                " models only"
            )
        return None

    def versions(self) -> Mapping[str, str]:
        found: dict[str, str] = json.loads(self._run("versions"))
        return found

    def convert(self, folder: Path, out: Path, precision: str) -> Path:
        self._run("convert", str(folder), str(out), precision)
        return out

    def open(self, path: Path, threads: int, length: int) -> Session:
        command = [*self._command, "serve", str(path), str(threads), self.options.precision]
        return Process(command, length)

    @property
    def _command(self) -> list[str]:
        # -I: the folder of the script, which is full of plugins, is not put on the path.
        return [self.options.python or sys.executable, "-I", str(_PROCESS)]

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [*self._command, *arguments], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise PrunebenchError(
                f"cannot run {self.options.python}: {error.strerror}",
                hint="name an interpreter: {openvino: {python: /path/to/venv/bin/python}}",
            ) from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no output"]
            # If errors are chained, the first one is the cause: a library that cannot be imported.
            said = next(filter(_ERROR.match, lines), lines[-1])
            raise PrunebenchError(
                f"OpenVINO: {said}",
                hint="make an environment with `pip install optimum-intel openvino`, and name"
                " its interpreter: {openvino: {python: /path/to/venv/bin/python}}",
            )
        return done.stdout


class Process(Session):
    """The other interpreter with a model; one line for each prompt and each token."""

    def __init__(self, command: Sequence[str], length: int) -> None:
        self._length = length
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._read() != "ready":
            raise PrunebenchError("OpenVINO could not open the model")

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        left = self._length - len(prompt)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": list(prompt), "count": left}) + "\n")
        self._process.stdin.flush()
        try:
            while left:
                token = int(self._read())
                left -= 1
                yield token
        finally:
            for _ in range(left):  # the next prompt begins when this one is done
                self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes, too

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PrunebenchError("OpenVINO's process ended; the log has its last lines")
        return line.strip()


@hookimpl
def prunebench_register_runtime() -> type[Runtime]:
    return OpenVino
