"""Plugins may import torch at their top, and listing them does not load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_plugin_may_import_torch_at_its_top_without_loading_it(tmp_path: Path) -> None:
    """In a process of its own, since this one has torch."""
    (tmp_path / "late.py").write_text(
        "import torch\nfrom prunebench import Context, LinearMethod, LinearStats, anatomy\n"
        "def now(): return torch.zeros(2)\n"
    )
    code = (
        "import sys; from prunebench.plugin.lazy_imports import heavy_imports_later\n"
        "with heavy_imports_later():\n    import late\n"
        "assert 'torch' not in sys.modules\n"
        "assert late.now().shape == (2,) and 'torch' in sys.modules\n"
        "import torch; assert isinstance(late.now(), torch.Tensor)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path)})
