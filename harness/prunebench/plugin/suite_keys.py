"""Keys that a suite writes beside a plugin's own options.

The options of the kinds that have such a key cannot use its name (`prunebench.plugin.kinds`).
"""

from __future__ import annotations

ALLOCATION = "allocation"
"""Beside a method's options: how its sparsity is spread over the layers."""
RECOVERY = "recovery"
"""Beside a method's options: what repairs the pruned model."""
CALIBRATION = "calibration"
"""Beside a method's options: calibration text other than the suite's."""
DATA = "data"
"""Beside the options of a recovery or a metric: the text that it trains on or measures."""
