"""Times: what is refused, what is remarked on, what comes out."""

import numpy as np
import pytest

from recbole_adrrec.data.times import check_times, to_seconds, unreadable_line
from recbole_adrrec.errors import DataError


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
