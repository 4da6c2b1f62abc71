"""Events of users by offsets, as the tools read them until they read ``Events``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_adrrec.integration.checkpoint_data import CheckpointData


@dataclass(frozen=True)
class Histories:
    """Events of users, by user id, then time.

    Attributes
    ----------
    offsets : Int64[n_users + 1]
        Where each user's events begin; those of user ``u`` are ``offsets[u]`` up to ``offsets[u + 1]``.
    items : Int32[n_events]
        Item ids, from 1.
    times : Int64[n_events] or Float32[n_events]
        Seconds since 1970 (UTC); float32 where the model was trained with ``exact_time: false``.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[Any]

    @classmethod
    def of_data(cls, data: CheckpointData) -> Histories:
        """The events of a checkpoint."""
        columns = data.events.columns
        times = columns[data.time_field]
        return cls.of_events(
            columns[data.user_field].long().numpy(),
            columns[data.item_field].int().numpy(),
            (times if times.is_floating_point() else times.long()).numpy(),
            data.n_users,
        )

    @classmethod
    def of_events(cls, users: NDArray[np.int64], items: NDArray[np.int32], times: NDArray[Any], n: int) -> Histories:
        """Sort events of ``n`` user ids; those of one user at one time keep their order."""
        order = np.lexsort((times, users))
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=n), out=offsets[1:])
        return cls(offsets, items[order], times[order])

    def owners(self) -> NDArray[np.int64]:
        """User id of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Events of some users: the place in ``users`` of each event, and its index. Ids beyond the last have none."""
        known = users < len(self.offsets) - 1
        at = np.where(known, users, 0)
        start = self.offsets[at]
        counts = np.where(known, self.offsets[at + 1] - start, 0)
        rows = np.repeat(np.arange(len(users)), counts)
        return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(start, counts)
