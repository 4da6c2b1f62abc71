"""Timestamps of a data file: checked once, then whole seconds in int64 for good.

RecBole 1.2.1 turns ``timestamp:float`` into float32 (data/dataset/dataset.py:2203) before it sorts. Today's Unix
seconds then fall on multiples of 128, and events less than two minutes apart change places. Here the float64 that
pandas reads (exact for whole numbers up to 2**53) goes to int64 directly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_adrrec.errors import DataError

DIVISORS = {"s": 1, "ms": 1_000, "us": 1_000_000}
"""How many of each unit make one second; the choices of ``time_unit_in``."""

SECONDS_A_DAY = 86_400

LARGEST_SECONDS = 1e11
"""Year 5138: a larger number is not meant as seconds since 1970."""


def check_times(values: NDArray[np.float64], unit: str | None, source: str, first_line: int = 2) -> list[str]:
    """Refuse times that cannot be what the user means; say what is unusual about the rest.

    Parameters
    ----------
    values : float64 array, [n_events]
        Times as read from the file, in the unit of the file, in the order of its lines.
    unit : {'s', 'ms', 'us'} or None
        The option ``time_unit_in``. None: seconds, and other magnitudes are refused.
    source : str
        Name of the file, for messages.
    first_line : int
        Line number of ``values[0]`` in that file.

    Returns
    -------
    list of str
        Remarks for the log; empty when there is nothing unusual.

    Raises
    ------
    DataError
        Missing or infinite times, negative times, times of another unit than seconds while ``unit`` is None, and
        times that were normalised to [0, 1].
    """

    def refuse(bad: NDArray[np.bool_], what: str, remedy: str) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            shown = "nothing" if np.isnan(values[at]) else f"{values[at]:.15g}"
            raise DataError(
                f"{source}: {int(bad.sum())} of {len(values)} events have {what} "
                f"(first: line {at + first_line}, {shown}); {remedy}"
            )

    if len(values) == 0:
        raise DataError(f"{source}: the file has no events; expected a line for each after the header")
    refuse(np.isnan(values), "no timestamp", "fill them in or remove those lines")
    refuse(np.isinf(values), "an infinite timestamp", "correct or remove those lines")
    refuse(
        values < 0,
        "a negative timestamp (before 1970)",
        "correct or remove those lines, or add a constant to all times",
    )
    if unit is None:
        too_large = values > LARGEST_SECONDS
        largest = float(values.max())
        if largest > 1e17:
            remedy = "divide them by 10**9 (they look like nanoseconds, which float columns cannot hold exactly)"
        elif largest > 1e14:
            remedy = "set time_unit_in: us if they are microseconds"
        else:
            remedy = "set time_unit_in: ms if they are milliseconds"
        refuse(too_large, "a timestamp too large for seconds", f"{remedy}, or time_unit_in: s to keep them")
    remarks = []
    per_second = DIVISORS[unit or "s"]
    fractional = values != np.floor(values)
    if fractional.any():
        if values.max() <= 1.0:
            raise DataError(
                f"{source}: all timestamps lie between 0 and 1, so they were normalised and have lost their unit; "
                "give the original times (or exact_time: false with a model that ignores time)"
            )
        remarks.append(
            f"{fractional.mean():.1%} of the timestamps have a fraction: it decides the order of events, "
            "then times are cut to whole seconds"
        )
    if unit in ("ms", "us") and values.max() < 1e8 * per_second:
        remarks.append(
            f"time_unit_in: {unit} puts the last event into {1970 + values.max() / per_second / 31_556_952:.0f}; "
            "is the unit right?"
        )
    return remarks


def to_seconds(values: NDArray[np.float64], unit: str | None) -> NDArray[np.int64]:
    """Whole seconds since 1970 (rounded down) of checked times in ``unit``; exact below 2**53."""
    return np.floor(values).astype(np.int64) // DIVISORS[unit or "s"]


def smallest_gaps(user: Tensor, time: Tensor, n_users: int) -> Tensor:
    """Smallest positive gap between two events of each user.

    Parameters
    ----------
    user : int Tensor, [n_events]
        User ids below ``n_users``, in any order.
    time : Tensor, [n_events]
        Times in seconds.
    n_users : int
        Number of user ids, padding included.

    Returns
    -------
    int64 Tensor, [n_users]
        Seconds, at least 1; 1 for users without two events of different times.
    """
    by_time = time.argsort(stable=True)
    order = by_time[user[by_time].argsort(stable=True)]
    user, time = user[order].long(), time[order]
    gap = time[1:] - time[:-1]
    counted = (user[1:] == user[:-1]) & (gap > 0)
    largest = torch.iinfo(torch.int64).max
    found = torch.full((n_users,), largest, dtype=torch.int64)
    found.scatter_reduce_(0, user[1:][counted], gap[counted].long().clamp(min=1), "amin")
    return found.masked_fill(found == largest, 1)


def unreadable_line(path: str | Path, field: str, separator: str, encoding: str | None) -> str | None:
    """Where a number column of an atomic file holds something that is no number.

    Parameters
    ----------
    path : str or Path
        An atomic file: a header of ``name:type`` columns, then a line for each event.
    field : str
        Name of the column.
    separator : str
        What stands between columns.
    encoding : str or None
        Encoding of the file.

    Returns
    -------
    str or None
        ``"line 17, 'yesterday'"`` for the first such value, None where all can be read.
    """
    with open(path, encoding=encoding) as lines:
        names = [column.split(":")[0] for column in lines.readline().rstrip("\n").split(separator)]
        if field not in names:
            return None
        column = names.index(field)
        for number, line in enumerate(lines, start=2):
            parts = line.rstrip("\n").split(separator)
            text = parts[column] if column < len(parts) else ""
            try:
                float(text or "nan")
            except ValueError:
                return f"line {number}, {text!r}"
    return None


def has_quotes(path: str | Path) -> bool:
    """Whether a file holds a double quote anywhere, as few atomic files do."""
    with open(path, "rb") as file:
        return any(b'"' in block for block in iter(lambda: file.read(1 << 24), b""))


def time_scale(user: Tensor, time: Tensor) -> tuple[float, float]:
    """Resolution and span of times, in seconds: between them lie the rates of kernels of gaps.

    The resolution is a day where all times are whole days. Else it is the median positive gap between consecutive
    events of a user: the data's own unit may be a second where gaps are of minutes or hours, and rates much faster than
    most gaps tell nothing of how long a gap is.

    Parameters
    ----------
    user : Int64[n_events]
        Users.
    time : Int64[n_events] or Float[n_events]
        Seconds since 1970; a user's events need not stand together.

    Returns
    -------
    float, float
        Resolution, above 0 (1 where no gap is positive), and the time from the first event to the last, at least that.
    """
    if time.numel() == 0:
        return 1.0, 1.0
    span = float(time.max() - time.min())
    if bool((torch.remainder(time, SECONDS_A_DAY) == 0).all()):
        resolution = float(SECONDS_A_DAY)
    else:
        order = time.argsort(stable=True)
        order = order[user[order].argsort(stable=True)]
        user, time = user[order], time[order]
        gaps = (time[1:] - time[:-1])[(user[1:] == user[:-1]) & (time[1:] > time[:-1])]
        resolution = float(gaps.double().median()) if len(gaps) else 1.0
    return resolution, max(span, resolution)
