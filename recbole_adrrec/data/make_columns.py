"""Makes the columns of an atomic file, in passes over all events and with memory for a block of them.

Names become numbers, users and items with too few events go, events are brought to the part of their users, and each
part is sorted. What grows in memory meanwhile are the names of users and items (some 200 bytes each).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas._libs.parsers import STR_NA_VALUES
from torch import Tensor

from recbole_adrrec.data.columns import COLUMNS, FORMAT, Source, first_users, pack, whole_users
from recbole_adrrec.data.ties import name_hashes, random_keys, tie_statistics_of_parts
from recbole_adrrec.errors import DataError
from recbole_adrrec.files import AtomicFile, broken_name
from recbole_adrrec.fingerprint import Stream, fingerprint
from recbole_adrrec.times import check_times, to_seconds

BLOCK = 1 << 20
"""Events at a time in memory; a part that is sorted at a time has up to four times as many, and one user's."""

LEFT_S = 86_400
"""Seconds after which unfinished columns that nobody has written to are those of a killed process."""

Allowed = Callable[[NDArray[np.int64]], NDArray[np.bool_]]


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
    for left in source.folder.parent.glob(f".{source.folder.name}.*.tmp"):
        with contextlib.suppress(OSError):  # of another process, which is done with it by now
            if time.time() - max(each.stat().st_mtime for each in (left, *left.iterdir())) > LEFT_S:
                logger.info(f"{left}: left by a process that was killed, removed")
                shutil.rmtree(left)
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


def _distribute(rows: Path, written: Mapping[str, NDArray[Any]], starts: NDArray[np.int64]) -> None:
    """Bring the events to the part of the columns that is their user's, in the order of the file; times as read."""
    records, edges = np.memmap(rows, RECORD, "r"), first_users(starts, 4 * BLOCK)
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
