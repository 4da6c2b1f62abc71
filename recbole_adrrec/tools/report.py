"""End of a training from the command line: metrics, the saved model, one user's recommendations."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from recbole_adrrec.errors import CheckpointError, OptionError, UserError
from recbole_adrrec.options import MODEL_OPTIONS
from recbole_adrrec.times import day

TITLE_COLUMNS = ("movie_title", "title", "name")
"""Columns of an ``.item`` file that name an item for people, the first found counts."""

METRIC_NAMES = {each.lower(): each for each in ("Recall", "NDCG", "MRR", "Hit", "MAP", "Precision")}


def metrics_table(result: Mapping[str, float], places: int = 4) -> str:
    """RecBole's test result, ``{"recall@10": 0.1}``, as a table: rows of metrics, columns of lengths of list."""
    cells: dict[str, dict[str, str]] = {}
    for key, value in result.items():
        metric, _, k = key.partition("@")
        cells.setdefault(METRIC_NAMES.get(metric, metric), {})[f"@{k}" if k else "value"] = f"{value:.{places}f}"
    columns = dict.fromkeys(column for found in cells.values() for column in found)
    rows = [[metric, *(found.get(column, "") for column in columns)] for metric, found in cells.items()]
    align = ["left", *["right"] * len(columns)] if rows else None
    return tabulate(rows, ["", *columns], "simple", colalign=align, disable_numparse=True)


def summary(config: Any, result: Mapping[str, Any], users: int | None, saved: str | None) -> str:
    """Result of RecBole's ``run`` as text, with the number of test users and the saved model where there are such."""
    model, places = config["model"], config["metric_decimal_place"] or 4
    lines = [f"{model} on {config['dataset']}, test metrics{'' if users is None else f' over {users:,} users'}"]
    if model in MODEL_OPTIONS and config["use_query_time"] is not None:
        verb, state = ("knows", "true") if config["use_query_time"] else ("does not know", "false")
        lines.append(f"The model {verb} the moment of a recommendation (use_query_time: {state}).")
    lines += ["", metrics_table(result["test_result"] or {}, places), ""]
    if result["best_valid_result"]:
        lines.append(f"Best validation {config['valid_metric']}: {result['best_valid_score']:.{places}f}")
    if saved and Path(saved).is_file():
        lines.append(f"Saved model: {saved}")
    return "\n".join(lines)


def titles_of(config: Any, dataset: str, file: Path | None = None) -> dict[str, str]:
    """Titles of items by name; from the data set's file, where it is there, or from one given, else an OptionError."""
    item_field = config["ITEM_ID_FIELD"]
    path = file or Path(str(config["data_path"]), f"{dataset}.item")
    titles = item_titles(path, item_field, config["field_separator"], config["encoding"] or "utf-8")
    if file is not None and not titles:
        reason = "no columns of items and titles" if file.is_file() else "no such file"
        columns = f"{item_field}:token and {' or '.join(TITLE_COLUMNS)}"
        raise OptionError(f"--item_file: {file}: {reason}; give an atomic file with {columns}")
    return titles


def item_titles(file: Path, item_field: str, separator: str = "\t", encoding: str = "utf-8") -> dict[str, str]:
    """Titles of items by name, from an atomic ``.item`` file whose items stand in the column ``item_field``."""
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


def case_text(
    titles: Mapping[str, str],
    user: str,
    history: Sequence[tuple[str, int | None]],
    recommended: Sequence[str],
    held_out: str,
    place: int | None,
    choices: int,
    last: int = 5,
) -> str:
    """The last events of a user, what is recommended, and what came next.

    ``history`` has items, oldest first, each with its time in seconds since 1970 where exact; ``place`` is that of
    ``held_out`` among the ``choices`` items that aren't in it, from 1, or None where it is one of them.
    """
    shown = history[-last:]
    lines = [f"User {user}, the last {len(shown)} of {len(history)} events before the test:"]
    for item, time in shown:
        lines.append(f"    {'' if time is None else f'{day(time)}  '}{titles.get(item, item)}")
    lines.append(f"{len(recommended)} recommended, out of the {choices:,} items this user had not seen:")
    lines += [f"{rank:>4}. {titles.get(item, item)}" for rank, item in enumerate(recommended, 1)]
    where = f"place {place:,} in that order" if place else "seen before, so not in that order"
    lines.append(f"What came next: {titles.get(held_out, held_out)} ({where})")
    lines.append("The metrics above rank every item, those seen before too.")
    return "\n".join(lines)


def show_case(model: Any, dataset: Any, config: Any, user: str | None = None, count: int = 10) -> str:
    """Recommend ``count`` items to a test user, the first one if None, as of the user's last test event.

    Empty where the data set of the test, or the model, don't have what it takes: rows of events, scores for all items.
    Raises UserError where the user is unknown or has no test event.
    """
    from recbole_adrrec.tools.recommend import Queries, Recommender

    rows = dataset.inter_feat
    if not hasattr(rows, "events") or len(rows) == 0:
        return ""
    target = rows.targets[[_row_of(dataset, user)]].long()
    try:
        recommender = Recommender.of_training(model, config, dataset)
    except CheckpointError:
        return ""
    events, histories, names = rows.events, recommender.histories, recommender.data.items
    uid, held_out, at = (events.column(name, target).numpy() for name in histories.fields)
    query = Queries(uid, at, events.first(target).numpy(), target.numpy())
    best, scores = recommender.rank(query, len(recommender.items))
    order = best[~np.isnan(scores)]
    items = histories.items_of(query)[1].tolist()
    times = histories.times[query.first[0] : query.end[0]].tolist() if config["exact_time"] else [None] * len(items)
    place = np.nonzero(order == held_out)[0]
    return case_text(
        titles_of(config, dataset.dataset_name),
        user=recommender.data.users[int(uid[0])],
        history=[(names[item], time) for item, time in zip(items, times, strict=True)],
        recommended=[names[item] for item in order[:count]],
        held_out=names[int(held_out[0])],
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
