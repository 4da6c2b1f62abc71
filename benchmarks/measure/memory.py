"""Memory of this process and of one training step.

Resident memory is read from ``/proc`` on Linux, whose high-water mark can be set back; elsewhere ``getrusage`` gives
the mark since the start of the process alone. (On Linux that would count the parent's memory too.)
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MIB = 2**20


def resident() -> float:
    """Resident memory now, in MiB."""
    return _status("VmRSS") or peak()


def peak() -> float:
    """Highest resident memory since the start or the last :func:`reset_peak`, in MiB."""
    found = _status("VmHWM")
    if found is not None:
        return found
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (MIB if sys.platform == "darwin" else 1024)


def reset_peak() -> bool:
    """Set the high-water mark to what is resident now; False where the system does not let it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


@dataclass
class Saved:
    """Bytes that autograd keeps from the forward pass for the backward pass; each storage counts once.

    ``weights`` are tensors whose last two sides are both ``length`` (one number for each pair of places), ``others``
    all other tensors, parameters left out.
    """

    weights: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        """Bytes of both kinds."""
        return self.weights + self.others


@contextmanager
def saved_tensors(length: int, parameters: list[Tensor]) -> Iterator[Saved]:
    """Count what is kept for the backward pass while this lasts, but for parameters, which are there anyway."""
    counted = Saved()
    seen = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: list[Tensor] = []  # a storage that was freed could lend its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(tensor.detach())
            if tensor.dim() >= 3 and tuple(tensor.shape[-2:]) == (length, length):
                counted.weights += storage.nbytes()
            else:
                counted.others += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted
