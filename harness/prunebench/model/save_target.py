"""The folder that a saved model goes to: it may replace a saved model, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from prunebench.errors import PrunebenchError
from prunebench.model.adapter import FOLDER
from prunebench.model.weight_files import ADAPTER, ADAPTER_WEIGHTS
from prunebench.user_path import user_path

_ELSEWHERE = "choose another folder"
# Names that `save_pretrained` and this harness write.
_WRITTEN = re.compile(
    r"(config|generation_config|pruning|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|tokenizer[\w.-]*\.json|(vocab|merges)\.txt|[\w.-]+\.(model|jinja)"
    r"|model\.gguf|model[\w.-]*\.safetensors|model\.safetensors\.index[\w.-]*\.json|configuration_decilm\.py"
)


def save_target(folder: Path) -> Path:
    """The folder to write to: ``folder`` without links, so that a link stays one.

    Raises PrunebenchError if it cannot be a folder, if it holds anything that would be lost, or if
    the working folder is in it.
    """
    user_path(folder, what="the output folder", hint=_ELSEWHERE)
    real = folder.resolve()
    if real.exists() and Path.cwd().is_relative_to(real):
        raise PrunebenchError(
            f"{folder} is the working folder, or holds it, and would be replaced",
            hint="name a new folder, for example ./pruned",
        )
    check_replaceable(real, folder)
    return real


def check_replaceable(folder: Path, shown: Path) -> None:
    """Raise PrunebenchError unless ``folder``, which messages call ``shown``, may be replaced.

    It may if it does not exist, is empty, or holds a saved model and nothing else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PrunebenchError(f"{shown} is a file, not a folder", hint=_ELSEWHERE)
    names = sorted(path.name for path in folder.iterdir())
    if names and not {"config.json", "model.gguf"} & set(names):
        raise PrunebenchError(f"{shown} exists and is not a checkpoint", hint=_ELSEWHERE)
    others = [name for name in names if not _is_written(folder / name)]
    if others:
        raise PrunebenchError(
            f"{shown} holds more than a saved model, which would be lost: {', '.join(others[:3])}"
            + (" ..." if len(others) > 3 else ""),
            hint=f"move it away, or {_ELSEWHERE}",
        )


def _is_written(path: Path) -> bool:
    if path.name == FOLDER and path.is_dir():
        return {file.name for file in path.iterdir()} <= {ADAPTER, ADAPTER_WEIGHTS}
    return _WRITTEN.fullmatch(path.name) is not None and path.is_file()
