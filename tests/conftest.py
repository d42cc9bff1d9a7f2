"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says nothing on a machine that does other things beside.
settings.register_profile("untimed", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "untimed"))
