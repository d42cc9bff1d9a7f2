"""Let transformers load a folder without reading its weights, and say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def trial(folder: Path) -> str | None:
    """Why `AutoModelForCausalLM.from_pretrained` does not give this model; None if it does.

    The model is built on the meta device, so that any size takes no memory. Code that comes with
    the model is not run.
    """
    from transformers import AutoModelForCausalLM

    from prunebench.errors import PrunebenchError
    from prunebench.model.loading_report import check_loaded
    from prunebench.model.quiet import quiet

    loader: Any = AutoModelForCausalLM
    try:
        with quiet():
            _, report = loader.from_pretrained(
                folder,
                device_map="meta",  # headers of the files are read, not the tensors
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                # Do not stop at the first wrong shape: the report then names all of them.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        # transformers initialises what is missing at random, and only warns about it.
        check_loaded(folder, report)
    except PrunebenchError as error:
        return error.message
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:300]
    return None
