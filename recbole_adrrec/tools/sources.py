"""Rows of raw data files: comma-separated, MovieLens' ``::``, JSON lines, each plain or gzipped, in blocks.

A file is read once, in blocks of rows, so that its size does not matter. Rows are cut by Python's ``csv`` and ``json``:
pandas gives a bad row without its line and cuts by ``::`` in its slow engine alone; pyarrow takes delimiters of one
character, and its JSON reader stops at the first broken record.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any, BinaryIO

from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.times import TimeTextError, read_time

BLOCK = 100_000
"""Rows in memory at a time."""

LONGEST_LINE = 1 << 24
"""Characters of a line; a longer one means that the file is not text by lines."""

FORMATS = ("csv", "movielens", "jsonl")
ROLES = ("user", "item", "time")

KNOWN_NAMES = {
    "user": ("user_id", "userid", "user", "reviewerid", "uid"),
    "item": ("item_id", "itemid", "item", "movieid", "movie_id", "parent_asin", "asin", "iid", "product_id"),
    "time": ("timestamp", "unixreviewtime", "time", "unix_time", "datetime", "date", "ts"),
}
"""Names, in lower case, of columns that the options don't name; the first that is there counts."""


@dataclass
class Block:
    """Chosen columns of rows, their lines (from 1), lines and faults of bad rows, and the number with line breaks."""

    columns: list[list[str]]
    lines: Sequence[int]
    bad: list[tuple[int, str]] = field(default_factory=list)
    n_broken: int = 0


class RawFile:
    """A text file, plain or gzipped, read by lines; raises DataError if it can't be opened.

    Bytes that the encoding can't read become lone surrogates, by which their rows are known.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        try:
            self._raw: BinaryIO = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; name a file that can be read") from error
        start = self._raw.read(4)
        self._raw.seek(0)
        self.size = path.stat().st_size
        unpacked: Any = gzip.GzipFile(fileobj=self._raw) if start[:2] == b"\x1f\x8b" else self._raw
        if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: this is UTF-16; say --encoding=utf-16")
            encoding = "utf-8-sig"  # a byte order mark is no part of the first name
        self.text = io.TextIOWrapper(unpacked, encoding=encoding, errors="surrogateescape", newline="")

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.text.close()
        self._raw.close()

    def position(self) -> int:
        """Bytes of the file on the disk that were read so far."""
        return self._raw.tell()

    def first_lines(self, count: int = 2) -> list[str]:
        """The first lines that aren't blank; this file is not read on."""
        with RawFile(self.path, self.text.encoding) as other:
            lines = (line.strip("\r\n") for line in other.lines())
            return list(islice((line for line in lines if line.strip()), count))

    def lines(self) -> Iterator[str]:
        """Lines with their ends; raises DataError where the gzip stream is damaged or this is no text by lines."""
        number = 0
        try:
            while line := self.text.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise DataError(f"{self.path}: line {number} has more than {LONGEST_LINE:,} characters; not rows")
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.path}: damaged gzip file after line {number:,} ({error}); take another copy"
            ) from error
        except UnicodeError as error:
            raise DataError(
                f"{self.path}: not readable as {self.text.encoding} after line {number:,} ({error}); set --encoding"
            ) from error

    def layout(self, options: ReaderOptions) -> Layout:
        """Find the form from the first lines and the options; OptionError or DataError where a column isn't there."""
        lines = self.first_lines()
        if not lines:
            raise DataError(f"{self.path}: the file is empty; expected an event a line")
        kind = options.kind or ("jsonl" if lines[0].lstrip().startswith("{") else "csv")
        if kind == "csv" and options.kind is None and options.delimiter is None and lines[0].count("::") >= 2:
            kind = "movielens"
        if kind == "jsonl":
            return Layout(kind, "", _json_fields(self.path, lines[0], options))
        delimiter = "::" if kind == "movielens" else options.delimiter or _likely_delimiter(lines)
        quoted = options.quoted if options.quoted is not None else len(delimiter) == 1 and delimiter != "\t"
        if quoted and len(delimiter) != 1:
            raise OptionError(f"--delimiter: {delimiter!r} is longer than a character, so --quote must be none")
        names = [name.strip() for name in _cut(lines[0], delimiter, quoted)]
        if len(names) < 2:
            raise DataError(f"{self.path}: {delimiter!r} cuts line 1 into one column; say how with --delimiter")
        has_header = options.header if options.header is not None else _is_header(names, options)
        header = names if has_header else None
        chosen = chosen_columns(self.path, options, header, len(names))
        return Layout(kind, delimiter, chosen, len(names), header, quoted)

    def blocks(self, layout: Layout) -> Iterator[Block]:
        """Rows of the file; raises DataError where it can't be read."""
        json_lines = layout.kind == "jsonl"
        return _json_blocks(self, list(layout.chosen.values())) if json_lines else _cut_blocks(self, layout)


@dataclass
class ReaderOptions:
    """Columns by role (name, or number from 1) and form of the files, as far as the user gives them."""

    columns: dict[str, str | None]
    kind: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    quoted: bool | None = None


@dataclass
class Layout:
    """Form of a file and places of its columns, by role: user, item, time, then those that are kept."""

    kind: str  # one of FORMATS, or parquet
    delimiter: str
    chosen: dict[str, Any]  # index, or dotted name in JSON
    width: int = 0  # columns of the first line, and of every good one
    header: list[str] | None = None
    quoted: bool = True

    def __str__(self) -> str:
        head = ", names in line 1" if self.header else ", no line of names"
        form = {"jsonl": "JSON lines", "parquet": "Parquet"}.get(self.kind, f"columns cut by {self.delimiter!r}{head}")
        names = {
            role: place if isinstance(place, str) else self.header[place] if self.header else f"column {place + 1}"
            for role, place in self.chosen.items()
        }
        return f"{form}; {', '.join(f'{role}: {name}' for role, name in names.items())}"


def chosen_columns(path: Path, options: ReaderOptions, header: list[str] | None, width: int) -> dict[str, int]:
    """Index of each role's column; an OptionError or DataError where one isn't there, or is another's."""
    chosen = {role: _column(path, role, name, header, width) for role, name in options.columns.items()}
    for other, role in combinations(ROLES, 2):
        if chosen[role] == chosen[other]:
            raise OptionError(f"--{role}: the same column as --{other}; name another")
    return chosen


def _likely_delimiter(lines: Sequence[str]) -> str:
    counts = {each: min(line.count(each) for line in lines) for each in ("\t", ",", ";", "|")}
    best = max(counts, key=lambda each: counts[each])
    return best if counts[best] else ","


def _cut(line: str, delimiter: str, quoted: bool) -> list[str]:
    if quoted:
        try:
            return next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            pass
    return line.split(delimiter)


def _plain(name: str) -> str:
    return name.partition(":")[0].strip().lower()


def _is_header(first: list[str], options: ReaderOptions) -> bool:
    plain = {_plain(name) for name in first}
    if any(name and not name.isdigit() for name in options.columns.values()):
        return True
    if options.kind != "movielens" and any(plain & set(names) for names in KNOWN_NAMES.values()):
        return True
    given = options.columns.get("time")
    at = int(given) - 1 if given else (3 if len(first) > 3 else len(first) - 1)
    # A header is a line of names: where a time should be, there is neither a number nor a date.
    return 0 <= at < len(first) and not _is_time(first[at]) and not any(char.isdigit() for char in first[at])


def _is_time(text: str) -> bool:
    try:
        read_time(text, "us")
    except TimeTextError:
        return False
    return True


def _column(path: Path, role: str, name: str | None, header: list[str] | None, width: int) -> int:
    """Index of a column: by its name or number, else by the names or the order that such files have."""
    if name is not None:
        found = [place for place, each in enumerate(header or ()) if name in (each, each.partition(":")[0])]
        if len(found) > 1:
            places = " and ".join(str(place + 1) for place in found)
            raise OptionError(f"--{role}: {path} has {name!r} as columns {places}; give the number of one")
        if found:
            return found[0]
        if name.isdigit() and 1 <= int(name) <= width:
            return int(name) - 1
        has = ", ".join(header) if header else f"{width} columns without names; give a number from 1"
        raise OptionError(f"--{role}: {path} has no column {name!r} (it has {has})")
    if header is None:
        # MovieLens: user, item, rating, time; with three columns there is no rating.
        place = {"user": 0, "item": 1, "time": 3 if width > 3 else 2}[role]
        if place < width:
            return place
        raise DataError(f"{path}: {width} columns, none for --{role}; name it by its number from 1")
    plain = [_plain(each) for each in header]
    known = next((each for each in KNOWN_NAMES[role] if each in plain), None)
    if known is None:
        raise DataError(f"{path}: no column of {', '.join(header)} is known as the {role}; name it by --{role}=NAME")
    if plain.count(known) > 1:
        raise DataError(f"{path}: column {known!r} stands there twice; say which by its number, --{role}=1")
    return plain.index(known)


def _json_fields(path: Path, line: str, options: ReaderOptions) -> dict[str, str]:
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        first = {}
    names = {name.lower(): name for name in first} if isinstance(first, dict) else {}
    found = {}
    for role, given in options.columns.items():
        known = given or next((names[name] for name in KNOWN_NAMES[role] if name in names), None)
        if known is None:
            has = ", ".join(names.values()) or "none"
            raise DataError(f"{path}: no field is known as the {role} (line 1 has {has}); name it by --{role}=NAME")
        found[role] = known
    return found


def _cut_blocks(file: RawFile, layout: Layout) -> Iterator[Block]:
    delimiter = layout.delimiter
    # csv takes delimiters of one character alone, and counts its lines.
    quoted = csv.reader(file.lines(), delimiter=delimiter) if layout.quoted else None
    plain = (line.rstrip("\r\n").split(delimiter) for line in file.lines())
    reader: Iterator[list[str]] = plain if quoted is None else quoted
    line = 1
    names_ahead = layout.header is not None
    places = list(layout.chosen.values())
    while True:
        try:
            rows = list(islice(reader, BLOCK))
        except csv.Error as error:
            at = quoted.line_num if quoted else line
            raise DataError(
                f"{file.path}: line {at}: {error}; where quotes are part of the text, say --quote=none"
            ) from error
        if not rows:
            return
        last = line + len(rows) - 1
        numbers: Sequence[int] = range(line, last + 1)
        n_broken = 0
        if quoted is not None and quoted.line_num != last:
            numbers, n_broken = _line_numbers(rows, line)
            last = quoted.line_num
        line = last + 1
        if names_ahead:
            filled = (place for place, row in enumerate(rows) if any(cell.strip() for cell in row))
            place = next(filled, len(rows))
            names_ahead = place == len(rows)
            rows, numbers = rows[place + 1 :], numbers[place + 1 :]
        yield _block(rows, numbers, places, layout.width, n_broken)


def _line_numbers(rows: list[list[str]], line: int) -> tuple[list[int], int]:
    """Line at which each row begins, where some fields hold line breaks, and the number of rows with such fields."""
    numbers, broken = [], 0
    for row in rows:
        numbers.append(line)
        text = "".join(row)
        breaks = text.count("\n") + text.replace("\r\n", "").count("\r")
        line += 1 + breaks
        broken += breaks > 0
    return numbers, broken


def _block(rows: list[list[str]], numbers: Sequence[int], places: list[int], width: int, n_broken: int) -> Block:
    """Pick the columns out of rows; rows that are wider or narrower than the first line are bad, blank ones nothing."""
    bad: list[tuple[int, str]] = []
    if not set(map(len, rows)) <= {width}:
        kept, lines = [], []
        for row, line in zip(rows, numbers, strict=True):
            if len(row) == width:
                kept.append(row)
                lines.append(line)
            elif any(cell.strip() for cell in row):
                bad.append((line, f"{len(row)} column{'s' * (len(row) != 1)} instead of {width}"))
        rows, numbers = kept, lines
    return Block([[row[place] for row in rows] for place in places], numbers, bad, n_broken)


def _json_blocks(file: RawFile, fields: list[str]) -> Iterator[Block]:
    lines = enumerate(file.lines(), start=1)
    while block := list(islice(lines, BLOCK)):
        rows, numbers, bad = [], [], []
        for number, line in block:
            if not line.strip():
                continue
            try:
                record = json.loads(line, parse_float=str, parse_constant=str)
                rows.append([_value(record, name) for name in fields])
                numbers.append(number)
            except RecordError as fault:
                bad.append((number, str(fault)))
            except RecursionError:
                bad.append((number, "nested too deeply"))
            except ValueError as error:
                bad.append((number, f"not JSON ({error})"))
        yield Block([[row[place] for row in rows] for place in range(len(fields))], numbers, bad)


class RecordError(Exception):
    """A record that lacks a field; the text says which."""


def _value(record: Any, name: str) -> str:
    """A field of a record, by its name or else by its dotted path, as text."""
    if not isinstance(record, dict):
        raise RecordError("not an object of named fields")
    value: Any = record
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise RecordError(f"no field {name!r}")
        value = value[part]
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"field {name!r} is {json.dumps(value)[:40]}, neither text nor a number")
