"""The data in a checkpoint, so that it answers without the raw files and is not taken for other data's.

RecBole's checkpoints hold weights by row number and no word on whose rows they are: with another data file, or other
filters, the same numbers belong to other items. Ours hold the names of users and items in the order of their ids,
every user's events, the days of training, and fingerprints. Of data in mapped columns they hold the folder of the
columns in place of users and events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_adrrec.data.columns import Columns, pack
from recbole_adrrec.data.rows import Events, PrefixRows
from recbole_adrrec.errors import CheckpointError, DataError
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.integration.checkpoint import is_file_name
from recbole_adrrec.times import SECONDS_A_DAY

PADDING = "[PAD]"
"""RecBole's name of row 0, which is no user and no item."""


MOST_USERS = 10**8
LAST_DAY = 10**7
"""Bounds of what is believed: memory is taken for each user, also without names."""


class CorruptCheckpoint(Exception):  # noqa: N818 - becomes a CheckpointError that names the file
    """The data of a checkpoint is not as it was written; the text says which part."""


# Writing


def data_entry(config: Any, dataset: Any) -> dict[str, Any] | None:
    """The entry ``data`` of a checkpoint.

    Parameters
    ----------
    config : Config
        ``checkpoint_data: false`` leaves users and their events out.
    dataset : Dataset
        The training part; its events are those of validation and test too.

    Returns
    -------
    dict or None
        Plain data; None for data sets of other kinds than ours.
    """
    rows = getattr(dataset, "inter_feat", None)
    if not isinstance(rows, PrefixRows):
        return None
    kept, store = config["checkpoint_data"] is not False, _store(dataset)
    if store is None:
        names, events = _names(dataset), _pack_events(dataset, rows.events)
        prints = {"names": fingerprint(names), "events": fingerprint(events)}
        parts = {"users": names["users"], "items": names["items"], "events": events}
    else:
        prints = store.fingerprint
        parts = {"users": None, "items": pack(list(store.items)[1:]), "events": None}
    days = dataset.trained_days(include_targets=True)
    return {
        "dataset": str(dataset.dataset_name),
        "fields": {"user": dataset.uid_field, "item": dataset.iid_field, "time": dataset.time_field},
        "n_users": int(dataset.user_num),
        "users": parts["users"] if kept else None,
        "items": parts["items"],
        "events": parts["events"] if kept else None,
        "columns": str(store.folder.resolve()) if kept and store is not None else None,
        "days": [int(days[0]), int(days[-1])],
        "fingerprint": prints,
    }


def training_fingerprint(loader: Any) -> str:
    """Fingerprint of the events of a training loader and of which of them are predicted."""
    rows, store = loader._dataset.inter_feat, _store(loader._dataset)
    if store is not None:
        return fingerprint([store.fingerprint["events"], *rows.spans()])
    events = getattr(rows, "events", None)
    columns = events.columns if events is not None else rows.interaction
    return fingerprint([dict(columns), getattr(rows, "targets", None)])


def check_same_data(checkpoint: Mapping[str, Any], dataset: Any, path: Any) -> None:
    """Refuse weights that were trained on other users, items or events than those of a data set.

    RecBole compares shapes alone, so that weights of other data would be taken for others' items.

    Raises
    ------
    CheckpointError
        They were; nothing is raised where nothing is known of one of the two.
    """
    rows, stored = getattr(dataset, "inter_feat", None), checkpoint.get("data")
    if not isinstance(rows, PrefixRows) or stored is None:
        return
    prints = stored.get("fingerprint") if isinstance(stored, Mapping) else None
    if not isinstance(prints, Mapping):
        raise CheckpointError(f"{path}: its data can't be read; take another copy or train again")
    if "names" not in prints:
        return
    store = _store(dataset)
    if prints["names"] != (fingerprint(_names(dataset)) if store is None else store.fingerprint["names"]):
        difference = "users and items with other names, or in another order"
    elif prints.get("events") != (
        fingerprint(_pack_events(dataset, rows.events)) if store is None else store.fingerprint["events"]
    ):
        difference = "the same users and items, but other events"
    else:
        return
    raise CheckpointError(
        f"{path}: made for other data: it knows {difference}, than {dataset.dataset_name} has now; restore the data "
        "file and its filters, or train again"
    )


def _store(dataset: Any) -> Columns | None:
    """The columns of a data set that maps them."""
    return getattr(dataset, "store", None)


def _names(dataset: Any) -> dict[str, Any]:
    fields = {"users": dataset.uid_field, "items": dataset.iid_field}
    return {name: pack([str(token) for token in dataset.field2id_token[at][1:]]) for name, at in fields.items()}


def _pack_events(dataset: Any, events: Events) -> dict[str, Any]:
    """Number of events of each user, and all items and times; times as int32 from the first one where they fit."""
    times, origin = events.columns[dataset.time_field], 0
    if not times.is_floating_point() and len(times):
        low, high = int(times.min()), int(times.max())
        if high - low < 2**31:
            origin, times = low, (times.long() - low).int()
    counts = torch.bincount(events.columns[dataset.uid_field].long(), minlength=dataset.user_num)[1:].int()
    return {"counts": counts, "items": events.columns[dataset.iid_field].int(), "times": times, "origin": origin}


# Reading


def unpack(packed: Any, what: str) -> list[str]:
    """Names from what :func:`pack` made of them.

    Raises
    ------
    CorruptCheckpoint
        It is something else, or two names are equal.
    """
    try:
        text, lengths = packed["text"], packed["lengths"]
        ends = lengths.long().cumsum(0).tolist()
        fits = isinstance(text, str) and not bool((lengths < 0).any()) and (ends[-1] if ends else 0) == len(text)
    except (TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise CorruptCheckpoint(f"its names of {what} can't be read") from error
    if not fits:
        raise CorruptCheckpoint(f"its names of {what} can't be read")
    names = [text[start:end] for start, end in zip([0, *ends][:-1], ends, strict=True)]
    if len(set(names)) != len(names):
        raise CorruptCheckpoint(f"two of its {what} have one name")
    return names


@dataclass(frozen=True)
class CheckpointData:
    """The data in a checkpoint, read and checked.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    user_field, item_field, time_field : str
        Names of the columns.
    users, items : sequence of str
        Names by id; entry 0 is padding. ``users`` is padding alone where ``missing`` says why.
    events : Events
        Users, items and times (seconds since 1970, UTC) sorted by user, then time; none where users are missing.
    n_users : int
        User ids of training, padding included, whether their names are stored or not.
    days : tuple of int
        First and last day that training shows, in days since 1970-01-01 (UTC).
    version : str
        Version of this package that wrote it.
    missing : str
        Why there are no users and events; empty where there are.
    """

    dataset: str
    user_field: str
    item_field: str
    time_field: str
    users: Sequence[str]
    items: list[str]
    events: Events
    n_users: int
    days: tuple[int, int]
    version: str
    missing: str = ""

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: str) -> CheckpointData:
        """Read the data of a checkpoint.

        Parameters
        ----------
        checkpoint : dict
            As :func:`recbole_adrrec.integration.checkpoint.load_checkpoint` gives it.
        path : str
            Its file, for messages.

        Raises
        ------
        CheckpointError
            It has none, or something else than was written.
        """
        stored = checkpoint.get("data")
        training = checkpoint.get("training")
        best = training.get("best_file") if isinstance(training, Mapping) else None
        if stored is None and isinstance(best, str) and is_file_name(best) and Path(path).stem.endswith("-last"):
            raise CheckpointError(
                f"{path}: is the last state, from which --resume goes on, and carries no names; ask the best model "
                f"beside it, {Path(path).with_name(best)}"
            )
        if stored is None:
            raise CheckpointError(
                f"{path}: carries no names of users and items, so nobody knows what its numbers mean (it was saved by "
                "RecBole alone, or by a model with a data set of its own); train it again with this version"
            )
        try:
            return cls._read(stored, str(checkpoint.get("version")))
        except CorruptCheckpoint as error:
            raise CheckpointError(
                f"{path}: {error}; the file is damaged or was changed, take another copy or train again"
            ) from error

    @classmethod
    def _read(cls, stored: Any, version: str) -> CheckpointData:
        try:
            dataset, fields = stored["dataset"], stored["fields"]
            user, item, time = (fields[name] for name in ("user", "item", "time"))
            first, last = stored["days"]
            n_users, packed_users, packed_events = stored["n_users"], stored["users"], stored["events"]
            items = unpack(stored["items"], "items")
        except (TypeError, LookupError, ValueError) as error:
            raise CorruptCheckpoint("a part of its data is missing") from error
        texts, numbers = (dataset, user, item, time), (first, last, n_users)
        if not all(isinstance(each, str) for each in texts) or not all(type(each) is int for each in numbers):
            raise CorruptCheckpoint("its data is not what this package writes")
        if not -LAST_DAY <= first <= last <= LAST_DAY:
            raise CorruptCheckpoint("its days of training can't be read")
        if not 1 <= n_users <= MOST_USERS:
            raise CorruptCheckpoint("its number of users can't be read")
        users = [] if packed_users is None else unpack(packed_users, "users")
        if packed_users is not None and len(users) != n_users - 1:
            raise CorruptCheckpoint("it has another number of users than names")
        if stored.get("columns") is not None:
            return cls._mapped(stored, (dataset, user, item, time), [PADDING, *items], (first, last), version)
        columns = _read_events(packed_events, len(users), len(items))
        events = Events.from_sorted(dict(zip((user, item, time), columns, strict=True)), user, n_users)
        missing = "checkpoint_data: false" if packed_users is None else ""
        users, items = [PADDING, *users], [PADDING, *items]
        return cls(dataset, user, item, time, users, items, events, n_users, (first, last), version, missing)

    @classmethod
    def _mapped(
        cls, stored: Any, texts: tuple[str, str, str, str], items: list[str], days: tuple[int, int], version: str
    ) -> CheckpointData:
        """The data of a checkpoint whose users and events stand in columns, or a word on where they should be."""
        if type(stored["columns"]) is not str:
            raise CorruptCheckpoint("the folder of its columns can't be read")
        folder, n_users = Path(stored["columns"]), stored["n_users"]
        try:
            store = Columns.open(folder)
            if store.fingerprint != stored["fingerprint"]:
                raise DataError(f"{folder}: made anew since, of other data")
            return cls(*texts, store.users, items, store.events, n_users, days, version)
        except DataError as error:
            missing = f"trained with event_store: mapped, its users and events stand in the columns, but {error}"
        empty = Events.from_sorted(dict(zip(texts[1:], _read_events(None, 0, 0), strict=True)), texts[1], n_users)
        return cls(*texts, [PADDING], items, empty, n_users, days, version, missing)


def _read_events(packed: Any, n_users: int, n_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Users, items and times of events."""
    if packed is None:
        return (torch.zeros(0, dtype=torch.int64),) * 3
    try:
        counts, items, times, origin = (packed[name] for name in ("counts", "items", "times", "origin"))
        fits = (
            counts.dtype == items.dtype == torch.int32
            and times.dtype in (torch.int32, torch.int64, torch.float32, torch.float64)
            and type(origin) is int
            and counts.shape == (n_users,)
            and bool((counts >= 0).all())
            and items.shape == times.shape == (int(counts.sum()),)
        )
    except (TypeError, LookupError, AttributeError) as error:
        raise CorruptCheckpoint("its events can't be read") from error
    if not fits or (len(items) and not 1 <= int(items.min()) <= int(items.max()) <= n_items):
        raise CorruptCheckpoint("its events name items or users that it doesn't have")
    ends = (origin, *(float(end) for end in times.aminmax())) if len(times) else (origin,)
    if not all(abs(end) <= LAST_DAY * SECONDS_A_DAY for end in ends):
        raise CorruptCheckpoint("the times of its events can't be read")
    users = torch.repeat_interleave(torch.arange(1, n_users + 1), counts.long())
    return users, items.long(), times if times.is_floating_point() else times.long() + origin
