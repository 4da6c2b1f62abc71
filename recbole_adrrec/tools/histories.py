"""Histories of users up to a moment, from the data layer's events, and the rows that models take of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_adrrec.data.rows import Events, gather
from recbole_adrrec.times import smallest_gaps


@dataclass(frozen=True)
class Queries:
    """Users at moments, with the events up to then: those from ``first`` to before ``end``, all Int64[n]."""

    users: NDArray[np.int64]
    at: NDArray[np.int64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of events of each."""
        return self.end - self.first

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: NDArray[np.int64]) -> Queries:
        return Queries(self.users[index], self.at[index], self.first[index], self.end[index])

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Indices of queries of about as many events together, so that little is padding."""
        order = np.argsort(self.counts, kind="stable")
        yield from (order[start : start + size] for start in range(0, len(order), size))


class Histories:
    """Events by user, sorted by user, then time; ``n_users`` counts padding and users without events, too.

    Attributes
    ----------
    times : Int64[n_events] or Float32[n_events]
        Seconds since 1970 (UTC); float32 with ``exact_time: false``.
    offsets : Int64[n_users + 1]
        Where each user's events begin; those of user ``u`` end before ``offsets[u + 1]``.
    """

    def __init__(self, events: Events, item_field: str, time_field: str, n_users: int) -> None:
        self.events = events
        self.item_field = item_field
        self.time_field = time_field
        self.n_users = n_users
        self.offsets: NDArray[np.int64] = events.offsets(n_users).numpy()
        self.times: NDArray[Any] = events.whole(time_field).numpy()

    def __len__(self) -> int:
        return len(self.events)

    @property
    def fields(self) -> tuple[str, str, str]:
        """Names of the columns of users, items and times."""
        return self.events.uid_field, self.item_field, self.time_field

    def _of(self, columns: Iterable[Tensor], n_users: int) -> Histories:
        events = Events.from_sorted(dict(zip(self.fields, columns, strict=True)), self.events.uid_field, n_users)
        return Histories(events, self.item_field, self.time_field, n_users)

    def single(self, time: int) -> Histories:
        """One user, 1, with one event, of item 1."""
        one = torch.ones(1, dtype=torch.int64)
        return self._of((one, one, one * time), n_users=2)

    def with_events(
        self, users: NDArray[np.int64], items: NDArray[np.int64], times: NDArray[np.int64], n_users: int
    ) -> tuple[Histories, int]:
        """Histories of ``n_users`` ids with more events, after those of the same time, and the number of repeats.

        A repeat has the user, item and time of an event of these histories, and is left out.
        """
        times = times.astype(self.times.dtype)
        columns = [self.events.whole(name).numpy() for name in self.fields]
        offsets = np.pad(self.offsets, (0, n_users - self.n_users), mode="edge")
        places, fresh = [], []
        for number in np.lexsort((times, users)).tolist():
            first, end = offsets[users[number]], offsets[users[number] + 1]
            left, right = (
                int(first + np.searchsorted(self.times[first:end], times[number], side)) for side in ("left", "right")
            )
            if items[number] not in columns[1][left:right]:
                fresh.append(number)
                places.append(right)
        added = (users[fresh], items[fresh], times[fresh])
        merged = (torch.from_numpy(np.insert(old, places, new)) for old, new in zip(columns, added, strict=True))
        return self._of(merged, n_users), len(users) - len(fresh)

    def part(self, users: NDArray[np.int64], added: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Histories:
        """The events of some users alone (rising ids, which they keep), with those of new ones.

        ``added`` has the items and times, in order of time, of each new user; their ids go on from ``n_users``.
        """
        n_users = self.n_users + len(added)
        first, counts = self.offsets[users], np.diff(self.offsets)[users]
        places = np.repeat(first - counts.cumsum() + counts, counts) + np.arange(counts.sum())
        known = [self.events.column(name, torch.from_numpy(places)) for name in self.fields]
        none = np.empty(0, np.int64)
        ids = np.repeat(np.arange(self.n_users, n_users), [len(items) for items, _ in added])
        new = [ids, *(np.concatenate([none, *parts]) for parts in zip(*added, strict=True))] if added else [none] * 3
        columns = (torch.cat([old, torch.from_numpy(more).to(old.dtype)]) for old, more in zip(known, new, strict=True))
        return self._of(columns, n_users)

    def gaps_from(self, user: int) -> Tensor:
        """Smallest positive gap between two events of each user from an id on, Int64, in seconds."""
        later = torch.arange(int(self.offsets[user]), len(self.events))
        users = self.events.column(self.events.uid_field, later) - user
        return smallest_gaps(users, self.events.column(self.time_field, later), self.n_users - user)

    def queries(self, users: NDArray[np.int64], at: NDArray[np.int64]) -> Queries:
        """Users with their events up to a moment each."""
        first, stop = self.offsets[users], self.offsets[users + 1]
        shown = [
            int(np.searchsorted(self.times[low:high], np.int64(moment), "right"))
            for low, high, moment in zip(first.tolist(), stop.tolist(), at.tolist(), strict=True)
        ]
        return Queries(users, at, first, first + np.array(shown, dtype=np.int64))

    def n_later(self, queries: Queries) -> NDArray[np.int64]:
        """Number of events of each query's user after its moment."""
        return self.offsets[queries.users + 1] - queries.end

    def items_of(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Query and item, Int64[n_events] each, of all events of queries."""
        counts = torch.from_numpy(queries.counts)
        query = torch.repeat_interleave(torch.arange(len(queries)), counts)
        place = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query] + torch.from_numpy(queries.first)[query]
        return query, self.events.column(self.item_field, place)

    def rows(self, queries: Queries, config: Any, cut: bool) -> Interaction:
        """Rows as the data layer makes them: the latest events of each query, padded on the right.

        They are as wide as the longest needs with ``cut``, else ``MAX_ITEM_LIST_LENGTH``.
        """
        length, suffix = int(config["MAX_ITEM_LIST_LENGTH"]), config["LIST_SUFFIX"]
        sizes = np.minimum(queries.counts, length)
        width = max(1, int(sizes.max(initial=0))) if cut else length
        start, size = torch.from_numpy(queries.end - sizes), torch.from_numpy(sizes)
        times = gather(self.events, self.time_field, start, size, width)
        return Interaction(
            {
                self.events.uid_field: torch.from_numpy(queries.users),
                self.time_field: torch.from_numpy(queries.at).to(times.dtype),
                self.item_field + suffix: gather(self.events, self.item_field, start, size, width),
                self.time_field + suffix: times,
                config["ITEM_LIST_LENGTH_FIELD"]: size,
            }
        )
