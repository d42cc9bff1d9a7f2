"""For the tests of plugins: small seeded models, and the contract that every plugin should keep.

If prunebench is installed, pytest finds the fixtures `tiny_model`, `calibration` and `run_cell` by
itself. `__init__.pyi` lists the other names; they are imported when they are first used, so that
test runs that do not need them lose no time.
"""

from prunebench.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
