"""RecBole's sequential dataset with exact times and rows built on demand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_adrrec.data import splits
from recbole_adrrec.data.rows import Events, Index, PrefixRows, WindowRows
from recbole_adrrec.data.ties import TieStatistics, name_hashes, random_keys, tie_statistics
from recbole_adrrec.errors import DataError
from recbole_adrrec.files import broken_name, has_quotes, unreadable_line
from recbole_adrrec.times import check_times, smallest_gaps, time_scale, to_seconds, whole_days


class SequenceDataset(SequentialDataset):
    """Every user's events once, in exact order of time; training rows made when a batch asks for them.

    It takes the place of RecBole's ``SequentialDataset`` and gives the same samples in the same order, less RecBole's
    rounding of time: with ``exact_time: true`` the time field is int64 seconds from the file to the model, ties
    keep the order of the file or get a random one (``tie_order``), and no normalisation touches it; with
    ``exact_time: false`` times are float32 as in RecBole 1.2.1.

    Options read: ``exact_time``, ``time_unit_in``, ``tie_order``, ``tie_seed``, ``train_rows``, ``train_stride``,
    ``objective`` (``cloze`` cuts windows of events that are masked, instead of windows that predict the next event).
    """

    inter_feat: Any
    windows: WindowRows | None = None
    ties_are_orderly = False
    """True where a user's events of the same time stand in an order that chance does not give."""

    def __init__(self, config: Any) -> None:
        self.exact_time = config["exact_time"]
        self.time_unit_in = config["time_unit_in"]
        self.train_rows = config["train_rows"]
        self.cloze = config["objective"] == "cloze"
        length = config["MAX_ITEM_LIST_LENGTH"]
        self.train_stride = config["train_stride"] or max(1, length // 2)
        super().__init__(config)

    # Loading

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        try:
            frame = super()._load_feat(filepath, source)
            self._check_quotes(filepath, frame)
            return frame
        except DataError:
            raise
        except UnicodeDecodeError as error:
            raise DataError(
                f"{filepath}: not readable as {self.config['encoding'] or 'utf-8'} ({error}); set encoding"
            ) from error
        except (ValueError, pd.errors.ParserError) as error:
            raise DataError(self._explain_unreadable(filepath, error)) from error

    def _check_quotes(self, filepath: str, frame: pd.DataFrame | None) -> None:
        """Refuse names that go over lines."""
        if frame is None or not has_quotes(filepath):
            return
        for field in frame:
            if self.field2type[field].value == "token":
                broken = frame[field].str.contains("\n", regex=False, na=False)
                if broken.any():
                    raise DataError(broken_name(filepath, field, frame[field][broken].iloc[0]))

    def _explain_unreadable(self, filepath: str, error: Exception) -> str:
        separator, encoding = self.config["field_separator"], self.config["encoding"]
        with open(filepath, encoding=encoding) as lines:
            head = lines.readline().rstrip("\n")
        if not head:
            return f"{filepath}: the file is empty; expected a header of name:type columns and a line for each event"
        untyped = [column for column in head.split(separator) if column.count(":") != 1]
        if untyped:
            return (
                f"{filepath}: header column {untyped[0]!r} is not of the form name:type (as in "
                f"user_id:token); are columns separated by field_separator, {separator!r}?"
            )
        columns = head.split(separator)
        twice = next((column for column in columns if columns.count(column) > 1), None)
        if twice is not None:
            return f"{filepath}: header column {twice!r} stands there twice; rename one of the two"
        if "is not supported" in str(error):
            return f"{filepath}: {error} Choose token, float, token_seq or float_seq in the header"
        if "expected after" in str(error) or "inside string" in str(error):
            return (
                f"{filepath}: a double quote begins a field that does not end as quoted fields do ({error}); remove "
                'it, or double it within quotes, as in """name"'
            )
        for column in columns:
            name, kind = column.split(":")
            place = unreadable_line(filepath, name, separator, encoding) if kind == "float" else None
            if place:
                return f"{filepath}: {name} is not a number at {place}; correct or remove that line"
        return f"{filepath}: {error}"

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        path = Path(dataset_path) / f"{token}.inter"
        super()._load_inter_feat(token, dataset_path)
        if self.inter_feat is None or self.time_field not in self.inter_feat:
            raise DataError(self._missing_column(path, "TIME_FIELD", self.time_field, "float"))
        for option, field in (("USER_ID_FIELD", self.uid_field), ("ITEM_ID_FIELD", self.iid_field)):
            if field not in self.inter_feat:
                raise DataError(self._missing_column(path, option, field, "token"))
        if self.exact_time:
            timestamps = self.inter_feat[self.time_field].to_numpy()
            if timestamps.dtype != np.float64:
                raise DataError(f"{path}: {self.time_field} is a token column; declare it as {self.time_field}:float")
            for remark in check_times(timestamps, self.time_unit_in, str(path)):
                self.logger.warning(f"{path}: {remark}")

    def _missing_column(self, path: Path, option: str, field: str, kind: str) -> str:
        text = f"{path}: no column {field!r} was loaded ({option}), which sequential models need; "
        if self.benchmark_filename_list is None:
            with open(path, encoding=self.config["encoding"]) as lines:
                head = lines.readline()
            if head.startswith("\ufeff"):
                return f"{path}: the file begins with a byte order mark; set encoding: utf-8-sig"
            text += f"the file has {', '.join(head.split())}; "
        return (
            f"{text}name one of them by {option}, or add {field}:{kind}, and let load_col have it "
            f"(it is {self.config['load_col']})"
        )

    # Filtering and preparation

    def _filter_nan_user_or_item(self) -> None:
        """Leave out rows without a user or an item, and log them.

        RecBole (dataset.py:834) takes labels for places, so that after rows without users it removes others than those
        without items.
        """
        for field, name in ((self.uid_field, "user"), (self.iid_field, "item")):
            for feat_name in (f"{name}_feat", "inter_feat"):
                feat = getattr(self, feat_name)
                if feat is None or field is None:
                    continue
                missing = feat[field].isna()
                if missing.any():
                    lines = [int(label) + 2 for label in feat.index[missing][:10]]
                    self.logger.warning(
                        f"{int(missing.sum())} rows of {feat_name} have no {field} and are left out (lines "
                        f"{', '.join(map(str, lines))}{' and more' if missing.sum() > len(lines) else ''})"
                    )
                    setattr(self, feat_name, feat[~missing])

    def _remove_duplication(self) -> None:
        if self.config["rm_dup_inter"] is not None and self.time_field in self.inter_feat:
            # RecBole sorts here by an unstable sort, which would lose the order of ties in the file.
            self.inter_feat.sort_values(by=[self.time_field], kind="stable", inplace=True)
            self.inter_feat.drop_duplicates(
                subset=[self.uid_field, self.iid_field], keep=self.config["rm_dup_inter"], inplace=True
            )
            return
        super()._remove_duplication()

    def _data_filtering(self) -> None:
        super()._data_filtering()
        splits.filter_cold(self)

    def _reset_index(self) -> None:
        for name in self.feat_name_list:
            if getattr(self, name).empty:
                raise DataError(
                    f"{self.dataset_name}: filtering left nothing in {name}; loosen user_inter_num_interval "
                    f"({self.config['user_inter_num_interval']}), item_inter_num_interval "
                    f"({self.config['item_inter_num_interval']}) or val_interval"
                )
        super()._reset_index()

    @property
    def float_like_fields(self) -> list[str]:
        """Float fields that RecBole may normalise: all but the time field, where time is exact."""
        fields: list[str] = super().float_like_fields
        return [field for field in fields if not (self.exact_time and field == self.time_field)]

    def _normalize(self) -> None:
        if self.exact_time and self.time_field in (self.config["normalize_field"] or []):
            raise DataError(
                f"normalize_field: {self.time_field} would take the times' unit away; remove it from the list, or "
                "set exact_time: false"
            )
        super()._normalize()

    def _change_feat_format(self) -> None:
        if self.config["tie_order"] == "random":
            # Later sorts by time are stable, so that ties keep this order.
            self.inter_feat = self.inter_feat.iloc[self._random_order()]
        if self.exact_time:
            timestamps = self.inter_feat[self.time_field].to_numpy()
            if self.time_unit_in in ("ms", "us") or (timestamps != np.floor(timestamps)).any():
                # Fractions of a second order the events, though the models see whole seconds.
                self.inter_feat = self.inter_feat.sort_values(by=self.time_field, kind="stable")
        super()._change_feat_format()

    def _random_order(self) -> Any:
        """An order of all events that depends on their users, items and ``tie_seed`` alone, Int64[n_events]."""

        def hashes(field: str) -> Any:
            return name_hashes(self.field2id_token[field])[self.inter_feat[field].to_numpy()]

        keys = random_keys(hashes(self.uid_field), hashes(self.iid_field), self.config["tie_seed"])
        return np.argsort(keys, kind="stable")

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        interaction = super()._dataframe_to_interaction(data)
        if self.exact_time and self.time_field in data:
            timestamps = to_seconds(data[self.time_field].to_numpy(), self.time_unit_in)
            interaction[self.time_field] = torch.from_numpy(timestamps)
        return interaction

    # Rows

    def data_augmentation(self) -> None:
        """Sort the events by user and time and index one row for each event but the users' first.

        Replaces RecBole's loop over all prefixes; ``inter_feat`` becomes :class:`PrefixRows`.
        """
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        columns = {field: self.inter_feat[field] for field in self.inter_feat}
        events = Events.from_sorted(columns, self.uid_field, self.user_num)
        everything = torch.arange(len(events))
        targets = everything[everything != events.first(everything)]
        self._report_events(events, targets)
        self.inter_feat = PrefixRows(
            events, targets, self.max_item_list_len, self.config["LIST_SUFFIX"], self.item_list_length_field
        )

    def _report_events(self, events: Events, targets: Tensor) -> None:
        self._refuse_too_few(len(targets))
        self._report_single(int((torch.bincount(events.columns[self.uid_field], minlength=self.user_num) == 1).sum()))
        timestamps = events.columns[self.time_field]
        same_time = timestamps[targets] == timestamps[targets - 1]
        if self.exact_time and self.config["rm_dup_inter"] is None:
            self._report_repeated(events, targets[same_time])
        users, items = (events.columns[field].long().numpy() for field in (self.uid_field, self.iid_field))
        self._report_ties(tie_statistics(users, items, timestamps.numpy()))

    def _refuse_too_few(self, n_targets: int) -> None:
        if n_targets == 0:
            raise DataError(
                f"{self.dataset_name}: no user has two events, so there is nothing to predict; check USER_ID_FIELD "
                f"({self.uid_field}) and the filters"
            )
        if n_targets == 1:
            raise DataError(f"{self.dataset_name}: one event to predict in all; training and test need more")
        longest = max(self.config["topk"])
        if longest >= self.item_num:
            raise DataError(
                f"topk: {longest} is more than the {self.item_num - 1} items of {self.dataset_name}; choose less"
            )

    def _report_single(self, count: int) -> None:
        if count:
            self.logger.info(f"{count} users have a single event: nothing to predict, so they have no row")

    def _report_ties(self, ties: TieStatistics) -> None:
        self.ties_are_orderly = ties.orderly
        kind = "seconds, int64" if self.exact_time else "float32, as RecBole rounds them (exact_time: false)"
        order = "the order of the file" if self.config["tie_order"] == "file" else f"tie_seed {self.config['tie_seed']}"
        self.logger.info(f"Times are {kind}; {ties.text()} (ties keep {order})")
        if ties.warning():
            self.logger.warning(f"{self.dataset_name}: {ties.warning()}")

    def _report_repeated(self, events: Events, tied: Tensor) -> None:
        """Log events that are in the file twice; ``tied`` are those at the time of the one before them."""
        among = torch.cat([tied, tied - 1]).unique()
        fields = (self.uid_field, self.time_field, self.iid_field)
        frame = pd.DataFrame({field: events.columns[field][among].numpy() for field in fields})
        twice = int(frame.duplicated().sum())
        if twice:
            self.logger.info(
                f"{twice} events repeat an earlier one (same user, item and second) and are kept; "
                "rm_dup_inter: first would drop them"
            )

    def build(self) -> list[SequenceDataset]:
        """Training, validation and test data, split as RecBole does or by time across users (``data.splits``).

        With ``train_rows: sequence`` training rows are windows with a target everywhere.
        """
        across_users = splits.GlobalSplit.of(self.config)
        if across_users is not None and self.benchmark_filename_list is None:
            datasets: list[SequenceDataset] = splits.build(self, across_users)
        else:
            datasets = super().build()
        if self.train_rows == "sequence" and isinstance(datasets[0].inter_feat, PrefixRows):
            train = datasets[0]
            train.windows = WindowRows(train.inter_feat, self.train_stride, self.cloze)
        return self._checked(datasets)

    def _checked(self, datasets: list[SequenceDataset]) -> list[SequenceDataset]:
        """The parts, validation and test of ``eval_users`` alone; refused where nothing is to be tested on."""
        if (self.config["eval_args"]["split"] or {}).get("LS") == "valid_and_test" and len(datasets[2]) == 0:
            raise DataError(
                f"{self.dataset_name}: no user has three events, so leave-one-out leaves nothing to test on"
            )
        most = self.config["eval_users"]
        users = torch.cat([part.inter_feat[self.uid_field] for part in datasets[1:]]).unique() if most else ()
        if most and most < len(users):
            # The same ones whatever seed is.
            drawn = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))[:most]]
            for part in datasets[1:]:
                part.inter_feat = part.inter_feat[torch.isin(part.inter_feat[self.uid_field], drawn)]
            self.logger.info(f"eval_users: {most:,} of {len(users):,} users are evaluated, drawn by lot")
        return datasets

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[SequenceDataset]:
        """Training, validation and test data: RecBole's split and order, without its loop over rows.

        ``group_by`` is the user field; ``leave_one_mode``, ``valid_and_test``, ``valid_only`` or ``test_only``, says
        which of validation and test hold out a row of each user.
        """
        if group_by is None or leave_one_mode not in ("valid_and_test", "valid_only", "test_only"):
            return super().leave_one_out(group_by, leave_one_mode)
        held_out = 2 if leave_one_mode == "valid_and_test" else 1
        codes, users = pd.factorize(self.inter_feat[group_by].numpy())
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(users))
        from_end = np.repeat(counts.cumsum(), counts) - 1 - np.arange(len(order))
        legal = np.minimum(held_out, np.repeat(counts, counts) - 1)
        parts = [order[from_end >= legal]]
        for place in range(held_out - 1, -1, -1):
            parts.append(order[(from_end == place) & (from_end < legal)])
        if leave_one_mode == "valid_only":
            parts.append(order[:0])
        elif leave_one_mode == "test_only":
            parts.insert(1, order[:0])
        self._drop_unused_col()
        return [self.copy(self.inter_feat[index]) for index in parts]

    def copy(self, new_inter_feat: Interaction) -> SequenceDataset:
        """The same dataset over other rows."""
        other = copy.copy(self)
        other.inter_feat = new_inter_feat
        other.windows = None
        return other

    def __len__(self) -> int:
        return len(self.windows if self.windows is not None else self.inter_feat)

    def __getitem__(self, index: Index, join: bool = True) -> Interaction:
        rows = (self.windows if self.windows is not None else self.inter_feat)[index]
        built = rows.build() if isinstance(rows, PrefixRows | WindowRows) else rows
        return self.join(built) if join else built

    # Facts of the training data for models

    def trained_days(self, include_targets: bool) -> Tensor:
        """Days that training shows to a model, Int64[n_days]: whole days since 1970 (UTC), ascending, each once.

        Parameters
        ----------
        include_targets : bool
            Whether the times of the training targets count too, as with ``use_query_time`` or a cloze objective;
            else a user's last training event is predicted but its time never seen.
        """
        return whole_days(*self.shown_events(include_targets, self.time_field)).unique()

    def time_scale(self, include_targets: bool) -> tuple[float, float]:
        """Resolution and span of the training times, in seconds, as of ``times.time_scale``; see ``trained_days``."""
        return self._reported_scale(*time_scale(*self.shown_events(include_targets, self.uid_field, self.time_field)))

    def _reported_scale(self, resolution: float, span: float) -> tuple[float, float]:
        self.logger.info(
            f"Kernels of time count from the data's resolution, {resolution:,.0f} s, to its span, {span:,.0f} s, where "
            "time_unit and kernel_freq are unset"
        )
        return resolution, span

    def smallest_training_gaps(self) -> Tensor:
        """Smallest positive gap between two training events of each user, in seconds, Int64[n_users].

        TiSASRec's unit of time; 1 for users without two training events of different times.
        """
        users, timestamps = self.shown_events(True, self.uid_field, self.time_field)
        return smallest_gaps(users, timestamps, self.user_num)

    def shown_events(self, include_targets: bool, *fields: str) -> tuple[Tensor, ...]:
        """Columns of the events from each user's first to the last that rows show, or predict; see ``trained_days``."""
        rows = self.inter_feat
        if not isinstance(rows, PrefixRows):
            return tuple(rows[field] for field in fields)
        first, last = rows.spans()
        edge = torch.zeros(len(rows.events) + 1, dtype=torch.int64)
        edge[first] += 1
        edge[last + int(include_targets)] -= 1
        shown = (edge[:-1].cumsum(0) > 0).nonzero().squeeze(1)
        return tuple(rows.events.column(field, shown) for field in fields)

    def histories(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each user's id, items and times, in order of time."""
        events = self.inter_feat.events
        everything = torch.arange(len(events))
        ids, counts = events.column(self.uid_field, everything).unique_consecutive(return_counts=True)
        items, times = (
            events.column(field, everything).split(counts.tolist()) for field in (self.iid_field, self.time_field)
        )
        yield from zip(ids.tolist(), items, times, strict=True)
