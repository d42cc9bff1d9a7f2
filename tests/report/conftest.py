from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build():
    """The module `builder` beside this file."""
    spec = importlib.util.spec_from_file_location(
        "report_builder", Path(__file__).with_name("builder.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_builder"] = module
    spec.loader.exec_module(module)
    return module
