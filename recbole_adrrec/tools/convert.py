"""Raw data to RecBole's atomic files, with exact times.

Rows pass through in blocks, so that memory does not grow with the file; what is remembered of each row is a hash of
64 bits, to count users, items and repeated events.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.times import LARGEST_SECONDS
from recbole_adrrec.tools.sources import Block, Layout, RawFile, Wishes, find_layout

FIELDS = {"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"}
"""Header of the file that is written: names that RecBole and our options have by default."""

KEPT_TYPES = ("float", "token", "token_seq", "float_seq")

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
UNSAFE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ufeff]")
"""Characters that no name of a user or item may hold: they end columns or lines, or can't be seen."""

SHOWN = 5
"""Bad rows that are shown."""

DECIMALS = 15
"""Of a time in seconds."""


@dataclass(frozen=True)
class Kept:
    """A column that is kept beside user, item and time."""

    source: str
    name: str
    kind: str


@dataclass(frozen=True)
class Request:
    """What to convert.

    Attributes
    ----------
    files : sequence of Path
        Raw files, one after the other.
    name : str
        Name of the data set.
    out : Path
        Folder of data sets: ``<out>/<name>/<name>.inter`` is written.
    wishes : Wishes
        What is known of the files.
    keep : sequence of Kept
        Further columns.
    unit : {'s', 'ms', 'us'}, optional
        Unit of numbers among the times; None: seconds, and larger numbers are bad.
    encoding : str
    strict : bool
        Refuse at the first bad row.
    overwrite : bool
        Replace a file that is there.
    """

    files: Sequence[Path]
    name: str
    out: Path
    wishes: Wishes
    keep: Sequence[Kept] = ()
    unit: str | None = None
    encoding: str = "utf-8"
    strict: bool = False
    overwrite: bool = False

    @property
    def target(self) -> Path:
        """The file that is written."""
        return self.out / self.name / f"{self.name}.inter"


@dataclass
class Outcome:
    """What was converted.

    Attributes
    ----------
    target : Path
    n_events, n_users, n_items : int
    n_repeated : int
        Events that repeat an earlier one: same user, item and time.
    n_bad : int
    bad : list of (Path, int, str)
        File, line and fault of the first bad rows.
    first, last : Decimal or int
        Earliest and latest time, in seconds since 1970.
    n_fractions : int
        Times with a fraction of a second.
    n_broken : int
        Rows with a line break in a quoted field.
    layouts : list of (Path, Layout)
        How each file was read.
    """

    target: Path
    n_events: int = 0
    n_users: int = 0
    n_items: int = 0
    n_repeated: int = 0
    n_bad: int = 0
    bad: list[tuple[Path, int, str]] = field(default_factory=list)
    first: float = float("inf")
    last: float = float("-inf")
    n_fractions: int = 0
    n_broken: int = 0
    layouts: list[tuple[Path, Layout]] = field(default_factory=list)


# Times


class TimeTextError(ValueError):
    """A text that is no time since 1970; the message says why."""


def read_time(text: str, unit: str | None = None) -> tuple[int, str]:
    """Read a time exactly.

    Parameters
    ----------
    text : str
        A number in ``unit``, or ISO 8601: ``2024-05-01``, ``2024-05-01T12:00:00.5+02:00``, ``2024-05-01 12:00Z``;
        UTC where it has no offset.
    unit : {'s', 'ms', 'us'}, optional
        None: seconds, and numbers above 10**11 are refused.

    Returns
    -------
    seconds : int
        Whole seconds since 1970, rounded down.
    text : str
        The time as a decimal number of seconds, without rounding: ``1714521600``, ``1714521600.25``.

    Raises
    ------
    TimeTextError
        It is neither, is finer than a femtosecond, or lies before 1970 or after 5138.
    """
    text = text.strip()
    number = _decimal(text)
    if number is not None:
        if unit is None and number > LARGEST_SECONDS:
            meant = "us" if number > 1e14 else "ms"
            raise TimeTextError(
                f"time {text[:40]!r} is too large for seconds; say --time_unit_in={meant} if it is in {meant}"
            )
        shift = {"s": 0, "ms": 3, "us": 6}[unit or "s"]
        if len(f"{number:f}".partition(".")[2].rstrip("0")) + shift > DECIMALS:
            raise TimeTextError(f"time {text[:40]!r} is finer than a femtosecond")
        number = number.scaleb(-shift)  # exact: it keeps 28 digits
    else:
        number = _instant(text)
    if number < 0:
        raise TimeTextError(f"time {text[:40]!r} is before 1970")
    if number > LARGEST_SECONDS:
        raise TimeTextError(f"time {text[:40]!r} is after the year 5138")
    seconds = int(number)
    return seconds, str(seconds) if number == seconds else f"{number:f}".rstrip("0")


def _decimal(text: str) -> Decimal | None:
    if not text.isascii() or "_" in text or len(text) > 60:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    # NaN and infinity are numbers to Decimal; so is 1e999999999, which would be written out digit by digit.
    return number if number.is_finite() and abs(number.adjusted()) < 40 else None


def _instant(text: str) -> Decimal:
    if not text:
        raise TimeTextError("no time")
    shape = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?\s?(Z|[+-]\d\d(?::?\d\d)?)?)?",
        text,
        re.IGNORECASE,
    )
    try:
        if shape is None:
            raise ValueError
        day, clock, fraction, offset = shape.groups()
        moment = datetime.fromisoformat(f"{day} {clock or '00:00'}").replace(tzinfo=timezone.utc)
        seconds = (moment - EPOCH) // timedelta(seconds=1) - _offset(offset)
    except ValueError:
        raise TimeTextError(f"time {text[:40]!r} is neither a number nor ISO 8601") from None
    return Decimal(f"{seconds}.{fraction}" if fraction and seconds >= 0 else seconds)


def _offset(text: str | None) -> int:
    """Seconds east of Greenwich."""
    if text is None or text in "Zz":
        return 0
    digits = text[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 23 or minutes > 59:
        raise ValueError(text)
    return (-1 if text[0] == "-" else 1) * (hours * 3600 + minutes * 60)


def is_time(text: str) -> bool:
    """Whether a text could be a time in any unit."""
    try:
        read_time(text, "us")
    except TimeTextError:
        return False
    return True


# Counting without keeping


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


# Conversion


def convert(request: Request, progress: bool | None = None) -> Outcome:
    """Write ``<out>/<name>/<name>.inter``, wholly or not at all.

    Parameters
    ----------
    request : Request
    progress : bool, optional
        Whether a bar by bytes is shown; None: where the terminal shows one.

    Raises
    ------
    OptionError
        The file is there already, or can't be written, or a column is named that isn't there.
    DataError
        A raw file can't be read, has no usable row, or, with ``strict``, a bad one.
    """
    target = request.target
    _check_name(request.name)
    if target.exists() and not request.overwrite:
        raise OptionError(f"{target}: is there already; choose another --name or --out, or say --overwrite")
    made = _make_folder(target.parent)
    outcome = Outcome(target)
    try:
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


def _check_name(name: str) -> None:
    if not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name) or name != name.strip():
        raise OptionError(f"--name: {name!r} is not a name of a folder; choose letters, digits, - and _")


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder with those above it; gives those that were made, the deepest first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{error.filename or folder}: {error.strerror}; choose another --out") from error
    return missing


def _write(request: Request, outcome: Outcome, progress: bool | None) -> None:
    rows, users, items = Distinct(), Distinct(), Distinct()
    header = [*FIELDS.values(), *(f"{kept.name}:{kept.kind}" for kept in request.keep)]
    wishes = Wishes(
        {**request.wishes.columns, **{f"keep {kept.name}": kept.source for kept in request.keep}},
        *(request.wishes.kind, request.wishes.delimiter, request.wishes.header, request.wishes.quoted),
    )
    with AtomicFile(outcome.target) as out:
        out.write(("\t".join(header) + "\n").encode())
        for path in request.files:
            before = outcome.n_events
            with RawFile(path, request.encoding) as file:
                layout = find_layout(file, wishes, is_time)
                outcome.layouts.append((path, layout))
                for block in _watched(layout.blocks(file), file, progress):
                    columns = _checked(block, request, outcome, path)
                    if not columns[0]:
                        if outcome.n_events == 0 and outcome.n_bad:
                            raise DataError(_no_row(outcome))
                        continue
                    lines = list(map("\t".join, zip(*columns, strict=True)))
                    out.write(("\n".join(lines) + "\n").encode())
                    outcome.n_events += len(lines)
                    users.add(columns[0])
                    items.add(columns[1])
                    rows.add(lines if not request.keep else list(map("\t".join, zip(*columns[:3], strict=True))))
            if outcome.n_events == before:
                raise DataError(_no_row(outcome) if outcome.n_bad else f"{path}: has no events")
    outcome.n_users, outcome.n_items = len(users), len(items)
    outcome.n_repeated = outcome.n_events - len(rows)


def _no_row(outcome: Outcome) -> str:
    path, line, fault = outcome.bad[0]
    return f"{path}: no row could be used, the first for: line {line}: {fault}"


def _watched(blocks: Iterator[Block], file: RawFile, progress: bool | None) -> Iterator[Block]:
    off = None if progress is None else not progress
    with tqdm(total=file.size, unit="B", unit_scale=True, desc=file.path.name, disable=off) as bar:
        for block in blocks:
            yield block
            bar.update(file.position() - bar.n)


def _checked(block: Block, request: Request, outcome: Outcome, path: Path) -> list[list[str]]:
    """Columns of the good rows as they are written; the others are counted.

    Raises
    ------
    DataError
        There is a bad one, with ``strict``.
    """
    faults: dict[int, str] = {}
    users, items, times, *others = block.columns
    columns = [
        _names(users, "user", faults),
        _names(items, "item", faults),
        _times(times, request.unit, faults, outcome),
    ]
    for kept, values in zip(request.keep, others, strict=True):
        columns.append(_others(values, kept, faults))
    outcome.n_broken += block.n_broken
    bad = sorted([*block.bad, *((block.lines[row], fault) for row, fault in faults.items())])
    if bad and request.strict:
        line, fault = bad[0]
        raise DataError(f"{path}: line {line}: {fault}; correct it, or leave out --strict to go on without such rows")
    outcome.n_bad += len(bad)
    outcome.bad += [(path, line, fault) for line, fault in bad[: max(0, SHOWN - len(outcome.bad))]]
    if faults:
        columns = [[value for row, value in enumerate(column) if row not in faults] for column in columns]
    _count_times(columns[2], outcome)
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
    """Whether there is no lone surrogate, which stands for a byte that the encoding doesn't know."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _times(values: list[str], unit: str | None, faults: dict[int, str], outcome: Outcome) -> list[str]:
    if unit in (None, "s"):
        together = "".join(values)
        # Plain whole numbers of at most ten digits are what they will be, but for zeros in front.
        if together.isascii() and together.isdigit() and max(map(len, values)) <= 10 and all(values):
            return values if not any(value[0] == "0" for value in values) else [str(int(value)) for value in values]
    written = []
    for row, value in enumerate(values):
        try:
            written.append(read_time(value, unit)[1])
        except TimeTextError as fault:
            faults.setdefault(row, str(fault))
            written.append("")
    return written


def _count_times(values: list[str], outcome: Outcome) -> None:
    if values:
        numbers = np.array(values, dtype=np.float64)
        outcome.first = min(outcome.first, float(numbers.min()))
        outcome.last = max(outcome.last, float(numbers.max()))
        outcome.n_fractions += int((numbers != np.floor(numbers)).sum())


def _others(values: list[str], kept: Kept, faults: dict[int, str]) -> list[str]:
    written = []
    for row, value in enumerate(values):
        text = UNSAFE.sub(" ", value).strip()
        if kept.kind == "float" and not _is_float(text):
            faults.setdefault(row, f"{kept.name} {value[:40]!r} is not a number")
        elif not _is_text(text):
            faults.setdefault(row, f"{kept.name} {value[:40]!r} is not readable in this encoding")
        written.append(text)
    return written


def _is_float(text: str) -> bool:
    return _decimal(text) is not None


# What is told


def report(outcome: Outcome) -> str:
    """What was written, what was left out, and how to go on."""
    lines = []
    for path, layout in outcome.layouts:
        lines.append(f"Read {path}: {describe(layout)}")
    lines.append(
        f"Wrote {outcome.target}: {outcome.n_events:,} events of {outcome.n_users:,} users and {outcome.n_items:,} "
        f"items, {_day(outcome.first)} to {_day(outcome.last)} (UTC)"
    )
    if outcome.n_repeated:
        lines.append(f"{outcome.n_repeated:,} events repeat an earlier one (same user, item and time); they are kept")
    if outcome.n_fractions:
        lines.append(f"{outcome.n_fractions:,} times have a fraction of a second, which orders events")
    if outcome.n_broken:
        lines.append(f"{outcome.n_broken:,} rows have a line break within quotes; if quotes are text, say --quote=none")
    if outcome.n_bad:
        lines.append("1 bad row was left out:" if outcome.n_bad == 1 else f"{outcome.n_bad:,} bad rows were left out:")
        lines += [f"  {path}, line {line}: {fault}" for path, line, fault in outcome.bad]
        if outcome.n_bad > len(outcome.bad):
            lines.append(f"  and {outcome.n_bad - len(outcome.bad):,} more")
    folder = outcome.target.parent
    lines.append(f"Train on it: python -m recbole_adrrec --dataset={folder.name} --data_path={folder.parent}")
    return "\n".join(lines)


def _day(seconds: float) -> str:
    return f"{EPOCH + timedelta(seconds=seconds):%Y-%m-%d}"


def describe(layout: Layout) -> str:
    """How a file is read, in a line."""

    def column(place: int | str) -> str:
        if isinstance(place, str):
            return place
        return layout.header[place] if layout.header else f"column {place + 1}"

    cut = "JSON lines" if layout.kind == "jsonl" else f"columns cut by {layout.delimiter!r}"
    head = "" if layout.kind == "jsonl" else ", names in line 1" if layout.header else ", no line of names"
    roles = ", ".join(f"{role}: {column(place)}" for role, place in layout.wanted.items())
    return f"{cut}{head}; {roles}"


def parse_keep(text: str) -> Kept:
    """Read ``name``, ``name:type`` or ``name:type:new_name`` as a column to keep.

    Raises
    ------
    OptionError
        The type is none of RecBole's.
    """
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
    return Kept(source, name, kind)
