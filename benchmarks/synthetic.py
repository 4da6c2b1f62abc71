"""Synthetic events of any size with the shapes of real ones, as a RecBole atomic file; and what they cost to train on.

Users' activity is lognormal (and at least ``--least`` events), items' popularity follows a Zipf-Mandelbrot law. Each
user's events come in sessions: seconds to minutes within one, days to months between two, some at the same second.
Users stand one after another in the file, each in order of time. The same arguments give the same file on any machine
with the same numpy. What is not imitated: tastes (items are drawn alike for all users, so nothing can be learned but
popularity) and the rule of rating an item once.

    python benchmarks/synthetic.py --users 138000 --items 27000 --events 20000000 --seed 1 --out data
    python benchmarks/synthetic.py --plan --fractions 0.01 0.05 1 --json plan.json

``--plan`` makes smaller copies (users and events scaled, items as they are), loads each in a process of its own,
trains some steps, and lays a line through memory and time over the number of events. Figures at sizes that were not
run are labelled "extrapolated".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_adrrec.files import AtomicFile

BLOCK_EVENTS = 1 << 20
"""About so many events are drawn and written at a time; whole users, so a block may be longer."""

FIRST_SECOND, LAST_SECOND = 1_100_000_000, 1_500_000_000
"""November 2004 to July 2017: all times have ten digits."""

HEADER = b"user_id:token\titem_id:token\ttimestamp:float\n"


@dataclass(frozen=True)
class Shape:
    """Parameters of the distributions; the defaults are near MovieLens 20M.

    Attributes
    ----------
    activity_sigma : float
        Standard deviation of the logarithm of users' activity.
    popularity_exponent, popularity_offset : float
        An item of rank ``r`` (from 1) is drawn with a probability proportional to ``(r + offset) ** -exponent``.
    session_length : float
        Mean number of events of a session (geometric).
    session_gap, session_gap_sigma : float
        Median in seconds, and standard deviation of the logarithm, of the time between two sessions.
    event_gap, event_gap_sigma : float
        The same between two events of a session.
    ties : float
        Share of the gaps within sessions that are zero.
    """

    activity_sigma: float = 1.1
    popularity_exponent: float = 1.1
    popularity_offset: float = 30.0
    session_length: float = 15.0
    session_gap: float = 4 * 86_400.0
    session_gap_sigma: float = 1.8
    event_gap: float = 25.0
    event_gap_sigma: float = 1.3
    ties: float = 0.15


@dataclass(frozen=True)
class Block:
    """Events of some users, in the order of the file: users and items from 0, Int32[n]; seconds, Int64[n]."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.int64]


def activity(users: int, events: int, least: int, sigma: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Number of events of each user: ``least`` and a lognormal share of the rest; they sum to ``events``.

    Raises
    ------
    ValueError
        There are not enough events to go round.
    """
    if users < 1 or least < 1 or events < users * least:
        raise ValueError(f"events: {events}; {users} users with at least {least} events each need {users * least}")
    weights = rng.lognormal(0.0, sigma, users)
    return least + rng.multinomial(events - users * least, weights / weights.sum()).astype(np.int64)


def blocks(
    users: int, items: int, events: int, seed: int = 0, least: int = 5, shape: Shape | None = None
) -> Iterator[Block]:
    """Draw the events, some users at a time.

    Parameters
    ----------
    users, items, events : int
        How many; every user has events, an unpopular item may have none.
    seed : int
        What the draws depend on.
    least : int
        Events that each user has at least.
    shape : Shape, optional
        The distributions.

    Yields
    ------
    Block
        Whole users, in order.

    Raises
    ------
    ValueError
        There are fewer than ``users * least`` events, or no item.
    """
    shape = shape or Shape()
    if items < 1:
        raise ValueError(f"items: {items}; there must be at least one")
    rng = np.random.default_rng([seed, 0])
    counts = activity(users, events, least, shape.activity_sigma, rng)
    rank = np.arange(1, items + 1, dtype=np.float64)
    chance = (rank + shape.popularity_offset) ** -shape.popularity_exponent
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
        total = int(of_block.sum())
        drawn = np.minimum(np.searchsorted(below, block_rng.random(total), side="right"), items - 1)
        yield Block(
            np.repeat(np.arange(first, last, dtype=np.int32), of_block),
            number[drawn],
            _times(of_block, shape, block_rng),
        )
        first = last


def _times(counts: NDArray[np.int64], shape: Shape, rng: np.random.Generator) -> NDArray[np.int64]:
    """Seconds of the events of users with so many each: sessions, gaps between them, ties; rising for each user."""
    total = int(counts.sum())
    start = np.cumsum(counts) - counts
    new_session = rng.random(total) < 1 / shape.session_length
    gap = np.exp(rng.normal(np.log(shape.event_gap), shape.event_gap_sigma, total))
    gap[rng.random(total) < shape.ties] = 0
    between = int(new_session.sum())
    gap[new_session] = np.exp(rng.normal(np.log(shape.session_gap), shape.session_gap_sigma, between))
    gap[start] = 0
    elapsed = np.cumsum(gap)
    elapsed -= np.repeat(elapsed[start], counts)
    window = float(LAST_SECOND - FIRST_SECOND)
    joined = rng.random(len(counts)) * 0.95 * window
    span = elapsed[start + counts - 1]
    # A history that would end after the data does is told faster.
    shrink = np.minimum(1.0, (window - joined) / np.maximum(span, 1.0))
    seconds = np.repeat(joined, counts) + elapsed * np.repeat(shrink, counts)
    return FIRST_SECOND + seconds.astype(np.int64)


def generate(
    users: int, items: int, events: int, seed: int = 0, least: int = 5, shape: Shape | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """All events at once; arguments and errors as for :func:`blocks`.

    Returns
    -------
    Int32[events], Int32[events], Int64[events]
        Users and items, from 0, and seconds since 1970; users in order, each in order of time.
    """
    parts = list(blocks(users, items, events, seed, least, shape))
    return (
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.times for part in parts]),
    )


def _digits(values: NDArray[Any], width: int, out: NDArray[np.uint8]) -> None:
    """Write numbers of ``width`` decimal digits into the columns of ``out``, UInt8[n, width]."""
    rest = values.astype(np.uint64 if width > 9 else np.uint32)
    for column in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, rest.dtype.type(10))
        out[:, column] = digit + ord("0")


def lines(block: Block, user_width: int, item_width: int) -> bytes:
    """The lines of a file: tokens are ``10 ** (width - 1)`` and the number, so that all lines are equally long."""
    count = len(block.users)
    text = np.empty((count, user_width + item_width + 10 + 3), dtype=np.uint8)
    _digits(block.users.astype(np.int64) + 10 ** (user_width - 1), user_width, text[:, :user_width])
    text[:, user_width] = ord("\t")
    at = user_width + 1
    _digits(block.items.astype(np.int64) + 10 ** (item_width - 1), item_width, text[:, at : at + item_width])
    text[:, at + item_width] = ord("\t")
    _digits(block.times, 10, text[:, -11:-1])
    text[:, -1] = ord("\n")
    return text.tobytes()


def write(
    folder: Path,
    name: str,
    users: int,
    items: int,
    events: int,
    seed: int = 0,
    least: int = 5,
    shape: Shape | None = None,
    progress: bool = True,
) -> Path:
    """Write ``<folder>/<name>/<name>.inter``, block by block; the file is whole or not there.

    Arguments and errors as for :func:`blocks`.

    Returns
    -------
    Path
        The file.
    """
    path = folder / name / f"{name}.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    user_width, item_width = len(str(users)) + 1, len(str(items)) + 1
    with AtomicFile(path) as file, tqdm(total=events, unit="event", unit_scale=True, disable=not progress) as bar:
        file.write(HEADER)
        for block in blocks(users, items, events, seed, least, shape):
            file.write(lines(block, user_width, item_width))
            bar.update(len(block.users))
    return path


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_argument_group("size (defaults: as MovieLens 20M)")
    size.add_argument("--users", type=int, default=138_000)
    size.add_argument("--items", type=int, default=27_000)
    size.add_argument("--events", type=int, default=20_000_000)
    size.add_argument("--least", type=int, default=5, help="events of each user at least (default 5)")
    size.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of data sets; needed unless --plan")
    parser.add_argument("--name", default="synthetic", help="the data set's name (default synthetic)")
    plan = parser.add_argument_group("plan")
    plan.add_argument("--plan", action="store_true", help="measure loading and training at several sizes")
    plan.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="of users and events")
    plan.add_argument("--model", default="ADRRec")
    plan.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the model; may repeat")
    plan.add_argument("--length", type=int, default=200, help="MAX_ITEM_LIST_LENGTH (default 200)")
    plan.add_argument("--batch", type=int, default=2048, help="targets of a step (default 2048)")
    plan.add_argument("--steps", type=int, default=200, help="training steps (default 200)")
    plan.add_argument("--threads", type=int, default=2)
    plan.add_argument("--docs", type=Path, help="Markdown file with marks: the report replaces what is there")
    plan.add_argument("--json", type=Path, help="file of the figures; those in it already are not measured again")
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.plan:
        parser.error("--out: name a folder for the data set, or give --plan")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Write a data set, or plan for one.

    Returns
    -------
    int
        0, or 2 if something given is wrong.
    """
    arguments = parse(argv)
    try:
        if not arguments.plan:
            path = write(
                arguments.out,
                arguments.name,
                arguments.users,
                arguments.items,
                arguments.events,
                arguments.seed,
                arguments.least,
            )
            print(f"{path}: {arguments.events:,} events, {path.stat().st_size / 2**20:,.0f} MiB")
            return 0
        from measure.planning import run
        from measure.store import insert

        with tempfile.TemporaryDirectory(prefix="synthetic-") as scratch:
            report = run(arguments, arguments.out or Path(scratch))
        if arguments.docs:
            insert(arguments.docs, "plan", report)
        print(report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
