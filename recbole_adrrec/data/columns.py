"""Events as columns on the disk, sorted by user and time, that are mapped into memory instead of read.

A folder ``<dataset>.columns`` beside the atomic file holds ``user.npy`` and ``item.npy`` (int32), ``time.npy`` (int64,
seconds since 1970), ``starts.npy`` (int64, where each user's events begin), the names of users and items, and
``columns.json``. :mod:`recbole_adrrec.data.make_columns` makes it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_adrrec.data.rows import MappedEvents
from recbole_adrrec.data.ties import TieStatistics
from recbole_adrrec.errors import DataError

FORMAT = 1

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
        """Entry of ``columns.json`` for it; the file counts by its size and time of change."""
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
        if not os.path.isdir(folder):  # false for a name that no folder may have, too
            raise DataError(f"{folder} is not there; put it back, or let training make it anew of the same data file")
        try:
            about = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError("made by another version of this package")
            user, item, time = about["source"]["fields"]
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*COLUMNS, "starts")}
            columns = dict(zip((user, item, time), (_tensor(arrays[name]) for name in COLUMNS), strict=True))
            events = MappedEvents({name: columns[name] for name in about["order"]}, _tensor(arrays["starts"]), user)
            users, items = (Names(folder, what) for what in ("users", "items"))
            if [len(values) for values in columns.values()] != [about["events"]] * 3 or len(users) != about["users"]:
                raise ValueError("sizes differ")
            return cls(folder, events, users, items, TieStatistics(**about["ties"]), about["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
            if isinstance(error, FileNotFoundError):
                reason = f"{Path(error.filename).name} is not there"
            raise DataError(
                f"{folder}: can't be used ({reason}); remove the folder, and training makes it anew"
            ) from error


def _tensor(mapped: NDArray[Any]) -> Tensor:
    """A tensor that shares the pages of a map; nothing writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)


def is_current(source: Source) -> bool:
    """True where the columns of an atomic file are there and were made of it as it is now."""
    try:
        about = json.loads((source.folder / "columns.json").read_text(encoding="utf-8"))
        return bool(about["format"] == FORMAT and about["source"] == source.entry())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def whole_users(starts: NDArray[np.int64], size: int) -> list[tuple[int, int]]:
    """Ranges of events of whole users, of about ``size`` events each."""
    edges = starts[first_users(starts, size)]
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def first_users(starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """First user of each such range, and the number of users behind them."""
    wanted = np.searchsorted(starts, np.arange(0, starts[-1], size), side="right") - 1
    return np.unique(np.append(wanted, len(starts) - 1))


def pack(names: Sequence[str]) -> dict[str, Any]:
    """Names as one text and the number of characters of each, which a million of them are read from at once."""
    return {"text": "".join(names), "lengths": torch.tensor([len(name) for name in names], dtype=torch.int32)}
