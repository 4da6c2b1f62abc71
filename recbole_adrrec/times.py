"""Times: read from texts, dates and numbers, checked, and written; between the two they are whole seconds in int64.

Every place reads times by :func:`read_time` (columns of files) or :func:`seconds` (options and arguments);
docs/times.md lists the forms. RecBole 1.2.1 turns ``timestamp:float`` into float32 (data/dataset/dataset.py:2203)
before it sorts: today's Unix seconds then fall on multiples of 128, and events less than two minutes apart change
places. Here the float64 that pandas reads (exact for whole numbers up to 2**53) goes to int64 directly.
"""

from __future__ import annotations

import math
import numbers
import re
from datetime import date, datetime, timedelta, timezone
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import TYPE_CHECKING

from recbole_adrrec.errors import DataError, OptionError

if TYPE_CHECKING:  # ``doctor`` says which of these are missing, and help answers without them
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

DIVISORS = {"s": 1, "ms": 1_000, "us": 1_000_000}
"""Units per second; the choices of ``time_unit_in``."""

SECONDS_A_DAY = 86_400
MICROSECONDS = 1_000_000
"""Per second."""

LARGEST_SECONDS = 1e11
"""Year 5138: a larger number is not meant as seconds since 1970."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

ISO_8601 = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s?(Z|[+-]\d\d(?::?[0-5]\d)?)?)?",
    re.IGNORECASE | re.ASCII,
)

Moment = int | float | str | date
"""Seconds since 1970, a text, a date or a datetime; see :func:`seconds`."""


class TimeTextError(ValueError):
    """A text that is no time since 1970; the message says why."""


def read_time(text: str, unit: str | None = None) -> int:
    """Microseconds since 1970 of a text, rounded down.

    Parameters
    ----------
    text : str
        A number in ``unit``; seconds after an ``@``; or ISO 8601: ``2024-05-01``, ``2024-05-01T12:00:00.5+02:00``,
        ``2024-05-01 12:00Z``, in UTC where it has no offset.
    unit : {'s', 'ms', 'us'}, optional
        None: seconds, and numbers above 10**11 are refused.

    Raises
    ------
    TimeTextError
        It is none of these, or lies before 1970 or after 5138.
    """
    text = text.strip()
    number = _decimal(text.removeprefix("@"))
    if number is None:
        micro = _iso_8601(text)
    else:
        if text.startswith("@"):
            unit = "s"
        if unit is None and number > LARGEST_SECONDS:
            meant = "us" if number > 1e14 else "ms"
            raise TimeTextError(
                f"time {text[:40]!r} is too large for seconds; say --time_unit_in={meant} if it is in {meant}"
            )
        micro = int((number * MICROSECONDS / DIVISORS[unit or "s"]).to_integral_value(ROUND_FLOOR))
    if micro < 0:
        raise TimeTextError(f"time {text[:40]!r} is before 1970")
    if micro > LARGEST_SECONDS * MICROSECONDS:
        raise TimeTextError(f"time {text[:40]!r} is after the year 5138")
    return micro


def _decimal(text: str) -> Decimal | None:
    if not text.isascii() or "_" in text or len(text) > 60:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    # NaN and infinity are numbers to Decimal; so is 1e999999999, which would be written out digit by digit.
    return number if number.is_finite() and abs(number.adjusted()) < 40 else None


def _iso_8601(text: str) -> int:
    if not text:
        raise TimeTextError("no time")
    shape = ISO_8601.fullmatch(text)
    try:
        if shape is None:
            raise ValueError
        on, clock, second, fraction, offset = shape.groups()
        east = "+00:00" if offset in (None, "Z", "z") else f"{offset[:3]}:{offset[3:].lstrip(':') or '00'}"
        # The one form that Python 3.10 reads.
        full = f"{on}T{clock or '00:00'}:{second or '00'}.{(fraction or '0')[:6]:<06}{east}"
        return (datetime.fromisoformat(full) - EPOCH) // timedelta(microseconds=1)
    except ValueError:
        raise TimeTextError(f"time {text[:40]!r} is neither a number nor ISO 8601") from None


def seconds(moment: Moment, option: str = "at") -> int:
    """Whole seconds since 1970, rounded down.

    Parameters
    ----------
    moment : int, float, str, date or datetime
        Seconds since 1970; a text as for :func:`read_time`, or ``now``; a date, whose day begins in UTC, or a datetime,
        UTC where it has no offset. A text of at most eight digits is refused: it may be a date.
    option : str
        Name in messages.

    Raises
    ------
    OptionError
        It is none of these, or lies before 1970 or after the year 5138.
    """
    if isinstance(moment, str):
        return _seconds_of_text(moment.strip(), option)
    if isinstance(moment, date):
        if not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    # A whole number too large for a float is finite, too.
    finite = isinstance(moment, numbers.Integral) or (isinstance(moment, numbers.Real) and math.isfinite(moment))
    if isinstance(moment, bool) or not finite:
        raise OptionError(
            f"{option}: {moment!r} is no moment; give seconds since 1970, a datetime or a text like 2024-05-01T12:00"
        )
    if not 0 <= moment <= LARGEST_SECONDS:
        raise OptionError(
            f"{option}: {moment!r} seconds are before 1970 or after the year 5138; give seconds since 1970 (UTC)"
        )
    return math.floor(moment)


def _seconds_of_text(text: str, option: str) -> int:
    if text == "now":
        return int(datetime.now(timezone.utc).timestamp())
    if text.isascii() and text.isdigit() and len(text) < 9:
        # 2024 and 20240501 are meant as dates.
        raise OptionError(
            f"{option}: {text!r} may be a date or seconds; write 2024-05-01, or @{text} for seconds since 1970"
        )
    try:
        return read_time(text) // MICROSECONDS
    except TimeTextError as error:
        reason = str(error).partition("; say --time_unit_in")[0]
        raise OptionError(
            f"{option}: {reason}; write 2024-05-01T12:00 (UTC), ...T12:00+02:00, or seconds as @1714564800"
        ) from error


def to_seconds(values: NDArray[np.float64], unit: str | None) -> NDArray[np.int64]:
    """Whole seconds since 1970 (rounded down) of checked times in ``unit``; exact below 2**53."""
    return (values // 1).astype("int64") // DIVISORS[unit or "s"]


def iso(time: float) -> str:
    """A moment as ``2024-05-01T12:00:00Z``, or ``2024-05-01`` at midnight (UTC), from seconds since 1970."""
    moment = EPOCH + timedelta(seconds=int(time))
    return f"{moment:%Y-%m-%d}" if int(time) % SECONDS_A_DAY == 0 else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def day(time: float) -> str:
    """The day of a moment, ``2024-05-01`` (UTC), from seconds since 1970."""
    return iso(time)[:10]


def minute(time: float) -> str:
    """A moment as ``2024-05-01 12:00``, or ``2024-05-01`` at midnight (UTC), from seconds since 1970."""
    return iso(time)[:16].replace("T", " ")


def decimal_seconds(micro: int) -> str:
    """Microseconds as a decimal number of seconds: ``1714521600``, ``1714521600.25``."""
    whole, rest = divmod(micro, MICROSECONDS)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)


def whole_days(time: Tensor) -> Tensor:
    """Whole days since 1970 (UTC), Int64, of times in seconds; also right before 1970."""
    return (time // SECONDS_A_DAY).long()


def check_times(values: NDArray[np.float64], unit: str | None, source: str, first_line: int = 2) -> list[str]:
    """Refuse times that cannot be what the user means, and remark on unusual ones.

    Parameters
    ----------
    values : float64 array, [n_events]
        Times as read from an atomic file, in the unit of the file, in the order of its lines.
    unit : {'s', 'ms', 'us'} or None
        The option ``time_unit_in``. None: seconds, and other magnitudes are refused.
    source : str
        Name of the file, for messages.
    first_line : int
        Its line that the first of the values stands in.

    Returns
    -------
    list of str
        Remarks for the log.

    Raises
    ------
    DataError
        Missing or infinite times, negative times, times of another unit than seconds while ``unit`` is None, and
        times that were normalised to [0, 1].
    """
    import numpy as np

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
    correct = "correct or remove those lines"
    refuse(np.isnan(values), "no timestamp", "fill them in or remove those lines")
    refuse(np.isinf(values), "an infinite timestamp", correct)
    refuse(values < 0, "a negative timestamp (before 1970)", f"{correct}, or add a constant to all times")
    largest = float(values.max())
    if unit is None:
        remedy = "set time_unit_in: ms if they are milliseconds"
        if largest > 1e14:
            remedy = "set time_unit_in: us if they are microseconds"
        if largest > 1e17:
            remedy = "divide them by 10**9 (they look like nanoseconds, which float columns cannot hold exactly)"
        too_large = values > LARGEST_SECONDS
        refuse(too_large, "a timestamp too large for seconds", f"{remedy}, or time_unit_in: s to keep them")
    remarks = []
    fractional = values != np.floor(values)
    if fractional.any():
        if largest <= 1.0:
            raise DataError(
                f"{source}: all timestamps lie between 0 and 1, so they were normalised and have lost their unit; "
                "give the original times (or exact_time: false with a model that ignores time)"
            )
        remarks.append(
            f"{fractional.mean():.1%} of the timestamps have a fraction: it decides the order of events, "
            "then times are cut to whole seconds"
        )
    last = largest / DIVISORS[unit or "s"]
    if unit in ("ms", "us") and last < 1e8:
        year = 1970 + last / 31_556_952
        remarks.append(f"time_unit_in: {unit} puts the last event into {year:.0f}; is the unit right?")
    return remarks


def smallest_gaps(user: Tensor, time: Tensor, n_users: int) -> Tensor:
    """Smallest positive gap between two events of each user, Int64[n_users], in seconds.

    It is at least 1, and 1 for users without two events of different times. ``user``, Int64[n_events], in any order,
    are the events' users, padding counted; ``time``, Tensor[n_events], their times in seconds.
    """
    users, gaps = _positive_gaps(user, time)
    none = 2**63 - 1
    found = users.new_full((n_users,), none)
    found.scatter_reduce_(0, users, gaps.long().clamp(min=1), "amin")
    return found.masked_fill(found == none, 1)


def time_scale(user: Tensor, time: Tensor) -> tuple[float, float]:
    """Resolution and span of times, in seconds: between them lie the rates of kernels of gaps.

    The resolution is a day where all times are whole days. Else it is the median positive gap between consecutive
    events of a user: the data's own unit may be a second where gaps are of minutes or hours, and rates much faster than
    most gaps tell nothing of how long a gap is.

    ``user``, Int64[n_events], and ``time``, Tensor[n_events], seconds since 1970, are the events' in any order. The
    resolution is above 0 (1 where no gap is positive); the span is the time from the first event to the last, at least
    that.
    """
    if time.numel() == 0:
        return 1.0, 1.0
    span = float(time.max() - time.min())
    if bool((time % SECONDS_A_DAY == 0).all()):
        resolution = float(SECONDS_A_DAY)
    else:
        _, gaps = _positive_gaps(user, time)
        resolution = float(gaps.double().median()) if len(gaps) else 1.0
    return resolution, max(span, resolution)


def _positive_gaps(user: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """User, Int64[n], and length, Tensor[n], of each gap above zero between consecutive events of a user."""
    order = time.argsort(stable=True)
    order = order[user[order].argsort(stable=True)]
    user, time = user[order], time[order]
    gap = time[1:] - time[:-1]
    counted = (user[1:] == user[:-1]) & (gap > 0)
    return user[1:][counted].long(), gap[counted]
