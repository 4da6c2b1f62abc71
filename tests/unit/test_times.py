"""Times: every place reads and writes them alike, and refuses the same."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_adrrec import cli
from recbole_adrrec.data.splits import GlobalSplit
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.options.rules import check_global_split
from recbole_adrrec.times import (
    TimeTextError,
    check_times,
    day,
    decimal_seconds,
    iso,
    minute,
    read_time,
    seconds,
    time_scale,
    to_seconds,
)
from recbole_adrrec.tools.interactions import read_interactions

# Texts


@pytest.mark.parametrize(
    ("text", "unit", "want"),
    [
        ("0", None, "0"),
        ("1700000000", None, "1700000000"),
        ("0001700000000", "s", "1700000000"),
        (" 1700000000.0 ", None, "1700000000"),
        ("1700000000.25", None, "1700000000.25"),
        ("1700000000123", "ms", "1700000000.123"),
        ("1700000000000001", "us", "1700000000.000001"),
        ("1700000000000001.9", "us", "1700000000.000001"),
        ("1700000000.123456789012345678", None, "1700000000.123456"),
        ("1700000000." + "0" * 40, "ms", "1700000"),
        ("9007199254740993", "us", "9007199254.740993"),
        ("1.7E9", None, "1700000000"),
        ("2024", None, "2024"),
        ("@1700000000", "ms", "1700000000"),
        ("1970-01-01", None, "0"),
        ("1972-02-29", None, "68169600"),
        ("2024-05-01T12:00", "ms", "1714564800"),
        ("2024-05-01 12:00:00.5", None, "1714564800.5"),
        ("2024-05-01T12:00:00Z", None, "1714564800"),
        ("2024-05-01T12:00:00+02:00", None, "1714557600"),
        ("2024-05-01T12:00:00-0530", None, "1714584600"),
        ("2024-05-01t12:00:00+02", None, "1714557600"),
        ("2024-05-01T12:00:00,123456789", None, "1714564800.123456"),
    ],
)
def test_texts_are_read_to_the_microsecond(text, unit, want):
    micro = read_time(text, unit)
    assert micro == int(Decimal(want) * 10**6)
    assert decimal_seconds(micro) == want


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "@now", "-1", "nan", "inf", "-inf", "1e999", "1e999999999", "1_600", "٣", "0x10", "yesterday"),
        *("1969-12-31", "2024-13-01", "2024-02-30", "2024-05-01T25:00", "2024-05-01T12:00+24:00", "20240501T12"),
        *("1700000000000", "9" * 5000, "2024-05-01T12:00:60", "1970-01-01T00:00+01:00", "2024-05-01T12:00.5"),
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(TimeTextError):
        read_time(text)
    with pytest.raises(OptionError, match=r"^at: .*; write 2024-05-01T12:00"):
        seconds(text)


def by_file(text, folder):
    Path("events.csv").write_text(f"user,item,time\nann,tea,{text}\n")
    return read_interactions([Path("events.csv")], ("u", "i", "t"), None).times[0]


def by_convert(text, folder):
    Path("raw.csv").write_text(f"user,item,time\nann,tea,{text}\n")
    if cli.main(["convert", "raw.csv", "--name=mine", "--overwrite", "--header=yes"]) != 0:
        raise DataError(text)
    return int(float(Path("dataset/mine/mine.inter").read_text().split()[-1]))


def by_split(text, folder):
    entries = {"times": [text, "2200-01-01"]}
    check_global_split(entries, "")
    return GlobalSplit.of({"eval_args": {"split": {"GT": entries}}}).times[0]


PLACES = {"argument": lambda text, folder: seconds(text), "split": by_split, "file": by_file, "convert": by_convert}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("2014-01-31", 1391126400),
        ("2014-01-31T06:30", 1391149800),
        ("2014-01-31 06:30:05Z", 1391149805),
        ("2014-01-31T06:30:05.75+02:00", 1391142605),
        ("1391126400", 1391126400),
        ("1391126400.9", 1391126400),
        ("@20140131", 20140131),
        ("20140131T00", None),
        ("31.01.2014", None),
        ("2014-1-31", None),
        ("1391126400000", None),
        ("-5", None),
        ("soon", None),
        ("", None),
    ],
)
def test_every_place_reads_the_same(place, text, want, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if want is None:
        with pytest.raises((OptionError, DataError)):
            PLACES[place](text, tmp_path)
    else:
        assert PLACES[place](text, tmp_path) == want


@pytest.mark.parametrize("place", PLACES)
def test_short_numbers_are_numbers_in_a_column_and_doubtful_elsewhere(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if place in ("file", "convert"):
        assert PLACES[place]("20140131", tmp_path) == 20140131
    else:
        with pytest.raises(OptionError):
            PLACES[place]("20140131", tmp_path)


def test_arguments_take_numbers_dates_and_datetimes():
    midnight = seconds("2024-05-01")
    assert seconds(np.int64(midnight)) == seconds(midnight + 0.7) == seconds(np.float64(midnight)) == midnight
    assert seconds(date(2024, 5, 1)) == seconds(datetime(2024, 5, 1)) == midnight
    assert seconds(datetime(2024, 5, 1, tzinfo=timezone(timedelta(hours=-5)))) == seconds("2024-05-01T05:00")
    assert abs(seconds("now") - datetime.now(timezone.utc).timestamp()) < 60
    assert seconds(2024) == seconds("@2024") == 2024
    for wrong in (-1, 1e12, 10**400, float("nan"), None, True, [5]):
        with pytest.raises(OptionError, match=r"^times: "):
            seconds(wrong, "times")
    with pytest.raises(OptionError, match="'2024' may be a date or seconds; write 2024-05-01, or @2024"):
        seconds("2024")


def test_times_are_written_for_people():
    noon = seconds("2024-05-01T12:00:30")
    assert (iso(noon), day(noon), minute(noon)) == ("2024-05-01T12:00:30Z", "2024-05-01", "2024-05-01 12:00")
    assert iso(0) == day(0) == minute(0) == "1970-01-01"
    assert seconds(iso(noon)) == noon


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
