"""Interactions that a user gives beside a checkpoint, from the same kinds of file that ``convert`` reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recbole_adrrec.errors import DataError
from recbole_adrrec.times import MICROSECONDS, TimeTextError, read_time
from recbole_adrrec.tools.parquet import ParquetFile, open_raw
from recbole_adrrec.tools.sources import ROLES, Layout, RawFile, ReaderOptions


@dataclass
class InteractionBatch:
    """Users, items and times (whole seconds since 1970, UTC), in order of time, then of the files."""

    users: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


def read_interactions(
    files: Sequence[Path], fields: Sequence[str], unit: str | None, encoding: str = "utf-8"
) -> InteractionBatch:
    """Read files of interactions: CSV, atomic files, MovieLens' ``::`` or JSON lines, plain or gzipped, or Parquet.

    ``fields`` are the columns of user, item and time in the training data; those of other names are found as by
    ``convert``. Times that are numbers are in ``unit`` (``s`` if None). A DataError has the line of a bad row.
    """
    rows: list[tuple[int, str, str]] = []
    for path in files:
        with open_raw(path, encoding) as file:
            for block in file.blocks(_layout(file, fields)):
                bad = list(block.bad)
                for line, user, item, text in zip(block.lines, *block.columns, strict=True):
                    try:
                        if not user.strip() or not item.strip():
                            raise TimeTextError(f"no {'item' if user.strip() else 'user'}")
                        rows.append((read_time(text, unit), user.strip(), item.strip()))
                    except TimeTextError as error:
                        bad.append((line, str(error)))
                if bad:
                    line, fault = min(bad)
                    raise DataError(f"{path}: line {line}: {fault}; correct or remove it")
    rows.sort(key=lambda row: row[0])
    return InteractionBatch(
        [user for _, user, _ in rows], [item for _, _, item in rows], [micro // MICROSECONDS for micro, _, _ in rows]
    )


def _layout(file: RawFile | ParquetFile, fields: Sequence[str]) -> Layout:
    """Layout by the names of the training data where the first line has them all."""
    first = next(iter(file.first_lines(1)), "")
    known = all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", first) for name in fields)
    names = fields if known else (None, None, None)
    return file.layout(ReaderOptions(dict(zip(ROLES, names, strict=True))))
