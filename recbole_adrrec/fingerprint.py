"""The one fingerprint of data, checkpoints and parts of them."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Stream:
    """Parts of a tensor of a dtype and a shape, one behind the other; its fingerprint is the tensor's."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Iterable[torch.Tensor]


def fingerprint(value: Any) -> str:
    """SHA-256 of nested plain values and tensors, in 64 hexadecimal digits.

    It is the same before saving and after loading, on whatever device. It finds damage and changes made by hand; it is
    no signature, so whoever recomputes it is not found.

    Parameters
    ----------
    value : object
        Mappings count by the order of their keys. Of objects that are none of these, the type's name counts alone.
    """
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Stream):
        sha.update(f"T{value.dtype}{value.shape}".encode())
        for part in value.parts:
            sha.update(part.view(torch.uint8).numpy().data)
    elif isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        plain = (plain.to_dense() if plain.layout != torch.strided else plain).contiguous()
        sha.update(f"T{plain.dtype}{tuple(plain.shape)}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        sha.update(f"M{len(value)}".encode())
        for key, entry in value.items():
            _feed(sha, key)
            _feed(sha, entry)
    elif isinstance(value, list | tuple):
        sha.update(f"L{len(value)}".encode())
        for entry in value:
            _feed(sha, entry)
    else:
        sha.update(_text(value).encode("utf-8", "surrogatepass"))


def _text(value: Any) -> str:
    """A text for a value without parts; numpy's numbers as Python's."""
    if value is None or isinstance(value, bool | np.bool_):
        return f"B{value}"
    if isinstance(value, numbers.Integral):
        return f"I{int(value)}"
    if isinstance(value, numbers.Real):
        return f"R{float(value).hex()}"
    if isinstance(value, str):
        return f"S{len(value)} {value}"
    return f"O{type(value).__name__}{value if isinstance(value, torch.device) else ''}"
