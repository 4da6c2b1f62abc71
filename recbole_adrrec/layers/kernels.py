"""Kernels of single events, and all kernels of a model with their results for a batch.

An absolute kernel is an embedding ``E[i]`` of an event's place or time (MEANTIME, Cho et al., RecSys 2020, section
3.3). To add one: write its class, and put its name into ``ABSOLUTE_KERNELS`` and into
``AbsoluteKernel`` of ``options.kinds``. Kernels of pairs of events are in
``layers.relative_kernels``.

Letters: ``B`` rows of a batch, ``L`` places of a row, ``N`` events, ``d`` hidden size. Where ``[B, L]`` is written,
packed events, ``[N]``, do as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.layers.relative_kernels import RELATIVE_KERNELS, KernelSettings, PairBias
from recbole_adrrec.times import SECONDS_A_DAY, whole_days

__all__ = ["ABSOLUTE_KERNELS", "RELATIVE_KERNELS", "MixContext", "MixKernels"]


def vectors_at(table: Tensor, trained: Tensor, spacing: float, time: Tensor) -> Tensor:
    """Vectors, Float[..., d], interpolated linearly between knots in time; those of the ends outside of training.

    Parameters
    ----------
    table : Float[n, d]
        Vectors of the knots, ``spacing`` days apart from the first trained day on.
    trained : Int64[2]
        First and last trained day, since 1970.
    time : Tensor[...]
        Seconds since 1970 (UTC): Unix seconds in float32 would come in steps of 128, so the difference is taken first.
    """
    first, last = trained * SECONDS_A_DAY
    place = (time.clamp(first, last) - first).double() / (spacing * SECONDS_A_DAY)
    return _between(table, place)


def vectors_of_days(table: Tensor, trained: Tensor, spacing: float, days: Tensor) -> Tensor:
    """Vectors, Float[m, d], of days since 1970, Tensor[m]; see ``vectors_at`` for the rest.

    The knot behind the last trained day counts as known, since it takes part in that day's vector: knots at the same
    days keep their vectors. Later days take the vector of the last trained day, earlier ones that of the first.
    """
    first, last = trained.tolist()
    end = (last - first) / spacing
    place = ((days - first).double() / spacing).clamp(min=0)
    return _between(table, place.masked_fill(place > math.ceil(end), end))


def _between(table: Tensor, place: Tensor) -> Tensor:
    before = place.long()
    after = (before + 1).clamp(max=table.size(0) - 1)
    share = (place - before).to(table.dtype).unsqueeze(-1)
    return torch.lerp(F.embedding(before, table), F.embedding(after, table), share)


class AbsoluteKernel(nn.Module):
    """Embedding of single events in a learned table of ``rows`` vectors."""

    def __init__(self, rows: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, hidden_size)

    def forward(self, times: SequenceTimes) -> tuple[Tensor, Tensor]:
        """Embeddings of the query side and of the key side, Float[B, L, d] each; one tensor where both are the same."""
        raise NotImplementedError


class PositionKernel(AbsoluteKernel):
    """Learned table over the position index."""

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings.max_seq_length, settings.hidden_size)

    def forward(self, times: SequenceTimes) -> tuple[Tensor, Tensor]:
        """Row of each position, for query and key."""
        embedded = self.embedding(times.position)
        return embedded, embedded


class ConstantKernel(AbsoluteKernel):
    """One learned vector for all events: a head that looks at the items alone."""

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(1, settings.hidden_size)

    def forward(self, times: SequenceTimes) -> tuple[Tensor, Tensor]:
        """The vector at every place, for query and key."""
        embedded = self.embedding(torch.zeros_like(times.position))
        return embedded, embedded


class TimeKernel(AbsoluteKernel):
    """Embedding of an event's time by a learned table."""

    def index(self, time: Tensor) -> Tensor:
        """Row of the table, Int64[B, L], for times in seconds since 1970."""
        raise NotImplementedError

    def embed(self, time: Tensor) -> Tensor:
        """Vectors, Float[B, L, d], of times in seconds since 1970."""
        return self.embedding(self.index(time))

    def forward(self, times: SequenceTimes) -> tuple[Tensor, Tensor]:
        """Vectors of the query times and of the key times."""
        key = self.embed(times.key_time)
        return (key, key) if times.query_time is times.key_time else (self.embed(times.query_time), key)


class DayKernel(TimeKernel):
    """Learned table over the days that training shows; another day reads the nearest of them.

    ``trained_days``, Int64[n], whole days since 1970 (UTC), rising, is kept with the weights.
    """

    trained_days: Tensor

    def __init__(self, settings: KernelSettings) -> None:
        days = settings.trained_days()
        if days.numel() == 0 or bool((days.diff() <= 0).any()):
            raise ValueError(
                f"trained_days: {days.numel()} days given; the day kernel needs at least one, in rising order without "
                "repetition"
            )
        super().__init__(days.numel(), settings.hidden_size)
        self.register_buffer("trained_days", days.long().clone())

    def index(self, time: Tensor) -> Tensor:
        """Row of the nearest trained day; of two equally near, the earlier."""
        day = whole_days(time)
        if torch.compiler.is_exporting():  # ONNX has no binary search
            after = (self.trained_days < day.unsqueeze(-1)).sum(-1)
        else:
            after = torch.searchsorted(self.trained_days, day)
        after = after.clamp(max=len(self.trained_days) - 1)
        before = (after - 1).clamp(min=0)
        nearer = (day - self.trained_days[before]) <= (self.trained_days[after] - day)
        return torch.where(nearer, before, after)

    @property
    def row_days(self) -> Tensor:
        """Day of each row, Int64[n], since 1970."""
        return self.trained_days

    def vectors_of(self, days: Tensor) -> Tensor:
        """Vectors of days since 1970, Float[m, d]; those of the nearest trained ones."""
        return self.embed(days * SECONDS_A_DAY)


class SmoothDayKernel(TimeKernel):
    """Learned vectors ``day_spacing`` days apart, interpolated linearly in time between them.

    Data of few events a day leave most rows of ``DayKernel`` as they were drawn (27 % of the days of Amazon Beauty have
    fewer than five events); here each event trains the two knots beside it. Times before the first or after the last
    trained day take its vector. ``trained_days``, Int64[2], the first and the last, is kept with the weights.
    """

    trained_days: Tensor

    def __init__(self, settings: KernelSettings) -> None:
        days = settings.trained_days()
        if days.numel() == 0:
            raise ValueError("trained_days: 0 days given; the day kernel needs at least one")
        first, last = int(days[0]), int(days[-1])
        super().__init__(2 + (last - first) // settings.day_spacing, settings.hidden_size)
        self.spacing = settings.day_spacing
        self.register_buffer("trained_days", torch.tensor([first, last]))

    def embed(self, time: Tensor) -> Tensor:
        """Interpolated vectors, Float[..., d], of times in seconds since 1970."""
        return vectors_at(self.embedding.weight, self.trained_days, self.spacing, time)

    @property
    def row_days(self) -> Tensor:
        """Day of each knot, Int64[n], since 1970."""
        return int(self.trained_days[0]) + self.spacing * torch.arange(self.embedding.num_embeddings)

    def vectors_of(self, days: Tensor) -> Tensor:
        """Vectors of days since 1970, Float[m, d], to the knot after the last trained day; see ``vectors_of_days``."""
        return vectors_of_days(self.embedding.weight, self.trained_days, self.spacing, days)


def day_kernel(settings: KernelSettings) -> AbsoluteKernel:
    """The day kernel: smooth unless each day has a row."""
    return DayKernel(settings) if settings.day_spacing == 1 else SmoothDayKernel(settings)


class CalendarKernel(TimeKernel):
    """Learned table over a repeating part of the calendar, in UTC."""

    rows: int

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(self.rows, settings.hidden_size)


class HourKernel(CalendarKernel):
    """Learned table over the hour of the day, 0 to 23."""

    rows = 24

    def index(self, time: Tensor) -> Tensor:
        """Hour of the day."""
        return (time.remainder(SECONDS_A_DAY) // 3600).long()


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

        Years are counted from the first of March, so that the leap day comes last and the months before it follow the
        pattern of 153 days in five months.
        """
        day = whole_days(time) + 719468  # days since the first of March of the year 0
        day = day.remainder(146097)  # 400 years
        year = (day - day // 1460 + day // 36524 - day // 146096) // 365
        day = day - (365 * year + year // 4 - year // 100)
        return ((5 * day + 2) // 153 + 2).remainder(12)


ABSOLUTE_KERNELS: dict[str, Callable[[KernelSettings], AbsoluteKernel]] = {
    "position": PositionKernel,
    "day": day_kernel,
    "constant": ConstantKernel,
    "hour": HourKernel,
    "weekday": WeekdayKernel,
    "month": MonthKernel,
}


@dataclass(frozen=True)
class MixContext:
    """Results of the kernels for a batch, which all layers share."""

    absolute: list[tuple[Tensor, Tensor]]
    """For each absolute kernel the embeddings of the query and of the key side, Float[B, L, d] or Float[N, d]."""
    relative: list[list[PairBias]]
    """For each group of rows the ``PairBias`` of each relative kernel."""

    def single(self, number: int, places: slice) -> MixContext:
        """The part of one group of rows, whose places in the states are given."""
        absolute = [
            (query[places], query[places]) if query is key else (query[places], key[places])
            for query, key in self.absolute
        ]
        return MixContext(absolute, [self.relative[number]])


class MixKernels(nn.Module):
    """The kernels of a model, by their names in ``ABSOLUTE_KERNELS`` and ``RELATIVE_KERNELS``.

    Dropout falls on the embeddings of the absolute ones. With ``spread`` the tables start as N(0, 1), for kernels
    behind a gate that starts at zero: their terms then grow as fast as the gate does, where small tables behind small
    projections would keep them near zero.
    """

    def __init__(
        self, absolute: list[str], relative: list[str], settings: KernelSettings, dropout: float, spread: bool = False
    ) -> None:
        super().__init__()
        self.spread = spread
        self.absolute_names, self.relative_names = list(absolute), list(relative)
        self.absolute = nn.ModuleList(ABSOLUTE_KERNELS[name](settings) for name in absolute)
        pairs = [RELATIVE_KERNELS[name](settings) for name in relative]
        self.relative = nn.ModuleList(pairs)
        self.relative_widths = [kernel.width for kernel in pairs]
        self.relative_is_bias = [kernel.is_bias for kernel in pairs]
        self.dropout = Dropout(dropout)

    def forward(self, times: SequenceTimes, layout: Layout, dtype: torch.dtype) -> MixContext:
        """Results for a batch, ``[B, L]``, computed once for all layers."""
        laid_out = layout.pack_times(times)
        absolute = []
        for kernel in self.absolute:
            query, key = kernel(laid_out)
            same = query is key
            query = self.dropout(query)
            absolute.append((query, query if same else self.dropout(key)))
        relative: list[list[PairBias]] = []
        for group in layout.groups:
            of_group = group.times(times) if self.relative else times
            relative.append([kernel(of_group, dtype) for kernel in self.relative])
        return MixContext(absolute, relative)

    def start_weights(self) -> None:
        """Draw the tables anew where they are to be spread."""
        for module in self.modules():
            if self.spread and isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
