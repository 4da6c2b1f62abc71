"""Absolute kernels: what an attention head knows of one event's place or time, ``E[i]``.

After MEANTIME (Cho et al., RecSys 2020, section 3.3). To add one: write its class, and put its
name into ``ABSOLUTE_KERNELS`` at the end.

Letters: ``B`` rows of a batch, ``L`` places of a row, ``d`` hidden size. Where ``[B, L]`` is written, packed events,
``[N]``, do as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.moments import SECONDS_PER_DAY, KernelSettings, Moments, whole_days


class AbsoluteKernel(nn.Module):
    """Describes single events."""

    @classmethod
    def build(cls, settings: KernelSettings) -> AbsoluteKernel:
        """Make the kernel from the settings shared by all."""
        raise NotImplementedError

    def forward(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Give the embeddings of the query side and of the key side, Float[B, L, d] each.

        Both are one tensor where the sides see the same.
        """
        raise NotImplementedError


class PositionKernel(AbsoluteKernel):
    """Learned table over the position index."""

    def __init__(self, hidden_size: int, max_seq_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_seq_length, hidden_size)

    @classmethod
    def build(cls, settings: KernelSettings) -> PositionKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size, settings.max_seq_length)

    def forward(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Give the position's row of the table, the same for query and key."""
        embedded = self.embedding(moments.position)
        return embedded, embedded


class ConstantKernel(AbsoluteKernel):
    """One learned vector for all events: a head that looks at the items alone."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1, hidden_size)

    @classmethod
    def build(cls, settings: KernelSettings) -> ConstantKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size)

    def forward(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Give the vector at every place, the same for query and key."""
        embedded = self.embedding(torch.zeros_like(moments.position))
        return embedded, embedded


class TimeTableKernel(AbsoluteKernel):
    """Learned table over an index that is read off an event's time."""

    def __init__(self, hidden_size: int, rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, hidden_size)

    def index(self, time: Tensor) -> Tensor:
        """Row of the table, Int64[B, L], for times in seconds since 1970."""
        raise NotImplementedError

    def forward(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Give the rows of the query times and of the events' own times."""
        key = self.embedding(self.index(moments.key_time))
        if moments.query_time is moments.key_time:
            return key, key
        return self.embedding(self.index(moments.query_time)), key


class DayKernel(TimeTableKernel):
    """Learned table over the days that training shows; another day reads the nearest of them.

    Parameters
    ----------
    hidden_size : int
        Width of the table.
    trained_days : Int64[n]
        Whole days since 1970 (UTC), sorted, without repetition. Kept with the weights.

    Raises
    ------
    ValueError
        If ``trained_days`` is empty or not sorted.
    """

    trained_days: Tensor

    def __init__(self, hidden_size: int, trained_days: Tensor) -> None:
        if trained_days.numel() == 0 or bool((trained_days.diff() <= 0).any()):
            raise ValueError(
                f"trained_days: {trained_days.numel()} days given; the day kernel needs at least"
                " one, in rising order without repetition"
            )
        super().__init__(hidden_size, trained_days.numel())
        self.register_buffer("trained_days", trained_days.long().clone())

    @classmethod
    def build(cls, settings: KernelSettings) -> AbsoluteKernel:
        """Make the kernel from the settings shared by all: smooth unless each day has a row."""
        if settings.day_spacing != 1:
            return SmoothDayKernel(settings.hidden_size, settings.trained_days(), settings.day_spacing)
        return cls(settings.hidden_size, settings.trained_days())

    def index(self, time: Tensor) -> Tensor:
        """Row of the nearest trained day; of two equally near, the earlier."""
        day = whole_days(time)
        after = torch.searchsorted(self.trained_days, day).clamp(max=len(self.trained_days) - 1)
        before = (after - 1).clamp(min=0)
        nearer = (day - self.trained_days[before]) <= (self.trained_days[after] - day)
        return torch.where(nearer, before, after)


class SmoothDayKernel(AbsoluteKernel):
    """Learned vectors some weeks apart, interpolated linearly in time between them.

    Data of few events a day leave most rows of ``DayKernel`` as they were drawn (27 % of the days of Amazon Beauty have
    fewer than five events); here each event trains the two knots beside it. Times before the first or after the last
    trained day take its vector.

    Parameters
    ----------
    hidden_size : int
        Width of the table.
    trained_days : Int64[n]
        Whole days since 1970 (UTC), sorted; the first and the last are kept with the weights.
    spacing : int
        Days between two knots.

    Raises
    ------
    ValueError
        If ``trained_days`` is empty or ``spacing`` is below 1.
    """

    trained_days: Tensor

    def __init__(self, hidden_size: int, trained_days: Tensor, spacing: int) -> None:
        super().__init__()
        if trained_days.numel() == 0:
            raise ValueError("trained_days: 0 days given; the day kernel needs at least one")
        if spacing < 1:
            raise ValueError(f"day_spacing: {spacing}; must be a whole number of at least 1")
        self.spacing = spacing
        self.register_buffer("trained_days", trained_days[[0, -1]].long().clone())
        span = int(self.trained_days[1] - self.trained_days[0])
        self.embedding = nn.Embedding(2 + span // spacing, hidden_size)

    def embed(self, time: Tensor) -> Tensor:
        """Vectors, Float[..., d], of times in seconds since 1970."""
        first, last = self.trained_days * SECONDS_PER_DAY
        place = (time.clamp(first, last) - first).double() / (self.spacing * SECONDS_PER_DAY)
        knot = place.long()
        share = (place - knot).to(self.embedding.weight.dtype).unsqueeze(-1)
        return torch.lerp(self.embedding(knot), self.embedding(knot + 1), share)

    def forward(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Give the vectors of the query times and of the events' own times."""
        key = self.embed(moments.key_time)
        return (key, key) if moments.query_time is moments.key_time else (self.embed(moments.query_time), key)


class CalendarKernel(TimeTableKernel):
    """Learned table over a repeating part of the calendar, in UTC."""

    rows: int

    @classmethod
    def build(cls, settings: KernelSettings) -> CalendarKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size, cls.rows)


class HourKernel(CalendarKernel):
    """Learned table over the hour of the day, 0 to 23."""

    rows = 24

    def index(self, time: Tensor) -> Tensor:
        """Hour of the day."""
        return (time.remainder(SECONDS_PER_DAY) // 3600).long()


class WeekdayKernel(CalendarKernel):
    """Learned table over the day of the week, 0 (Monday) to 6."""

    rows = 7

    def index(self, time: Tensor) -> Tensor:
        """Day of the week; the first of January 1970 was a Thursday."""
        return (whole_days(time) + 3).remainder(7)


class MonthKernel(CalendarKernel):
    """Learned table over the month, 0 (January) to 11."""

    rows = 12

    def index(self, time: Tensor) -> Tensor:
        """Month of the Gregorian calendar, by integer arithmetic.

        Years are counted from the first of March, so that the leap day comes last and the months
        before it follow the pattern of 153 days in five months.
        """
        day = whole_days(time) + 719468  # days since the first of March of the year 0
        day = day.remainder(146097)  # 400 years
        year = (day - day // 1460 + day // 36524 - day // 146096) // 365
        day = day - (365 * year + year // 4 - year // 100)
        return ((5 * day + 2) // 153 + 2).remainder(12)


ABSOLUTE_KERNELS: dict[str, type[AbsoluteKernel]] = {
    "position": PositionKernel,
    "day": DayKernel,
    "constant": ConstantKernel,
    "hour": HourKernel,
    "weekday": WeekdayKernel,
    "month": MonthKernel,
}
