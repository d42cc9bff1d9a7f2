"""prunebench: a benchmark harness for pruning large language models.

All that a plugin needs is importable from here; `__init__.pyi` lists it. A name is imported when it
is first used, so that `import prunebench` costs nothing.
"""

from prunebench.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
