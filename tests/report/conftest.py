from __future__ import annotations

from types import ModuleType

import pytest

import report_builder


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """Makes cells, records and run folders."""
    return report_builder
