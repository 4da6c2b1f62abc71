"""Questions of requests, checked before they wait, and their answers, computed in one pass of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_adrrec.data.columns import numbers_by_name
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.service.options import ServiceOptions
from recbole_adrrec.times import iso, seconds
from recbole_adrrec.tools.recommend import Recommender
from recbole_adrrec.tools.recommendations import best_items

Name = str | int
Time = int | float | str

SHOWN = 80
"""Characters of a wrong value that a message repeats."""


class UnknownUserError(DataError):
    """A user is not among those of the checkpoint."""


@dataclass(frozen=True)
class Question:
    """A user, or a history of nobody known, at a moment.

    Attributes
    ----------
    user : int
        Id of a user of the checkpoint; 0 for a history.
    name : str or None
        The user's name.
    items, times : Int64[n_events]
        The history, in order of time (Float32 with ``exact_time: false``); empty for a user.
    at : int
        Seconds since 1970.
    top : int
        Items to recommend.
    seen : bool
        Items that were met up to the moment may be among them.
    """

    user: int
    name: str | None
    items: NDArray[np.int64]
    times: NDArray[Any]
    at: int
    top: int
    seen: bool


Answer = list[tuple[str, float]]
"""Items with their scores, best first."""


class QuestionReader:
    """Makes questions of the fields of requests, or refuses them with a UserError.

    Parameters
    ----------
    recommender : Recommender
    options : ServiceOptions
    """

    def __init__(self, recommender: Recommender, options: ServiceOptions) -> None:
        self.recommender = recommender
        self.options = options
        data = recommender.data
        self._users, self._items = numbers_by_name(data.users), numbers_by_name(data.items)
        self._last_time = recommender.last_time

    def read(
        self,
        users: Sequence[Name] | None,
        history: Sequence[tuple[Name, Time]] | None,
        at: Time | None,
        top: int,
        seen: bool,
    ) -> tuple[list[Question], list[str]]:
        """Questions, one for each user, and remarks on them.

        Raises
        ------
        UnknownUserError
            A user is unknown.
        DataError
            An item is unknown, there is no event up to the moment, or the model can't answer for new users.
        OptionError
            A field is missing, out of range, or a time that can't be read.
        """
        if (users is None) == (history is None):
            raise OptionError("users, history: give one of the two")
        if not 1 <= top <= self.options.max_top:
            raise OptionError(f"top: {shown(top)} is out of range; give a number from 1 to {self.options.max_top}")
        moment = None if at is None else seconds(at)
        questions = (
            [self._of_history(history, moment, top, seen)]
            if history is not None
            else self._of_users([str(user) for user in users or ()], moment, top, seen)
        )
        return questions, self._remarks(questions, at is not None)

    def _of_users(self, names: list[str], at: int | None, top: int, seen: bool) -> list[Question]:
        if not 1 <= len(names) <= self.options.max_users:
            raise OptionError(f"users: {len(names)} names; give from 1 to {self.options.max_users} in a request")
        ids = np.array([self._users.get(name, 0) for name in names], dtype=np.int64)
        unknown = [name for name, number in zip(names, ids.tolist(), strict=True) if not number]
        if unknown:
            count = f"{len(unknown)} of {len(names)} are unknown, the first " if len(unknown) > 1 else ""
            raise UnknownUserError(
                f"users: {count}{shown(unknown[0])}{'' if count else ' is unknown'}; give the events of a new user "
                "as history"
            )
        # A user of a checkpoint without events has no time of its own, and is refused below.
        moment = at if at is not None else self._last_time or 0
        moments = np.full(len(names), moment)
        counts = self.recommender.histories.queries(ids, moments).counts
        if not counts.all():
            raise DataError(
                f"users: {shown(names[int(np.argmin(counts))])} has no event up to {iso(moment)}; choose a later "
                "moment as at, or give events as history"
            )
        none = np.empty(0, np.int64)
        return [
            Question(number, name, none, none, moment, top, seen)
            for number, name in zip(ids.tolist(), names, strict=True)
        ]

    def _of_history(self, history: Sequence[tuple[Name, Time]], at: int | None, top: int, seen: bool) -> Question:
        if self.recommender.reads_users:
            raise DataError(
                f"history: {self.recommender.config['model']} learned something for each user of training and can't "
                "answer for others; name users of training as users"
            )
        if not 1 <= len(history) <= self.options.max_events:
            raise OptionError(
                f"history: {len(history):,} events; give from 1 to {self.options.max_events:,}, the latest"
            )
        items = np.array([self._items.get(str(item), 0) for item, _ in history], dtype=np.int64)
        if not items.all():
            place = int(np.argmin(items))
            raise DataError(
                f"history[{place}]: item {shown(str(history[place][0]))} is unknown to the model, as "
                f"{int((items == 0).sum())} of {len(items)} are; leave them out"
            )
        times = np.array(
            [seconds(time, f"history[{place}]") for place, (_, time) in enumerate(history)], dtype=np.int64
        )
        # exact_time: false rounds times, which may move one past the moment.
        times = times.astype(self.recommender.histories.times.dtype)
        order = np.argsort(times, kind="stable")
        items, times = items[order], times[order]
        moment = at if at is not None else max(int(times[-1]), self._last_time or 0)
        if not _until(times, moment):
            raise DataError(f"history: there is no event up to {iso(moment)}; choose a later moment as at")
        return Question(0, None, items, times, moment, top, seen)

    def _remarks(self, questions: list[Question], given: bool) -> list[str]:
        histories = self.recommender.histories
        n_later = 0
        for question in questions if given else ():
            times = question.times
            if question.user:
                times = histories.times[histories.offsets[question.user] : histories.offsets[question.user + 1]]
            n_later += len(times) - _until(times, question.at)
        return self.recommender.remarks(np.array([question.at for question in questions]), given, n_later)


def answer(recommender: Recommender, questions: Sequence[Question]) -> list[Answer]:
    """Answers to questions, computed together in one pass of the model.

    They are those of :meth:`Recommender.recommend`, up to the rounding of a batch of another composition.
    """
    given = [(question.items, question.times) for question in questions if not question.user]
    new = iter(range(recommender.data.n_users, recommender.data.n_users + len(given)))
    users = np.array([question.user or next(new) for question in questions])
    batch = copy.copy(recommender)
    batch.histories = recommender.histories.part(np.unique(users[users < recommender.data.n_users]), given)
    queries = batch.histories.queries(users, np.array([question.at for question in questions]))
    scores = batch.scores(queries, np.array([question.seen for question in questions]))
    tops = np.array([min(question.top, scores.shape[1] - 1) for question in questions])
    answers: list[Answer] = [[] for _ in questions]
    for top in np.unique(tops).tolist():
        places = np.nonzero(tops == top)[0]
        best, values = best_items(scores[places], top)
        for place, items, row in zip(places.tolist(), best.tolist(), values, strict=True):
            # The shortest text of a float32 makes the shortest JSON number that is the same.
            answers[place] = [
                (recommender.data.items[item], float(str(value)))
                for item, value in zip(items, row, strict=True)
                if value == value
            ]
    return answers


def _until(times: NDArray[Any], moment: int) -> int:
    """Number of rising times up to a moment, as :meth:`Histories.queries` counts them."""
    return int(np.searchsorted(times, np.int64(moment), "right"))


def shown(value: Any) -> str:
    """A value as a message repeats it, of printable characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
