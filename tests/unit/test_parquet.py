"""Parquet files are read as other raw files are, and written."""

from __future__ import annotations

import datetime
import gc
import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recbole_adrrec import cli
from recbole_adrrec.tools.interactions import read_interactions

SECONDS = [1700000000, 1700000060, 1600000000]
WRITTEN = (
    "user_id:token\titem_id:token\ttimestamp:float\nann\ttea\t1700000000\nann\tmilk\t1700000060\nbob\ttea\t1600000000\n"
)
PLUS_ONE = datetime.timezone(datetime.timedelta(hours=1))
MOMENTS = [datetime.datetime.fromtimestamp(each, datetime.timezone.utc) for each in SECONDS]

TIMES: dict[str, tuple[Any, list[str]]] = {
    "int64": (pa.array(SECONDS), []),
    "int32": (pa.array(SECONDS, pa.int32()), []),
    "double": (pa.array([float(each) for each in SECONDS]), []),
    "milliseconds": (pa.array([each * 1000 for each in SECONDS]), ["--time_unit_in=ms"]),
    "text": (pa.array([each.isoformat() for each in MOMENTS]), []),
    "timestamp[s]": (pa.array(SECONDS).cast(pa.timestamp("s")), []),
    "timestamp[ns]": (pa.array(SECONDS).cast(pa.timestamp("s")).cast(pa.timestamp("ns")), []),
    "timestamp of a zone": (
        pa.array([each.astimezone(PLUS_ONE) for each in MOMENTS], pa.timestamp("us", "+01:00")),
        [],
    ),
    "timestamp, another unit named": (pa.array(SECONDS).cast(pa.timestamp("s")), ["--time_unit_in=ms"]),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str = "a.parquet", rows_a_group: int = 2, **columns: Any) -> str:
    pq.write_table(pa.table(columns), name, row_group_size=rows_a_group)
    return name


def events(
    time: Any = SECONDS, user: Any = ("ann", "ann", "bob"), item: Any = ("tea", "milk", "tea")
) -> dict[str, Any]:
    return {"price": [1.5, 2.0, 0.25], "time": time, "user": user, "item": item}


def written(name: str = "mine") -> str:
    return Path("dataset", name, f"{name}.inter").read_text(encoding="utf-8")


@pytest.mark.parametrize(("time", "arguments"), TIMES.values(), ids=TIMES)
def test_every_type_of_time_gives_the_same_file(time: Any, arguments: list[str]) -> None:
    assert cli.main(["convert", put(**events(time)), "--name=mine", "--strict", *arguments]) == 0
    assert written() == WRITTEN


def test_types_of_users_items_and_other_columns() -> None:
    users = pa.array(["ann", "ann", "bob"]).dictionary_encode()
    given = {**events(user=users, item=pa.array([b"tea", b"milk", b"tea"])), "tags": [["a", "b"], [], ["c"]]}
    assert cli.main(["convert", put(**given), "--name=mine", "--keep=price", "--keep=tags:token_seq"]) == 0
    assert written().splitlines()[1:] == [
        "ann\ttea\t1700000000\t1.5\ta b",
        "ann\tmilk\t1700000060\t2\t",
        "bob\ttea\t1600000000\t0.25\tc",
    ]
    assert cli.main(["convert", put(**events(user=[7, 7, 8], item=[2**53 + 1, 3, 4])), "--name=numbers"]) == 0
    assert written("numbers").splitlines()[1] == f"7\t{2**53 + 1}\t1700000000"


def test_fractions_keep_their_microseconds() -> None:
    exact = 1_700_000_000_123_456_789
    assert cli.main(["convert", put(**events(pa.array([exact, 0, 5], pa.timestamp("ns")))), "--name=mine"]) == 0
    assert [line.split("\t")[2] for line in written().splitlines()[1:]] == ["1700000000.123456", "0", "0"]


def test_bad_rows_are_named_by_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    users, items = ["ann", "ann", "bob", "ann"], ["tea"] * 4
    assert cli.main(["convert", put(time=[1.7e9, None, -4.0, 1.7e9], user=users, item=items), "--name=mine"]) == 0
    out = capsys.readouterr().out
    assert "2 bad rows were left out" in out
    assert "a.parquet, line 2: no time" in out
    assert "a.parquet, line 3: time '-4' is before 1970" in out
    assert cli.main(["convert", put(**events(user=["ann", None, "bob"])), "--name=other", "--strict"]) == 2
    assert "a.parquet: line 2: no user" in capsys.readouterr().err


def test_written_files_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    raw = 'user,item,time,score,words\n"""q""",tea,1700000000.25,0.1,a b\nann,milk,1700000060,-3,\n'
    Path("a.csv").write_text(raw)
    keep = ["--keep=score", "--keep=words:token_seq"]
    assert cli.main(["convert", "a.csv", "--name=mine", *keep]) == 0
    assert cli.main(["convert", "a.csv", "--name=mine", "--to=parquet", *keep]) == 0
    assert "Train on it" not in capsys.readouterr().out.splitlines()[-1]
    table = pq.read_table("dataset/mine/mine.parquet")
    assert table.schema.field("timestamp").type == pa.timestamp("us", "UTC")
    assert table.column("user_id").to_pylist() == ['"q"', "ann"]
    assert table.column("score").to_pylist() == [0.1, -3.0]
    assert table.column("words").to_pylist() == [["a", "b"], []]
    before = written()
    assert cli.main(["convert", "dataset/mine/mine.parquet", "--name=back", *keep]) == 0
    assert written("back") == before


def test_interactions_beside_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    batch = read_interactions(
        [Path(put(**events(TIMES["timestamp[ns]"][0])))], ("user_id", "item_id", "timestamp"), None
    )
    assert (batch.users, batch.items, batch.times) == (["bob", "ann", "ann"], ["tea", "tea", "milk"], sorted(SECONDS))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_refused_conversion_to_parquet_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("user,item,time\nann,tea,1700000000\nann,,5\n")
    assert cli.main(["convert", "a.csv", "--name=mine", "--to=parquet", "--strict"]) == 2
    gc.collect()
    assert capsys.readouterr().err.startswith("error: a.csv: line 3: no item; correct it")
    assert not Path("dataset").exists()


def test_damaged_files_and_a_missing_package_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(put(**events())).read_bytes()
    Path("cut.parquet").write_bytes(whole[: len(whole) // 2])
    assert cli.main(["convert", "cut.parquet", "--name=mine"]) == 2
    assert "cut.parquet: not readable as Parquet" in capsys.readouterr().err
    assert cli.main(["convert", put(user=["a"], item=["b"]), "--name=mine"]) == 2
    assert "no column of user, item is known as the time; name it by --time=NAME" in capsys.readouterr().err
    assert cli.main(["convert", put(**events([{"s": 1}] * 3)), "--name=mine"]) == 2
    assert "column 'time' holds struct<s: int64>, which is no text or number" in capsys.readouterr().err
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name))
    assert cli.main(["convert", put(**events()), "--name=mine"]) == 2
    assert "pip install 'recbole_adrrec[parquet]'" in capsys.readouterr().err
    assert not Path("dataset").exists()
