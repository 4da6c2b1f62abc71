"""The sequential dataset whose events stay on the disk (``event_store: mapped``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_adrrec.collectives import barrier, rank
from recbole_adrrec.data.columns import Columns, Numbers, Source, is_current, whole_users
from recbole_adrrec.data.dataset import SequenceDataset
from recbole_adrrec.data.make_columns import BLOCK, Allowed, make
from recbole_adrrec.data.rows import PrefixRows, SpanRows, WindowRows
from recbole_adrrec.errors import DataError
from recbole_adrrec.times import SECONDS_A_DAY, whole_days

LOW_BITS = 20


class MappedDataset(SequenceDataset):
    """Events in columns beside the atomic file, which are made once and mapped into memory, not read.

    Rows, their order and all statistics are those of ``SequenceDataset``. What is kept in memory are a few numbers for
    each user and each window. Options read beside those of ``SequenceDataset``: ``event_store``.
    """

    store: Columns

    def _from_scratch(self) -> None:
        self._get_preset()
        self._get_field_from_config()
        self.store = self._open()
        kinds = {
            self.uid_field: (FeatureType.TOKEN, FeatureSource.USER_ID),
            self.iid_field: (FeatureType.TOKEN, FeatureSource.ITEM_ID),
            self.time_field: (FeatureType.FLOAT, FeatureSource.INTERACTION),
        }
        events = self.store.events
        for field in events.columns:
            self.set_field_property(field, *kinds[field], 1)
        self.field2bucketnum[self.time_field] = 2
        users, items = self.store.users, np.array(list(self.store.items))
        self.field2id_token.update({self.uid_field: users, self.iid_field: items})
        numbers = {name: number for number, name in enumerate(items.tolist())}
        self.field2token_id.update({self.uid_field: Numbers(users), self.iid_field: numbers})
        self.user_feat = self.item_feat = None
        self.feat_name_list = ["inter_feat"]
        self._init_alias()
        self.inter_feat = events.columns
        self._aug_presets()
        counts = events.starts.diff()
        self._users = (counts > 1).nonzero().squeeze(1)
        self.inter_feat = self._rows(events.starts[self._users + 1] - 1, self._users)
        self._report_columns(counts)

    def _open(self) -> Columns:
        config = self.config
        given = [config[f"{part}_inter_num_interval"] for part in ("user", "item")]
        user, item = (None if each in (None, "[0,inf)") else str(each) for each in given)
        source = Source(
            Path(self.dataset_path, f"{self.dataset_name}.inter"),
            (self.uid_field, self.iid_field, self.time_field),
            config["field_separator"],
            config["encoding"],
            self.time_unit_in,
            config["tie_seed"] if config["tie_order"] == "random" else None,
            (user, item),
        )
        if not os.path.exists(self.dataset_path):
            self._download()
        if not source.path.is_file():
            raise DataError(f"{source.path}: there is no such file, of which event_store: mapped makes columns")
        if rank() == 0 and not is_current(source):
            make(source, [self._allowed(user), self._allowed(item)], self.logger)
        barrier()
        return Columns.open(source.folder)

    def _allowed(self, interval: str | None) -> Allowed | None:
        if interval is None:
            return None
        return partial(self._within_intervals, intervals=self._parse_intervals_str(interval))

    def _rows(self, last: Tensor, users: Tensor) -> SpanRows:
        """Rows of users from their second event to a last one."""
        events = self.store.events
        fields = self.max_item_list_len, self.config["LIST_SUFFIX"], self.item_list_length_field
        return SpanRows(events, events.starts[users], last, *fields)

    def _report_columns(self, counts: Tensor) -> None:
        self._refuse_too_few(len(self.inter_feat))
        self._report_single(int((counts == 1).sum()))
        self._report_ties(self.store.ties)

    @property
    def inter_num(self) -> int:
        """Number of events."""
        return len(self.store.events)

    @property
    def avg_actions_of_users(self) -> float:
        """Events a user."""
        return self.inter_num / (self.user_num - 1)

    @property
    def avg_actions_of_items(self) -> float:
        """Events an item."""
        return self.inter_num / (self.item_num - 1)

    # Rows

    def _change_feat_format(self) -> None:
        """Nothing is to be done: the columns have been sorted when they were made."""

    def build(self) -> list[SequenceDataset]:
        """Training, validation and test data by leave-one-out, as of ``SequenceDataset``."""
        mode = self.config["eval_args"]["split"]["LS"]
        starts, users = self.store.events.starts, self._users
        end, n_rows = starts[users + 1], starts[users + 1] - starts[users] - 1
        held_out = n_rows.sub(1).clamp(max=2 if mode == "valid_and_test" else 1)
        # RecBole's order of users is that of their first targets in time.
        order = torch.from_numpy(
            np.argsort(self.store.events.columns[self.time_field][starts[users] + 1].numpy(), kind="stable")
        )
        parts = [
            end[order][held_out[order] > place] - 1 - place for place in ((1, 0) if mode == "valid_and_test" else (0,))
        ]
        if mode != "valid_and_test":
            parts.insert(0 if mode == "test_only" else 1, end[:0])
        train = self.copy(self._rows(end - 1 - held_out, users))
        train.windows = WindowRows(train.inter_feat, self.train_stride, self.cloze)
        fields = self.max_item_list_len, self.config["LIST_SUFFIX"], self.item_list_length_field
        evaluated = [self.copy(PrefixRows(self.store.events, part, *fields)) for part in parts]
        return self._checked([train, *evaluated])

    # Facts of the training data for models

    def trained_days(self, include_targets: bool) -> Tensor:
        """See ``SequenceDataset.trained_days``."""
        parts = [whole_days(time).unique() for _, time in self._shown(include_targets)]
        return torch.cat(parts).unique()

    def time_scale(self, include_targets: bool) -> tuple[float, float]:
        """See ``SequenceDataset.time_scale``."""
        ends = torch.stack([torch.stack(time.aminmax()) for _, time in self._shown(include_targets) if len(time)])
        span = float(ends[:, 1].max() - ends[:, 0].min())
        days = all(bool((time % SECONDS_A_DAY == 0).all()) for _, time in self._shown(include_targets))
        gaps = float(SECONDS_A_DAY) if days else lower_median(lambda: (gap for _, gap in self._gaps(include_targets)))
        return self._reported_scale(gaps, max(span, gaps))

    def smallest_training_gaps(self) -> Tensor:
        """See ``SequenceDataset.smallest_training_gaps``."""
        none = 2**63 - 1
        found = torch.full((self.user_num,), none)
        for user, gap in self._gaps(True):
            found.scatter_reduce_(0, user.long(), gap, "amin")
        return found.masked_fill(found == none, 1)

    def shown_events(self, include_targets: bool, *fields: str) -> tuple[Tensor, ...]:
        """Refuse what would take all events into memory."""
        raise DataError(f"{self.config['model']} reads all training events at once; choose event_store: memory")

    def _shown(self, include_targets: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Users and times of the events that training shows, as ``SequenceDataset.shown_events`` has them, in parts."""
        events = self.store.events
        first, last = self.inter_feat.spans()
        end = torch.zeros(self.user_num, dtype=torch.int64)
        end[events.column(self.uid_field, first)] = last + int(include_targets)
        for begin, stop in whole_users(events.starts.numpy(), BLOCK):
            user, time = (events.columns[field][begin:stop] for field in (self.uid_field, self.time_field))
            shown = torch.arange(begin, stop) < end[user]
            yield user[shown], time[shown]

    def _gaps(self, include_targets: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """User and length of each gap above zero between consecutive events that training shows, in parts."""
        for user, time in self._shown(include_targets):
            gap = time.diff()
            counted = (user[1:] == user[:-1]) & (gap > 0)
            yield user[1:][counted], gap[counted]


def lower_median(parts: Callable[[], Iterator[Tensor]]) -> float:
    """The median of whole numbers above zero, of two in the middle the lower; 1 where there are none.

    Parameters
    ----------
    parts : callable
        Gives them in parts, Int64 each; called twice.
    """
    high, number = torch.zeros(1, dtype=torch.int64), 0
    for part in parts():
        found = torch.bincount(part >> LOW_BITS, minlength=len(high))
        found[: len(high)] += high
        high, number = found, number + len(part)
    if number == 0:
        return 1.0
    place = (number - 1) // 2
    bucket = int(torch.searchsorted(high.cumsum(0), place, right=True))
    low = torch.zeros(1 << LOW_BITS, dtype=torch.int64)
    for part in parts():
        low += torch.bincount(part[part >> LOW_BITS == bucket] & ((1 << LOW_BITS) - 1), minlength=len(low))
    place -= int(high[:bucket].sum())
    return float((bucket << LOW_BITS) + int(torch.searchsorted(low.cumsum(0), place, right=True)))
