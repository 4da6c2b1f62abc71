"""``recommend``: top items of users at a moment, from a checkpoint alone."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_adrrec.cli.commands import add_query_arguments, check_output, write
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.times import iso, seconds

FORMATS = ("table", "json", "csv")

BAR_FROM = 2000
"""Users from which on a progress bar is shown on a terminal."""

EXAMPLES = """examples:
  recommend -c saved/ADRRec.pth --user 196                              top 10 after the last event known
  recommend -c saved/ADRRec.pth --user 196 22 --at 1998-04-01T12:00     as of a moment, in UTC
  recommend -c saved/ADRRec.pth --users users.txt -o top.csv            a file of users, one a line
  recommend -c saved/ADRRec.pth --events today.csv --format json        users of new events, with these events

Events are CSV, atomic files or JSON lines with a user, an item and a time. The raw data that the model was
trained on aren't needed. Exit code: 0 done, 2 something given is wrong."""


def add_arguments(add: Any) -> None:
    """The arguments of ``recommend``."""
    many = {"nargs": "+", "action": "extend", "default": []}
    add("--user", "-u", **many, help="one or more users, named as in the data; repeatable")
    add("--users", type=Path, help="file of users, one a line; - reads the standard input")
    add_query_arguments(add)
    add("--top", "-k", type=int, default=10, help="items for each user (default: 10)")
    add("--seen", action="store_true", help="recommend items that the user has met, too")
    add("--skip_unknown", action="store_true", help="leave out and count unknown users and items instead of refusing")
    add("--format", "-f", choices=FORMATS, help="default: by the name of --output, else a table")
    add("--output", "-o", type=Path, help="file to write, whole or not at all (default: the standard output)")
    add("--batch_size", type=int, default=512, help="users scored at a time (default: 512)")


def run(given: Any) -> int:
    """Recommend, and write the answers."""
    check_output(given.output)
    users = [*given.user, *(_read_users(given.users) if given.users else [])]
    if not users and not given.events:
        raise OptionError("recommend: no users; name some by --user or --users, or give --events")
    recommender, events = open_recommender(given, given.skip_unknown)
    answers = recommender.recommend(
        users or list(dict.fromkeys(events.users)),
        at=given.at,
        top=given.top,
        seen=given.seen,
        skip_unknown=given.skip_unknown,
        batch_size=given.batch_size,
        progress=len(users) >= BAR_FROM and sys.stderr.isatty(),
    )
    from recbole_adrrec.tools.report import titles_of

    titles = titles_of(recommender.config, recommender.data.dataset, given.item_file)
    kind = given.format or (given.output.suffix.removeprefix(".") if given.output else "table")
    write(render(answers, kind, titles, recommender), given.output)
    if given.output:
        print(f"Wrote {given.output}: {len(answers.users):,} user{'s' * (len(answers.users) != 1)}")
    return 0


def open_recommender(given: Any, skip_unknown: bool) -> tuple[Any, Any]:
    """The model that the arguments name, with the events that they give; and these events. ``at`` becomes seconds."""
    if given.at is not None:
        given.at = seconds(given.at)
    import recbole_adrrec

    recommender = recbole_adrrec.load(given.checkpoint, given.device)
    from recbole_adrrec.tools.interactions import read_interactions

    unit = given.time_unit_in or recommender.config["time_unit_in"]
    events = read_interactions(given.events, recommender.histories.fields, unit)
    if events.users:
        recommender = recommender.append(events.users, events.items, events.times, skip_unknown)
    return recommender, events


def _read_users(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"--users: {path}: {error.strerror}; name a file with a user a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--users: {path}: not readable as UTF-8 ({error}); save it as UTF-8") from error
    users = [line.strip() for line in text.splitlines() if line.strip()]
    if not users:
        raise DataError(f"--users: {path}: the file is empty; give a user a line")
    return users


def render(answers: Any, kind: str, titles: Mapping[str, str], recommender: Any) -> str:
    """Answers as text: ``json``, ``csv``, or else a table."""
    if kind == "json":
        return json.dumps(_document(answers, titles, recommender), ensure_ascii=False, indent=1)
    header = ["user", "at", "rank", "item", *(["title"] if titles else []), "score"]
    rows = []
    for (user, items), at in zip(answers, answers.at, strict=True):
        for rank, (item, score) in enumerate(items, 1):
            title = [titles.get(item, "")] if titles else []
            # In a table a user's name and moment stand once.
            lead = [user, iso(at)] if kind == "csv" or rank == 1 else ["", ""]
            rows.append([*lead, str(rank), item, *title, _short(score) if kind == "csv" else f"{score:.4f}"])
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        return text.getvalue().rstrip("\n")
    from tabulate import tabulate

    align = ["right" if name in ("rank", "score") else "left" for name in header]
    return tabulate(rows, header, "simple", colalign=align if rows else None, disable_numparse=True)


def _document(answers: Any, titles: Mapping[str, str], recommender: Any) -> dict[str, Any]:
    def item(name: str, score: float) -> dict[str, Any]:
        title = {"title": titles[name]} if name in titles else {}
        return {"item": name, **title, "score": float(_short(score))}

    return {
        "model": recommender.config["model"],
        "dataset": recommender.data.dataset,
        "checkpoint": recommender.path,
        "knows_query_time": recommender.knows_query_time,
        "notes": [*recommender.notes, *answers.notes],
        "users": [
            {"user": user, "at": iso(at), "items": [item(name, score) for name, score in items]}
            for (user, items), at in zip(answers, answers.at, strict=True)
        ],
    }


def _short(score: float) -> str:
    """The shortest number that is this one in float32."""
    import numpy as np

    return str(np.float32(score))
