"""Numbers of numpy, rebuilt from a file that may have been made to do harm."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np


class Refused(pickle.UnpicklingError):
    """A file holds something that files of its kind don't."""


PLAIN = re.compile(r"[biufcUSO]\d*")
"""Names of booleans, numbers, strings and objects; no structures, dates or raw memory."""


def plain_dtype(name: str, *_: object) -> np.dtype[Any]:
    """A plain dtype by its name.

    ``numpy.dtype(name, align, copy)``, which a pickle calls, gives a copy whose state the file may then set to
    anything, flags and sizes included. The one that numpy keeps for the name lets nobody set its state.

    Raises
    ------
    Refused
        The name is not that of a boolean, number, string or object.
    """
    if not isinstance(name, str) or not PLAIN.fullmatch(name):
        raise Refused(f"a dtype of the kind {name!r}")
    return np.dtype(name)


def plain_scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    """A boolean, number or string of numpy from its bytes.

    Raises
    ------
    Refused
        The dtype is of another kind, or the bytes don't fit it.
    """
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcUS" or not isinstance(data, bytes):
        raise Refused("a numpy scalar of another kind")
    own = plain_dtype(dtype.str.lstrip("<>=|"))  # whatever the file may have done to the one it brings
    if not data or len(data) != own.itemsize:
        raise Refused("a numpy scalar of too few or too many bytes")
    return np.frombuffer(data, own)[0]


def plain_bytes(text: str, encoding: str) -> bytes:
    """Bytes, which old pickles write as text.

    Raises
    ------
    Refused
        It is not such text.
    """
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("bytes of another kind")
    return text.encode("latin1")
