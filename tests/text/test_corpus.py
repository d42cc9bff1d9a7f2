from __future__ import annotations

import subprocess
import sys

from prunebench.text import samplers
from prunebench.text.corpus import SAMPLER_NAMES


def test_every_sampler_name_has_a_sampler() -> None:
    assert set(SAMPLER_NAMES) == {*samplers.SAMPLERS, "as-is"}


def test_planning_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, prunebench.text.resolve, prunebench_plugins.boolq_passages;"
        "import prunebench_plugins.hub_corpora as hub; hub.prunebench_register_corpus();"
        "heavy = {'torch', 'numpy', 'datasets', 'huggingface_hub', 'pyarrow'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
