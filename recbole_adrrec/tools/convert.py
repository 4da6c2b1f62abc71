"""Raw data to RecBole's atomic files, or to Parquet, with exact times.

Rows pass through in blocks, so that memory does not grow with the file; what is remembered of each row is a hash of
64 bits, to count users, items and repeated events.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.times import TimeTextError, day, decimal_seconds, read_time
from recbole_adrrec.tools.parquet import ParquetFile, ParquetWriter, open_raw
from recbole_adrrec.tools.sources import Block, Layout, RawFile, ReaderOptions

FIELDS = {"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"}
"""Header of the file that is written: names that RecBole and our options have by default."""

KEPT_TYPES = ("float", "token", "token_seq", "float_seq")

UNSAFE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ufeff]")
"""Characters that no name of a user or item may hold: they end columns or lines, or can't be seen."""

SHOWN = 5
"""Bad rows that are shown."""


@dataclass(frozen=True)
class Kept:
    """A column that is kept beside user, item and time."""

    source: str
    name: str
    kind: str

    @classmethod
    def parse(cls, text: str) -> Kept:
        """Read ``name``, ``name:type`` or ``name:type:new_name``; an OptionError where that can't be."""
        source, _, rest = text.partition(":")
        kind, _, name = rest.partition(":")
        kind = kind or "float"
        name = name or source.rpartition(".")[2]
        if kind not in KEPT_TYPES:
            raise OptionError(f"--keep: {kind!r} in {text!r} is none of {', '.join(KEPT_TYPES)}")
        if not re.fullmatch(r"\w+", name):
            raise OptionError(
                f"--keep: {name!r} in {text!r} is not a name of a field; add one, as in {source}:{kind}:rating"
            )
        if name in {each.partition(":")[0] for each in FIELDS.values()}:
            raise OptionError(f"--keep: {name!r} is written already; give it another name, as in {source}:{kind}:other")
        return cls(source, name, kind)


@dataclass(frozen=True)
class Request:
    """A conversion: files, one after the other, to ``<out>/<name>/<name>.inter`` or ``.parquet``, as ``to`` says.

    ``unit`` is that of numbers among the times (None: seconds, and larger numbers are bad); ``strict`` refuses at the
    first bad row, and ``overwrite`` replaces a file that is there.
    """

    files: Sequence[Path]
    name: str
    out: Path
    options: ReaderOptions
    keep: Sequence[Kept] = ()
    unit: str | None = None
    encoding: str = "utf-8"
    strict: bool = False
    overwrite: bool = False
    to: str = "inter"

    @property
    def target(self) -> Path:
        """The file that is written."""
        return self.out / self.name / f"{self.name}.{self.to}"


@dataclass
class Outcome:
    """Result of a conversion; times are in seconds since 1970."""

    target: Path
    n_events: int = 0
    n_users: int = 0
    n_items: int = 0
    n_repeated: int = 0  # same user, item and time as an earlier event
    n_bad: int = 0
    bad: list[tuple[Path, int, str]] = field(default_factory=list)  # file, line and fault of the first bad rows
    first: float = math.inf
    last: float = -math.inf
    n_fractions: int = 0
    n_broken: int = 0  # rows with a line break in a quoted field
    layouts: list[tuple[Path, Layout]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"Read {path}: {layout}" for path, layout in self.layouts]
        lines.append(
            f"Wrote {self.target}: {self.n_events:,} events of {self.n_users:,} users and {self.n_items:,} "
            f"items, {day(self.first)} to {day(self.last)} (UTC)"
        )
        if self.n_repeated:
            lines.append(f"{self.n_repeated:,} events repeat an earlier one (same user, item and time); they are kept")
        if self.n_fractions:
            lines.append(f"{self.n_fractions:,} times have a fraction of a second, which orders events")
        if self.n_broken:
            lines.append(
                f"{self.n_broken:,} rows have a line break within quotes; if quotes are text, say --quote=none"
            )
        if self.n_bad:
            lines.append("1 bad row was left out:" if self.n_bad == 1 else f"{self.n_bad:,} bad rows were left out:")
            lines += [f"  {path}, line {line}: {fault}" for path, line, fault in self.bad]
            if self.n_bad > len(self.bad):
                lines.append(f"  and {self.n_bad - len(self.bad):,} more")
        folder = self.target.parent
        if self.target.suffix == ".inter":
            lines.append(f"Train on it: python -m recbole_adrrec --dataset={folder.name} --data_path={folder.parent}")
        return "\n".join(lines)


class Distinct:
    """Counts different values by their hashes of 64 bits: 8 to 24 bytes for each different one."""

    def __init__(self) -> None:
        self._known: NDArray[np.int64] = np.empty(0, np.int64)
        self._new: list[NDArray[np.int64]] = []
        self._n_new = 0

    def add(self, values: Sequence[str]) -> None:
        """Take in some values."""
        hashes = np.unique(np.fromiter(map(hash, values), np.int64, len(values)))
        self._new.append(hashes)
        self._n_new += len(hashes)
        # Merging whenever the heap doubles costs a sort or two of everything in all.
        if self._n_new > max(1_000_000, len(self._known)):
            self._merge()

    def _merge(self) -> None:
        together = np.concatenate([self._known, *self._new])
        self._known, self._new, self._n_new = np.empty(0, np.int64), [], 0
        together.sort()
        fresh = np.ones(len(together), np.bool_)
        fresh[1:] = together[1:] != together[:-1]
        self._known = together[fresh]

    def __len__(self) -> int:
        self._merge()
        return len(self._known)


def convert(request: Request, progress: bool | None = None) -> Outcome:
    """Write the file wholly or not at all; ``progress`` is a bar by bytes (None: where the terminal shows one).

    Raises
    ------
    OptionError
        The file is there already, or can't be written, or a column is named that isn't there.
    DataError
        A raw file can't be read, has no usable row, or, with ``strict``, a bad one.
    """
    name, target = request.name, request.target
    if not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name) or name != name.strip():
        raise OptionError(f"--name: {name!r} is not a name of a folder; choose letters, digits, - and _")
    if target.exists() and not request.overwrite:
        raise OptionError(f"{target}: is there already; choose another --name or --out, or say --overwrite")
    made = [each for each in (target.parent, *target.parent.parents) if not each.exists()]
    outcome = Outcome(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(request, outcome, progress)
    except OSError as error:
        raise OptionError(
            f"{error.filename or target}: {error.strerror}; make room or choose another --out; nothing was written"
        ) from error
    finally:
        if not target.exists():
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    return outcome


def _write(request: Request, outcome: Outcome, progress: bool | None) -> None:
    rows, users, items = Distinct(), Distinct(), Distinct()
    header = [*FIELDS.values(), *(f"{kept.name}:{kept.kind}" for kept in request.keep)]
    columns = {**request.options.columns, **{f"keep {kept.name}": kept.source for kept in request.keep}}
    with AtomicFile(outcome.target) as out, contextlib.ExitStack() as opened:
        parquet = None
        if request.to == "parquet":
            # Closed before the file is, also where a row is refused: pyarrow writes into it at the end.
            parquet = opened.enter_context(contextlib.closing(ParquetWriter(out, header)))
        else:
            out.write(("\t".join(header) + "\n").encode())
        for path in request.files:
            before = outcome.n_events
            with open_raw(path, request.encoding) as file:
                layout = file.layout(replace(request.options, columns=columns))
                outcome.layouts.append((path, layout))
                for block in _watched(file.blocks(layout), file, progress):
                    good = _good_rows(block, request, outcome, path)
                    if not good[0]:
                        if outcome.n_events == 0 and outcome.n_bad:
                            raise DataError(_no_row(outcome))
                        continue
                    lines = list(map("\t".join, zip(*good, strict=True)))
                    if parquet is None:
                        out.write(("\n".join(lines) + "\n").encode())
                    else:
                        parquet.write(good)
                    outcome.n_events += len(lines)
                    users.add(good[0])
                    items.add(good[1])
                    rows.add(lines if not request.keep else list(map("\t".join, zip(*good[:3], strict=True))))
            if outcome.n_events == before:
                raise DataError(_no_row(outcome) if outcome.n_bad else f"{path}: has no events")
    outcome.n_users, outcome.n_items = len(users), len(items)
    outcome.n_repeated = outcome.n_events - len(rows)


def _no_row(outcome: Outcome) -> str:
    path, line, fault = outcome.bad[0]
    return f"{path}: no row could be used, the first for: line {line}: {fault}"


def _watched(blocks: Iterator[Block], file: RawFile | ParquetFile, progress: bool | None) -> Iterator[Block]:
    off = None if progress is None else not progress
    with tqdm(total=file.size, unit="B", unit_scale=True, desc=file.path.name, disable=off) as bar:
        for block in blocks:
            yield block
            bar.update(file.position() - bar.n)


def _good_rows(block: Block, request: Request, outcome: Outcome, path: Path) -> list[list[str]]:
    """Columns of the good rows as they are written; the others are counted, or with ``strict`` a DataError."""
    faults: dict[int, str] = {}
    users, items, times, *others = block.columns
    columns = [_names(users, "user", faults), _names(items, "item", faults), _times(times, request.unit, faults)]
    columns += [_others(values, kept, faults) for kept, values in zip(request.keep, others, strict=True)]
    outcome.n_broken += block.n_broken
    bad = sorted([*block.bad, *((block.lines[row], fault) for row, fault in faults.items())])
    if bad and request.strict:
        line, fault = bad[0]
        raise DataError(f"{path}: line {line}: {fault}; correct it, or leave out --strict to go on without such rows")
    outcome.n_bad += len(bad)
    outcome.bad += [(path, line, fault) for line, fault in bad[: max(0, SHOWN - len(outcome.bad))]]
    if faults:
        columns = [[value for row, value in enumerate(column) if row not in faults] for column in columns]
    if columns[2]:
        numbers = np.array(columns[2], dtype=np.float64)
        outcome.first = min(outcome.first, float(numbers.min()))
        outcome.last = max(outcome.last, float(numbers.max()))
        outcome.n_fractions += int((numbers != np.floor(numbers)).sum())
    return columns


def _names(values: list[str], what: str, faults: dict[int, str]) -> list[str]:
    stripped = [value.strip() for value in values]
    together = "".join(stripped)
    if '"' in together:
        # A reader of columns takes a quote at the beginning for that of a quoted field.
        stripped = [f'"{value.replace(chr(34), chr(34) * 2)}"' if value[:1] == '"' else value for value in stripped]
    if all(stripped) and not UNSAFE.search(together) and _is_text(together):
        return stripped
    for row, value in enumerate(stripped):
        if not value:
            faults.setdefault(row, f"no {what}")
        elif UNSAFE.search(value):
            faults.setdefault(row, f"{what} {value[:40]!r} holds a tab, a line break or another control character")
        elif not _is_text(value):
            faults.setdefault(row, f"{what} {value[:40]!r} is not readable in this encoding")
    return stripped


def _is_text(text: str) -> bool:
    """False with a lone surrogate, which stands for a byte that the encoding doesn't know."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _times(values: list[str], unit: str | None, faults: dict[int, str]) -> list[str]:
    if all(value[:1] == "@" for value in values):
        values, unit = [value[1:] for value in values], "s"
    if unit in (None, "s"):
        together = "".join(values)
        # Plain whole numbers of at most ten digits are what they will be, but for zeros in front.
        if together.isascii() and together.isdigit() and max(map(len, values)) <= 10 and all(values):
            return values if not any(value[0] == "0" for value in values) else [str(int(value)) for value in values]
    written = []
    for row, value in enumerate(values):
        try:
            written.append(decimal_seconds(read_time(value, unit)))
        except TimeTextError as fault:
            faults.setdefault(row, str(fault))
            written.append("")
    return written


def _others(values: list[str], kept: Kept, faults: dict[int, str]) -> list[str]:
    written = [UNSAFE.sub(" ", value).strip() for value in values]
    for row, text in enumerate(written):
        if kept.kind == "float" and not _is_number(text):
            faults.setdefault(row, f"{kept.name} {values[row][:40]!r} is not a number")
        elif not _is_text(text):
            faults.setdefault(row, f"{kept.name} {values[row][:40]!r} is not readable in this encoding")
    return written


def _is_number(text: str) -> bool:
    try:
        return text.isascii() and "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False
