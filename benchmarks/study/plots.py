"""The figures of a report: plain numbers in, pictures out.

Every figure is drawn for light and for dark pages as SVG, and as PNG for other uses. Colours are those of Okabe and
Ito, which colour-blind readers tell apart; markers and dashes differ too, so that none depends on colour alone.
Figures are narrow, so that their text can be read on a phone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from study.analysis import Entry, Tested
    from study.results import Run

Interval = tuple[float, float | None, float | None]
"""A mean and, where there are users enough, the ends of its interval."""

WIDTH = 5.0
"""Inches."""

MOST_LINES = 6
"""Labels of one figure that readers can distinguish."""

LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8A7A00")
DARK = ("#56B4E9", "#FF8A3D", "#2BC79A", "#E6A5C9", "#F2F2F2", "#F0B93A", "#9BD3F5", "#F0E442")
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))

ACCURACY = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR", "hit": "Hit", "precision": "Precision", "map": "MAP"}
METRICS = {
    **ACCURACY,
    **{"novelty": "Novelty", "intralistdiversity": "Diversity", "itemcoverage": "Coverage"},
    **{"giniindex": "Gini", "shannonentropy": "Entropy"},
}


def metric_name(metric: str) -> str:
    """``ndcg@10`` as people write it."""
    name, at, k = metric.partition("@")
    return METRICS.get(name, name) + at + k


def parts_of(labels: Sequence[str]) -> dict[str, Sequence[str]]:
    """Labels that share one figure, by a suffix of the figure's name."""
    size = MOST_LINES
    if len(labels) <= size:
        return {"": labels}
    return {f"-{start // size + 1}": labels[start : start + size] for start in range(0, len(labels), size)}


@dataclass(frozen=True)
class Picture:
    """One figure, drawn thrice."""

    light: bytes
    dark: bytes
    png: bytes


@contextmanager
def _style(dark: bool) -> Iterator[None]:
    ink, paper = ("#E8E8E8", "#16181C") if dark else ("#1A1A1A", "#FFFFFF")
    settings: dict[str, Any] = {
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "grid.color": ink,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "legend.frameon": False,
        "axes.prop_cycle": cycler(color=list(DARK if dark else LIGHT)),
        "svg.hashsalt": "study",
        "svg.fonttype": "path",
        "figure.constrained_layout.use": True,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
    }
    with matplotlib.rc_context(settings):
        yield


def render(draw: Callable[[], Figure]) -> Picture:
    """Draw a figure for light and dark pages; the same numbers give the same bytes."""
    found = {}
    for name, dark, kind in (("light", False, "svg"), ("dark", True, "svg"), ("png", False, "png")):
        with _style(dark):
            figure = draw()
            FigureCanvasAgg(figure)
            target = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(target, format=kind, dpi=150, metadata=metadata)
        found[name] = target.getvalue()
    return Picture(**found)


def _ink() -> str:
    return str(matplotlib.rcParams["text.color"])


def _colour(place: int) -> str:
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return str(colours[place % len(colours)])


def _rows_figure(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, 1.1 + 0.34 * max(2, count)))
    return figure, figure.subplots()


def _name_values(figure: Figure, text: str) -> None:
    # Names of rows leave the axes narrow: the text has the whole width of the figure.
    figure.supxlabel(text, fontsize=10.5)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def quality(entries: Sequence[Entry], ours: Collection[str], metric: str) -> Figure:
    """Means with their intervals over users, and the seeds behind them; ``ours`` are labels."""
    figure, axes = _rows_figure(len(entries))
    for place, entry in enumerate(entries):
        number = int(entry.label in ours)
        if entry.interval is not None:
            axes.plot(entry.interval, [place, place], color=_colour(number), linewidth=2.4, solid_capstyle="butt")
        seeds = entry.values(metric)
        axes.plot(seeds, [place + 0.24] * len(seeds), "|", color=_ink(), markersize=6, markeredgewidth=1)
        axes.plot(entry.spreads[metric].mean, place, MARKERS[number], color=_colour(number), markersize=7)
    _name_rows(axes, [entry.label for entry in entries])
    _name_values(figure, f"test {metric_name(metric)}\n(bars: 95 % interval over users; ticks: seeds)")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def _look(place: int) -> dict[str, Any]:
    """Colour, dashes and marker of a label, by its place."""
    return {
        "color": _colour(place),
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def training_time(runs: Sequence[Run], metric: str, limit: tuple[float, float]) -> Figure:
    """Validation quality against training time, up to a limit of both; a mark where each run was best."""
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    unit, name = (60.0, "minutes") if limit[0] > 300 else (1.0, "seconds")
    labels = list(dict.fromkeys(run.label for run in runs))
    for run in runs:
        seconds, scores = run.curve
        best, look = [int(np.argmax(scores))], _look(labels.index(run.label))
        axes.plot(np.asarray(seconds) / unit, scores, linewidth=1.2, alpha=0.65, markevery=best, **look)
    for place, label in enumerate(labels):
        axes.plot([], [], label=label, **_look(place))
    axes.set_xlabel(f"training time ({name}), a mark at the best epoch")
    axes.set_ylabel(f"validation {metric_name(metric)}")
    axes.set_xlim(0, limit[0] / unit or 1)
    axes.set_ylim(0, limit[1] or 1)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10, handlelength=3)


def _bar(axes: Any, place: int, value: float, colour: str, full: bool) -> None:
    look: dict[str, Any] = {"facecolor": colour} if full else {"facecolor": "none", "hatch": "////"}
    axes.barh(place, value, height=0.62, edgecolor=colour, **look)


def ablation(tested: Sequence[Tested], shown: Collection[str], metric: str) -> Figure:
    """Changes of a metric from a reference, with intervals; full bars for the labels whose difference is shown.

    Every comparison has a difference.
    """
    figure, axes = _rows_figure(len(tested))
    for place, each in enumerate(tested):
        difference, low, high = each.comparison.difference or 0.0, each.comparison.low, each.comparison.high
        _bar(axes, place, difference, _colour(0 if difference >= 0 else 1), each.label in shown)
        if low is not None:
            axes.plot([low, high], [place, place], color=_ink(), linewidth=1.3)
            axes.plot([low, high], [place, place], "|", color=_ink(), markersize=6)
    axes.axvline(0, color=_ink(), linewidth=0.9)
    _name_rows(axes, [each.label for each in tested])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    about = f"change in test {metric_name(metric)} from {tested[0].reference}"
    _name_values(figure, f"{about}\n(lines: 95 % interval; full: shown, hatched: not)")
    return figure


def lines(points: pd.DataFrame, x_name: str, y_name: str, zero: bool = False) -> Figure:
    """Lines in panels under each other, the same colour and marker for the same label.

    ``points`` has columns ``panel``, ``label``, ``x``, ``mean`` and ``sd`` (over seeds; drawn where all of a line are
    known).
    """
    panels, labels = points["panel"].nunique(), list(points["label"].unique())
    figure = Figure(figsize=(WIDTH, 0.9 + 2.1 * panels))
    grid = figure.subplots(panels, squeeze=False)[:, 0]
    for axes, (title, panel) in zip(grid, points.groupby("panel", sort=False), strict=True):
        for label, line in panel.groupby("label", sort=False):
            place = labels.index(label)
            axes.plot(line["x"], line["mean"], label=label, **_look(place))
            if line["sd"].notna().all():
                ends = line["mean"] - line["sd"], line["mean"] + line["sd"]
                axes.fill_between(line["x"], *ends, color=_colour(place), alpha=0.15, linewidth=0)
        if zero:
            axes.axhline(0, color=_ink(), linewidth=0.8)
        axes.set_title(title)
        axes.set_ylabel(y_name)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    grid[-1].set_xlabel(x_name)
    if len(labels) > 1:
        _legend(figure)
    return figure


def groups(panels: Mapping[str, Mapping[str, Mapping[str, Interval]]], metric: str) -> Figure:
    """Differences of a metric by group of users: by panel, group and comparison."""
    counts = [len(found) for found in panels.values()]
    labels = list(dict.fromkeys(label for found in panels.values() for marks in found.values() for label in marks))
    figure = Figure(figsize=(WIDTH + 1.5, 1.0 + 0.45 * len(panels) + (0.22 + 0.1 * len(labels)) * sum(counts)))
    grid = figure.subplots(len(panels), squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts})[:, 0]
    for axes, (title, found) in zip(grid, panels.items(), strict=True):
        for place, marks in enumerate(found.values()):
            for label, (middle, low, high) in marks.items():
                number = labels.index(label)
                at = place + 0.6 * ((number + 0.5) / len(labels) - 0.5)
                look = {"color": _colour(number), "marker": MARKERS[number % len(MARKERS)]}
                if low is not None:
                    axes.plot([low, high], [at, at], color=look["color"], linewidth=1.3)
                axes.plot([middle], [at], linestyle="", label=label, **look)
        axes.axvline(0, color=_ink(), linewidth=0.9)
        _name_rows(axes, list(found))
        axes.set_title(title)
    grid[-1].xaxis.set_major_locator(MaxNLocator(5))
    _name_values(figure, f"difference in test {metric_name(metric)}")
    handles = dict(zip(*reversed(grid[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=1, fontsize=10)
    return figure


def head_drops(drops: Mapping[str, Sequence[tuple[str, float, bool]]], metric: str) -> Figure:
    """Shares of a metric lost when heads are silenced, a panel for each layer: ``(head, drop, absolute)``."""
    count = sum(len(rows) for rows in drops.values())
    figure = Figure(figsize=(WIDTH, 0.7 + 0.5 * len(drops) + 0.3 * count))
    ratios = [len(rows) for rows in drops.values()]
    grid = figure.subplots(len(drops), squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, (layer, rows) in zip(grid, drops.items(), strict=True):
        for place, (_, drop, absolute) in enumerate(rows):
            colour = _colour(0 if absolute else 1)
            _bar(axes, place, 100 * drop, colour, absolute)
        axes.axvline(0, color=_ink(), linewidth=0.9)
        _name_rows(axes, [name for name, _, _ in rows])
        axes.set_title(layer)
    grid[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    _name_values(
        figure,
        f"drop in test {metric_name(metric)} when silenced\n(full: absolute heads; hatched: relative and others)",
    )
    return figure
