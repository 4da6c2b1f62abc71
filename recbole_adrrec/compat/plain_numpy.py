"""Numbers of numpy, rebuilt from a file that may have been made to do harm."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np

PLAIN = re.compile(r"[biufcUSO]\d*")
"""Names of booleans, numbers, strings and objects; no structures, dates or raw memory."""


def plain_dtype(name: str, *_: object) -> np.dtype[Any]:
    """A plain dtype by its name.

    ``numpy.dtype(name, align, copy)``, which a pickle calls, gives a copy whose state the file may then set to
    anything, flags and sizes included. The one that numpy keeps for the name lets nobody set its state.

    Raises
    ------
    pickle.UnpicklingError
        The name is not that of a boolean, number, string or object.
    """
    if not isinstance(name, str) or not PLAIN.fullmatch(name):
        raise pickle.UnpicklingError(f"a dtype of the kind {name!r} is not allowed")
    return np.dtype(name)


def plain_scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    """A boolean, number or string of numpy from its bytes.

    Raises
    ------
    pickle.UnpicklingError
        The dtype is of another kind, or the bytes don't fit it.
    """
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcUS" or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar of this kind is not allowed")
    if not data or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("a numpy scalar has too few or too many bytes")
    return np.frombuffer(data, dtype)[0]
