"""Options that name a file: where it is, when a suite or a command line names it.

A cell must not depend on where it runs. So an option should hold what is in the file, read by a
pydantic validator; the cell's id and its record then do so too, and the file may move.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError
from prunebench.user_path import user_path

if TYPE_CHECKING:
    from pydantic import ValidationInfo

FOLDERS = "folders"
"""Key of pydantic's validation context: the folder that relative names start from, by option."""


def option_file(text: str, info: ValidationInfo) -> Path:
    """The file that an option names, for a validator of that option.

    A relative name starts from the suite's folder, and from the working folder if it was given on
    the command line or in Python. Raises ValueError if no such file can be read.
    """
    folders: Mapping[str, Path] = (info.context or {}).get(FOLDERS, {})
    try:
        path = user_path(
            text, what="the file", hint="name a file", base=folders.get(info.field_name or "")
        )
    except PrunebenchError as error:
        raise ValueError(error.message) from error
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'not there'}, no file")
    return path
