"""What a checkpoint carries beside RecBole's own entries, so that it answers without the raw data.

RecBole's checkpoints hold weights by row number and no word on whose rows they are: with another data file, or other
filters, the same numbers belong to other items. Under the key ``recbole_adrrec`` ours carry the names of users and
items in the order of their ids, every user's events, the days of training, and a fingerprint of it all. It is plain
data (tensors, texts, numbers), which ``torch.load(weights_only=True)`` reads.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_adrrec.data.rows import Events, PrefixRows
from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.version import __version__

KEY = "recbole_adrrec"
FORMAT = 1
PADDING = "[PAD]"
"""RecBole's name of row 0, which is no user and no item."""

_remembered: tuple[weakref.ref[Events], dict[str, Any]] | None = None  # of the events asked for last


class Damaged(Exception):  # noqa: N818 - becomes a CheckpointError that names the file
    """A part of what is carried is not as it was written; the text says which."""


def collect(config: Any, train_dataset: Any) -> dict[str, Any] | None:
    """What a checkpoint of a model trained on ``train_dataset`` shall carry.

    Parameters
    ----------
    config : Config
        ``checkpoint_data: false`` leaves users and their events out.
    train_dataset : Dataset
        The training part; its events are those of validation and test too.

    Returns
    -------
    dict or None
        Plain data; None for data sets of other kinds than ours. Made once for the same events, then remembered.
    """
    rows = getattr(train_dataset, "inter_feat", None)
    if not isinstance(rows, PrefixRows):
        return None
    whole = _describe(train_dataset, rows.events)
    days = train_dataset.trained_days(include_targets=True)
    whole = {**whole, "days": [int(days[0]), int(days[-1])]}
    if config["checkpoint_data"] is False:
        whole.update(users=None, histories=None)
    return whole


def fingerprint(dataset: Any) -> dict[str, str] | None:
    """Fingerprints of the names and of the events of a data set; None for kinds other than ours."""
    rows = getattr(dataset, "inter_feat", None)
    return _describe(dataset, rows.events)["fingerprint"] if isinstance(rows, PrefixRows) else None


def _describe(dataset: Any, events: Events) -> dict[str, Any]:
    """What belongs to the events, whichever part of them is trained on."""
    global _remembered
    if _remembered is not None and _remembered[0]() is events:
        return _remembered[1]
    tokens = {
        "users": dataset.field2id_token[dataset.uid_field][1:],
        "items": dataset.field2id_token[dataset.iid_field][1:],
    }
    ids = events.columns[dataset.uid_field].long()
    counts = torch.bincount(ids, minlength=dataset.user_num)[1:].int()
    items = events.columns[dataset.iid_field].int()
    times = events.columns[dataset.time_field]
    origin = 0
    if not times.is_floating_point() and len(times):
        low, high = int(times.min()), int(times.max())
        if high - low < 2**31:
            # Half the size: times counted from the first one.
            origin, times = low, (times - low).int()
    described: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "dataset": str(dataset.dataset_name),
        "fields": {"user": dataset.uid_field, "item": dataset.iid_field, "time": dataset.time_field},
        "n_users": int(dataset.user_num),
        "users": _pack([str(token) for token in tokens["users"]]),
        "items": _pack([str(token) for token in tokens["items"]]),
        "histories": {"counts": counts, "items": items, "times": times, "origin": origin},
    }
    described["fingerprint"] = {
        "names": _hash_names(described["users"], described["items"]),
        "items": _hash_names(described["items"]),
        "events": _hash_events(described["histories"]),
    }

    def forget(_: object) -> None:
        global _remembered
        _remembered = None

    _remembered = weakref.ref(events, forget), described
    return described


def _pack(names: Sequence[str]) -> dict[str, Any]:
    """Names as one text and the number of characters of each: read in one go, whatever is in them."""
    return {"text": "".join(names), "lengths": torch.tensor([len(name) for name in names], dtype=torch.int32)}


def _unpack(packed: Any, what: str) -> list[str]:
    try:
        text, lengths = packed["text"], packed["lengths"]
        ends = lengths.long().cumsum(0).tolist()
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise Damaged(f"its names of {what} can't be read") from error
    if not isinstance(text, str) or bool((lengths < 0).any()) or (ends[-1] if ends else 0) != len(text):
        raise Damaged(f"its names of {what} can't be read")
    starts = [0, *ends][:-1]
    names = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    if len(set(names)) != len(names):
        raise Damaged(f"two of its {what} have one name")
    return names


def _hash_names(*packed: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for each in packed:
        digest.update(each["lengths"].numpy().tobytes())
        digest.update(each["text"].encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hash_events(histories: dict[str, Any]) -> str:
    digest = hashlib.sha256(f"{histories['times'].dtype} {histories['origin']}".encode())
    for name in ("counts", "items", "times"):
        digest.update(np.ascontiguousarray(histories[name].numpy()).data)
    return digest.hexdigest()


def other_data(carried: Any, dataset: Any) -> str | None:
    """How the data that a checkpoint was trained on differ from a data set.

    Parameters
    ----------
    carried : object
        What stands in a checkpoint under ``recbole_adrrec``, or None.
    dataset : Dataset

    Returns
    -------
    str or None
        What is different; None if nothing is, or nothing is known of one of the two.
    """
    here = fingerprint(dataset)
    there = carried.get("fingerprint") if isinstance(carried, dict) else None
    if here is None or not isinstance(there, dict):
        return None
    if there.get("names") != here["names"]:
        return "users and items with other names, or in another order"
    if there.get("events") != here["events"]:
        return "the same users and items, but other events"
    return None


@dataclass(frozen=True)
class Histories:
    """Events of users, by user id, then time.

    Attributes
    ----------
    offsets : Int64[n_users + 1]
        Where each user's events begin; those of user ``u`` are ``offsets[u]`` up to ``offsets[u + 1]``.
    items : Int32[n_events]
        Item ids, from 1.
    times : Int64[n_events] or Float32[n_events]
        Seconds since 1970 (UTC); float32 where the model was trained with ``exact_time: false``.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[Any]

    @classmethod
    def of_events(cls, users: NDArray[np.int64], items: NDArray[np.int32], times: NDArray[Any], n: int) -> Histories:
        """Sort events of ``n`` user ids; those of one user at one time keep their order."""
        order = np.lexsort((times, users))
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=n), out=offsets[1:])
        return cls(offsets, items[order], times[order])

    def owners(self) -> NDArray[np.int64]:
        """User id of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Events of some users: the place in ``users`` of each event, and its index. Ids beyond the last have none."""
        known = users < len(self.offsets) - 1
        at = np.where(known, users, 0)
        start = self.offsets[at]
        counts = np.where(known, self.offsets[at + 1] - start, 0)
        rows = np.repeat(np.arange(len(users)), counts)
        return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(start, counts)


@dataclass(frozen=True)
class Carried:
    """What a checkpoint carries, read and checked.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    user_field, item_field, time_field : str
        Names of the columns.
    users, items : list of str
        Names by id; entry 0 is padding. ``users`` is padding alone with ``checkpoint_data: false``.
    histories : Histories
        Events of the users.
    n_users : int
        User ids of training, padding included, whether their names are carried or not.
    days : tuple of int
        First and last day that training shows, in days since 1970-01-01 (UTC).
    fingerprint : dict of str to str
        SHA-256 of the names and of the events.
    version : str
        Version of this package that wrote it.
    """

    dataset: str
    user_field: str
    item_field: str
    time_field: str
    users: list[str]
    items: list[str]
    histories: Histories
    n_users: int
    days: tuple[int, int]
    fingerprint: dict[str, str]
    version: str

    @classmethod
    def of(cls, checkpoint: dict[str, Any], path: str) -> Carried:
        """Read what a checkpoint carries.

        Parameters
        ----------
        checkpoint : dict
            As :func:`recbole_adrrec.integration.patches.load_checkpoint` gives it.
        path : str
            Its file, for messages.

        Raises
        ------
        CheckpointError
            It carries nothing, or something else than was written.
        """
        stored = checkpoint.get(KEY)
        best = (checkpoint.get("training") or {}).get("best_file")
        if stored is None and best is not None and Path(path).stem.endswith("-last"):
            raise CheckpointError(
                f"{path}: is the last state, from which --resume goes on, and carries no names; ask the best model "
                f"beside it, {Path(path).with_name(best)}"
            )
        if stored is None:
            raise CheckpointError(
                f"{path}: carries no names of users and items, so its numbers can't be told apart (it was saved by an "
                "earlier version, by RecBole alone, or by a model with a data set of its own); train it again with "
                "this version"
            )
        try:
            return cls._read(stored)
        except Damaged as error:
            raise CheckpointError(
                f"{path}: {error}; the file is damaged or was changed, take another copy or train again"
            ) from error

    @classmethod
    def _read(cls, stored: Any) -> Carried:
        if not isinstance(stored, dict) or not isinstance(stored.get("format"), int):
            raise Damaged("what it carries is not what this package writes")
        if stored["format"] > FORMAT:
            raise Damaged(f"it was saved by a later version, {stored.get('version')}, in a format unknown to this one")
        try:
            fields, prints = stored["fields"], stored["fingerprint"]
            texts = [stored["dataset"], fields["user"], fields["item"], fields["time"], stored["version"]]
            days = tuple(stored["days"])
            packed_items, packed_users, events = stored["items"], stored["users"], stored["histories"]
            n_users = stored["n_users"]
        except (TypeError, KeyError) as error:
            raise Damaged("a part of what it carries is missing") from error
        if not all(isinstance(text, str) for text in texts) or not isinstance(prints, dict):
            raise Damaged("what it carries is not what this package writes")
        if len(days) != 2 or not all(isinstance(day, int) for day in days) or days[0] > days[1]:
            raise Damaged("its days of training can't be read")
        if not isinstance(n_users, int) or n_users < 1:
            raise Damaged("its number of users can't be read")
        items = _unpack(packed_items, "items")
        if _hash_names(packed_items) != prints.get("items"):
            raise Damaged("its items don't match their fingerprint")
        if packed_users is None:
            users, histories = [], Histories(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))
        else:
            users = _unpack(packed_users, "users")
            if _hash_names(packed_users, packed_items) != prints.get("names"):
                raise Damaged("its users and items don't match their fingerprint")
            if len(users) != n_users - 1:
                raise Damaged("it has another number of users than names")
            histories = _read_histories(events, len(users), len(items), prints.get("events"))
        names = dict(zip(("dataset", "user_field", "item_field", "time_field", "version"), texts, strict=True))
        return cls(
            users=[PADDING, *users],
            items=[PADDING, *items],
            histories=histories,
            n_users=n_users,
            days=(days[0], days[1]),
            fingerprint=dict(prints),
            **names,
        )


def _read_histories(events: Any, n_users: int, n_items: int, expected: Any) -> Histories:
    try:
        counts, items, times, origin = (events[name] for name in ("counts", "items", "times", "origin"))
        fits = (
            counts.dtype == items.dtype == torch.int32
            and times.dtype in (torch.int32, torch.int64, torch.float32, torch.float64)
            and isinstance(origin, int)
            and counts.shape == (n_users,)
            and items.shape == times.shape == (int(counts.sum()),)
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise Damaged("its events can't be read") from error
    if not fits or _hash_events(events) != expected:
        raise Damaged("its events don't match their fingerprint")
    if bool((counts < 0).any()) or (len(items) and not 1 <= int(items.min()) <= int(items.max()) <= n_items):
        raise Damaged("its events name items or users that it doesn't have")
    offsets = np.zeros(n_users + 2, dtype=np.int64)  # user 0 is padding
    np.cumsum(counts.numpy(), out=offsets[2:])
    return Histories(offsets, items.numpy(), _seconds(times, origin))


def _seconds(times: Tensor, origin: int) -> NDArray[Any]:
    return times.numpy() if times.is_floating_point() else times.long().numpy() + origin
