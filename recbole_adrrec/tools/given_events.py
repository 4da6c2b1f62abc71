"""Events that a user gives beside a checkpoint, from the same kinds of file that ``convert`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recbole_adrrec.errors import DataError
from recbole_adrrec.tools.convert import TimeTextError, is_time, read_time
from recbole_adrrec.tools.sources import Layout, RawFile, Wishes, find_layout


@dataclass
class GivenEvents:
    """Events in the order of their times, those of one time in the order of the files.

    Attributes
    ----------
    users, items : list of str
        Names.
    times : list of int
        Seconds since 1970 (UTC), rounded down.
    """

    users: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


def read_events(files: Sequence[Path], fields: Sequence[str], unit: str | None, encoding: str = "utf-8") -> GivenEvents:
    """Read files of events: CSV, atomic files, MovieLens' ``::`` or JSON lines, plain or gzipped.

    Parameters
    ----------
    files : sequence of Path
    fields : sequence of str
        Names of the columns of user, item and time in the data that were trained on; columns of other names are found
        as ``convert`` finds them (``user``, ``item``, ``timestamp`` and more).
    unit : {'s', 'ms', 'us'}, optional
        Of times that are numbers; seconds if None.
    encoding : str
        Of the files.

    Raises
    ------
    DataError
        A file can't be read, lacks a column, or has a bad row, which is named.
    """
    rows: list[tuple[float, str, str, int]] = []
    for path in files:
        with RawFile(path, encoding) as file:
            layout = _layout(file, fields)
            for block in layout.blocks(file):
                if block.bad:
                    line, fault = block.bad[0]
                    raise DataError(f"{path}: line {line}: {fault}; correct or remove it")
                for line, user, item, text in zip(block.lines, *block.columns, strict=True):
                    rows.append(_row(path, line, user.strip(), item.strip(), text, unit))
    rows.sort(key=lambda row: row[0])
    times, users, items, whole = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    del times
    return GivenEvents(users, items, whole)


def _layout(file: RawFile, fields: Sequence[str]) -> Layout:
    """How a file is cut; columns named as in the data that were trained on go before others."""
    first = next(iter(file.first_lines(1)), "")
    named = all(name in first for name in fields)
    columns = dict(zip(("user", "item", "time"), fields if named else (None, None, None), strict=True))
    return find_layout(file, Wishes(columns=columns), is_time)


def _row(path: Path, line: int, user: str, item: str, text: str, unit: str | None) -> tuple[float, str, str, int]:
    if not user or not item:
        raise DataError(f"{path}: line {line}: no {'user' if not user else 'item'}; correct or remove it")
    try:
        whole, exact = read_time(text, unit)
    except TimeTextError as error:
        raise DataError(f"{path}: line {line}: {error}; correct or remove it") from error
    return float(exact), user, item, whole
