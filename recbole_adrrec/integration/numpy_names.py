"""Names that numpy 2 dropped and RecBole reads."""

from __future__ import annotations

import numpy as np

DROPPED = {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}


LACKING = tuple(name for name in DROPPED if name not in vars(np))
"""Those that were absent before any mend."""


def lacks_names() -> bool:
    """Whether numpy has dropped any of the names."""
    return bool(LACKING)


def add_names() -> None:
    """Add ``np.float_``, ``np.complex_`` and ``np.unicode_`` where they are absent.

    numpy 2 dropped them, and ``Config`` (config/configurator.py:630-635) reads them to set ``np.float`` and others,
    which all of RecBole uses.
    """
    for name in LACKING:
        setattr(np, name, getattr(np, DROPPED[name]))
