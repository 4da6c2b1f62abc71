"""Events of one user that have the same time: their order, and what it says of the data.

Leave-one-out holds out each user's last events, so where the last two tie, their order decides what is to be found.
Many data sets have whole days for times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

Ints = npt.NDArray[np.int64]

ORDERLY = 0.02
"""A consistency so far above chance says that ties stand in an order of their own."""


def name_hashes(names: Iterable[object]) -> npt.NDArray[np.uint64]:
    """Hashes of names, UInt64[n], the same on every machine."""
    digests = (blake2b(str(name).encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def random_keys(users: npt.NDArray[np.uint64], items: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Sort keys of events, UInt64[n]: a random order that depends on seed, user and item alone.

    Parameters
    ----------
    users, items : UInt64[n]
        Hashes of each event's user and item, see :func:`name_hashes`.
    seed : int
        At least 0.
    """
    mixed = _mix(users ^ name_hashes([seed])[0])
    return _mix(mixed ^ items)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble all bits: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class TieStatistics:
    """Shares of events and users whose order their times leave open, and of tied pairs that stand in one order.

    Attributes
    ----------
    zero_gaps : float
        Share of the gaps between a user's consecutive events that are zero.
    last_two_tie : float
        Share of the users with two events or more whose last two have the same time.
    consistency : float or None
        Of two items that stand side by side in ties of several users: share of these pairs that stand in the order
        that is the commoner for their two items. 1: all users have them in one order. None without such pairs.
    by_chance : float or None
        What ``consistency`` would be if each order were drawn by lot.
    repeated_pairs : int
        Pairs of items that ``consistency`` is over.
    """

    zero_gaps: float
    last_two_tie: float
    consistency: float | None
    by_chance: float | None
    repeated_pairs: int

    @property
    def orderly(self) -> bool:
        """True where ties stand in an order that chance does not give."""
        if self.consistency is None or self.by_chance is None:
            return False
        return self.consistency > self.by_chance + ORDERLY

    def text(self) -> str:
        """One line for people."""
        line = f"{self.zero_gaps:.1%} of the gaps between a user's consecutive events are zero; the last two events of "
        line += f"{self.last_two_tie:.1%} of the users tie"
        if self.consistency is not None:
            line += f"; {self.consistency:.3f} of {self.repeated_pairs:,} repeated tied pairs stand in their commoner "
            line += f"order (by chance {self.by_chance:.3f})"
        return line

    def warning(self) -> str | None:
        """Text for people whose figures depend on the file's order of ties; None where they don't."""
        if not self.orderly:
            return None
        return (
            f"Tied events stand in one order for all users (tie consistency {self.consistency:.3f}, by chance "
            f"{self.by_chance:.3f}): models learn it, and figures depend on it. tie_order: random takes it away."
        )


def tie_statistics(users: Ints, items: Ints, timestamps: npt.NDArray[np.int64 | np.float32]) -> TieStatistics:
    """Measure the ties of events that are sorted by user and time.

    Parameters
    ----------
    users, items : Int64[n]
        Of each event; a user's events stand together.
    timestamps : Int64[n] or Float32[n]
        In rising order for each user.
    """
    return tie_statistics_of_parts(lambda: [(users, items, timestamps)])


def tie_statistics_of_parts(
    parts: Callable[[], Iterable[tuple[npt.NDArray[Any], ...]]], pairs_at_a_time: int = 1 << 23
) -> TieStatistics:
    """Measure the ties of events that come in parts of whole users.

    Parameters
    ----------
    parts : callable
        Gives users, items and times of each part, as of :func:`tie_statistics`; called several times.
    pairs_at_a_time : int
        About so many tied pairs are in memory; the parts are gone through once for each such number of them.
    """
    gaps = zero_gaps = last_pairs = tied_last = n_pairs = 0
    for users, items, timestamps in parts():
        same_user = users[1:] == users[:-1]
        tied = same_user & (timestamps[1:] == timestamps[:-1])
        last = np.append(~same_user, True)[1:] & same_user if len(same_user) else same_user
        gaps, zero_gaps = gaps + int(same_user.sum()), zero_gaps + int(tied.sum())
        last_pairs, tied_last = last_pairs + int(last.sum()), tied_last + int((tied & last).sum())
        n_pairs += int((tied & (items[1:] != items[:-1])).sum())
    # Pairs of the same items have the same remainder, so they meet.
    passes = 1 + n_pairs // pairs_at_a_time
    commoner, sizes = 0, np.zeros(1, np.int64)
    for remainder in range(passes):
        found = [_tied_pairs(part, passes, remainder) for part in parts()]
        pair, rising = (np.concatenate(each) for each in zip(*found, strict=True))
        _, number = np.unique(pair, return_inverse=True)
        times_met = np.bincount(number)
        rises = np.bincount(number, weights=rising)
        repeated = times_met > 1
        times_met, rises = times_met[repeated], rises[repeated]
        commoner += int(np.maximum(rises, times_met - rises).sum())
        of_size = np.bincount(times_met, minlength=len(sizes))
        of_size[: len(sizes)] += sizes
        sizes = of_size
    total = int((sizes * np.arange(len(sizes))).sum())
    return TieStatistics(
        zero_gaps=zero_gaps / max(1, gaps),
        last_two_tie=tied_last / max(1, last_pairs),
        consistency=commoner / total if total else None,
        by_chance=_commoner_by_chance(sizes) / total if total else None,
        repeated_pairs=int(sizes.sum()),
    )


def _tied_pairs(part: tuple[npt.NDArray[Any], ...], passes: int, remainder: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Numbers of the pairs of items that stand side by side in ties, and whether the second number is the larger."""
    users, items, timestamps = part
    tied = (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1]) & (items[1:] != items[:-1])
    first, second = items[:-1][tied].astype(np.int64), items[1:][tied].astype(np.int64)
    pair = (np.minimum(first, second) << 31) + np.maximum(first, second)
    kept = pair % passes == remainder
    return pair[kept], (first < second)[kept]


def _commoner_by_chance(sizes: Ints) -> float:
    """Expected sum of the commoner of two outcomes, of ``sizes[n]`` times ``n`` fair draws."""
    expected = 0.0
    for size in np.nonzero(sizes)[0].tolist():
        heads = np.arange(size + 1)
        expected += float(sizes[size] * (np.maximum(heads, size - heads) * binom.pmf(heads, size, 0.5)).sum())
    return expected
