"""Times: what is refused, what is remarked on, what comes out."""

import numpy as np
import pytest
import torch

from recbole_adrrec.errors import DataError
from recbole_adrrec.times import check_times, time_scale, to_seconds, unreadable_line


def times(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (times(), "no events"),
        (times(1e9, np.nan), r"1 of 2 events have no timestamp \(first: line 3, nothing\)"),
        (times(1e9, np.inf), "infinite"),
        (times(-5, 1e9), r"negative timestamp \(before 1970\) \(first: line 2, -5\)"),
        (times(1e9, 1.3e12), "too large for seconds.*set time_unit_in: ms"),
        (times(1.3e15), "set time_unit_in: us"),
        (times(1.3e18), "nanoseconds"),
        (times(0.0, 0.25, 1.0), "normalised"),
    ],
)
def test_times_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(DataError, match=message) as caught:
        check_times(values, None, "some.inter")
    assert "some.inter" in str(caught.value)


def test_large_times_pass_with_their_unit_named():
    assert check_times(times(1.3e12, 1.4e12), "ms", "f") == []
    assert check_times(times(1.3e12, 1.4e12), "s", "f") == []


def test_unusual_times_are_remarked_on():
    assert "50.0% of the timestamps have a fraction" in check_times(times(5.5, 7), None, "f")[0]
    assert "is the unit right" in check_times(times(881250949), "ms", "f")[0]


@pytest.mark.parametrize(
    ("values", "unit", "seconds"),
    [
        (times(881250949, 881250950), None, [881250949, 881250950]),
        (times(1717171717999, 1717171718000), "ms", [1717171717, 1717171718]),
        (times(1717171717999999), "us", [1717171717]),
        (times(12.75), "s", [12]),
    ],
)
def test_seconds_are_exact(values, unit, seconds):
    got = to_seconds(values, unit)
    assert got.dtype == np.int64
    assert got.tolist() == seconds


def test_unreadable_value_is_found(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\ttimestamp:float\na\t5\nb\tyesterday\n")
    assert unreadable_line(path, "timestamp", "\t", None) == "line 3, 'yesterday'"
    assert unreadable_line(path, "rating", "\t", None) is None


def scale(*events: tuple[int, float], dtype: torch.dtype = torch.int64) -> tuple[float, float]:
    """Resolution and span of events, each a user and a time."""
    users, seconds = zip(*events, strict=True) if events else ((), ())
    return time_scale(torch.tensor(users, dtype=torch.int64), torch.tensor(seconds, dtype=dtype))


DAY = 86_400


def test_whole_days_have_the_resolution_of_a_day():
    assert scale((1, 0), (1, 7 * DAY), (2, 30 * DAY)) == (DAY, 30 * DAY)
    assert scale((1, 5 * DAY)) == (DAY, DAY)
    # One event that is no whole day makes it the median gap.
    assert scale((1, 0), (1, 7 * DAY), (2, 30 * DAY + 1)) == (7 * DAY, 30 * DAY + 1)


def test_the_resolution_is_the_median_positive_gap_of_a_user():
    gaps = [0, 0, 0, 0, 5, 40, 1000]
    times = torch.tensor([100, *gaps]).cumsum(0).tolist()
    assert scale(*((1, time) for time in times)) == (40, 1045)
    # Another user's times make no gaps with the first one's.
    assert scale(*((1, time) for time in times), (2, 10**6)) == (40, 10**6 - 100)


def test_events_may_stand_in_any_order():
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(1, 6, (200,), generator=generator)
    time = 1_500_000_000 + torch.randint(0, 10**6, (200,), generator=generator)
    gaps = torch.cat([time[user == each].sort().values.diff() for each in range(1, 6)])
    wanted = float(gaps[gaps > 0].double().median()), float(time.max() - time.min())
    assert time_scale(user, time) == wanted
    mixed = torch.randperm(200, generator=generator)
    assert time_scale(user[mixed], time[mixed]) == wanted


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32])
def test_where_no_gap_is_positive_the_resolution_is_a_second(dtype):
    assert scale((1, 100), (1, 100), (2, 164), dtype=dtype) == (1, 64)
    assert scale((1, 100), (1, 100), dtype=dtype) == (1, 1)
    assert scale(dtype=dtype) == (1, 1)


def test_the_span_is_at_least_the_resolution():
    resolution, span = scale((1, 1), (1, 51))
    assert span >= resolution == 50
