"""What identifies the dense model of a cell, for what its cells keep of it in the cache folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from prunebench.model.folder import fingerprint

if TYPE_CHECKING:
    from prunebench.cell.setup import CellSetup


def dense_identity(setup: CellSetup) -> Callable[[], str] | None:
    """What decides, to the last bit, what the dense model computes in this process.

    None if nothing pins it: the devices of a model that is spread over several depend on the memory
    that is free, and code from the Hub may come from a repository of its own.
    """
    model = setup.cell.model
    hub = model.kind == "hub"
    if model.placement is not None or (hub and model.trust_remote_code):
        return None

    @cache
    def identify() -> str:
        cuda = setup.device.startswith("cuda")
        return json.dumps(
            {
                # The Hub's cache names a folder by its commit; hashing a large model takes minutes.
                "files": [model.location, setup.folder.name]
                if hub
                else fingerprint(setup.folder, code=model.trust_remote_code),
                "dtype": model.dtype,
                "device": torch.cuda.get_device_name(setup.device) if cuda else setup.device,
                "capability": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "versions": [version(name) for name in ("prunebench", "torch", "transformers")],
            }
        )

    return identify
