"""The drawings of docs/concepts.md: python docs/tools/drawings.py writes them into docs/images/concepts/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import recbole
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from recbole_adrrec.tools.plots import ACCENT, COLOURS, FAINT, INK, STYLE

FOLDER = Path(__file__).parents[1] / "images" / "concepts"
BLUE = COLOURS[0]
USER, FIRST, COUNT = 221, 75, 8
"""Events of ml-100k that lie in a few steps of float32: the user, the first of them in order of time, how many."""


def exact_time() -> Figure:
    """Events of a user of ml-100k in order of their seconds, and in the order that float32 leaves."""
    file = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    events = pd.read_csv(file, sep="\t")
    times = events.loc[events["user_id:token"] == USER, "timestamp:float"].to_numpy(np.int64)
    rounded = times.astype(np.float32)
    shown = np.argsort(times, kind="stable")[FIRST : FIRST + COUNT]
    seen = np.argsort(rounded, kind="stable")[FIRST : FIRST + COUNT]
    assert set(shown) == set(seen), "the events are no group of their own in both orders"
    figure, axes = _blank(7.2, 2.6)
    first, step = times[shown[0]], 64
    for line in range(int(first // step), int(times[shown[-1]] // step) + 2):
        place = line * step - first
        axes.plot([place, place], [-0.25, 0.6], color=FAINT, linewidth=0.8, linestyle=":")
    number = {event: place + 1 for place, event in enumerate(shown)}
    stacked: dict[float, int] = {}
    for event in seen:
        exact, place = times[event] - first, float(rounded[event]) - first
        height = stacked[place] = stacked.get(place, -1) + 1
        axes.plot([exact, place], [1.35, 0.45], color=FAINT, linewidth=0.7, zorder=1)
        _dot(axes, exact, 1.5, number[event], BLUE)
        _dot(axes, place + 11.5 * height, 0.3, number[event], ACCENT)
    left, order = -125, " ".join(str(number[event]) for event in seen)
    for height, text, colour in (
        (2.1, f"Events of user {USER} of ml-100k, numbered as they happened", INK),
        (1.5, "exact seconds", BLUE),
        (0.3, "float32, in\nsteps of 64 s", ACCENT),
        (-0.55, f"A sort by float32 leaves the order {order}", INK),
    ):
        axes.text(left, height, text, va="center", color=colour)
    axes.set_xlim(left - 5, float(rounded[seen].max()) - first + 60)
    axes.set_ylim(-0.8, 2.3)
    return figure


def windows() -> Figure:
    """A user with seven events: rows of prefixes beside one window with a target at every place."""
    figure, axes = _blank(7.2, 2.9)
    length = 6
    for row in range(length):
        for place in range(length):
            known = place <= row
            _box(axes, place, -row, str(place + 1) if known else "0", "white" if known else "#e4e7eb")
        _box(axes, length + 0.5, -row, str(row + 2), ACCENT, "white")
    for place in range(length):
        _box(axes, 9.6 + place, -1.5, str(place + 1), "white")
        _box(axes, 9.6 + place, -3.3, str(place + 2), ACCENT, "white")
        _arrow(axes, (9.6 + place, -2.02), (9.6 + place, -2.82), FAINT)
    axes.text(-0.5, 1.2, "RecBole: a stored row for each target,\npadded with zeros", va="center")
    axes.text(9.1, 1.2, "here: events stored once, one pass\ntrains a target at every place", va="center")
    axes.text(6.5, -5.95, "target", color=ACCENT, ha="center", va="center")
    axes.text(12.1, -4.3, "targets", color=ACCENT, ha="center", va="center")
    axes.set_xlim(-0.8, 16)
    axes.set_ylim(-6.3, 1.9)
    return figure


def query_time() -> Figure:
    """Gaps that a model sees with and without the moment of the query."""
    figure, axes = _blank(7.2, 2.9)
    places = [0.5, 1.2, 3.4, 4.1]
    for base, told in ((1.7, False), (0.0, True)):
        axes.plot([0, 9.2], [base, base], color=FAINT, linewidth=1)
        for number, place in enumerate(places, 1):
            _dot(axes, place, base, number, BLUE)
        _dot(axes, 8.3, base, "?", ACCENT)
        origin = 8.3 if told else places[-1]
        axes.plot([origin, origin], [base - 0.5, base - 0.17], color=INK, linewidth=1)
        for place in places[1:3]:
            _arrow(axes, (origin, base + 0.13), (place, base + 0.13), INK, -0.16 if told else -0.24)
        text = "the moment of the query" if told else "the last known event"
        side = "right" if told else "center"
        axes.text(origin + (0.9 if told else 0), base - 0.62, f"gaps are counted from {text}", ha=side, va="center")
        axes.text(-0.3, base, f"use_query_time:\n{str(told).lower()}", ha="right", va="center", family="monospace")
    axes.text(8.3, 2.3, "event to be\npredicted", ha="center", va="center", color=ACCENT)
    axes.set_xlim(-2.4, 9.6)
    axes.set_ylim(-0.95, 2.7)
    return figure


def ties() -> Figure:
    """Events of equal time: the file's order, and the orders that training draws."""
    figure, axes = _blank(7.2, 2.9)
    axes.plot([0, 4.6], [0, 0], color=FAINT, linewidth=1)
    for place, column in ((0.4, ["a"]), (2.0, ["b", "c", "d"]), (3.4, ["e"]), (4.3, ["?"])):
        for height, name in enumerate(column):
            _dot(axes, place, 0.55 * height, name, ACCENT if len(column) > 1 else INK if name == "?" else BLUE)
    axes.text(2.0, -0.5, "rated in the\nsame second", ha="center", va="center", color=ACCENT)
    axes.text(4.3, -0.5, "held out", ha="center", va="center")
    axes.text(0, 2.2, "what the data say", va="center")
    axes.text(5.6, 2.2, "what is trained on, with reorder_ties", va="center")
    for row, (label, order) in enumerate((("pass 1", "abcde"), ("pass 2", "adbce"), ("pass 3", "acdbe"))):
        axes.text(5.6, 1.5 - 0.8 * row, label, va="center")
        for place, name in enumerate(order):
            tied = name in "bcd"
            _dot(axes, 7.1 + 0.6 * place, 1.5 - 0.8 * row, name, ACCENT if tied else BLUE)
    axes.set_xlim(-0.3, 10.2)
    axes.set_ylim(-0.9, 2.5)
    return figure


def _blank(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.axis("off")
    return figure, axes


def _dot(axes: Any, x: float, y: float, text: object, colour: str) -> None:
    axes.plot(x, y, "o", color=colour, markersize=13, zorder=2)
    axes.text(x, y, str(text), color="white", ha="center", va="center_baseline", zorder=3, fontsize=8)


def _box(axes: Any, x: float, y: float, text: str, colour: str, ink: str = INK) -> None:
    box = FancyBboxPatch((x - 0.4, y - 0.4), 0.8, 0.8, "round,pad=0,rounding_size=.12", fc=colour, ec=FAINT, lw=0.8)
    axes.add_patch(box)
    axes.text(x, y, text, color=FAINT if text == "0" else ink, ha="center", va="center_baseline")


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 8, "color": colour, "linewidth": 0.9}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={-bend}", **style))


def main() -> None:
    """Write all drawings."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Letters as shapes: a picture in a page has no fonts of its own.
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "font.size": 9}):
        for draw in (exact_time, windows, query_time, ties):
            draw().savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
