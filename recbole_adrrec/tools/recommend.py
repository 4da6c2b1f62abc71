"""Recommendations of a trained model: top items of users at a moment, from a checkpoint alone.

>>> import recbole_adrrec
>>> recommender = recbole_adrrec.load("saved/ADRRec.pth")
>>> recommender.recommend(users=["196"], at="1998-04-23T12:00", top=10).frame()
"""

from __future__ import annotations

import copy
import os
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from logging import getLogger
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from tqdm import tqdm

from recbole_adrrec.data.columns import Names, numbers_by_name
from recbole_adrrec.errors import CheckpointError, DataError, OptionError
from recbole_adrrec.integration.checkpoint import first_line
from recbole_adrrec.integration.checkpoint_data import CheckpointData
from recbole_adrrec.integration.restore import restore
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.pointwise import GapBuckets
from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.models.popularity import Popularity
from recbole_adrrec.options import suggestion
from recbole_adrrec.options.kinds import TIMELESS_KERNELS
from recbole_adrrec.times import SECONDS_A_DAY, Moment, iso, seconds
from recbole_adrrec.tools.histories import Histories, Queries
from recbole_adrrec.tools.recommendations import Recommendations, best_items

FAR = 30
"""Days outside the trained range from which on a note says that a moment is far."""

SUGGESTED_AMONG = 200_000
"""Names among which similar ones are looked for: with more it takes seconds."""

FOREVER = np.iinfo(np.int64).max


def load(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> Recommender:
    """Load a trained model; see :func:`recbole_adrrec.load`. Nothing that the file brings is run.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, changed, without names of users and items, or of a model that reads more of
        its data than checkpoints carry.
    OptionError
        There is no such device.
    """
    return Recommender(os.fspath(checkpoint), *restore(checkpoint, device))


class _Watched(Interaction):
    """Rows that note which of their columns are read."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            self.__dict__.setdefault("read", set()).add(index)
        return super().__getitem__(index)


class Recommender:
    """A trained model that answers for users by name. Made by :func:`load`.

    Attributes
    ----------
    path : str
        Its checkpoint.
    model : SequentialRecommender
    config : Config
    data : CheckpointData
        Names, fields and days of the training data.
    histories : Histories
        Events of the users, those that were added among them.
    notes : tuple of str
        Remarks on events that were added.
    user_ids, item_ids : dict of str to int
        Users that can be answered for, those of training and those whose events were added, and items.
    reads_users : bool
        The model knows users of training by themselves, so new ones can't be answered for.
    """

    def __init__(self, path: str, model: Any, config: Any, data: CheckpointData) -> None:
        self.path = path
        self.model = model
        self.config = config
        self.data = data
        self.notes: tuple[str, ...] = ()
        self.user_ids: Mapping[str, int] = numbers_by_name(data.users)
        self.item_ids = {name: number for number, name in enumerate(data.items) if number}
        self._item_names = np.asarray(data.items, dtype=object)
        self._new_users: list[str] = []
        self._is_ours = isinstance(model, SequenceRecommender)
        self.histories = Histories(data.events, data.item_field, data.time_field, data.n_users)
        self.reads_users = self._probe()

    @classmethod
    def of_training(cls, model: Any, config: Any, dataset: Any) -> Recommender:
        """A recommender of a model in memory, with the data set it was trained on."""
        events = dataset.inter_feat.events
        days = [int(time) // SECONDS_A_DAY for time in events.columns[dataset.time_field].aminmax()]
        users, items = (dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field))
        data = CheckpointData(
            dataset.dataset_name,
            *(dataset.uid_field, dataset.iid_field, dataset.time_field),
            users=users if isinstance(users, Names) else [str(token) for token in users],
            items=[str(token) for token in items],
            events=events,
            n_users=dataset.user_num,
            days=(days[0], days[1]),
            version="",
        )
        return cls("the trained model", model.eval(), config, data)

    @property
    def users(self) -> list[str]:
        """Users that can be answered for: those of training and those whose events were added."""
        return [*self.data.users[1:], *self._new_users]

    @property
    def n_users(self) -> int:
        """Number of these users."""
        return len(self.data.users) - 1 + len(self._new_users)

    @property
    def items(self) -> list[str]:
        """Items that can be recommended."""
        return self.data.items[1:]

    @property
    def knows_query_time(self) -> bool:
        """True where the moment of a query reaches the scores; else it only decides which events count."""
        if isinstance(self.model, Popularity):
            return bool(self.model.use_query_time)
        if not (self._is_ours and self.model.use_query_time):
            return False
        kernels = self.model.kernels
        if isinstance(kernels, GapBuckets):
            return True
        # TiSASRec's intervals are those between events.
        names = [*kernels.absolute_names, *kernels.relative_names] if isinstance(kernels, MixKernels) else []
        return self.model.head.trend is not None or not TIMELESS_KERNELS.issuperset(names)

    @property
    def last_time(self) -> int | None:
        """Time of the last event, in seconds since 1970; None where there is no event."""
        return int(self.histories.times.max()) if len(self.histories) else None

    def _probe(self) -> bool:
        """Score one row, for errors that would come with every query; true if the model reads the user."""
        name = self.config["model"]
        moment = self.data.days[0] * SECONDS_A_DAY
        history = self.histories.single(moment)
        query = history.queries(np.ones(1, np.int64), np.array([moment]))
        try:
            rows = _Watched(history.rows(query, self.config, self._is_ours).to(self.config["device"]).interaction)
            with torch.inference_mode():
                scores = self.model.full_sort_predict(rows)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {name} doesn't score all items at once, which recommending takes; use a model that does"
            ) from error
        except KeyError as error:
            raise CheckpointError(
                f"{self.path}: {name} reads {error} of each event, which checkpoints don't carry; answer with "
                "recbole.quick_start.load_data_and_model and the raw data"
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: {name} can't score with its weights and options ({first_line(error)}); the file was "
                "changed, or saved by another version"
            ) from error
        if scores.numel() != len(self.data.items):
            raise CheckpointError(
                f"{self.path}: {name} scores {scores.numel()} items and the file names {len(self.data.items)}; "
                "the file was put together from others"
            )
        return not self._is_ours and self.data.user_field in rows.__dict__.get("read", ())

    def append(
        self, users: Sequence[object], items: Sequence[object], times: Sequence[Moment], skip_unknown: bool = False
    ) -> Recommender:
        """The same model with more events, of users that it knows or doesn't know. Nothing is trained.

        Parameters
        ----------
        users, items : sequence of str
            Names; numbers are taken as names.
        times : sequence of int, float, str or datetime
            As for :func:`seconds`. Events of a user at one time keep their order, after those known before.
        skip_unknown : bool
            Leave out, and count, events with items that the model doesn't know, instead of refusing them.

        Returns
        -------
        Recommender
            This one stays as it is. Events that are known already are left out and counted in ``notes``.

        Raises
        ------
        DataError
            The sequences differ in length, or an item is unknown.
        OptionError
            A time can't be read.
        """
        names = [str(user) for user in users]
        if not len(names) == len(items) == len(times):
            raise DataError(f"events: {len(names)} users, {len(items)} items and {len(times)} times; give one of each")
        found = np.array([self.item_ids.get(str(item), 0) for item in items], dtype=np.int64)
        notes = list(self.notes)
        unknown = [str(items[place]) for place in np.nonzero(found == 0)[0].tolist()]
        if unknown:
            text = (
                f"events: {len(unknown):,} of {len(names):,} events are of {len(set(unknown)):,} items that the model "
                f"doesn't know, the first {unknown[0]!r}"
            )
            if not skip_unknown:
                hint = _similar(unknown[0], self.item_ids)
                raise DataError(
                    f"{text}{hint}; remove them, train again with them, or leave them out with skip_unknown"
                )
            notes.append(f"{text}; they are left out")
        kept = np.nonzero(found)[0].tolist()
        at = np.array([seconds(times[place]) for place in kept], dtype=np.int64)
        new = [user for user in dict.fromkeys(names[place] for place in kept) if user not in self.user_ids]
        first = self.data.n_users + len(self._new_users)
        other = copy.copy(self)
        other._new_users = [*self._new_users, *new]
        # The first of the two alone would be written to.
        known = cast("dict[str, int]", self.user_ids)
        other.user_ids = ChainMap({user: number for number, user in enumerate(new, first)}, known)
        ids = np.array([other.user_ids[names[place]] for place in kept], dtype=np.int64)
        other.histories, n_known = self.histories.with_events(ids, found[kept], at, first + len(new))
        if n_known:
            notes.append(f"events: {n_known:,} of {len(names):,} events are known already; they count once")
        other.notes = tuple(notes)
        for note in other.notes[len(self.notes) :]:
            getLogger().warning(note)
        return other

    def history(self, user: object, at: Moment | None = None) -> tuple[list[str], NDArray[Any]]:
        """A user's items and times (seconds since 1970) up to a moment, oldest first; all of them without one."""
        until = FOREVER if at is None else seconds(at)
        query = self.histories.queries(self._ids([str(user)]), np.array([until]))
        _, items = self.histories.items_of(query)
        return [self.data.items[item] for item in items], self.histories.times[query.first[0] : query.end[0]]

    def recommend(
        self,
        users: Sequence[object] | str,
        at: Moment | Sequence[Moment] | None = None,
        top: int = 10,
        seen: bool = False,
        skip_unknown: bool = False,
        batch_size: int = 512,
        progress: bool = False,
    ) -> Recommendations:
        """Best items of users at a moment, from their events up to then.

        Parameters
        ----------
        users : sequence of str
            Names; numbers are taken as names.
        at : int, float, str or datetime, or one of them for each user, optional
            When to recommend, as for :func:`seconds`. Later events aren't used, nor do they count as seen. The time of
            the last event that is known, if None.
        top : int
            How many items for each.
        seen : bool
            Recommend items that the user has met up to then, too.
        skip_unknown : bool
            Leave out, and count, users who are unknown or have no event up to then, instead of refusing them.
        batch_size : int
            Users scored at a time.
        progress : bool
            Show a bar.

        Raises
        ------
        DataError
            A user is unknown, or has no event up to then.
        OptionError
            A moment can't be read, or ``top`` or ``batch_size`` is below 1.
        """
        names = [users] if isinstance(users, str) else [str(user) for user in users]
        for option, value in (("top", top), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise OptionError(f"{option}: {value!r} is not a whole number of at least 1")
        notes: list[str] = []
        ids = self._ids(names, notes if skip_unknown else None)
        moments = self._moments(at, len(names))
        queries = self.histories.queries(ids, moments)
        empty = np.nonzero((ids > 0) & (queries.counts == 0))[0]
        if len(empty) and not skip_unknown:
            raise DataError(
                f"users: {names[empty[0]]!r} has no event up to {iso(moments[empty[0]])}, so nothing to go by; "
                "choose a later moment, give events, or leave such users out with skip_unknown"
            )
        if len(empty):
            notes.append(f"users: {len(empty):,} of {len(names):,} have no event up to the moment; they are left out")
        answered = np.nonzero(queries.counts)[0]
        n_later = int(self.histories.n_later(queries)[ids > 0].sum())
        notes += self.remarks(moments[answered], at is not None, n_later)
        for note in notes:
            getLogger().warning(note)
        best, scores = self.rank(queries[answered], top, seen, batch_size, progress)
        items = self._item_names[best]
        items[np.isnan(scores)] = None
        return Recommendations([names[place] for place in answered], moments[answered], items, scores, tuple(notes))

    def rank(
        self, queries: Queries, top: int, seen: bool = False, batch_size: int = 512, progress: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Best items of queries and their scores, [n, top]; NaN where there is none left, equal ones by item."""
        width = min(int(top), len(self.data.items) - 1)
        best = np.zeros((len(queries), width), dtype=np.int64)
        found = np.zeros((len(queries), width), dtype=np.float32)
        with tqdm(total=len(queries), unit=" users", disable=not progress, leave=False) as bar:
            for places in queries.batches(batch_size):
                scores = self.scores(queries[places], np.full(len(places), seen))
                best[places], found[places] = best_items(scores, width)
                bar.update(len(places))
        return best, found

    @torch.inference_mode()
    def scores(self, queries: Queries, seen: NDArray[np.bool_]) -> torch.Tensor:
        """Scores of all items in one pass, Float32[n, items]; -inf for padding and, unless ``seen``, for items met.

        A score that is NaN raises CheckpointError.
        """
        with self.units():
            scores = self.model.full_sort_predict(self._rows(queries))
        scores = scores.view(len(queries), -1).float()
        if bool(scores[:, 1:].isnan().any()):
            raise CheckpointError(f"{self.path}: the model's scores are NaN; its training diverged, train it again")
        scores[:, 0] = -torch.inf
        new_only = np.nonzero(~seen)[0]
        rows, items = self.histories.items_of(queries[new_only])
        rows = torch.from_numpy(new_only)[rows]
        scores[rows.to(scores.device), items.to(scores.device)] = -torch.inf
        return scores

    def rows(self, users: Sequence[object], at: Moment | Sequence[Moment] | None = None) -> Interaction:
        """Input of the model for users at a moment, a row each, as RecBole's models take it."""
        ids = self._ids([str(user) for user in users])
        return self._rows(self.histories.queries(ids, self._moments(at, len(ids))))

    def _rows(self, queries: Queries) -> Interaction:
        # Models of ours cut rows to their longest; RecBole's own count on all places.
        return self.histories.rows(queries, self.config, cut=self._is_ours).to(self.config["device"])

    @contextmanager
    def units(self) -> Iterator[None]:
        """While this lasts, the model knows the unit of time of users whom it wasn't trained on (TiSASRec)."""
        kernels = getattr(self.model, "kernels", None)
        trained = getattr(kernels, "smallest_gaps", None)
        if kernels is None or trained is None or self.histories.n_users == self.data.n_users:
            yield
            return
        kernels.smallest_gaps = torch.cat([trained, self.histories.gaps_from(self.data.n_users).to(trained.device)])
        try:
            yield
        finally:
            kernels.smallest_gaps = trained

    def _moments(self, at: Moment | Sequence[Moment] | None, count: int) -> NDArray[np.int64]:
        if at is None:
            last = self.last_time
            if last is None:
                raise OptionError("at: there are no events whose last time could stand for it; say when")
            return np.full(count, last, dtype=np.int64)
        if isinstance(at, int | float | str | date | Real):
            return np.full(count, seconds(at), dtype=np.int64)
        if len(at) != count:
            raise OptionError(f"at: {len(at)} moments for {count} users; give one, or one for each")
        return np.array([seconds(each) for each in at], dtype=np.int64)

    def _ids(self, names: Sequence[str], notes: list[str] | None = None) -> NDArray[np.int64]:
        """Ids of users; unknown ones are refused, or 0 and counted where there are notes for that."""
        ids = np.array([self.user_ids.get(name, 0) for name in names], dtype=np.int64)
        unknown = [names[place] for place in np.nonzero(ids == 0)[0].tolist()]
        new = np.nonzero(ids >= self.data.n_users)[0]
        if self.reads_users and len(new):
            raise DataError(
                f"users: {names[new[0]]!r} is not among the users of training, for each of whom "
                f"{self.config['model']} learned something; train again, or use a model that reads events alone"
            )
        if not unknown:
            return ids
        if self.n_users == 0:
            raise DataError(
                f"users: {self.path} carries no users ({self.data.missing}), so {unknown[0]!r} is unknown; give "
                "events of these users"
            )
        several = f"{len(unknown):,} of {len(names):,} are unknown, the first {unknown[0]!r}"
        text = f"users: {several if len(unknown) > 1 else f'{unknown[0]!r} is unknown'}"
        if notes is None:
            hint = _similar(unknown[0], self.user_ids) if self.n_users <= SUGGESTED_AMONG else ""
            raise DataError(f"{text}{hint}; give events of new users, or leave them out with skip_unknown")
        notes.append(f"{text}; left out")
        return ids

    def remarks(self, moments: NDArray[np.int64], given: bool, n_later: int) -> list[str]:
        """Notes on answers for these moments."""
        if not given or len(moments) == 0:
            return []
        notes = []
        if n_later:
            notes.append(f"at: {n_later:,} events are later than the moment; they are neither used nor counted as seen")
        if not self.knows_query_time:
            name = self.config["model"]
            why = "was trained with use_query_time: false" if self._is_ours else "doesn't read times of questions"
            if self._is_ours and (self.model.use_query_time or "use_query_time" not in self.config.final_config_dict):
                why = "has no part that reads times of questions"
            notes.append(
                f"at: {name} {why}, so the moment only decides which events count; scores don't depend on it otherwise"
            )
        first, last = self.data.days
        days = moments // SECONDS_A_DAY
        far = max(first - int(days.min()), int(days.max()) - last)
        if far > FAR:
            at = moments.max() if int(days.max()) - last == far else moments.min()
            notes.append(
                f"at: {iso(at)} is {far:,} days outside the days of training, {iso(first * SECONDS_A_DAY)} to "
                f"{iso(last * SECONDS_A_DAY)}; nothing was learned about such a moment"
            )
        return notes


def _similar(name: str, known: Mapping[str, int]) -> str:
    """``"; did you mean a?"`` for an unknown name."""
    return suggestion(name, known, 0.6) if len(known) <= SUGGESTED_AMONG else ""
