"""Events as columns on the disk, sorted by user and time, that are mapped into memory instead of read.

A folder ``<dataset>.columns`` beside the atomic file holds ``user.npy`` and ``item.npy`` (int32), ``time.npy`` (int64,
seconds since 1970), ``starts.npy`` (int64, where each user's events begin), the names of users and items, and
``columns.json``. It is made of the atomic file once, in passes over all events and with memory for a block of them:
names become numbers, users and items with too few events go, events are brought to the part of their users, each part
is sorted. What grows in memory meanwhile are the names of users and items (some 200 bytes each).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas._libs.parsers import STR_NA_VALUES
from torch import Tensor

from recbole_adrrec.data.rows import MappedEvents
from recbole_adrrec.data.ties import TieStatistics, name_hashes, random_keys, tie_statistics_of_parts
from recbole_adrrec.errors import DataError
from recbole_adrrec.files import AtomicFile, broken_name
from recbole_adrrec.integration.fingerprint import Stream, fingerprint
from recbole_adrrec.times import check_times, to_seconds

FORMAT = 1

BLOCK = 1 << 20
"""Events at a time in memory; a part that is sorted at a time has up to four times as many, and one user's."""

Allowed = Callable[[NDArray[np.int64]], NDArray[np.bool_]]

COLUMNS = {"user": np.int32, "item": np.int32, "time": np.int64}


class Names(Sequence[str]):
    """Names by number, on the disk: UTF-8, each between line feeds, and where each begins.

    Parameters
    ----------
    folder : Path
    what : str
        Beginning of the files' names.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._text = np.load(folder / f"{what}.names.npy", mmap_mode="r")
        self._begin = np.load(folder / f"{what}.begin.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._begin) - 1

    def __getitem__(self, index: Any) -> Any:
        """A name, or an array of them for several numbers."""
        if isinstance(index, int | np.integer):
            place = range(len(self))[index]
            return self._text[self._begin[place] : self._begin[place + 1] - 1].tobytes().decode()
        places = np.arange(len(self))[index]
        return np.array([self[int(place)] for place in places.ravel()], dtype=object).reshape(places.shape)

    def index_of(self, name: str) -> int:
        """The number of a name, -1 if there is none; reads the names from the first one on."""
        wanted = f"\n{name}\n".encode("utf-8", "surrogatepass")
        at = -1 if "\n" in name else _find(self._text, wanted)
        return -1 if at < 0 else int(np.searchsorted(self._begin, at + 1))


def _find(text: NDArray[np.uint8], wanted: bytes, block: int = 1 << 24) -> int:
    """Place of some bytes in an array, read block by block; -1 if they aren't there."""
    for first in range(0, len(text), block):
        found = text[first : first + block + len(wanted)].tobytes().find(wanted)
        if found >= 0:
            return first + found
    return -1


class Numbers(Mapping[str, int]):
    """Numbers by name, looked for on the disk."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def __getitem__(self, name: str) -> int:
        found = self._names.index_of(name)
        if found < 0:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def numbers_by_name(names: Sequence[str]) -> Mapping[str, int]:
    """The number of each name, padding (0) left out; names on the disk stay there."""
    return Numbers(names) if isinstance(names, Names) else {name: number for number, name in enumerate(names) if number}


@dataclass(frozen=True)
class Source:
    """An atomic file, and all that decides which columns are made of it.

    Attributes
    ----------
    path : Path
        The atomic file.
    fields : tuple of str
        Names of the columns of user, item and time.
    separator, encoding : str
        Of the file.
    unit : {'s', 'ms', 'us'}, optional
        Of its times; see ``times.check_times``.
    tie_seed : int, optional
        Of a random order of ties; None: ties keep the order of the file.
    intervals : tuple of (str or None)
        Numbers of events that users and items have to have, as RecBole's ``user_inter_num_interval``.
    """

    path: Path
    fields: tuple[str, str, str]
    separator: str
    encoding: str | None
    unit: str | None
    tie_seed: int | None
    intervals: tuple[str | None, str | None] = (None, None)

    @property
    def folder(self) -> Path:
        """Where the columns are."""
        return self.path.with_suffix(".columns")

    def entry(self) -> dict[str, Any]:
        """What ``columns.json`` has of it; the file counts by its size and time of change."""
        now = self.path.stat()
        given = {name: value for name, value in asdict(self).items() if name != "path"}
        lists = {"fields": list(self.fields), "intervals": list(self.intervals)}
        return {**given, **lists, "size": now.st_size, "changed_ns": now.st_mtime_ns}


@dataclass(frozen=True)
class Columns:
    """Columns that are mapped into memory.

    Attributes
    ----------
    folder : Path
    events : MappedEvents
        By the field names of the source, in the order of its file.
    users, items : Names
        With padding, ``[PAD]``, as number 0.
    ties : TieStatistics
    days : tuple of int
        First and last day of an event, since 1970 (UTC).
    fingerprint : dict of str to str
        ``names`` and ``events``, those of a checkpoint of the same data.
    """

    folder: Path
    events: MappedEvents
    users: Names
    items: Names
    ties: TieStatistics
    fingerprint: dict[str, str]

    @classmethod
    def open(cls, folder: Path) -> Columns:
        """Map the columns of a folder.

        Raises
        ------
        DataError
            They aren't there, are of another version, or of another size than they were written with.
        """
        try:
            about = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise DataError(f"{folder}: columns of another version of this package; remove the folder")
            user, item, time = about["source"]["fields"]
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*COLUMNS, "starts")}
            columns = dict(zip((user, item, time), (_tensor(arrays[name]) for name in COLUMNS), strict=True))
            events = MappedEvents({name: columns[name] for name in about["order"]}, _tensor(arrays["starts"]), user)
            users, items = (Names(folder, what) for what in ("users", "items"))
            if [len(values) for values in columns.values()] != [about["events"]] * 3 or len(users) != about["users"]:
                raise ValueError("sizes differ")
            return cls(folder, events, users, items, TieStatistics(**about["ties"]), about["fingerprint"])
        except FileNotFoundError as error:
            raise DataError(f"{folder}: {Path(error.filename).name} is not there; remove the folder") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: its columns are damaged ({error}); remove the folder") from error


def _tensor(mapped: NDArray[Any]) -> Tensor:
    """A tensor that shares the pages of a map; nothing writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)


def is_current(source: Source) -> bool:
    """Whether the columns of an atomic file are there and were made of it as it is now."""
    try:
        about = json.loads((source.folder / "columns.json").read_text(encoding="utf-8"))
        return bool(about["format"] == FORMAT and about["source"] == source.entry())
    except (OSError, ValueError, KeyError, TypeError):
        return False


# Making


def make(source: Source, allowed: Sequence[Allowed | None], logger: Any) -> None:
    """Make the columns of an atomic file; they take their place when they are complete.

    Parameters
    ----------
    source : Source
    allowed : two of callable or None
        Say which numbers of events users and items may have, Bool[n] of Int64[n]; None: any.
    logger : Logger

    Raises
    ------
    DataError
        The file can't be read, lacks a column, or has times that can't be meant; or the folder can't be written.
    """
    logger.info(f"{source.folder}: columns are made of {source.path.name}, once")
    new = source.folder.with_name(f".{source.folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        _make(source, new, allowed, logger)
        shutil.rmtree(source.folder, ignore_errors=True)
        new.rename(source.folder)
    except OSError as error:
        raise DataError(
            f"event_store: mapped writes {error.filename or source.folder}, which fails ({error.strerror}); make room, "
            "or choose another data_path"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _make(source: Source, folder: Path, allowed: Sequence[Allowed | None], logger: Any) -> None:
    entry, order, rows = source.entry(), _order_of_columns(source), folder / "rows"
    users, items, counts = _number(source, rows, logger)
    if any(allowed):
        users, items, counts = _filter(source, rows, users, items, allowed)
    digest = fingerprint({"users": pack(users), "items": pack(items)})
    hashes = None
    if source.tie_seed is not None:
        hashes = tuple(np.concatenate([np.zeros(1, np.uint64), name_hashes(names)]) for names in (users, items))
    n_users = len(users) + 1
    for what, names in (("users", users), ("items", items)):
        _write_names(folder, what, names)
        names.clear()
    starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    np.save(folder / "starts.npy", starts)
    written = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (int(starts[-1]),))
        for name, kind in COLUMNS.items()
    }
    _distribute(rows, written, starts)
    rows.unlink()
    parts = whole_users(starts, 4 * BLOCK)
    for first, last in parts:
        _sort({name: column[first:last] for name, column in written.items()}, source, hashes)
    for column in written.values():
        column.flush()

    def sorted_parts() -> Iterator[tuple[NDArray[Any], ...]]:
        return (tuple(column[first:last] for column in written.values()) for first, last in parts)

    about = {
        "format": FORMAT,
        "source": entry,
        "order": order,
        "events": int(starts[-1]),
        "users": n_users,
        "ties": asdict(tie_statistics_of_parts(sorted_parts)),
        "fingerprint": {
            "names": digest,
            "events": fingerprint(_packed_events(counts[1:], written["item"], written["time"])),
        },
    }
    with AtomicFile(folder / "columns.json") as file:
        file.write(json.dumps(about).encode())


def pack(names: Sequence[str]) -> dict[str, Any]:
    """Names as one text and the number of characters of each, which a million of them are read from at once."""
    return {"text": "".join(names), "lengths": torch.tensor([len(name) for name in names], dtype=torch.int32)}


def _header(source: Source) -> list[str]:
    with source.path.open(encoding=source.encoding) as lines:
        return lines.readline().rstrip("\r\n").split(source.separator)


def _order_of_columns(source: Source) -> list[str]:
    """Names of the three columns in the order of the file; their types have to be token, token and float."""
    header = _header(source)
    for field, kind in zip(source.fields, ("token", "token", "float"), strict=True):
        if f"{field}:{kind}" not in header:
            raise DataError(
                f"{source.path}: event_store: mapped needs a column {field}:{kind}; the file has {', '.join(header)}"
            )
    return [name.partition(":")[0] for name in header if name.partition(":")[0] in source.fields]


RECORD = np.dtype([("user", np.int32), ("item", np.int32), ("time", np.float64)])


def _number(source: Source, rows: Path, logger: Any) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Write the events in the order of the file, numbers for names, and give names and each user's number of events.

    Numbers are those that RecBole gives: 1, 2, ... in the order of the file.
    """
    user, item, time = (
        f"{field}:{kind}" for field, kind in zip(source.fields, ("token", "token", "float"), strict=True)
    )
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    counts, line, missing, remarks = np.zeros(1, np.int64), 2, 0, list[str]()
    try:
        chunks = pd.read_csv(
            source.path,
            sep=source.separator,
            usecols=[user, item, time],
            dtype={user: str, item: str, time: np.float64},
            keep_default_na=False,
            na_values={user: [""], item: [""], time: sorted(STR_NA_VALUES)},
            encoding=source.encoding,
            index_col=False,
            float_precision="round_trip",
            chunksize=BLOCK,
        )
        with chunks, rows.open("wb") as file:
            for chunk in chunks:
                found = check_times(chunk[time].to_numpy(), source.unit, str(source.path), line)
                remarks = remarks or found
                line += len(chunk)
                whole = chunk[chunk[user].notna() & chunk[item].notna()]
                missing += len(chunk) - len(whole)
                records = np.empty(len(whole), RECORD)
                records["user"], records["item"] = (
                    _numbers(source, whole[user], users),
                    _numbers(source, whole[item], items),
                )
                records["time"] = whole[time]
                records.tofile(file)
                counts = np.pad(counts, (0, len(users) + 1 - len(counts)))
                counts += np.bincount(records["user"], minlength=len(counts))
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{source.path}: not readable as an atomic file ({str(error).strip()}); event_store: memory says more"
        ) from error
    if not counts.any():
        raise DataError(f"{source.path}: the file has no events; expected a line for each after the header")
    for remark in remarks:
        logger.warning(f"{source.path}: {remark}")
    if missing:
        logger.warning(f"{missing} rows have no user or no item and are left out")
    return list(users), list(items), counts


def _filter(
    source: Source, rows: Path, users: list[str], items: list[str], allowed: Sequence[Allowed | None]
) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Take out users and items with other numbers of events than allowed until none is left, and number the rest."""
    records, names = np.memmap(rows, RECORD, "r+"), ("user", "item")
    kept = [np.ones(1 + len(known), np.bool_) for known in (users, items)]

    def blocks() -> Iterator[NDArray[Any]]:
        for first in range(0, len(records), BLOCK):
            block = np.array(records[first : first + BLOCK])
            yield block[kept[0][block["user"]] & kept[1][block["item"]]]

    while True:
        counts = [np.zeros(len(each), np.int64) for each in kept]
        for block in blocks():
            for count, name in zip(counts, names, strict=True):
                count += np.bincount(block[name], minlength=len(count))
        banned = [
            np.zeros(1, np.bool_) if may is None else (count > 0) & ~may(count)
            for count, may in zip(counts, allowed, strict=True)
        ]
        if not any(each.any() for each in banned):
            break
        for each, gone in zip(kept, banned, strict=True):
            each &= ~gone
    numbers = [np.zeros(len(each), np.int32) for each in kept]
    order: tuple[list[NDArray[np.int32]], ...] = ([], [])
    place = 0
    for block in blocks():
        for number, name, met in zip(numbers, names, order, strict=True):
            seen = pd.unique(block[name])
            met.append(seen[number[seen] == 0])
            number[met[-1]] = np.arange(len(met[-1])) + 1 + sum(map(len, met[:-1]))
            block[name] = number[block[name]]
        # Those behind are read already.
        records[place : place + len(block)] = block
        place += len(block)
    if place == 0:
        raise DataError(
            f"{source.path}: filtering left nothing; loosen user_inter_num_interval ({source.intervals[0]}) or "
            f"item_inter_num_interval ({source.intervals[1]})"
        )
    records.flush()
    os.truncate(rows, place * RECORD.itemsize)
    left = [np.concatenate(met) for met in order]
    users, items = (
        [known[number - 1] for number in met.tolist()] for known, met in zip((users, items), left, strict=True)
    )
    return users, items, np.pad(counts[0][left[0]], (1, 0))


def _numbers(source: Source, column: pd.Series[Any], known: dict[str, int]) -> NDArray[np.int32]:
    """The numbers of a column of names, the next ones for new names."""
    codes, names = pd.factorize(column)
    broken = [name for name in names if "\n" in name]
    if broken:
        raise DataError(broken_name(source.path, str(column.name).partition(":")[0], broken[0]))
    return np.array([known.setdefault(name, len(known) + 1) for name in names], np.int32)[codes]


def _write_names(folder: Path, what: str, names: list[str]) -> None:
    encoded = [name.encode("utf-8") for name in ("[PAD]", *names)]
    begin = np.cumsum([1, *(len(name) + 1 for name in encoded)], dtype=np.int64)
    np.save(folder / f"{what}.begin.npy", begin)
    np.save(folder / f"{what}.names.npy", np.frombuffer(b"\n" + b"\n".join(encoded) + b"\n", dtype=np.uint8))


def whole_users(starts: NDArray[np.int64], size: int) -> list[tuple[int, int]]:
    """Ranges of events of whole users, of about ``size`` events each."""
    edges = starts[_first_users(starts, size)]
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _first_users(starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """First user of each such range, and the number of users behind them."""
    wanted = np.searchsorted(starts, np.arange(0, starts[-1], size), side="right") - 1
    return np.unique(np.append(wanted, len(starts) - 1))


def _distribute(rows: Path, written: Mapping[str, NDArray[Any]], starts: NDArray[np.int64]) -> None:
    """Bring the events to the part of the columns that is their user's, in the order of the file; times as read."""
    records, edges = np.memmap(rows, RECORD, "r"), _first_users(starts, 4 * BLOCK)
    place = starts[edges[:-1]].copy()
    columns = {**written, "time": written["time"].view(np.float64)}
    for first in range(0, len(records), BLOCK):
        block = np.array(records[first : first + BLOCK])
        part = np.searchsorted(edges, block["user"], side="right") - 1
        block = block[np.argsort(part, kind="stable")]
        sizes = np.bincount(part, minlength=len(place))
        for number, end in zip(np.nonzero(sizes)[0].tolist(), sizes.cumsum()[sizes > 0].tolist(), strict=True):
            run = block[end - sizes[number] : end]
            for name, column in columns.items():
                column[place[number] : place[number] + len(run)] = run[name]
        place += sizes


def _sort(part: Mapping[str, NDArray[Any]], source: Source, hashes: tuple[NDArray[np.uint64], ...] | None) -> None:
    """Sort a part of the columns by user and time, and make whole seconds of the times as read."""
    users, items, times = part["user"].copy(), part["item"].copy(), part["time"].view(np.float64).copy()
    order = np.arange(len(users))
    if hashes is not None and source.tie_seed is not None:
        order = np.argsort(random_keys(hashes[0][users], hashes[1][items], source.tie_seed), kind="stable")
    order = order[np.argsort(times[order], kind="stable")]
    order = order[np.argsort(users[order], kind="stable")]
    part["user"][:], part["item"][:] = users[order], items[order]
    part["time"][:] = to_seconds(times[order], source.unit)


def _packed_events(counts: NDArray[np.int64], item: Any, time: Any) -> dict[str, Any]:
    """The events as a checkpoint packs them, block by block, for their fingerprint."""

    def blocks(column: Any) -> Iterator[Tensor]:
        return (torch.from_numpy(column[at : at + BLOCK].copy()) for at in range(0, len(column), BLOCK))

    low, high = int(time.min()), int(time.max())
    origin, kind = (low, torch.int32) if high - low < 2**31 else (0, torch.int64)
    return {
        "counts": torch.from_numpy(counts).int(),
        "items": Stream(torch.int32, (len(item),), blocks(item)),
        "times": Stream(kind, (len(time),), ((block - origin).to(kind) for block in blocks(time))),
        "origin": origin,
    }
