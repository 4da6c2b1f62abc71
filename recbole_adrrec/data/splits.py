"""A global split in time: train before one moment, validate up to another, test after it.

Leave-one-out holds out each user's last events whenever they happened, so a model trains on events that lie after
events of other users on which it is tested. Here two moments, the same for all users, divide the data, as in "Time to
Split" (Gusak et al., RecSys 2025). RecBole's own ``TS`` has one such moment, before the test, and cuts validation off
each user by share (data/dataset/dataset.py:1732).

It is chosen by ``eval_args: {split: {GT: {...}}, order: TO, group_by: user, mode: full}`` with the entries

``shares``
    Three shares of the events, for training, validation and test; default ``[0.8, 0.1, 0.1]``.
``times``
    In place of ``shares``: the two moments, as :func:`recbole_adrrec.times.seconds` reads them (numbers, dates, texts).
``train_from``
    A moment, as those of ``times``: training predicts the events from then on, each from all events before it. Unset:
    all. With ``init_from`` it trains on what is new, and keeps the histories.
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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_adrrec.errors import DataError
from recbole_adrrec.times import iso, seconds, to_seconds

PERIODS = ("train", "valid", "test")


@dataclass(frozen=True)
class GlobalSplit:
    """The entries of ``eval_args: {split: {GT: ...}}``, described at the top of this module."""

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    times: tuple[int, int] | None = None
    train_from: int | None = None
    targets: str = "last"
    cold_items: str = "drop"
    cold_users: str = "keep"

    @classmethod
    def of(cls, config: Any) -> GlobalSplit | None:
        """The global split of a configuration, or None where ``eval_args`` has another one."""
        split = (config["eval_args"] or {}).get("split") or {}
        if "GT" not in split:
            return None
        given = dict(split["GT"] or {})
        for name, read in (("shares", float), ("times", seconds)):
            if given.get(name) is not None:
                given[name] = tuple(read(each) for each in given[name])
        if given.get("train_from") is not None:
            given["train_from"] = seconds(given["train_from"], "train_from")
        return cls(**given)

    def moments(self, times: NDArray[np.int64]) -> tuple[int, int]:
        """The moments at which validation and test begin, in seconds since 1970.

        Parameters
        ----------
        times : int64 array, [n_events]
            Times of all events in seconds, in any order.

        Notes
        -----
        With shares, the events before a moment are at most its share: events of the same second are not parted, and go
        to the later period.
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
    """Find the moments of a global split, count cold items and users, and drop them as the options say.

    To be called when the events are filtered and ids not yet given, so that dropped items have none. It sets
    ``split_moments`` and ``split_counts`` of the data set, and does nothing without a global split.

    Parameters
    ----------
    dataset : SequenceDataset
        With ``inter_feat`` still a data frame.

    Raises
    ------
    DataError
        A period is left without events.
    """
    split = GlobalSplit.of(dataset.config)
    if split is None or dataset.benchmark_filename_list is not None:
        return
    frame = dataset.inter_feat
    times = to_seconds(frame[dataset.time_field].to_numpy(), dataset.time_unit_in)
    moments = split.moments(times)
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
        "cold_items_are": "dropped" if split.cold_items == "drop" else "kept",
        "cold_users_are": "dropped" if split.cold_users == "drop" else "kept",
    }
    gone = (cold_item & (split.cold_items == "drop")) | (cold_user & (split.cold_users == "drop"))
    if gone.any():
        dataset.inter_feat = frame[~gone]
        _refuse_empty(dataset, np.bincount(period[~gone], minlength=3), moments, times)
        dataset._reset_index()
    dataset.split_moments, dataset.split_counts = moments, counts
    dataset.logger.info(_summary(counts))


def _by_period(period: NDArray[np.int64], which: NDArray[np.bool_]) -> dict[str, int]:
    return dict(zip(PERIODS, np.bincount(period[which], minlength=3).tolist(), strict=True))


def _refuse_empty(dataset: Any, events: Any, moments: tuple[int, int], times: NDArray[np.int64]) -> None:
    for name, count in zip(PERIODS, events, strict=True):
        if count == 0:
            raise DataError(
                f"eval_args: split GT leaves no event for {name} in {dataset.dataset_name} (training ends at "
                f"{iso(moments[0])}, validation at {iso(moments[1])}, its events lie from "
                f"{iso(times.min())} to {iso(times.max())}); choose other shares or times"
            )


def _summary(counts: Mapping[str, Any]) -> str:
    events = counts["events"]
    return (
        f"Global split: train before {iso(counts['train_before'])} ({events['train']} events), validate up to "
        f"{iso(counts['test_from'])} ({events['valid']}), test after ({events['test']}). Without a training event: "
        f"{counts['cold_items']} items ({sum(counts['cold_item_events'].values())} events, {counts['cold_items_are']}) "
        f"and {counts['cold_users']} users ({sum(counts['cold_user_events'].values())} events, "
        f"{counts['cold_users_are']})"
    )


def build(dataset: Any, split: GlobalSplit) -> list[Any]:
    """Divide the rows of a data set by the time of the event they predict.

    Parameters
    ----------
    dataset : SequenceDataset
        With its events loaded, as when ``build`` is called.
    split : GlobalSplit

    Returns
    -------
    list of SequenceDataset
        Training (all targets before the first moment), validation and test (the chosen targets). A row's history
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
    trained = (period == 0) & (times >= (split.train_from or 0))
    parts = [trained.nonzero().squeeze(1)]
    for place in (1, 2):
        inside = (period == place).nonzero().squeeze(1)
        parts.append(inside[_chosen(rows.targets[inside].long(), rows[dataset.uid_field][inside], split.targets)])
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
