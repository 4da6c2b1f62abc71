"""Questions of requests, checked before they wait, and their answers, computed in one pass of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.service.options import ServiceOptions
from recbole_adrrec.times import iso, seconds
from recbole_adrrec.tools.recommend import Recommender
from recbole_adrrec.tools.recommendations import best_items

SHOWN = 80
"""Characters of a wrong value that a message repeats."""

Name = StrictStr | StrictInt
Time = StrictInt | StrictFloat | StrictStr

MEANING = {
    "users": "a list of users, named as in the data",
    "history": "a list of events [item, time] of somebody, in place of users",
    "at": "the moment: seconds since 1970, 2024-05-01T12:00 (UTC without an offset), @1714564800 or now; later events "
    "aren't used; without it, the time of the last event known",
    "top": "the number of items for each",
    "seen": "true to recommend items that were met, too, or false",
}


class Query(BaseModel):
    """The body of a request: ``users`` or ``history``, and options."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"users": ["196", "22"], "top": 5},
                {"history": [["242", 881250949], ["302", "1997-12-04T15:56"]], "at": "1998-03-01", "top": 5},
            ]
        },
    )
    users: Annotated[list[Name] | None, Field(description=MEANING["users"])] = None
    history: Annotated[list[tuple[Name, Time]] | None, Field(description=MEANING["history"])] = None
    at: Annotated[Time | None, Field(description=MEANING["at"])] = None
    top: Annotated[StrictInt, Field(description=MEANING["top"])] = 10
    seen: Annotated[StrictBool, Field(description=MEANING["seen"])] = False


class UnknownUserError(DataError):
    """A user is not among those of the checkpoint."""


@dataclass(frozen=True)
class Question:
    """A user, or a history of nobody known, at a moment (seconds since 1970)."""

    user: int  # of the checkpoint; 0 for a history
    name: str | None
    items: NDArray[np.int64]  # the history, in order of time; empty for a user
    times: NDArray[Any]
    at: int
    top: int
    seen: bool


Subject = tuple[int, str | None, NDArray[np.int64], NDArray[Any], int]
"""The first five fields of a question."""

Answer = list[tuple[str, float]]
"""Items with their scores, best first."""


class QuestionReader:
    """Makes questions of the fields of requests, or refuses them with a UserError."""

    def __init__(self, recommender: Recommender, options: ServiceOptions) -> None:
        self.recommender = recommender
        self.options = options
        self._last_time = recommender.last_time

    def read(self, query: Query) -> tuple[list[Question], list[str]]:
        """Questions, one for each user, and remarks on them; an UnknownUserError or another UserError."""
        if (query.users is None) == (query.history is None):
            raise OptionError("users, history: give one of the two")
        if not 1 <= query.top <= self.options.max_top:
            raise OptionError(
                f"top: {shown(query.top)} is out of range; give a number from 1 to {self.options.max_top}"
            )
        at = None if query.at is None else seconds(query.at)
        if query.history is not None:
            found, n_later = self._of_history(query.history, at)
        else:
            found, n_later = self._of_users([str(user) for user in query.users or ()], at)
        questions = [Question(*each, query.top, query.seen) for each in found]
        moments = np.array([question.at for question in questions])
        return questions, self.recommender.remarks(moments, at is not None, n_later)

    def _of_users(self, names: list[str], at: int | None) -> tuple[list[Subject], int]:
        """Users of the checkpoint, and the number of their events after the moment."""
        if not 1 <= len(names) <= self.options.max_users:
            raise OptionError(f"users: {len(names)} names; give from 1 to {self.options.max_users} in a request")
        ids = np.array([self.recommender.user_ids.get(name, 0) for name in names], dtype=np.int64)
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
        queries = self.recommender.histories.queries(ids, moments)
        if not queries.counts.all():
            raise DataError(
                f"users: {shown(names[int(np.argmin(queries.counts))])} has no event up to {iso(moment)}; choose a "
                "later moment as at, or give events as history"
            )
        none = np.empty(0, np.int64)
        found: list[Subject] = [
            (number, name, none, none, moment) for number, name in zip(ids.tolist(), names, strict=True)
        ]
        return found, int(self.recommender.histories.n_later(queries).sum())

    def _of_history(self, history: Sequence[tuple[Name, Time]], at: int | None) -> tuple[list[Subject], int]:
        """Nobody known with a history, and the number of its events after the moment."""
        if self.recommender.reads_users:
            raise DataError(
                f"history: {self.recommender.config['model']} learned something for each user of training and can't "
                "answer for others; name users of training as users"
            )
        if not 1 <= len(history) <= self.options.max_events:
            raise OptionError(
                f"history: {len(history):,} events; give from 1 to {self.options.max_events:,}, the latest"
            )
        items = np.array([self.recommender.item_ids.get(str(item), 0) for item, _ in history], dtype=np.int64)
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
        n_shown = int(np.searchsorted(times, np.int64(moment), "right"))
        if not n_shown:
            raise DataError(f"history: there is no event up to {iso(moment)}; choose a later moment as at")
        return [(0, None, items, times, moment)], len(times) - n_shown


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


def shown(value: Any) -> str:
    """A value as a message repeats it, of printable characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
