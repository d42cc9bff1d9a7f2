"""Ask for huge pages in the processes of our own that time models."""

from __future__ import annotations

import os

NAME = "THP_MEM_ALLOC_ENABLE"
"""Torch's name. It asks Linux for huge pages for every CPU tensor of 2 MiB or more."""


def ask_for_huge_pages() -> None:
    """Let big tensors lie on huge pages. Call it before torch makes a tensor; a user's value stays.

    A model keeps its pages as long as its process lives. On pages of 4 KiB two copies of one model
    differed by up to 2 % in every round, which more rounds do not show: of 24 intervals of such
    pairs 21 held 1, on huge pages all 24.
    """
    os.environ.setdefault(NAME, "1")
