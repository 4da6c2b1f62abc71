"""What a run from the command line prints at its end: metrics, the saved model, one user's recommendations.

The functions that make text take plain data; :func:`show_case` alone asks a trained model.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from texttable import Texttable  # type: ignore[import-untyped]
from torch import Tensor

from recbole_adrrec.errors import UserError

TITLE_COLUMNS = ("movie_title", "title", "name")
"""Columns of an ``.item`` file that name an item for people, the first found counts."""


def metrics_table(result: Mapping[str, float], places: int = 4) -> str:
    """Lay out test metrics: a row for each metric, a column for each length of list.

    Parameters
    ----------
    result : mapping of str to float
        RecBole's test result: ``{"recall@10": 0.1}``; value metrics have no ``@k``.
    places : int
        Decimal places.
    """
    names = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "hit": "Hit", "map": "MAP", "precision": "Precision"}
    cells: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for key, value in result.items():
        metric, _, k = key.partition("@")
        column = f"@{k}" if k else "value"
        if column not in columns:
            columns.append(column)
        cells.setdefault(names.get(metric, metric), {})[column] = f"{value:.{places}f}"
    rows = [[metric, *(found.get(column, "") for column in columns)] for metric, found in cells.items()]
    return _table(["", *columns], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Texttable(max_width=0)
    table.set_deco(Texttable.HEADER)
    table.set_cols_dtype(["t"] * len(header))
    table.set_cols_align(["l"] + ["r"] * (len(header) - 1))
    table.header(list(header))
    for row in rows:
        table.add_row(list(row))
    drawn = table.draw() or ""
    return "\n".join(line.rstrip() for line in drawn.splitlines())


@dataclass(frozen=True)
class Run:
    """What is known of a finished run.

    Attributes
    ----------
    model, dataset : str
        Their names.
    test_result : mapping of str to float
        RecBole's test result.
    valid_metric : str
        Metric of early stopping.
    valid_score : float, optional
        Its best value; None if there was no validation.
    users : int, optional
        Number of test users, where known.
    query_time : bool, optional
        Whether the model was told when a recommendation is asked for; None for models without such an option.
    saved : str, optional
        Path of the saved model, where there is one.
    places : int
        Decimal places of metrics.
    """

    model: str
    dataset: str
    test_result: Mapping[str, float]
    valid_metric: str
    valid_score: float | None
    users: int | None = None
    query_time: bool | None = None
    saved: str | None = None
    places: int = 4


def summary(run: Run) -> str:
    """Say what was tested and how well it did, and where the model is."""
    tested = f"{run.model} on {run.dataset}, test metrics"
    if run.users is not None:
        tested += f" over {run.users:,} users"
    lines = [tested]
    if run.query_time is not None:
        told = "knows" if run.query_time else "does not know"
        state = "true" if run.query_time else "false"
        lines.append(f"The model {told} when a recommendation is asked for (use_query_time: {state}).")
    lines += ["", metrics_table(run.test_result, run.places), ""]
    if run.valid_score is not None:
        lines.append(f"Best validation {run.valid_metric}: {run.valid_score:.{run.places}f}")
    if run.saved:
        lines.append(f"Saved model: {run.saved}")
    return "\n".join(lines)


def item_titles(path: str | Path, item_field: str, separator: str = "\t", encoding: str = "utf-8") -> dict[str, str]:
    """Read the items' titles from an atomic file.

    Parameters
    ----------
    path : str or Path
        ``<data_path>/<dataset>/<dataset>.item``.
    item_field : str
        Name of the column with the items' names in the interactions, ``item_id`` mostly.
    separator, encoding : str
        RecBole's ``field_separator`` and ``encoding``.

    Returns
    -------
    dict of str to str
        Item as the data file names it, to its title; empty where there is no file or no column of titles.
    """
    file = Path(path)
    if not file.is_file():
        return {}
    with file.open(encoding=encoding, errors="replace", newline="") as lines:
        rows = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
        names = [column.split(":")[0] for column in next(rows, [])]
        column = next((name for name in TITLE_COLUMNS if name in names), None)
        if column is None or item_field not in names:
            return {}
        item, title = names.index(item_field), names.index(column)
        return {row[item]: row[title] for row in rows if len(row) > max(item, title) and row[title]}


@dataclass(frozen=True)
class Case:
    """One user's history and recommendations.

    Attributes
    ----------
    user : str
        The user, named as in the data file.
    history : sequence of (str, int or None)
        Items seen before the recommendation, oldest first, each with its time in seconds since 1970 where exact.
    recommended : sequence of str
        Items recommended, best first, none of them in ``history``.
    held_out : str, optional
        The item that came next, which the model did not see.
    place : int, optional
        Place of ``held_out`` among all items not in ``history``, from 1; None where it is in ``history``.
    choices : int
        Number of items not in ``history``.
    """

    user: str
    history: Sequence[tuple[str, int | None]]
    recommended: Sequence[str]
    held_out: str | None = None
    place: int | None = None
    choices: int = 0


def case_text(case: Case, titles: Mapping[str, str], last: int = 5) -> str:
    """Tell what a user saw last, what is recommended, and what came next.

    Parameters
    ----------
    case : Case
        The user.
    titles : mapping of str to str
        Item to title; items without one are named as in the data file.
    last : int
        How many events of the history to name.
    """

    def name(item: str) -> str:
        return titles.get(item, item)

    shown = case.history[-last:]
    lines = [f"User {case.user}, the last {len(shown)} of {len(case.history)} events before the test:"]
    for item, time in shown:
        day = f"{datetime.fromtimestamp(time, timezone.utc):%Y-%m-%d}  " if time is not None else ""
        lines.append(f"    {day}{name(item)}")
    lines.append(f"{len(case.recommended)} recommended, out of the {case.choices:,} items this user had not seen:")
    lines += [f"{rank:>4}. {name(item)}" for rank, item in enumerate(case.recommended, 1)]
    if case.held_out is not None:
        place = f"place {case.place:,} in that order" if case.place else "seen before, so not in that order"
        lines.append(f"What came next: {name(case.held_out)} ({place})")
    lines.append("The metrics above rank every item, those seen before too.")
    return "\n".join(lines)


def rank_unseen(scores: Tensor, seen: Tensor) -> Tensor:
    """Order the items that a user has not seen by their scores.

    Parameters
    ----------
    scores : float Tensor, [n_items]
        Score of each item; item 0 is padding.
    seen : int64 Tensor, [n_seen]
        Items to leave out.

    Returns
    -------
    int64 Tensor, [n_items - 1 - n_distinct_seen]
        Items, best first; equal scores in the order of items.
    """
    open_to = torch.ones(len(scores), dtype=torch.bool)
    open_to[0] = False
    open_to[seen] = False
    items = open_to.nonzero().squeeze(1)
    return items[torch.argsort(scores[items], descending=True, stable=True)]


@torch.no_grad()
def show_case(model: Any, loader: Any, config: Any, user: str | None = None, count: int = 10) -> Case | None:
    """Ask a trained model for one user's recommendations.

    Parameters
    ----------
    model : AbstractRecommender
        A sequential model.
    loader : FullSortEvalDataLoader
        The test data; the history of a user is all that comes before the user's last test event.
    config : Config
        The run's options.
    user : str, optional
        The user as the data file names it; the first test user if None.
    count : int
        Number of recommendations.

    Returns
    -------
    Case or None
        None where the data or the model don't have what it takes: rows of events, scores for all items.

    Raises
    ------
    UserError
        If the user is unknown or has no test event.
    """
    dataset = loader.dataset
    rows = dataset.inter_feat
    if not hasattr(rows, "events") or len(rows) == 0:
        return None
    row = _row_of(dataset, user)
    batch = loader.transform(dataset, dataset[torch.tensor([row])])
    model.eval()
    try:
        scores = model.full_sort_predict(batch.to(config["device"])).view(-1).float().cpu()
    except NotImplementedError:
        return None
    target = int(rows.targets[row])
    first = int(rows.events.first(torch.tensor([target])))
    before = torch.arange(first, target)
    items = rows.events.column(dataset.iid_field, before)
    times = rows.events.column(dataset.time_field, before) if config["exact_time"] else [None] * len(items)
    order = rank_unseen(scores, items)
    tokens = dataset.field2id_token[dataset.iid_field]
    held_out = int(rows.events.column(dataset.iid_field, torch.tensor([target])))
    place = (order == held_out).nonzero()
    uid = int(rows.events.column(dataset.uid_field, torch.tensor([target])))
    return Case(
        user=str(dataset.field2id_token[dataset.uid_field][uid]),
        history=[
            (str(tokens[int(item)]), int(time) if time is not None else None)
            for item, time in zip(items, times, strict=True)
        ],
        recommended=[str(tokens[int(item)]) for item in order[:count]],
        held_out=str(tokens[held_out]),
        place=int(place[0]) + 1 if len(place) else None,
        choices=len(order),
    )


def _row_of(dataset: Any, user: str | None) -> int:
    """Index of the last test row of a user, or of the user who comes first in the data."""
    users = dataset.inter_feat[dataset.uid_field]
    if user is None:
        uid = int(users.min())
    else:
        ids = dataset.field2token_id[dataset.uid_field]
        if user not in ids:
            raise UserError(f"show_user: there is no user {user!r} in {dataset.dataset_name} (after filtering)")
        uid = int(ids[user])
    found = (users == uid).nonzero()
    if not len(found):
        raise UserError(f"show_user: user {user!r} has no test event")
    return int(found[-1])
