"""Rows of raw data files: comma-separated, MovieLens' ``::``, JSON lines, each plain or gzipped, in blocks.

A file is read once, from its beginning to its end, in blocks of rows, so that its size does not matter.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from recbole_adrrec.errors import DataError, OptionError

BLOCK = 100_000
"""Rows that are in memory at once."""

LONGEST_LINE = 1 << 24
"""Characters of a line; a longer one means that the file is not text by lines."""

FORMATS = ("csv", "movielens", "jsonl")

KNOWN_NAMES = {
    "user": ("user_id", "userid", "user", "reviewerid", "uid"),
    "item": ("item_id", "itemid", "item", "movieid", "movie_id", "parent_asin", "asin", "iid", "product_id"),
    "time": ("timestamp", "unixreviewtime", "time", "unix_time", "datetime", "date", "ts"),
}
"""Names by which a column is found that nobody named, in lower case, the first that is there counts."""


@dataclass
class Block:
    """Rows that were read together.

    Attributes
    ----------
    columns : list of list of str
        Values of each wanted column, of the rows that have them all.
    lines : list of int or range
        Line of the file, from 1, at which each of those rows begins.
    bad : list of (int, str)
        Line and fault of each row that can't be cut into columns.
    n_broken : int
        Rows with a line break within a quoted field.
    """

    columns: list[list[str]]
    lines: Sequence[int]
    bad: list[tuple[int, str]] = field(default_factory=list)
    n_broken: int = 0


class RawFile:
    """A text file, plain or gzipped, that knows how many of its bytes on the disk were read.

    Parameters
    ----------
    path : Path
    encoding : str
        Bytes that it can't read become lone surrogates, by which their rows are known.

    Raises
    ------
    DataError
        There is no such file, or it can't be read.
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
        """The first lines that aren't blank, without reading on; call it before anything else."""
        with RawFile(self.path, self.text.encoding) as other:
            lines = (line.strip("\r\n") for line in other.lines())
            return list(islice((line for line in lines if line.strip()), count))

    def lines(self) -> Iterator[str]:
        """Lines with their ends, none longer than ``LONGEST_LINE``.

        Raises
        ------
        DataError
            The gzip stream is damaged, or this is no text by lines.
        """
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


@dataclass
class Layout:
    """How a file is cut into rows and columns.

    Attributes
    ----------
    kind : {'csv', 'movielens', 'jsonl'}
    delimiter : str
        What stands between columns; without meaning for JSON lines.
    wanted : dict of str to (int or str)
        Role of each wanted column (``user``, ``item``, ``time``, then those kept) to its index, or its dotted name.
    width : int
        Columns of the first line, and of every good one.
    header : list of str, optional
        Names of the columns, where the first line has them.
    quoted : bool
        Whether ``"`` encloses fields.
    """

    kind: str
    delimiter: str
    wanted: dict[str, Any]
    width: int = 0
    header: list[str] | None = None
    quoted: bool = True

    def blocks(self, file: RawFile) -> Iterator[Block]:
        """Read the file.

        Raises
        ------
        DataError
            The file can't be read as this.
        """
        if self.kind == "jsonl":
            yield from _json_blocks(file, list(self.wanted.values()))
        else:
            yield from _cut_blocks(file, self)


# Which columns


@dataclass
class Wishes:
    """What the user said about the files: columns by role (name or number from 1), and how they are cut."""

    columns: dict[str, str | None]
    kind: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    quoted: bool | None = None


def find_layout(file: RawFile, wishes: Wishes, is_time: Callable[[str], bool]) -> Layout:
    """Find out how a file is cut, from its first lines and what the user said.

    Parameters
    ----------
    file : RawFile
    wishes : Wishes
    is_time : callable
        Whether a text can be read as a time.

    Raises
    ------
    DataError
        The file is empty, or has no such columns.
    OptionError
        A column is named that isn't there, or more than once.
    """
    lines = file.first_lines()
    if not lines:
        raise DataError(f"{file.path}: the file is empty; expected an event a line")
    kind = wishes.kind or ("jsonl" if lines[0].lstrip().startswith("{") else "csv")
    if kind == "csv" and wishes.kind is None and wishes.delimiter is None and lines[0].count("::") >= 2:
        kind = "movielens"
    if kind == "jsonl":
        return Layout(kind, "", _json_fields(file, lines[0], wishes))
    delimiter = "::" if kind == "movielens" else wishes.delimiter or _likely_delimiter(lines)
    quoted = wishes.quoted if wishes.quoted is not None else len(delimiter) == 1 and delimiter != "\t"
    if quoted and len(delimiter) != 1:
        raise OptionError(f"--delimiter: {delimiter!r} is longer than a character, so --quote must be none")
    rows = [_cut(line, delimiter, quoted) for line in lines]
    names = [name.strip() for name in rows[0]]
    if len(names) < 2:
        raise DataError(f"{file.path}: {delimiter!r} cuts line 1 into one column; say how with --delimiter")
    has_header = wishes.header if wishes.header is not None else _is_header(names, wishes, is_time)
    header = names if has_header else None
    wanted = {role: _column(file, role, wish, header, len(names), kind) for role, wish in wishes.columns.items()}
    roles = ("user", "item", "time")
    for place, role in enumerate(roles):
        for other in roles[:place]:
            if wanted[role] == wanted[other]:
                raise OptionError(f"--{role}: the same column as --{other}; name another")
    return Layout(kind, delimiter, wanted, len(names), header, quoted)


def _likely_delimiter(lines: Sequence[str]) -> str:
    counts = {each: min(line.count(each) for line in lines) for each in ("\t", ",", ";", "|")}
    best = max(counts, key=lambda each: counts[each])
    return best if counts[best] else ","


def _cut(line: str, delimiter: str, quoted: bool) -> list[str]:
    if not quoted:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return line.split(delimiter)


def _is_header(first: list[str], wishes: Wishes, is_time: Callable[[str], bool]) -> bool:
    plain = {_plain(name) for name in first}
    if any(wish and not wish.isdigit() for wish in wishes.columns.values()):
        return True
    if wishes.kind != "movielens" and any(plain & set(names) for names in KNOWN_NAMES.values()):
        return True
    wish = wishes.columns.get("time")
    at = int(wish) - 1 if wish else (3 if len(first) > 3 else len(first) - 1)
    # A header is a line of names: where a time should be, there is neither a number nor a date.
    return 0 <= at < len(first) and not is_time(first[at]) and not any(char.isdigit() for char in first[at])


def _plain(name: str) -> str:
    return name.partition(":")[0].strip().lower()


def _column(file: RawFile, role: str, wish: str | None, header: list[str] | None, width: int, kind: str) -> int:
    """Index of a column from its name, its number, or what such columns are called."""
    if wish is None:
        return _guess(file, role, header, width, kind)
    if header is not None:
        found = [place for place, name in enumerate(header) if wish in (name, name.partition(":")[0])]
        if len(found) > 1:
            places = " and ".join(str(place + 1) for place in found)
            raise OptionError(f"--{role}: {file.path} has {wish!r} as columns {places}; give the number of one")
        if found:
            return found[0]
    if wish.isdigit() and 1 <= int(wish) <= width:
        return int(wish) - 1
    has = ", ".join(header) if header else f"{width} columns without names; give a number from 1"
    raise OptionError(f"--{role}: {file.path} has no column {wish!r} (it has {has})")


def _guess(file: RawFile, role: str, header: list[str] | None, width: int, kind: str) -> int:
    if header is None:
        # MovieLens: user, item, rating, time; with three columns there is no rating.
        place = {"user": 0, "item": 1, "time": 3 if width > 3 else 2}[role]
        if place < width:
            return place
        raise DataError(f"{file.path}: {width} columns, none for --{role}; name it by its number from 1")
    plain = [_plain(name) for name in header]
    for name in KNOWN_NAMES[role]:
        if plain.count(name) > 1:
            raise DataError(f"{file.path}: column {name!r} stands there twice; say which by its number, --{role}=1")
        if name in plain:
            return plain.index(name)
    raise DataError(f"{file.path}: no column of {', '.join(header)} is known as the {role}; name it by --{role}=NAME")


def _json_fields(file: RawFile, line: str, wishes: Wishes) -> dict[str, str]:
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        first = {}
    names = {name.lower(): name for name in first} if isinstance(first, dict) else {}
    found = {}
    for role, wish in wishes.columns.items():
        if wish is not None:
            found[role] = wish
            continue
        known = next((names[name] for name in KNOWN_NAMES[role] if name in names), None)
        if known is None:
            has = ", ".join(names.values()) or "none"
            raise DataError(
                f"{file.path}: no field is known as the {role} (line 1 has {has}); name it by --{role}=NAME"
            )
        found[role] = known
    return found


# Rows


def _cut_blocks(file: RawFile, layout: Layout) -> Iterator[Block]:
    delimiter = layout.delimiter
    # csv takes delimiters of one character alone, and tells its lines.
    quoted = csv.reader(file.lines(), delimiter=delimiter) if layout.quoted else None
    plain = (line.rstrip("\r\n").split(delimiter) for line in file.lines())
    reader: Iterator[list[str]] = plain if quoted is None else quoted
    line = 1
    names_ahead = layout.header is not None
    places = list(layout.wanted.values())
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
    """Line at which each row begins, where some fields hold line breaks, and how many rows have such fields."""
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
    columns = [[row[place] for row in rows] for place in places]
    return Block(columns, numbers, bad, n_broken)


def _json_blocks(file: RawFile, fields: list[str]) -> Iterator[Block]:
    paths = [name.split(".") for name in fields]
    lines = enumerate(file.lines(), start=1)
    while block := list(islice(lines, BLOCK)):
        result = Block([[] for _ in fields], [])
        numbers: list[int] = []
        for number, line in block:
            if not line.strip():
                continue
            try:
                record = json.loads(line, parse_float=str, parse_constant=str)
                values = [_value(record, name, path) for name, path in zip(fields, paths, strict=True)]
            except RecordError as fault:
                result.bad.append((number, str(fault)))
                continue
            except RecursionError:
                result.bad.append((number, "nested too deeply"))
                continue
            except ValueError as error:
                result.bad.append((number, f"not JSON ({error})"))
                continue
            numbers.append(number)
            for column, value in zip(result.columns, values, strict=True):
                column.append(value)
        result.lines = numbers
        yield result


class RecordError(Exception):
    """A record that lacks a field; the text says which."""


def _value(record: Any, name: str, path: list[str]) -> str:
    value = record
    if not isinstance(record, dict):
        raise RecordError("not an object of named fields")
    if name in record:
        value = record[name]
    else:
        for part in path:
            if not isinstance(value, dict) or part not in value:
                raise RecordError(f"no field {name!r}")
            value = value[part]
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"field {name!r} is {json.dumps(value)[:40]}, neither text nor a number")
