"""A global split in time: train before one moment, validate up to another, test after it.

Leave-one-out holds out each user's last events whenever they happened, so a model trains on events that lie after
events of other users on which it is tested. Here two moments, the same for all users, divide the data, as in "Time to
Split" (Gusak et al., RecSys 2025). RecBole's own ``TS`` has one such moment, before the test, and cuts validation off
each user by share (data/dataset/dataset.py:1732).

It is asked for by ``eval_args: {split: {GT: {...}}, order: TO, group_by: user, mode: full}`` with the entries

``shares``
    Three shares of the events, for training, validation and test; default ``[0.8, 0.1, 0.1]``.
``times``
    In place of ``shares``: the two moments, as seconds since 1970 or as dates (UTC, the day's beginning).
``targets``
    Which events of a user within a period are predicted: ``last`` (default), ``first``, or ``successive``, each of them
    from all events before it.
``cold_items``
    Items without a training event: ``drop`` (default) removes their events from validation and test, targets and
    histories alike, so that no untrained embedding is read or ranked; ``keep`` leaves them.
``cold_users``
    Users without a training event: ``keep`` (default), since these models read histories and not users, or ``drop``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_adrrec.errors import DataError
from recbole_adrrec.options import moment_seconds
from recbole_adrrec.times import to_seconds

PERIODS = ("train", "valid", "test")


@dataclass(frozen=True)
class GlobalSplit:
    """What ``eval_args`` asks for; the entries are described at the top of this module."""

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    times: tuple[int, int] | None = None
    targets: str = "last"
    cold_items: str = "drop"
    cold_users: str = "keep"

    @classmethod
    def of(cls, config: Any) -> GlobalSplit | None:
        """The global split that a configuration asks for, or None where it asks for another."""
        split = (config["eval_args"] or {}).get("split") or {}
        if "GT" not in split:
            return None
        given = dict(split["GT"] or {})
        for name, read in (("shares", float), ("times", moment_seconds)):
            if given.get(name) is not None:
                given[name] = tuple(read(each) for each in given[name])
        return cls(**given)

    def moments(self, times: NDArray[np.int64]) -> tuple[int, int]:
        """The moments at which validation and test begin, in seconds since 1970.

        Parameters
        ----------
        times : int64 array, [n_events]
            Times of all events in seconds, in any order.

        Notes
        -----
        With shares, the events before a moment are at most the share asked for: events of the same second are not
        parted, and go to the later period.
        """
        if self.times is not None:
            return self.times
        ordered = np.sort(times)
        total = sum(self.shares)
        cuts = (self.shares[0] / total, (self.shares[0] + self.shares[1]) / total)
        # A share such as .8 + .1 is a hair off in binary; the rounding keeps 90 of 100 events at 90.
        first, second = (ordered[min(int(round(cut * len(ordered), 6)), len(ordered) - 1)] for cut in cuts)
        return int(first), int(second)


def filter_cold(dataset: Any) -> None:
    """Settle the moments of a global split, count what is cold, and drop it where asked to.

    To be called when the events are filtered and ids not yet given, so that dropped items have none. It sets
    ``split_moments`` and ``split_counts`` of the data set, and does nothing where no global split is asked for.

    Parameters
    ----------
    dataset : SequenceDataset
        With ``inter_feat`` still a data frame.

    Raises
    ------
    DataError
        A period is left without events.
    """
    asked = GlobalSplit.of(dataset.config)
    if asked is None or dataset.benchmark_filename_list is not None:
        return
    frame = dataset.inter_feat
    times = to_seconds(frame[dataset.time_field].to_numpy(), dataset.time_unit_in)
    moments = asked.moments(times)
    period = np.searchsorted(np.asarray(moments), times, side="right")
    _refuse_empty(dataset, np.bincount(period, minlength=3), moments, times)
    users, items = frame[dataset.uid_field].to_numpy(), frame[dataset.iid_field].to_numpy()
    trained = period == 0
    cold_item = ~frame[dataset.iid_field].isin(set(items[trained])).to_numpy()
    cold_user = ~frame[dataset.uid_field].isin(set(users[trained])).to_numpy()
    counts: dict[str, Any] = {
        "train_before": moments[0],
        "test_from": moments[1],
        "events": _by_period(period, np.ones(len(frame), dtype=bool)),
        "cold_items": len(set(items[cold_item])),
        "cold_item_events": _by_period(period, cold_item),
        "cold_users": len(set(users[cold_user])),
        "cold_user_events": _by_period(period, cold_user),
        "cold_items_are": "dropped" if asked.cold_items == "drop" else "kept",
        "cold_users_are": "dropped" if asked.cold_users == "drop" else "kept",
    }
    gone = (cold_item & (asked.cold_items == "drop")) | (cold_user & (asked.cold_users == "drop"))
    if gone.any():
        dataset.inter_feat = frame[~gone]
        _refuse_empty(dataset, np.bincount(period[~gone], minlength=3), moments, times)
        dataset._reset_index()
    dataset.split_moments, dataset.split_counts = moments, counts
    dataset.logger.info(_told(counts))


def _by_period(period: NDArray[np.int64], which: NDArray[np.bool_]) -> dict[str, int]:
    return dict(zip(PERIODS, np.bincount(period[which], minlength=3).tolist(), strict=True))


def _refuse_empty(dataset: Any, events: Any, moments: tuple[int, int], times: NDArray[np.int64]) -> None:
    for name, count in zip(PERIODS, events, strict=True):
        if count == 0:
            raise DataError(
                f"eval_args: split GT leaves no event for {name} in {dataset.dataset_name} (training ends at "
                f"{_day(moments[0])}, validation at {_day(moments[1])}, its events lie from "
                f"{_day(int(times.min()))} to {_day(int(times.max()))}); choose other shares or times"
            )


def _day(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S}"


def _told(counts: Mapping[str, Any]) -> str:
    events = counts["events"]
    return (
        f"Global split: train before {_day(counts['train_before'])} UTC ({events['train']} events), validate up to "
        f"{_day(counts['test_from'])} ({events['valid']}), test after ({events['test']}). Without a training event: "
        f"{counts['cold_items']} items ({sum(counts['cold_item_events'].values())} events, {counts['cold_items_are']}) "
        f"and {counts['cold_users']} users ({sum(counts['cold_user_events'].values())} events, "
        f"{counts['cold_users_are']})"
    )


def build(dataset: Any, asked: GlobalSplit) -> list[Any]:
    """Divide the rows of a data set by the time of the event they predict.

    Parameters
    ----------
    dataset : SequenceDataset
        With its events loaded, as when ``build`` is called.
    asked : GlobalSplit
        What ``eval_args`` asks for.

    Returns
    -------
    list of SequenceDataset
        Training (all targets before the first moment), validation and test (the targets asked for). A row's history
        are all events before its target, those of validation included in test.

    Raises
    ------
    DataError
        A period is left without anything to predict.
    """
    dataset._change_feat_format()
    dataset.sort(by=dataset.time_field)
    rows = dataset.inter_feat
    times = rows[dataset.time_field]
    period = torch.from_numpy(np.searchsorted(np.asarray(dataset.split_moments), times.numpy(), side="right"))
    parts = [(period == 0).nonzero().squeeze(1)]
    for place in (1, 2):
        inside = (period == place).nonzero().squeeze(1)
        parts.append(inside[_chosen(rows.targets[inside].long(), rows[dataset.uid_field][inside], asked.targets)])
    for name, part in zip(PERIODS, parts, strict=True):
        if len(part) == 0:
            raise DataError(
                f"eval_args: split GT leaves nothing to predict for {name} in {dataset.dataset_name}: no user has an "
                "event there with another before it; choose other shares or times"
            )
    dataset._drop_unused_col()
    return [dataset.copy(rows[part]) for part in parts]


def _chosen(targets: Tensor, users: Tensor, which: str) -> Tensor:
    """Indices of the targets to keep, in the order given: bool Tensor, [n]. Events are numbered by user, then time."""
    keep = torch.ones(len(targets), dtype=torch.bool)
    if which == "successive" or len(targets) == 0:
        return keep
    reduce = "amax" if which == "last" else "amin"
    best = torch.zeros(int(users.max()) + 1, dtype=torch.int64)
    best.scatter_reduce_(0, users, targets, reduce, include_self=False)
    return targets == best[users]
