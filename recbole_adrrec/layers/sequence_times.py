"""Places and times of a batch's events, and the settings that kernels of them are built from.

Letters: ``B`` rows of a batch, ``L`` places of a row, ``d`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from recbole_adrrec.times import SECONDS_A_DAY


@dataclass(frozen=True)
class SequenceTimes:
    """Places and times of the events of a batch.

    Attributes
    ----------
    position : Int64[B, L]
        Row of the position table.
    query_time : Int64[B, L] or Float64[B, L]
        Time at which each place predicts, in seconds since 1970 (UTC).
    key_time : Int64[B, L] or Float64[B, L]
        Time of each event, in the same unit. The same object as ``query_time`` where the two are equal, so that
        nothing is computed twice.
    valid : Bool[B, L]
        True at events, false at padding.
    user : Int64[B], optional
        User of each row, where known.
    unit : Int64[B], optional
        Seconds in one unit of the row's intervals (TiSASRec), where it is not that of the user.
    """

    position: Tensor
    query_time: Tensor
    key_time: Tensor
    valid: Tensor
    user: Tensor | None = None
    unit: Tensor | None = None

    def rows(self, index: slice | Tensor, width: int) -> SequenceTimes:
        """Some rows, cut to the first ``width`` places."""
        chosen = self.map(lambda part: part[index, :width])
        user, unit = (None if part is None else part[index] for part in (self.user, self.unit))
        return replace(chosen, user=user, unit=unit)

    def map(self, function: Callable[[Tensor], Tensor]) -> SequenceTimes:
        """Apply a function to each tensor but ``user`` and ``unit``, which are left out."""
        key = function(self.key_time)
        query = key if self.query_time is self.key_time else function(self.query_time)
        return SequenceTimes(function(self.position), query, key, function(self.valid))


@dataclass(frozen=True)
class Clock:
    """Unit and slowest rate of the kernels of a gap in time.

    Attributes
    ----------
    time_unit : float
        Seconds per unit of a gap, above 0.
    kernel_freq : float
        The slowest rate is about ``1 / kernel_freq`` per unit; above 1.
    """

    time_unit: float
    kernel_freq: float


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
        Gives the sorted whole days since 1970 (UTC) that training shows, Int64[n]; called only if needed.
    clock : callable
        Gives the ``Clock`` of the kernels of a gap; called only if needed.
    day_spacing : int
        Days between two knots of the day kernel; 1 for a row of its own for each day.
    max_distance : int, optional
        ``k`` of the distance kernel.
    grid_points : int, optional
        Points of the grid between which exponential and log1p are interpolated; exact by default.
    """

    hidden_size: int
    max_seq_length: int
    trained_days: Callable[[], Tensor]
    clock: Callable[[], Clock]
    day_spacing: int = 1
    max_distance: int | None = None
    grid_points: int | None = None


def whole_days(time: Tensor) -> Tensor:
    """Whole days since 1970 (UTC), Int64, of times in seconds; also right before 1970."""
    return (time // SECONDS_A_DAY).long()
