"""Synthetic events of any size with the shapes of real ones, as a RecBole atomic file.

Users' activity is lognormal (and at least ``--least`` events), items' popularity follows a Zipf-Mandelbrot law. Each
user's events come in sessions: seconds to minutes within one, days to months between two, some at the same second.
Users stand one after another in the file, each in order of time. The same arguments give the same file on any machine
with the same numpy. What is not imitated: tastes (items are drawn alike for all users, so nothing can be learned but
popularity) and the rule of rating an item once.

    python benchmarks/synthetic.py --users 138000 --items 27000 --events 20000000 --seed 1 --out data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_adrrec.files import AtomicFile

BLOCK_EVENTS = 1 << 20
"""About so many events are drawn and written at a time; whole users, so a block may be longer."""

FIRST_SECOND, LAST_SECOND = 1_100_000_000, 1_500_000_000
"""November 2004 to July 2017: all times have ten digits."""

# The shapes, near those of MovieLens 20M.

ACTIVITY_SIGMA = 1.1
"""Standard deviation of the logarithm of users' activity."""

POPULARITY_EXPONENT, POPULARITY_OFFSET = 1.1, 30.0
"""An item of rank ``r`` (from 1) is drawn with a probability proportional to ``(r + offset) ** -exponent``."""

SESSION_LENGTH = 15.0
"""Mean number of events of a session (geometric)."""

SESSION_GAP, SESSION_GAP_SIGMA = 4 * 86_400.0, 1.8
"""Median in seconds, and standard deviation of the logarithm, of the time between two sessions."""

EVENT_GAP, EVENT_GAP_SIGMA = 25.0, 1.3
"""The same between two events of a session."""

TIES = 0.15
"""Share of the gaps within sessions that are zero."""


def activity(users: int, events: int, least: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Number of events of each user: ``least`` and a lognormal share of the rest; they sum to ``events``.

    Raises
    ------
    ValueError
        There are not enough events to go round.
    """
    if users < 1 or least < 1 or events < users * least:
        raise ValueError(f"events: {events}; {users} users with at least {least} events each need {users * least}")
    weights = rng.lognormal(0.0, ACTIVITY_SIGMA, users)
    return least + rng.multinomial(events - users * least, weights / weights.sum()).astype(np.int64)


def blocks(users: int, items: int, events: int, seed: int = 0, least: int = 5) -> Iterator[pd.DataFrame]:
    """Draw the events, some users at a time; each has ``least`` events at least, an unpopular item may have none.

    Yields whole users, in order: ``user`` and ``item`` (int32, from 0) and ``time`` (int64, seconds since 1970).

    Raises
    ------
    ValueError
        There are fewer than ``users * least`` events, or no item.
    """
    if items < 1:
        raise ValueError(f"items: {items}; there must be at least one")
    rng = np.random.default_rng([seed, 0])
    counts = activity(users, events, least, rng)
    rank = np.arange(1, items + 1, dtype=np.float64)
    chance = (rank + POPULARITY_OFFSET) ** -POPULARITY_EXPONENT
    below = np.cumsum(chance / chance.sum())
    # An item's number must not tell its popularity.
    number = rng.permutation(items).astype(np.int32)
    ends = np.cumsum(counts)
    first = 0
    while first < users:
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + BLOCK_EVENTS, side="right")))
        block_rng = np.random.default_rng([seed, 1, first])
        of_block = counts[first:last]
        drawn = np.minimum(np.searchsorted(below, block_rng.random(int(of_block.sum())), side="right"), items - 1)
        user = np.repeat(np.arange(first, last, dtype=np.int32), of_block)
        yield pd.DataFrame({"user": user, "item": number[drawn], "time": _times(of_block, block_rng)})
        first = last


def _times(counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Seconds of the events of users with so many each: sessions, gaps between them, ties; rising for each user."""
    total = int(counts.sum())
    start = np.cumsum(counts) - counts
    new_session = rng.random(total) < 1 / SESSION_LENGTH
    gap = np.exp(rng.normal(np.log(EVENT_GAP), EVENT_GAP_SIGMA, total))
    gap[rng.random(total) < TIES] = 0
    between = int(new_session.sum())
    gap[new_session] = np.exp(rng.normal(np.log(SESSION_GAP), SESSION_GAP_SIGMA, between))
    gap[start] = 0
    elapsed = np.cumsum(gap)
    elapsed -= np.repeat(elapsed[start], counts)
    window = float(LAST_SECOND - FIRST_SECOND)
    joined = rng.random(len(counts)) * 0.95 * window
    span = elapsed[start + counts - 1]
    # A history that would end after the last second is shortened.
    shrink = np.minimum(1.0, (window - joined) / np.maximum(span, 1.0))
    seconds = np.repeat(joined, counts) + elapsed * np.repeat(shrink, counts)
    return FIRST_SECOND + seconds.astype(np.int64)


def _lines(*columns: pd.Series[int]) -> bytes:
    """Lines of columns of whole numbers, whose numbers have as many digits each."""
    parts = []
    for column in columns:
        values = column.to_numpy(dtype=np.int64)
        powers = 10 ** np.arange(len(str(values[0])), dtype=np.int64)[::-1]
        parts += [(values // power % 10 + ord("0")).astype(np.uint8) for power in powers]
        parts.append(np.full(len(values), ord("\t"), np.uint8))
    parts[-1][:] = ord("\n")
    return np.stack(parts, 1).tobytes()


def write(
    folder: Path,
    name: str,
    users: int,
    items: int,
    events: int,
    seed: int = 0,
    least: int = 5,
    progress: bool = True,
) -> Path:
    """Write ``<folder>/<name>/<name>.inter``, block by block; the file is whole or not there.

    Arguments and errors as for :func:`blocks`. Tokens are the numbers plus a power of ten, all equally long.
    """
    path = folder / name / f"{name}.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    first_user, first_item = 10 ** len(str(users)), 10 ** len(str(items))
    with AtomicFile(path) as file, tqdm(total=events, unit="event", unit_scale=True, disable=not progress) as bar:
        file.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
        for block in blocks(users, items, events, seed, least):
            file.write(_lines(block["user"] + first_user, block["item"] + first_item, block["time"]))
            bar.update(len(block))
    return path


def main(argv: list[str] | None = None) -> int:
    """Write a data set; 2 if something given is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=138_000, help="default 138000, as MovieLens 20M")
    parser.add_argument("--items", type=int, default=27_000, help="default 27000")
    parser.add_argument("--events", type=int, default=20_000_000, help="default 20000000")
    parser.add_argument("--least", type=int, default=5, help="events of each user at least (default 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--name", default="synthetic", help="the data set's name (default synthetic)")
    given = parser.parse_args(argv)
    try:
        path = write(given.out, given.name, given.users, given.items, given.events, given.seed, given.least)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {given.events:,} events, {path.stat().st_size / 2**20:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
