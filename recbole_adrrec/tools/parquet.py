"""Events in Parquet files: read as the text that other raw files hold, and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import numpy as np

from recbole_adrrec.errors import DataError, OptionError, require
from recbole_adrrec.tools.sources import BLOCK, Block, Layout, RawFile, ReaderOptions, chosen_columns

MAGIC = b"PAR1"


def open_raw(path: Path, encoding: str) -> RawFile | ParquetFile:
    """A raw file of any form; raises DataError if it can't be opened."""
    try:
        with path.open("rb") as file:
            parquet = file.read(len(MAGIC)) == MAGIC
    except OSError:
        parquet = False  # of which RawFile says what is wrong
    return ParquetFile(path) if parquet else RawFile(path, encoding)


def _arrow() -> tuple[Any, Any]:
    require(("pyarrow",), "parquet", "Parquet")
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet


class ParquetFile:
    """A Parquet file, read by blocks of rows; raises DataError if it can't be opened.

    Moments and dates become seconds since 1970 (after an ``@``, the mark of seconds), in UTC where they have no zone;
    lists become words between spaces; rows have numbers from 1 in the place of lines.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._read = path, path.stat().st_size, 0
        self._pa, parquet = _arrow()
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, self._pa.ArrowException) as error:
            raise DataError(f"{path}: not readable as Parquet ({error}); take another copy") from error

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def position(self) -> int:
        """Share of the rows that were read so far, in bytes of the file."""
        return int(self.size * self._read / max(1, self._file.metadata.num_rows))

    def first_lines(self, count: int = 1) -> list[str]:
        """Names of the columns, as the line of names of a text."""
        return [",".join(self._file.schema_arrow.names)][:count]

    def layout(self, options: ReaderOptions) -> Layout:
        """Find the columns, as of text."""
        names = self._file.schema_arrow.names
        return Layout("parquet", "", chosen_columns(self.path, options, names, len(names)), len(names), names)

    def blocks(self, layout: Layout) -> Iterator[Block]:
        """Rows of the file; raises DataError where it can't be read."""
        places = list(layout.chosen.values())
        names = [layout.header[place] for place in places] if layout.header else []
        batches = self._file.iter_batches(BLOCK, columns=list(dict.fromkeys(names)))
        while True:
            try:
                batch = next(batches, None)
            except (OSError, self._pa.ArrowException) as error:
                raise DataError(
                    f"{self.path}: damaged after row {self._read:,} ({error}); take another copy"
                ) from error
            if batch is None:
                return
            first, self._read = self._read + 1, self._read + batch.num_rows
            columns = [self._texts(batch.column(name), name) for name in names]
            yield Block(columns, range(first, first + batch.num_rows))

    def _texts(self, column: Any, name: str) -> list[str]:
        types = self._pa.types
        kind = column.type
        if types.is_dictionary(kind):
            column = column.dictionary_decode()
            kind = column.type
        if types.is_list(kind) or types.is_large_list(kind):
            return [" ".join(map(str, each or ())) for each in column.to_pylist()]
        if types.is_nested(kind):
            raise OptionError(f"{self.path}: column {name!r} holds {kind}, which is no text or number; name another")
        if types.is_timestamp(kind) or types.is_date(kind):
            return self._moments(column)
        if types.is_binary(kind) or types.is_large_binary(kind):
            return [(each or b"").decode(errors="surrogateescape") for each in column.to_pylist()]
        return ["" if each is None else each for each in column.cast(self._pa.string()).to_pylist()]

    def _moments(self, column: Any) -> list[str]:
        """Moments as ``@`` and seconds since 1970, exactly."""
        pa = self._pa
        unit = column.type.unit if pa.types.is_timestamp(column.type) else "ms"
        parts = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
        whole = column.cast(pa.timestamp(unit)).cast(pa.int64()).to_pylist()

        def text(value: int | None) -> str:
            if value is None:
                return ""
            return f"@{value // parts}" if value % parts == 0 else f"@{Decimal(value) / parts:f}"

        return list(map(text, whole))


class ParquetWriter:
    """Writes events as Parquet: tokens as strings, numbers as float64, times as moments in microseconds, UTC.

    Parameters
    ----------
    file : binary file
    fields : sequence of str
        ``name:type`` of each column, as in an atomic file; the third is the time.
    """

    def __init__(self, file: IO[bytes], fields: Sequence[str]) -> None:
        pa, parquet = _arrow()
        kinds = {
            "float": pa.float64(),
            "token": pa.string(),
            "token_seq": pa.list_(pa.string()),
            "float_seq": pa.list_(pa.float64()),
        }
        split = [field.partition(":") for field in fields]
        self._kinds = [kind for _, _, kind in split]
        self._schema = pa.schema([(name, kinds[kind]) for name, _, kind in split])
        self._schema = self._schema.set(2, pa.field(split[2][0], pa.timestamp("us", "UTC")))
        self._pa = pa
        self._out = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, columns: Sequence[Sequence[str]]) -> None:
        """Write rows, given as the text that an atomic file would hold."""
        made = [
            self._micro(values) if place == 2 else self._typed(values, kind)
            for place, (values, kind) in enumerate(zip(columns, self._kinds, strict=True))
        ]
        arrays = [self._pa.array(values).cast(field.type) for values, field in zip(made, self._schema, strict=True)]
        self._out.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the end of the file."""
        self._out.close()

    @staticmethod
    def _typed(values: Sequence[str], kind: str) -> list[Any]:
        if kind == "token":
            # An atomic file quotes a name that begins with a quote.
            return [each[1:-1].replace('""', '"') if each[:1] == '"' else each for each in values]
        if kind == "float":
            return [float(each) for each in values]
        return [[float(part) if kind == "float_seq" else part for part in each.split()] for each in values]

    @staticmethod
    def _micro(values: Sequence[str]) -> Any:
        seconds, fractions = zip(*(each.partition(".")[::2] for each in values), strict=True)
        micro = np.array(seconds, dtype=np.int64) * 1_000_000
        return micro + np.array([int(each.ljust(6, "0")) if each else 0 for each in fractions], dtype=np.int64)
