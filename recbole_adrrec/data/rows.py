"""Training and evaluation rows that exist as an index only, until a batch is made of them.

RecBole stores one padded row for each prefix of each user's history: ``[N, L]`` numbers for each list field, built by
a Python loop (data/dataset/sequential_dataset.py:77-160). Here the events are kept once, sorted by user and time, and
a row is one number: the event that it predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

Index = int | slice | range | Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True)
class Events:
    """All events, sorted by user, then time, ties in the order of the file.

    Attributes
    ----------
    columns : dict of str to Tensor, [n_events, ...]
        Field name to values. Ids may be stored as int32; ``column`` widens them.
    starts : int64 Tensor, [n_users]
        For each user id, the index of the user's first event (undefined for users without events).
    uid_field : str
        Name of the user field among ``columns``.
    """

    columns: dict[str, Tensor]
    starts: Tensor
    uid_field: str

    @classmethod
    def from_sorted(cls, columns: dict[str, Tensor], uid_field: str, n_users: int) -> Events:
        """Events of columns that are sorted by user and time already; ids shrink to int32 where they fit."""
        users = columns[uid_field]
        starts = torch.zeros(n_users, dtype=torch.int64)
        new_user = torch.ones(len(users), dtype=torch.bool)
        new_user[1:] = users[1:] != users[:-1]
        first = new_user.nonzero().squeeze(1)
        starts[users[first]] = first
        kept = {name: _narrow(values) for name, values in columns.items()}
        return cls(kept, starts, uid_field)

    def __len__(self) -> int:
        return len(self.columns[self.uid_field])

    def column(self, name: str, index: Tensor) -> Tensor:
        """Values of a field at event indices of any shape; ids as int64."""
        values = self.columns[name][index]
        return values.long() if values.dtype == torch.int32 else values

    def first(self, index: Tensor) -> Tensor:
        """Index of the first event of the user of each given event."""
        return self.starts[self.columns[self.uid_field][index].long()]

    def whole(self, name: str) -> Tensor:
        """Values of a field of all events; ids as int64. Times of columns on the disk are not read by this."""
        values = self.columns[name]
        return values.long() if values.dtype == torch.int32 else values

    def offsets(self, n_users: int) -> Tensor:
        """Where each user's events begin, Int64[n_users + 1]; those of ``u`` end before ``offsets[u + 1]``."""
        counts = torch.bincount(self.columns[self.uid_field], minlength=n_users)
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


@dataclass(frozen=True)
class MappedEvents(Events):
    """Events in columns on the disk: ``starts`` has the end of the last user's events behind it, [n_users + 1]."""

    def offsets(self, n_users: int) -> Tensor:
        """As of ``Events``, for users without events beyond those of the columns too."""
        more = self.starts[-1].expand(n_users + 1 - len(self.starts))
        return torch.cat([self.starts, more]) if len(more) else self.starts


def _narrow(values: Tensor) -> Tensor:
    """Int64 values as int32 where all are below 2**30; ``Events.column`` gives them back as int64."""
    fits = values.dtype == torch.int64 and (values.numel() == 0 or int(values.max()) < 2**30)
    return values.int() if fits else values


class _Rows(Interaction):
    """A RecBole ``Interaction`` whose columns are computed on demand.

    Indexing by a field name gives that column for all rows. Indexing by rows gives rows of the same kind, still not
    built; ``build`` makes them an ordinary ``Interaction``.
    """

    events: Events
    list_suffix: str
    length_field: str
    dropped: frozenset[str] = frozenset()

    def _fields(self) -> list[str]:
        base = list(self.events.columns)
        return [*base, self.length_field, *(name + self.list_suffix for name in base if name != self.events.uid_field)]

    def _field(self, name: str) -> Tensor:
        raise NotImplementedError

    def _select(self, index: Tensor) -> _Rows:
        raise NotImplementedError

    @property
    def interaction(self) -> dict[str, Tensor]:
        """All columns, built; the inherited methods work through it."""
        return {name: self[name] for name in self.columns}

    def build(self) -> Interaction:
        """These rows as an ordinary ``Interaction`` with every column, padded to the maximum length."""
        return Interaction(self.interaction)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in RecBole's order."""
        return [name for name in self._fields() if name not in self.dropped]

    def __getattr__(self, item: str) -> Any:
        if item.startswith("_") or "events" not in self.__dict__ or item not in self.columns:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{item}'")
        return self[item]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, item: object) -> bool:
        return item in self.columns

    def __getitem__(self, index: str | Index) -> Any:
        if isinstance(index, str):
            if index not in self.columns:
                raise KeyError(index)
            return self._field(index)
        if isinstance(index, int | np.integer):
            return self._select(torch.tensor([int(index)])).build()[0]
        return self._select(_row_index(index, self.length))

    def drop(self, column: str) -> None:
        """Leave a column out from now on."""
        if column not in self:
            raise ValueError(f"Column [{column}] is not in {self.columns}.")
        self.dropped = self.dropped | {column}

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.length} rows over {len(self.events)} events, columns {self.columns}"


def _row_index(index: Index, length: int) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(length)[index]
    index = torch.as_tensor(np.asarray(index) if not isinstance(index, Tensor) else index)
    if index.dtype == torch.bool:
        return index.nonzero().squeeze(1)
    return index.long().reshape(-1)


class PrefixRows(_Rows):
    """One row for each event to predict, with the events before it: RecBole's augmentation, on demand.

    Parameters
    ----------
    events : Events
        The events of all users.
    targets : int Tensor, [n_rows]
        Index of the event that each row predicts; never a user's first event.
    max_length : int
        ``MAX_ITEM_LIST_LENGTH``: at most so many events before the target are in the row.
    list_suffix, length_field : str
        RecBole's ``LIST_SUFFIX`` and ``ITEM_LIST_LENGTH_FIELD``.

    Notes
    -----
    Columns, with ``N`` rows and ``L = max_length``: each field of the events ``[N]`` at the target; each field but the
    user's with the suffix ``[N, L]``, padded right with zeros; the length field ``[N]``.
    """

    def __init__(self, events: Events, targets: Tensor, max_length: int, list_suffix: str, length_field: str) -> None:
        self.events = events
        self.targets = targets.int() if len(events) < 2**31 else targets.long()
        self.max_length = max_length
        self.list_suffix = list_suffix
        self.length_field = length_field
        self.extra: dict[str, Tensor] = {}
        self.length = len(targets)

    def _fields(self) -> list[str]:
        return [*super()._fields(), *(name for name in self.extra if name not in self.events.columns)]

    def _field(self, name: str) -> Tensor:
        if name in self.extra:
            return self.extra[name]
        targets = self.targets.long()
        if name in self.events.columns:
            return self.events.column(name, targets)
        start = torch.maximum(self.events.first(targets), targets - self.max_length)
        if name == self.length_field:
            return targets - start
        return gather(self.events, name.removesuffix(self.list_suffix), start, targets - start, self.max_length)

    def spans(self) -> tuple[Tensor, Tensor]:
        """Index of the first event and of the last target of each user with a row, Int64[n] each, rising."""
        targets = self.targets.long()
        first, which = self.events.first(targets).unique(return_inverse=True)
        last = torch.zeros_like(first).scatter_reduce_(0, which, targets, "amax", include_self=False)
        return first, last

    def _select(self, index: Tensor) -> PrefixRows:
        rows = PrefixRows(self.events, self.targets[index], self.max_length, self.list_suffix, self.length_field)
        rows.extra = {name: values[index] for name, values in self.extra.items()}
        rows.dropped = self.dropped
        return rows

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.extra[key] = value
        self.dropped = self.dropped - {key}

    def update(self, new_inter: Interaction) -> None:
        """Add or replace columns by those of another interaction of as many rows."""
        for name in new_inter:
            self[name] = new_inter[name]

    def _reindex(self, index: Index) -> None:
        rows = self._select(_row_index(index, self.length))
        self.targets, self.extra, self.length = rows.targets, rows.extra, rows.length

    def sort(self, by: str | Sequence[str], ascending: bool | Sequence[bool] = True) -> None:
        """Sort the rows in place by one or more columns, stably; the same order as ``Interaction.sort``."""
        names = [by] if isinstance(by, str) else list(by)
        ups = [ascending] if isinstance(ascending, bool) else list(ascending)
        ups = ups * len(names) if len(ups) == 1 else ups
        for name, up in zip(names[::-1], ups[::-1], strict=True):
            order = np.argsort(self[name].numpy(), kind="stable")
            self._reindex(order if up else order[::-1].copy())


class SpanRows(PrefixRows):
    """Prefix rows of all events from each user's second to a last one, kept as two numbers a user.

    Parameters
    ----------
    events, max_length, list_suffix, length_field
        As of ``PrefixRows``.
    first, last : Int64[n]
        Index of the first event and of the last target of each user with a row, in order of users.
    """

    def __init__(
        self, events: Events, first: Tensor, last: Tensor, max_length: int, list_suffix: str, length_field: str
    ) -> None:
        self.events = events
        self.first, self.last = first, last
        self.ends = (last - first).cumsum(0)
        self.max_length = max_length
        self.list_suffix = list_suffix
        self.length_field = length_field
        self.extra = {}
        self.length = int(self.ends[-1]) if len(first) else 0

    @property
    def targets(self) -> Tensor:  # type: ignore[override]
        """Index of the event that each row predicts, made anew each time: as many numbers as there are rows."""
        return self._targets(torch.arange(self.length))

    def spans(self) -> tuple[Tensor, Tensor]:
        """See ``PrefixRows.spans``."""
        return self.first, self.last

    def _targets(self, index: Tensor) -> Tensor:
        user = torch.searchsorted(self.ends, index, right=True)
        return self.last[user] + 1 - (self.ends[user] - index)

    def _select(self, index: Tensor) -> PrefixRows:
        rows = PrefixRows(self.events, self._targets(index), self.max_length, self.list_suffix, self.length_field)
        rows.dropped = self.dropped
        return rows


class WindowRows(_Rows):
    """One row for each window of a user's events, with a target at every position.

    A user's targets are cut into pieces: the first window takes the first ``L`` of them, each later one the next
    ``stride`` with the events before those in view. So each target stands in one row alone, and sees at least
    ``min(its whole history, L - stride)`` events.

    Parameters
    ----------
    rows : PrefixRows
        The rows whose targets are to be trained.
    stride : int
        ``train_stride``, 1 to ``L``.
    cloze : bool
        False: position ``p`` predicts the event after it. True: position ``p`` may be masked and predicts itself;
        then a user's first event is trained too.

    Notes
    -----
    Columns: user ``[N]``; length ``[N]``; lists ``[N, L]`` as in prefix rows; and each field but the user's
    ``[N, L]`` at the targets, 0 where a position has no target or another window trains it.
    """

    def __init__(self, rows: PrefixRows, stride: int, cloze: bool) -> None:
        self.events = rows.events
        self.max_length = rows.max_length
        self.list_suffix = rows.list_suffix
        self.length_field = rows.length_field
        self.dropped = rows.dropped
        self.shift = 0 if cloze else 1
        user_first, last = rows.spans()
        self.start, self.size, self.count_from = self._cut(user_first, last, stride)
        self.length = len(self.start)
        self.is_target: Tensor | None = None
        if isinstance(rows, SpanRows):  # every event of a span is a target
            self.n_targets = int((self.size - self.count_from).sum())
            return
        targets = rows.targets.long()
        self.is_target = torch.zeros(len(self.events), dtype=torch.bool)
        self.is_target[targets] = True
        if cloze:
            self.is_target[user_first] = True
        counted = self._target_mask()
        self.n_targets = int(counted.sum())
        if not bool(counted.any(1).all()):
            self._keep(counted.any(1).nonzero().squeeze(1))

    def _cut(self, user_first: Tensor, last: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """First event, number of input positions and first counted position of each window."""
        total = last - user_first + 1 - self.shift
        number = 1 + torch.clamp(total - self.max_length, min=0).add(stride - 1).div(stride, rounding_mode="floor")
        user = torch.repeat_interleave(torch.arange(len(number)), number)
        nth = torch.arange(len(user)) - (number.cumsum(0) - number)[user]
        begin = torch.where(nth == 0, 0, self.max_length + (nth - 1) * stride)
        end = torch.minimum(self.max_length + nth * stride, total[user])
        offset = torch.clamp(end - self.max_length, min=0)
        return user_first[user] + offset, end - offset, begin - offset

    def _target_mask(self) -> Tensor:
        slot = torch.arange(self.max_length)
        inside = (slot < self.size[:, None]) & (slot >= self.count_from[:, None])
        if self.is_target is None:
            return inside
        at = (self.start[:, None] + slot + self.shift).clamp(max=len(self.events) - 1)
        return inside & self.is_target[at]

    def _keep(self, index: Tensor) -> None:
        self.start, self.size, self.count_from = self.start[index], self.size[index], self.count_from[index]
        self.length = len(self.start)

    def _field(self, name: str) -> Tensor:
        if name == self.length_field:
            return self.size
        if name == self.events.uid_field:
            return self.events.column(name, self.start)
        if name in self.events.columns:
            values = gather(self.events, name, self.start + self.shift, self.size, self.max_length)
            mask = self._target_mask()
            return values * mask.view(*mask.shape, *[1] * (values.dim() - 2)).to(values.dtype)
        return gather(self.events, name.removesuffix(self.list_suffix), self.start, self.size, self.max_length)

    def _select(self, index: Tensor) -> WindowRows:
        rows = object.__new__(WindowRows)
        rows.__dict__.update(self.__dict__)
        rows._keep(index)
        return rows


def gather(events: Events, name: str, start: Tensor, size: Tensor, length: int) -> Tensor:
    """``size`` values of a field from ``start`` on, padded right with zeros to ``[N, length, ...]``."""
    slot = torch.arange(length)
    at = (start[:, None] + slot).clamp(max=max(len(events) - 1, 0))
    values = events.column(name, at)
    padding = (slot >= size[:, None]).view(len(start), length, *[1] * (values.dim() - 2))
    return values.masked_fill(padding, 0)
