"""``explain``: a picture of what one user's recommendation attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_adrrec.cli.commands import add_query_arguments, check_output, write
from recbole_adrrec.cli.recommend import open_recommender
from recbole_adrrec.errors import OptionError

SUFFIXES = (".png", ".html")

EXAMPLES = """examples:
  explain -c saved/ADRRec.pth --user 196 -o 196.png
  explain -c saved/ADRRec.pth --user 196 --at 1998-04-01T12:00 -o 196.html     with all numbers in tables

The picture has the recommended items with their scores (and the part that a trend adds), the user's events on a time
axis, the attention weights of each layer and head for the last query, before and after refinement, and what the
kernels of pairs of events add to its scores, by the gap in places, seconds, hours and days; of mixture adaptive also
the gates of all kernels.
It works for ADRRec, AWRSR, HSTU, MEANTIME, STOSA and TiSASRec."""


def add_arguments(add: Any) -> None:
    """The arguments of ``explain``."""
    add("--user", "-u", required=True, help="the user, named as in the data")
    add("--output", "-o", type=Path, required=True, help="the picture: a .png, or a self-contained .html page")
    add_query_arguments(add)
    add("--shown", type=int, default=30, help="latest events with a line of their own (default: 30)")
    add("--top", "-k", type=int, default=5, help="recommended items to name (default: 5)")


def run(given: Any) -> int:
    """Explain, and draw the explanation."""
    suffix = given.output.suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(f"--output: {given.output} is neither .png nor .html; name one of these")
    if given.shown < 1:
        raise OptionError(f"--shown: {given.shown} is not a whole number of at least 1")
    check_output(given.output)
    recommender, _ = open_recommender(given, skip_unknown=False)
    from recbole_adrrec.tools import explain, page, plots, report

    reasons = explain.explain(recommender, given.user, given.at, given.top)
    make = plots.png if suffix == ".png" else page.page
    titles = report.titles_of(recommender.config, recommender.data.dataset, given.item_file)
    write(make(reasons, titles, given.shown), given.output)
    print(f"Wrote {given.output}: {len(reasons.items)} events of user {reasons.user}")
    return 0
