"""Where and when events are, and what kernels of them are built from.

Letters: ``B`` rows of a batch, ``L`` places of a row, ``d`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SECONDS_PER_DAY = 86400


@dataclass(frozen=True)
class Moments:
    """Where and when the events of a batch are.

    Attributes
    ----------
    position : Int64[B, L]
        Row of the position table.
    query_time : Int64[B, L] or Float64[B, L]
        The moment at which each place is asked, in seconds since 1970 (UTC).
    key_time : Int64[B, L] or Float64[B, L]
        The moment of each event, in the same unit. The same object as ``query_time`` where the
        two are equal, so that nothing is computed twice.
    valid : Bool[B, L]
        True at events, false at padding.
    user : Int64[B], optional
        Whose events they are, where known.
    """

    position: Tensor
    query_time: Tensor
    key_time: Tensor
    valid: Tensor
    user: Tensor | None = None

    def split(self, count: int) -> list[Moments]:
        """Cut the rows into ``count`` blocks, as ``Tensor.tensor_split`` does."""
        if count == 1:
            return [self]
        position, key, valid = (part.tensor_split(count) for part in (self.position, self.key_time, self.valid))
        query = key if self.query_time is self.key_time else self.query_time.tensor_split(count)
        user = [None] * count if self.user is None else self.user.tensor_split(count)
        return [Moments(*block) for block in zip(position, query, key, valid, user, strict=True)]


@dataclass(frozen=True)
class KernelSettings:
    """Everything that kernels are built from; each takes what it needs.

    Attributes
    ----------
    hidden_size : int
        Width ``d`` of every kernel.
    max_seq_length : int
        Rows of the position table.
    trained_days : callable
        Gives the sorted whole days since 1970 that training shows, Int64[n]; asked only if needed.
    time_unit : float
        Seconds per unit of a gap.
    kernel_freq : float
        The slowest rate of the kernels of a gap is about ``1 / kernel_freq`` per unit.
    max_distance : int, optional
        ``k`` of the distance kernel.
    grid_points : int, optional
        Points of the grid between which exponential and log1p are interpolated; exact by default.
    """

    hidden_size: int
    max_seq_length: int
    trained_days: Callable[[], Tensor]
    time_unit: float
    kernel_freq: float
    max_distance: int | None = None
    grid_points: int | None = None


def whole_days(time: Tensor) -> Tensor:
    """Whole days since 1970 (UTC), Int64, of times in seconds; also right before 1970."""
    return torch.div(time, SECONDS_PER_DAY, rounding_mode="floor").long()
