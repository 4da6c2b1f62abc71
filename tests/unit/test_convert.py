"""Raw files of every kind become the same atomic file; bad rows are told or refused; nothing is half written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import ML_100K
from recbole.config import Config
from recbole.data import create_dataset

from recbole_adrrec import cli
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.tools import convert, sources
from recbole_adrrec.tools.convert import Distinct

ROWS = [("ann", "tea", "1700000000"), ("ann", "milk", "1700000060"), ("bob", "tea", "1600000000")]
WRITTEN = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join("\t".join(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def written(name: str = "mine") -> str:
    return Path("dataset", name, f"{name}.inter").read_bytes().decode()


def lines(separator: str, columns: str = "uit", head: str = "", end: str = "\n") -> str:
    order = {"u": 0, "i": 1, "t": 2}
    rows = [separator.join("5" if each == "r" else row[order[each]] for each in columns) for row in ROWS]
    return end.join([*([head] if head else []), *rows, ""])


def json_lines(**names: str) -> str:
    return "".join(json.dumps(dict(zip(names.values(), (u, i, int(t)), strict=True))) + "\n" for u, i, t in ROWS)


NESTED = "".join(
    json.dumps({"who": {"id": u}, "what.sku": i, "at": {"unix": {"s": t}}, "x": [1, None]}) + "\n" for u, i, t in ROWS
)

ACCEPTED: dict[str, tuple[str, str | bytes, list[str]]] = {
    "CSV with known names": ("a.csv", lines(",", "uirt", "userId,movieId,rating,timestamp"), []),
    "CSV with names given": ("a.csv", lines(",", "tiu", "at,sku,who"), ["--user=who", "--item=sku", "--time", "at"]),
    "CSV with numbers given": ("a.csv", lines(",", "tiu", "at,sku,who"), ["--user=3", "--item=2", "--time=1"]),
    "CSV without names": ("a.csv", lines(",", "uirt"), []),
    "CSV without names, three columns": ("a.csv", lines(","), []),
    "CSV without names, order given": ("a.csv", lines(",", "tui"), ["--user=2", "--item=3", "--time=1"]),
    "CSV with semicolons": ("a.csv", lines(";", "uit", "user;item;time"), []),
    "CSV cut by another text": ("a.txt", lines("||", "uit", "user||item||time"), ["--delimiter=||"]),
    "CSV with spaces about names": ("a.csv", lines(" , ", "uit", "user , item , time"), []),
    "CSV in quotes": (
        "a.csv",
        'user,item,time\n"ann","tea",1700000000\nann,"milk",1700000060\nbob,tea,"1600000000"\n',
        [],
    ),
    "CSV with Windows line ends": ("a.csv", lines(",", "uit", "user,item,time", "\r\n"), []),
    "CSV with blank lines": ("a.csv", "\n\n" + lines(",", "uit", "user,item,time").replace("\n", "\n\n"), []),
    "CSV with a byte order mark": ("a.csv", b"\xef\xbb\xbf" + lines(",", "uit", "user,item,time").encode(), []),
    "CSV in UTF-16": ("a.csv", lines(",", "uit", "user,item,time").encode("utf-16"), ["--encoding=utf-16"]),
    "CSV gzipped": ("a.csv.gz", gzip.compress(lines(",", "uit", "user,item,time").encode()), []),
    "an atomic file": ("a.inter", WRITTEN, []),
    "MovieLens": ("ratings.dat", lines("::", "uirt"), []),
    "MovieLens gzipped": ("ratings.dat.gz", gzip.compress(lines("::", "uirt").encode()), ["--format=movielens"]),
    "ml-100k": ("u.data", lines("\t", "uirt"), []),
    "JSON lines of Amazon": ("a.json", json_lines(u="reviewerID", i="asin", t="unixReviewTime"), []),
    "JSON lines of Amazon, 2023": (
        "a.jsonl",
        "".join(json.dumps({"user_id": u, "parent_asin": i, "timestamp": int(t + "000")}) + "\n" for u, i, t in ROWS),
        ["--time_unit_in=ms"],
    ),
    "JSON lines gzipped": ("a.json.gz", gzip.compress(json_lines(u="user", i="item", t="time").encode()), []),
    "JSON lines, nested": ("a.jsonl", NESTED, ["--user=who.id", "--item=what.sku", "--time=at.unix.s"]),
    "ISO 8601": (
        "a.csv",
        "user,item,time\nann,tea,2023-11-14T22:13:20Z\n"
        "ann,milk,2023-11-14 23:14:20+01:00\nbob,tea,2020-09-13T12:26:40\n",
        [],
    ),
    "numbers with a point": ("a.csv", lines(",", "uit", "user,item,time").replace("0\n", "0.0\n"), []),
    "numbers with an exponent": ("a.csv", "user,item,time\nann,tea,1.7E9\nann,milk,1700000060\nbob,tea,+16e8\n", []),
    "microseconds": ("a.csv", lines(",", "uit", "user,item,time").replace("0\n", "0000000\n"), ["--time_unit_in=us"]),
}


@pytest.mark.parametrize(("name", "content", "arguments"), ACCEPTED.values(), ids=ACCEPTED)
def test_every_form_gives_the_same_file(name: str, content: str | bytes, arguments: list[str]) -> None:
    assert cli.main(["convert", put(name, content), "--name=mine", "--strict", *arguments]) == 0
    assert written() == WRITTEN


def test_several_files_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    one = put("1.csv", "user,item,time\nann,tea,1700000000\n")
    two = put("2.csv", "time,user,item\n1700000060,ann,milk\n1600000000,bob,tea\n")
    assert cli.main(["convert", one, two, "--name=mine"]) == 0
    assert written() == WRITTEN
    out = capsys.readouterr().out
    assert "3 events of 2 users and 2 items, 2020-09-13 to 2023-11-14 (UTC)" in out
    assert "--dataset=mine --data_path=dataset" in out


def test_ml_100k_comes_back_and_loads(tmp_path: Path) -> None:
    raw = "".join(ML_100K.read_text().splitlines(keepends=True)[1:])
    assert cli.main(["convert", put("u.data", raw), "--name=same", "--keep=3:float:rating"]) == 0
    assert Path("dataset/same/same.inter").read_text().splitlines()[0] == (
        "user_id:token\titem_id:token\ttimestamp:float\trating:float"
    )
    cut = [line.split("\t") for line in written("same").splitlines()[1:]]
    assert [[u, i, r, t] for u, i, t, r in cut] == [line.split("\t") for line in raw.splitlines()]


def test_what_is_written_is_what_is_loaded() -> None:
    odd = ['"quoted', 'in"side', "NA", "null", "Zoë B.", "緑茶", "#1", "a,b", "'", "0012", "1e5"]
    rows = [[user, f"{user}-{n}", 1_700_000_000 + 1000 * n + place] for place, user in enumerate(odd) for n in range(4)]
    file = put("a.jsonl", "".join(json.dumps(dict(zip("uit", row, strict=True))) + "\n" for row in rows))
    assert cli.main(["convert", file, "--name=mine", "--user=u", "--item=i", "--time=t", "--strict"]) == 0
    options = {"data_path": "dataset", "topk": [3], "valid_metric": "MRR@3"}
    dataset = create_dataset(Config(model="ADRRec", dataset="mine", config_dict=options)).build()[-1]
    users, items = (dataset.field2id_token[name] for name in ("user_id", "item_id"))
    found = [
        [str(users[user]), str(items[item]), int(time)]
        for user, seen, times in dataset.histories()
        for item, time in zip(seen, times, strict=True)
    ]
    assert sorted(found) == sorted(rows)


# Bad rows

BAD_ROWS = {
    "a column too few": ("ann,milk", "2 columns instead of 3"),
    "a column too many": ("ann,milk,1700000000,5", "4 columns instead of 3"),
    "no user": (" ,milk,1700000000", "no user"),
    "no item": ("ann,,1700000000", "no item"),
    "no time": ("ann,milk,", "no time"),
    "a time that is none": ("ann,milk,soon", "time 'soon' is neither a number nor ISO 8601"),
    "a time before 1970": ("ann,milk,-5", "time '-5' is before 1970"),
    "a time in milliseconds": ("ann,milk,1700000000000", "too large for seconds; say --time_unit_in=ms"),
    "a time that is NaN": ("ann,milk,nan", "neither a number"),
    "a tab in a name": ("an\tn,milk,1700000000", "holds a tab, a line break or another control character"),
    "a line break in a name": ('"an\nn",milk,1700000000', "holds a tab, a line break"),
    "a NUL in a name": ("a\0n,milk,1700000000", "another control character"),
    "bytes of another encoding": (b"Zo\xeb,milk,1700000000", "not readable in this encoding"),
}


@pytest.mark.parametrize(("row", "fault"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_told_with_its_line_or_refused(
    row: str | bytes, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "\0" in str(row) and os.sys.version_info < (3, 11):  # type: ignore[attr-defined]
        pytest.skip("csv takes no NUL before Python 3.11")
    good = lines(",", "uit", "user,item,time").encode()
    raw = row if isinstance(row, bytes) else row.encode()
    first, rest = good.split(b"tea,1700000000\n", 1)
    file = put("a.csv", first + b"tea,1700000000\n" + raw + b"\n\n" + rest + raw + b"\n")
    assert cli.main(["convert", file, "--name=mine"]) == 0
    out = capsys.readouterr().out
    assert "2 bad rows were left out" in out
    last = 7 + raw.count(b"\n")
    assert fault in out.split("a.csv, line 3: ")[1].splitlines()[0]
    assert f"a.csv, line {last}: " in out
    assert written() == WRITTEN
    assert cli.main(["convert", file, "--name=strict", "--strict"]) == 2
    error = capsys.readouterr().err
    assert "a.csv: line 3: " in error
    assert fault in error
    assert not Path("dataset/strict").exists()


JSON_FAULTS = {
    "not JSON": ("{user: 1}", "not JSON"),
    "cut short": ('{"user": "a"', "not JSON"),
    "a list": ("[1, 2]", "not an object"),
    "no such field": ('{"user": "a", "item": "b"}', "no field 'time'"),
    "null": ('{"user": null, "item": "b", "time": 1}', "field 'user' is null"),
    "true": ('{"user": true, "item": "b", "time": 1}', "field 'user' is true"),
    "an object": ('{"user": {"a": 1}, "item": "b", "time": 1}', "neither text nor a number"),
    "nested too deeply": ("[" * 100_000, ""),
    "a number too long": ('{"user": ' + "9" * 5000 + ', "item": "b", "time": 1}', ""),
    "NaN": ('{"user": "a", "item": "b", "time": NaN}', "neither a number"),
}


@pytest.mark.parametrize(("row", "fault"), JSON_FAULTS.values(), ids=JSON_FAULTS)
def test_a_bad_record_is_told_with_its_line(row: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = json_lines(u="user", i="item", t="time").splitlines()
    file = put("a.jsonl", "\n".join([good[0], row, *good[1:]]) + "\n")
    code = cli.main(["convert", file, "--name=mine"])
    out = capsys.readouterr().out
    assert code == 0
    if "a number too long" in row or "bad rows" in out or fault:
        assert "1 bad row was left out" in out
        assert "a.jsonl, line 2: " in out
        assert fault in out
        assert written() == WRITTEN


def test_bad_rows_beyond_the_first_five_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    file = put("a.csv", lines(",", "uit", "user,item,time") + "x,y\n" * 9)
    assert cli.main(["convert", file, "--name=mine"]) == 0
    out = capsys.readouterr().out
    assert "9 bad rows were left out" in out
    assert "and 4 more" in out
    assert out.count(": 2 columns instead of 3") == 5


def test_repeats_are_counted_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", put("a.csv", lines(",") * 3), "--name=mine"]) == 0
    out = capsys.readouterr().out
    assert "9 events of 2 users" in out
    assert "6 events repeat an earlier one" in out
    assert len(written().splitlines()) == 10


def test_a_line_break_in_another_column_is_no_fault_but_told(capsys: pytest.CaptureFixture[str]) -> None:
    file = put(
        "a.csv",
        'user,item,time,text\nann,tea,1700000000,"two\nlines"\nann,milk,1700000060,\nx,y\nbob,tea,1600000000,\n',
    )
    assert cli.main(["convert", file, "--name=mine"]) == 0
    out = capsys.readouterr().out
    assert written() == WRITTEN
    assert "1 rows have a line break within quotes" in out
    assert "line 5: 2 columns instead of 4" in out


# Refusals

REFUSED: dict[str, tuple[str | bytes, list[str], str]] = {
    "an empty file": ("", [], "the file is empty"),
    "blank lines alone": ("\n\n", [], "the file is empty"),
    "names alone": ("user,item,time\n", [], "has no events"),
    "no usable row": ("user,item,time\na,b,soon\n", [], "no row could be used, the first for: line 2: time 'soon'"),
    "one column": ("user\na\n", [], "cuts line 1 into one column"),
    "no such column": (
        lines(",", "uit", "user,item,time"),
        ["--user=who"],
        "no column 'who' (it has user, item, time)",
    ),
    "no such number": (lines(","), ["--user=9"], "no column '9'"),
    "a name without names": (lines(","), ["--user=who", "--header=no"], "give a number from 1"),
    "a column twice": ("user,user,item,time\na,b,c,1\n", [], "stands there twice"),
    "a column twice, named": ("u,u,item,time\na,b,c,1\n", ["--user=u"], "as columns 1 and 2; give the number"),
    "one column for two roles": (lines(",", "uit", "user,item,time"), ["--item=user"], "the same column as --user"),
    "an unknown name": ("who,item,time\na,b,1\n", [], "no column of who, item, time is known as the user"),
    "an unknown JSON field": ('{"a": 1}\n', [], "no field is known as the user"),
    "UTF-16 unannounced": ("user,item,time\n".encode("utf-16"), [], "say --encoding=utf-16"),
    "half a UTF-16 file": (lines(",").encode("utf-16")[:-1], ["--encoding=utf-16"], ""),
    "a damaged gzip file": (gzip.compress(lines(",").encode() * 50)[:-30], [], "damaged gzip file"),
    "a quote that does not end": ('user,item,time\na,"b,1\n' + "c,d,2\n" * 30_000, [], "say --quote=none"),
    "an unknown encoding": (lines(","), ["--encoding=klingon"], "no encoding of text"),
    "an encoding of no text": (lines(","), ["--encoding=base64"], "no encoding of text"),
    "an unknown argument": (lines(","), ["--colour=red"], "unrecognized arguments"),
    "an unknown unit": (lines(","), ["--time_unit_in=h"], "invalid choice"),
    "an empty delimiter": (lines(","), ["--delimiter="], "can't stand between columns"),
    "quotes and a long delimiter": (lines("::"), ["--delimiter=::", "--quote=double"], "--quote must be none"),
    "a folder as name": (lines(","), ["--name=../x"], "is not a name of a folder"),
    "an unknown type to keep": (lines(",", "uirt"), ["--keep=3:int:r"], "none of float, token"),
    "a name written already": (lines(",", "uirt"), ["--keep=3:float:item_id"], "is written already"),
    "a name kept twice": (lines(",", "uirt"), ["--keep=3:float:r", "--keep=1:token:r"], "is there twice"),
}


@pytest.mark.parametrize(("content", "arguments", "fault"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused_in_a_line_and_nothing_written(
    content: str | bytes, arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", put("a.csv", content), "--name=mine", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert fault in error
    assert not Path("dataset").exists()


def test_what_is_there_is_kept_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    file = put("a.csv", lines(","))
    assert cli.main(["convert", file, "--name=mine"]) == 0
    assert cli.main(["convert", file, "--name=mine"]) == 2
    assert "is there already" in capsys.readouterr().err
    bad = put("b.csv", "user,item,time\nx,y\n")
    assert cli.main(["convert", bad, "--name=mine", "--overwrite"]) == 2
    assert written() == WRITTEN
    other = put("c.csv", "user,item,time\nx,y,1\n")
    assert cli.main(["convert", other, "--name=mine", "--overwrite"]) == 0
    assert written().splitlines()[1] == "x\ty\t1"


def test_a_missing_file_and_a_folder_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "nowhere.csv", "--name=mine"]) == 2
    assert "nowhere.csv: No such file or directory" in capsys.readouterr().err
    Path("folder").mkdir()
    assert cli.main(["convert", "folder", "--name=mine"]) == 2
    assert "folder: Is a directory" in capsys.readouterr().err
    assert cli.main(["convert", put("a.csv", lines(",")), "--name=mine", "--out=a.csv"]) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 2), (KeyboardInterrupt(), 130)]
)
def test_a_full_disk_or_an_interruption_leaves_nothing(
    fault: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes > 1:
                raise fault
            return int(self.file.write(data))

    enter = AtomicFile.__enter__
    monkeypatch.setattr(AtomicFile, "__enter__", lambda self: Failing(enter(self)))
    assert cli.main(["convert", put("a.csv", lines(",")), "--name=mine"]) == code
    assert "othing was written" in capsys.readouterr().err.replace("nothing", "othing")
    assert not Path("dataset").exists()


# Size


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(5)
    rows = [f"u{draw.randrange(50)},i{draw.randrange(9)},{draw.randrange(10**9)}" for _ in range(1000)]
    rows[500] = "u1,i1"
    file = put("a.csv", "\n".join(["user,item,time", *rows]) + "\n")
    assert cli.main(["convert", file, "--name=whole"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(sources, "BLOCK", 7)
    assert cli.main(["convert", file, "--name=parts"]) == 0
    parts = capsys.readouterr().out
    assert written("whole") == written("parts")
    assert "line 502: 2 columns instead of 3" in whole
    assert parts.replace("parts", "whole") == whole


def test_different_values_are_counted_across_merges() -> None:
    counter = Distinct()
    for start in range(0, 3_000, 100):
        counter.add([str(value) for value in range(start, start + 150)])
    assert len(counter) == 3_050
    counter._n_new = 10**7
    counter.add(["0", "new"])
    assert len(counter) == 3_051


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(sources, "BLOCK", 5_000)
    peaks = []
    for count in (20_000, 100_000):
        with open("a.csv", "w") as file:
            file.write("user,item,time\n")
            file.writelines(f"u{row % 997},i{row % 101},{1_600_000_000 + row}\n" for row in range(count))
        tracemalloc.start()
        convert.convert(
            convert.Request(
                [Path("a.csv")],
                f"n{count}",
                Path("dataset"),
                sources.ReaderOptions({"user": None, "item": None, "time": None}),
            ),
            progress=False,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A row costs its hash alone, 8 bytes, three times that while hashes are merged.
    assert peaks[1] - peaks[0] < 80_000 * 24
