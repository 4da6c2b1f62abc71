"""Answers of a trained model: which items for which users at which moment, from a checkpoint alone.

>>> import recbole_adrrec
>>> recommender = recbole_adrrec.load("saved/ADRRec.pth")
>>> recommender.recommend(users=["196"], at="1998-04-23T12:00", top=10).frame()
"""

from __future__ import annotations

import copy
import difflib
import importlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from logging import getLogger
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from recbole_adrrec.errors import CheckpointError, DataError, OptionError
from recbole_adrrec.integration.checkpoint_data import CheckpointData
from recbole_adrrec.integration.histories import Histories
from recbole_adrrec.integration.restore import restore
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.models.mix import TIMELESS
from recbole_adrrec.times import LARGEST_SECONDS, smallest_gaps
from recbole_adrrec.tools.convert import TimeTextError, read_time

SECONDS_A_DAY = 86_400

FAR = 30
"""Days outside the trained range from which on a moment is told to be far."""

BLOCK = 8192
"""Users whose events are looked up at a time."""

SUGGESTED_AMONG = 200_000
"""Names among which similar ones are looked for: with more it takes seconds."""

At = int | float | str | datetime


# Moments


def seconds(at: At) -> int:
    """A moment as whole seconds since 1970.

    Parameters
    ----------
    at : int, float, str or datetime
        Seconds since 1970, or a text (ISO 8601 as in ``2024-05-01T12:00+02:00``, seconds as in ``@1714564800``, or
        ``now``), or a datetime. Texts and datetimes without an offset are UTC.

    Raises
    ------
    OptionError
        It is none of these, or lies before 1970 or after the year 5138.
    """
    if isinstance(at, str):
        return _text_seconds(at.strip())
    if isinstance(at, datetime):
        at = (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(at, bool) or not isinstance(at, int | float | np.integer | np.floating) or not math.isfinite(at):
        raise OptionError(
            f"at: {at!r} is no moment; give seconds since 1970, a datetime or a text like 2024-05-01T12:00"
        )
    if not 0 <= at <= LARGEST_SECONDS:
        raise OptionError(f"at: {at!r} seconds are before 1970 or after the year 5138; give seconds since 1970 (UTC)")
    return math.floor(at)


def _text_seconds(text: str) -> int:
    if text == "now":
        return int(datetime.now(timezone.utc).timestamp())
    number = text.removeprefix("@")
    if number == text and text.isdigit() and len(text) < 9:
        # 2024 and 20240501 are meant as dates.
        raise OptionError(f"at: {text!r} may be a date or seconds; write 2024-05-01, or @{text} for seconds since 1970")
    try:
        return read_time(number)[0]
    except TimeTextError as error:
        reason = str(error).partition("; say --time_unit_in")[0]
        raise OptionError(
            f"at: {reason}; write 2024-05-01T12:00 (UTC), ...T12:00+02:00, or seconds as @1714564800"
        ) from error


def iso(time: float) -> str:
    """A moment as people read it, ``2024-05-01T12:00:00Z``; without the clock at midnight."""
    moment = datetime.fromtimestamp(int(time), timezone.utc)
    return f"{moment:%Y-%m-%d}" if int(time) % SECONDS_A_DAY == 0 else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# Answers


@dataclass(frozen=True)
class Recommendations:
    """Items for users, best first.

    Attributes
    ----------
    users : list of str
        The users, in the order asked.
    at : Int64[n_users]
        The moment of each answer, in seconds since 1970 (UTC).
    items : object array [n_users, top]
        Names of items; None where a user has fewer left than asked for.
    scores : Float32[n_users, top]
        Their scores; NaN where there is no item. Scores of different models don't compare.
    notes : tuple of str
        What to know about these answers; also logged as warnings.
    """

    users: list[str]
    at: NDArray[np.int64]
    items: NDArray[np.object_]
    scores: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.users)

    def __iter__(self) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """Each user with items and scores."""
        for user, items, scores in zip(self.users, self.items, self.scores, strict=True):
            yield user, [(item, float(score)) for item, score in zip(items, scores, strict=True) if item is not None]

    def frame(self) -> Any:
        """As a pandas ``DataFrame``: user, rank (from 1), item, score; a row for each item."""
        pandas = importlib.import_module("pandas")
        rows, ranks = np.nonzero(self.items != None)  # noqa: E711 - element by element
        return pandas.DataFrame(
            {
                "user": np.asarray(self.users, dtype=object)[rows],
                "rank": ranks + 1,
                "item": self.items[rows, ranks],
                "score": self.scores[rows, ranks],
            }
        )


# Answering


def load(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> Recommender:
    """Load a trained model with the users and items it knows; the raw data aren't needed.

    Parameters
    ----------
    checkpoint : str or path-like
        A file that a training with this package saved.
    device : str or torch.device
        Where to compute.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, changed, without names of users and items, or of a model that reads more of
        its data than checkpoints carry. Nothing that the file brings is run.
    OptionError
        There is no such device.
    """
    from recbole_adrrec.integration import register as plugin

    plugin.register()
    model, config, carried = restore(checkpoint, device)
    return Recommender(os.fspath(checkpoint), model, config, carried)


class _Watched(Interaction):
    """Rows that note which of their columns are read."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            self.__dict__.setdefault("read", set()).add(index)
        return super().__getitem__(index)


@dataclass(frozen=True)
class _Block:
    """Events of some users up to the moments at which they are asked, by user, then time."""

    ids: NDArray[np.int64]
    at: NDArray[np.int64]
    counts: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[Any]
    ends: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum(self.counts))


class Recommender:
    """A trained model that answers for users by name. Made by :func:`load`.

    Attributes
    ----------
    path : str
        Its checkpoint.
    model : SequentialRecommender
        The model, in evaluation mode.
    config : Config
        Options of its training.
    carried : CheckpointData
        Names, events and days that came with the checkpoint.
    notes : tuple of str
        What to know about events that were added.
    """

    def __init__(self, path: str, model: Any, config: Any, carried: CheckpointData) -> None:
        self.path = path
        self.model = model
        self.config = config
        self.carried = carried
        self._histories = Histories.of_data(carried)
        self.notes: tuple[str, ...] = ()
        self._user_ids = {name: number for number, name in enumerate(carried.users) if number}
        self._item_ids = {name: number for number, name in enumerate(carried.items) if number}
        self._item_names = np.asarray(carried.items, dtype=object)
        self._new_users: list[str] = []
        self._added: Histories | None = None
        self._new_gaps: Tensor | None = None
        self._length = int(config["MAX_ITEM_LIST_LENGTH"])
        self._is_ours = isinstance(model, SequenceRecommender)
        self._reads_users = self._probe()

    # What is known

    @property
    def users(self) -> list[str]:
        """Users that can be answered for: those of training and those whose events were added."""
        return [*self.carried.users[1:], *self._new_users]

    @property
    def items(self) -> list[str]:
        """Items that can be recommended."""
        return self.carried.items[1:]

    @property
    def knows_query_time(self) -> bool:
        """Whether the moment of a question reaches the scores; else it only decides which events count."""
        if not (self._is_ours and self.model.use_query_time):
            return False
        kernels = self.model.kernels
        # TiSASRec's intervals are those between events.
        names = [*kernels.absolute_names, *kernels.relative_names] if isinstance(kernels, MixKernels) else []
        return self.model.head.trend is not None or not TIMELESS.issuperset(names)

    @property
    def last_time(self) -> int | None:
        """Time of the last event known, in seconds since 1970; None where there is no event."""
        times = [part.times.max() for part in (self._histories, self._added) if part is not None and len(part.times)]
        return int(max(times)) if times else None

    def _probe(self) -> bool:
        """Ask once, for errors that would come with every question; tell whether the model reads the user."""
        name = self.config["model"]
        one = np.ones(1, dtype=np.int64)
        block = _Block(
            one, one * self.carried.days[0] * SECONDS_A_DAY, one, one, one * self.carried.days[0] * SECONDS_A_DAY
        )
        rows = _Watched(self._rows(block, np.zeros(1, dtype=np.int64)).interaction)
        try:
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
        if scores.numel() != len(self.carried.items):
            raise CheckpointError(
                f"{self.path}: {name} scores {scores.numel()} items and the file names {len(self.carried.items)}; "
                "the file was put together from others"
            )
        return not self._is_ours and self.carried.user_field in rows.__dict__.get("read", ())

    # New events

    def append(
        self,
        users: Sequence[object],
        items: Sequence[object],
        times: Sequence[At],
        skip_unknown: bool = False,
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
        found = np.array([self._item_ids.get(str(item), 0) for item in items], dtype=np.int64)
        notes = list(self.notes)
        missing = found == 0
        if missing.any():
            unknown = [str(items[place]) for place in np.nonzero(missing)[0].tolist()]
            text = (
                f"events: {len(unknown):,} of {len(names):,} events are of {len(set(unknown)):,} items that the model "
                f"doesn't know, the first {unknown[0]!r}"
            )
            if not skip_unknown:
                hint = _similar(unknown[0], self._item_ids)
                raise DataError(
                    f"{text}{hint}; remove them, train again with them, or leave them out with skip_unknown"
                )
            notes.append(f"{text}; they are left out")
        kept = np.nonzero(~missing)[0].tolist()
        other = copy.copy(self)
        other._new_users, other._user_ids = list(self._new_users), dict(self._user_ids)
        at = np.array([seconds(times[place]) for place in kept], dtype=np.int64)
        ids = np.array([other._id_or_new(names[place]) for place in kept], dtype=np.int64)
        found = found[kept]
        fresh = ~self._is_known(ids, found, at)
        if not fresh.all():
            notes.append(f"events: {int((~fresh).sum()):,} of {len(names):,} events are known already; they count once")
        ids, added, at = ids[fresh], found[fresh].astype(np.int32), at[fresh]
        if self._added is not None:
            before = self._added
            ids = np.concatenate([before.owners(), ids])
            added, at = np.concatenate([before.items, added]), np.concatenate([before.times, at])
        other._added = Histories.of_events(ids, added, at, self.carried.n_users + len(other._new_users))
        other._new_gaps = _gaps(other._added, self.carried.n_users)
        other.notes = tuple(notes)
        for note in other.notes[len(self.notes) :]:
            getLogger().warning(note)
        return other

    def _id_or_new(self, name: str) -> int:
        if name not in self._user_ids:
            self._user_ids[name] = self.carried.n_users + len(self._new_users)
            self._new_users.append(name)
        return self._user_ids[name]

    def _is_known(
        self, ids: NDArray[np.int64], items: NDArray[np.int64], times: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which events are among those of their users already."""
        users, inverse = np.unique(ids, return_inverse=True)
        block = self._events(users, np.full(len(users), np.iinfo(np.int64).max))
        owner = np.repeat(np.arange(len(users)), block.counts)
        known = set(zip(owner.tolist(), block.items.tolist(), block.times.tolist(), strict=True))
        asked = zip(inverse.reshape(-1).tolist(), items.tolist(), times.tolist(), strict=True)
        return np.array([event in known for event in asked], dtype=bool)

    def history(self, user: object, at: At | None = None) -> tuple[list[str], NDArray[Any]]:
        """A user's items and times (seconds since 1970) up to a moment, oldest first; all of them without one."""
        until = np.iinfo(np.int64).max if at is None else seconds(at)
        block = self._events(self._ids([str(user)]), np.array([until]))
        return [str(name) for name in self._item_names[block.items]], block.times

    # Asking

    def recommend(
        self,
        users: Sequence[object] | str,
        at: At | Sequence[At] | None = None,
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
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise OptionError(f"{option}: {value!r} is not a whole number of at least 1")
        moments = self._moments(at, len(names))
        notes: list[str] = []
        ids = self._ids(names, notes if skip_unknown else None)
        kept = np.nonzero(ids)[0]
        counts = np.zeros(len(ids), dtype=np.int64)
        width = min(int(top), len(self.carried.items) - 1)
        best = np.zeros((len(ids), width), dtype=np.int64)
        scores = np.full((len(ids), width), np.nan, dtype=np.float32)
        n_later = 0
        with tqdm(total=len(kept), unit=" users", disable=not progress, leave=False) as bar:
            for start in range(0, len(kept), BLOCK):
                places = kept[start : start + BLOCK]
                block = self._events(ids[places], moments[places])
                n_later += self._n_events(ids[places]) - len(block.items)
                counts[places] = block.counts
                if (block.counts == 0).any() and not skip_unknown:
                    empty = places[np.nonzero(block.counts == 0)[0][0]]
                    raise DataError(
                        f"users: {names[empty]!r} has no event up to {iso(moments[empty])}, so nothing to go by; "
                        "choose a later moment, give events, or leave such users out with skip_unknown"
                    )
                for rows in self._batches(block, batch_size):
                    best[places[rows]], scores[places[rows]] = self._best(block, rows, width, seen)
                    bar.update(len(rows))
        answered = np.nonzero(counts)[0]
        without = len(kept) - len(answered)
        if without:
            notes.append(
                f"users: {without:,} of {len(names):,} have no event up to the moment asked; they are left out"
            )
        notes += self._remarks(moments[answered], at is not None, n_later)
        for note in notes:
            getLogger().warning(note)
        best, scores = best[answered], scores[answered]
        items = self._item_names[best]
        items[np.isnan(scores)] = None
        return Recommendations([names[place] for place in answered], moments[answered], items, scores, tuple(notes))

    def rows(self, users: Sequence[object], at: At | Sequence[At] | None = None) -> Interaction:
        """What the model is shown of users at a moment, a row each, as RecBole's models take it."""
        ids = self._ids([str(user) for user in users])
        block = self._events(ids, self._moments(at, len(ids)))
        return self._rows(block, np.arange(len(ids)))

    @contextmanager
    def units(self) -> Iterator[None]:
        """While this lasts, the model knows the unit of time of users whom it wasn't trained on (TiSASRec)."""
        kernels = getattr(self.model, "kernels", None)
        trained = getattr(kernels, "smallest_gaps", None)
        if kernels is None or trained is None or self._new_gaps is None:
            yield
            return
        kernels.smallest_gaps = torch.cat([trained, self._new_gaps.to(trained.device)])
        try:
            yield
        finally:
            kernels.smallest_gaps = trained

    def _moments(self, at: At | Sequence[At] | None, count: int) -> NDArray[np.int64]:
        if at is None:
            last = self.last_time
            if last is None:
                raise OptionError("at: there are no events whose last time could stand for it; say when")
            return np.full(count, last, dtype=np.int64)
        if isinstance(at, int | float | str | datetime | np.integer | np.floating):
            return np.full(count, seconds(at), dtype=np.int64)
        if len(at) != count:
            raise OptionError(f"at: {len(at)} moments for {count} users; give one, or one for each")
        return np.array([seconds(each) for each in at], dtype=np.int64)

    def _ids(self, names: Sequence[str], notes: list[str] | None = None) -> NDArray[np.int64]:
        """Ids of users; unknown ones are refused, or 0 and counted where there are notes for that."""
        ids = np.array([self._user_ids.get(name, 0) for name in names], dtype=np.int64)
        unknown = [name for name, number in zip(names, ids.tolist(), strict=True) if number == 0]
        if self._reads_users:
            fresh = [name for name, number in zip(names, ids, strict=True) if number >= self.carried.n_users]
            if fresh:
                raise DataError(
                    f"users: {fresh[0]!r} is not among the users of training, for each of whom {self.config['model']} "
                    "learned something; train again, or use a model that reads events alone"
                )
        if not unknown:
            return ids
        if len(self._user_ids) == 0:
            raise DataError(
                f"users: {self.path} carries no users (checkpoint_data: false), so {unknown[0]!r} is unknown; give "
                "events of the users asked for"
            )
        many = f"{len(unknown):,} of {len(names):,} are unknown, the first " if len(unknown) > 1 else ""
        text = f"users: {many}{unknown[0]!r}" + ("" if many else " is unknown")
        if notes is None:
            hint = _similar(unknown[0], self._user_ids)
            raise DataError(f"{text}{hint}; give events of new users, or leave them out with skip_unknown")
        notes.append(f"{text}; left out")
        return ids

    def _n_events(self, ids: NDArray[np.int64]) -> int:
        return sum(len(part.of(ids)[0]) for part in (self._histories, self._added) if part is not None)

    def _events(self, ids: NDArray[np.int64], at: NDArray[np.int64]) -> _Block:
        """Events of users up to a moment each."""
        rows, index = self._histories.of(ids)
        items, times = self._histories.items[index], self._histories.times[index]
        if self._added is not None:
            more, places = self._added.of(ids)
            rows = np.concatenate([rows, more])
            items = np.concatenate([items, self._added.items[places]])
            times = np.concatenate([times, self._added.times[places].astype(times.dtype)])
            order = np.lexsort((times, rows))
            rows, items, times = rows[order], items[order], times[order]
        shown = times <= at[rows]
        counts = np.bincount(rows[shown], minlength=len(ids))
        return _Block(ids, at, counts, items[shown].astype(np.int64), times[shown])

    @staticmethod
    def _batches(block: _Block, size: int) -> Iterator[NDArray[np.int64]]:
        """Users of about as many events together, so that little is padding."""
        order = np.argsort(block.counts, kind="stable")
        order = order[block.counts[order] > 0]
        yield from (order[start : start + size] for start in range(0, len(order), size))

    def _rows(self, block: _Block, rows: NDArray[np.int64]) -> Interaction:
        """Rows of a batch as the data layer makes them, padded on the right."""
        lengths = np.minimum(block.counts[rows], self._length)
        # Models of ours cut rows to their longest; RecBole's own count on all places.
        width = max(1, int(lengths.max(initial=0))) if self._is_ours else self._length
        places = np.arange(width)
        index = (block.ends[rows] - lengths)[:, None] + places
        shown = places < lengths[:, None]
        index = np.where(shown, index, 0)
        fields, suffix = self.carried, self.config["LIST_SUFFIX"]
        items = np.where(shown, block.items[index], 0) if len(block.items) else np.zeros_like(index)
        times = np.where(shown, block.times[index], 0) if len(block.items) else np.zeros_like(index)
        made = {
            fields.user_field: block.ids[rows],
            fields.time_field: block.at[rows].astype(times.dtype),
            fields.item_field + suffix: items,
            fields.time_field + suffix: times,
            self.config["ITEM_LIST_LENGTH_FIELD"]: lengths,
        }
        return Interaction({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in made.items()})

    @torch.inference_mode()
    def _best(
        self, block: _Block, rows: NDArray[np.int64], width: int, seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Best items of a batch and their scores; NaN where there is none left."""
        with self.units():
            scores = self.model.full_sort_predict(self._rows(block, rows).to(self.config["device"]))
        scores = scores.view(len(rows), -1).float()
        if bool(scores[:, 1:].isnan().any()):
            raise CheckpointError(f"{self.path}: the model's scores are NaN; its training diverged, train it again")
        scores[:, 0] = -torch.inf
        if not seen:
            counts = block.counts[rows]
            owner = np.repeat(np.arange(len(rows)), counts)
            first = np.repeat(block.ends[rows] - counts, counts)
            index = first + np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
            met = torch.from_numpy(block.items[index]).to(scores.device)
            scores[torch.from_numpy(owner).to(scores.device), met] = -torch.inf
        value, item = (part.cpu().numpy() for part in scores.topk(width))
        order = np.lexsort((item, -value))  # equal scores in the order of items
        value, item = np.take_along_axis(value, order, 1), np.take_along_axis(item, order, 1)
        return item, np.where(np.isneginf(value), np.nan, value).astype(np.float32)

    def _remarks(self, moments: NDArray[np.int64], asked: bool, n_later: int) -> list[str]:
        """What to know about answers for these moments."""
        if not asked or len(moments) == 0:
            return []
        notes = []
        if n_later:
            notes.append(
                f"at: {n_later:,} events are later than the moment asked; they are neither used nor counted as seen"
            )
        if not self.knows_query_time:
            name = self.config["model"]
            why = "was trained with use_query_time: false" if self._is_ours else "doesn't read times of questions"
            if self._is_ours and (self.model.use_query_time or "use_query_time" not in self.config.final_config_dict):
                why = "has no part that reads times of questions"
            notes.append(
                f"at: {name} {why}, so the moment only decides which events count; scores don't depend on it otherwise"
            )
        first, last = self.carried.days
        days = moments // SECONDS_A_DAY
        far = max(first - int(days.min()), int(days.max()) - last)
        if far > FAR:
            at = moments.max() if int(days.max()) - last == far else moments.min()
            notes.append(
                f"at: {iso(at)} is {far:,} days outside the days of training, {iso(first * SECONDS_A_DAY)} to "
                f"{iso(last * SECONDS_A_DAY)}; nothing was learned about such a moment"
            )
        return notes


def _gaps(added: Histories, n_users: int) -> Tensor:
    """Smallest positive gap between two events of each user beyond the first ``n_users`` ids, Int64, in seconds."""
    owners = added.owners()
    new = owners >= n_users
    users, times = torch.from_numpy(owners[new] - n_users), torch.from_numpy(added.times[new])
    return smallest_gaps(users, times, len(added.offsets) - 1 - n_users)


def _similar(name: str, known: dict[str, int]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for names like one that is unknown."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6) if len(known) <= SUGGESTED_AMONG else []
    shown = [repr(each) for each in near]
    return f"; did you mean {' or '.join([', '.join(shown[:-1]), shown[-1]] if shown[1:] else shown)}?" if shown else ""
