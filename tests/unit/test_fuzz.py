"""Whatever is thrown at the converter and at the checks of options, they answer or say in a line what is wrong."""

from __future__ import annotations

import contextlib
import io
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_adrrec import cli, options
from recbole_adrrec.cli import convert as command
from recbole_adrrec.cli.commands import Parser
from recbole_adrrec.errors import UserError
from recbole_adrrec.options import rules
from recbole_adrrec.times import EPOCH, TimeTextError, decimal_seconds, read_time
from recbole_adrrec.tools.convert import Kept

RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = sorted(
    {*rules.OVERALL_RULES, *rules.RECBOLE_RULES, *(name for each in rules.MODEL_RULES.values() for name in each)}
)
CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["user_id", "item", "timestamp", "1700000000", "2024-05-01T12:00Z", "-1", "nan", '"', '""', "a,b"]),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
)
SEPARATORS = st.sampled_from([",", "\t", "::", ";", "|", " "])
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.just(float("nan"))
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
)


@st.composite
def tables(draw: Any) -> bytes:
    separator, end = draw(SEPARATORS), draw(st.sampled_from(["\n", "\r\n", "\n\n", ""]))
    rows = draw(st.lists(st.lists(CELLS, max_size=5), max_size=8))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"]))
    return end.join(separator.join(row) for row in rows).encode(encoding, "replace")


RECORDS = st.lists(
    st.dictionaries(st.sampled_from(["user", "item", "time", "a.b", ""]), VALUES, max_size=4), max_size=5
)


def run(content: bytes, arguments: list[str]) -> None:
    """Convert; whatever comes out, it is a code and, where refused, one line, and no half a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "raw")
        file.write_bytes(content)
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.main(["convert", str(file), "--name=x", f"--out={folder}/out", *arguments])
        target = Path(folder, "out", "x", "x.inter")
        if code == 0:
            lines = target.read_bytes().decode().split("\n")
            assert lines[-1] == ""
            events = [line.split("\t") for line in lines[1:-1]]
            assert events
            assert all(len(event) == 3 and all(event) and float(event[2]) >= 0 for event in events)
            assert f"{len(events):,} events" in out.getvalue()
        else:
            assert code == 2
            assert error.getvalue().startswith("error: ")
            assert not target.parent.exists()


@RELAXED
@given(
    st.one_of(st.binary(max_size=200), tables()),
    st.lists(
        st.sampled_from(
            [
                *(
                    "--strict",
                    "--format=csv",
                    "--format=jsonl",
                    "--format=movielens",
                    "--header=yes",
                    "--header=no",
                    "--quote=none",
                ),
                *(
                    "--quote=double",
                    "--user=1",
                    "--item=2",
                    "--time=3",
                    "--user=item",
                    "--time_unit_in=us",
                    "--delimiter=,",
                ),
                *("--encoding=latin-1", "--encoding=utf-16"),
            ]
        ),
        max_size=4,
        unique=True,
    ),
)
def test_converting_anything(content: bytes, arguments: list[str]) -> None:
    run(content, arguments)


@RELAXED
@given(RECORDS)
def test_converting_any_records(records: list[dict[str, Any]]) -> None:
    import json

    run("\n".join(json.dumps(record) for record in records).encode(), ["--user=user", "--item=item", "--time=time"])


@RELAXED
@given(st.lists(st.text(alphabet=string.printable, max_size=20), max_size=4))
def test_arguments_of_the_converter(arguments: list[str]) -> None:
    with contextlib.suppress(UserError, SystemExit), contextlib.redirect_stdout(io.StringIO()):
        parser = Parser("convert", "raw files", "")
        command.add_arguments(parser.add_argument)
        command.request_of(parser.parse_args(arguments))
    for text in arguments:
        with contextlib.suppress(UserError):
            Kept.parse(text)


@RELAXED
@given(CELLS, st.sampled_from([None, "s", "ms", "us"]))
def test_reading_any_time(text: str, unit: str | None) -> None:
    try:
        micro = read_time(text, unit)
    except TimeTextError:
        return
    assert 0 <= micro <= 10**17
    assert read_time(decimal_seconds(micro), "s") == micro


@RELAXED
@given(st.datetimes(min_value=EPOCH.replace(tzinfo=None)), st.integers(-12 * 60, 14 * 60))
def test_iso_times_are_those_of_datetime(moment: Any, minutes: int) -> None:
    from datetime import timedelta, timezone

    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (aware - EPOCH) // timedelta(microseconds=1)
    if not 0 <= expected <= 10**17:
        return
    assert read_time(aware.isoformat()) == expected


@RELAXED
@given(
    st.lists(
        st.one_of(
            st.text(alphabet=string.printable, max_size=25),
            st.tuples(st.sampled_from(NAMES), st.text(alphabet=string.printable, max_size=25)).map(
                lambda pair: f"--{pair[0]}={pair[1]}"
            ),
            st.tuples(st.sampled_from(NAMES), VALUES).map(lambda pair: f"--{pair[0]}={pair[1]}"),
        ),
        max_size=5,
    )
)
def test_any_command_line_is_read_or_refused(arguments: list[str]) -> None:
    with contextlib.suppress(UserError):
        parsed = options.parse_command_line(arguments)
        assert all(isinstance(name, str) for name in parsed)
        options.check_names(parsed, "ADRRec", strict=True, where="command line", warn=False)


@RELAXED
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.sampled_from([*rules.MODEL_RULES, "SASRec"]))
def test_any_value_is_taken_or_refused(values: dict[str, Any], model: str) -> None:
    config = {**options.load_properties("overall"), **options.load_properties("model", model), **values}
    with contextlib.suppress(UserError):
        rules.check_values(config, model)


@pytest.mark.parametrize("kind", ["wrong type", "traceback"])
def test_the_fuzz_would_find(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails otherwise than by a UserError is found."""

    def broken(config: Any, model: str) -> None:
        raise TypeError("unhashable")

    monkeypatch.setattr(rules, "check_values", broken)
    with pytest.raises(TypeError):
        test_any_value_is_taken_or_refused()
