"""The figure of an explanation: history on a time axis, attention weights, kernels."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from recbole_adrrec.times import minute
from recbole_adrrec.tools.explain import Kernel, Reasons

SPANS = (("seconds", 1.0, 300.0, 300.0), ("hours", 3600.0, 48.0, 48.0), ("days", 86_400.0, 30.0, 730.0))
"""Axes of the kernels: name, seconds in a unit, units shown at least and at most: as far as the user's gaps go."""

Panel = Callable[[Any, Reasons, int], None]
"""Draws a layer, by its number from 1, into axes."""

BINS, A_BIN = 240, 24
"""Points of a curve, and gaps taken for each: kernels may swing faster than a figure can show."""

INK, FAINT, ACCENT = "#1f2933", "#9aa5b1", "#c2410c"
COLOURS = ("#1d4ed8", "#c2410c", "#047857", "#7c3aed", "#b45309", "#0e7490")
DASHES = ("-", "--", ":", "-.")
TITLE_LENGTH = 40
MASK_KEY = "the query itself (mask token)"
STYLE = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a title may have a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "recbole_adrrec",
}


def png(reasons: Reasons, titles: Mapping[str, str], shown: int = 30, dots: int = 130) -> bytes:
    """The figure as PNG.

    Parameters
    ----------
    reasons : Reasons
    titles : mapping of str to str
        Item to title; items without one show their names.
    shown : int
        Latest events that have a line of their own; earlier ones share one.
    dots : int
        Dots per inch.
    """
    return _file(reasons, titles, shown, headed=True, format="png", dpi=dots, metadata={"Software": None})


def svg(reasons: Reasons, titles: Mapping[str, str], shown: int = 30) -> bytes:
    """The figure as SVG without the recommended items; arguments as for :func:`png`."""
    return _file(reasons, titles, shown, headed=False, format="svg", metadata={"Date": None, "Creator": None})


def _file(reasons: Reasons, titles: Mapping[str, str], shown: int, headed: bool, **options: Any) -> bytes:
    with matplotlib.rc_context(STYLE):
        file = io.BytesIO()
        draw(reasons, titles, shown, headed).savefig(file, **options)
    return file.getvalue()


def heading(reasons: Reasons) -> str:
    """Model, user and moment in a line."""
    since = reasons.at - int(reasons.times[-1])
    after = f", {_gap(since)} after the last event" if since > 0 else ""
    return f"{reasons.model}: recommended to user {reasons.user} at {minute(reasons.at)} UTC{after}"


def title_of(item: str, titles: Mapping[str, str]) -> str:
    """Title of an item, or its name."""
    return titles.get(item, f"item {item}")


def _short(text: str) -> str:
    return text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 1] + "…"


def draw(reasons: Reasons, titles: Mapping[str, str], shown: int = 30, headed: bool = True) -> Figure:
    """History, weights and kernels in one figure; to be called within ``rc_context(STYLE)``.

    Without ``headed`` it doesn't name the recommended items; other arguments as for :func:`png`.
    """
    weights, panels, labels = groups(reasons), _panels(reasons), _labels(reasons, titles, shown)
    layers = len(reasons.plain) if panels else 0
    # Inches: recommended items, history and weights, kernels.
    row = max(2.3, 0.7 + 0.12 * len(reasons.gated) * len(reasons.heads))
    heights = [0.6 + 0.17 * len(reasons.recommended) if headed else 0.1, 1.1 + 0.235 * max(len(labels), 4)]
    heights.append(0.6 + row * layers if layers else 0.4)
    figure = Figure(figsize=(14, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(3, height_ratios=heights)
    head, upper, lower = parts
    if headed:
        _subtitle(head, heading(reasons), fontsize=12.5)
        for place, (item, score) in enumerate(reasons.recommended):
            part = f", of which the trend adds {reasons.trend[place]:+.3f}" if reasons.trend else ""
            text = f"{place + 1}. {title_of(item, titles)}   ({score:.3f}{part})"
            head.text(0.02, 1 - (0.47 + 0.17 * place) / heights[0], text, fontsize=8.5, va="center")
    _subtitle(upper, f"History, newest first, and the weights of the last query in percent{remark(reasons)}")
    widths = [3.4, *[max(1.0, 0.42 * len(reasons.heads))] * len(weights)]
    timeline, *maps = upper.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _timeline(timeline, reasons, labels, shown)
    # A floor, lest weights that are all alike look strong; weights that are no shares have no size to go by.
    scale = max(0.3 if reasons.sums_to_one else 1e-6, *(float(each.max()) for _, each in weights))
    for axes, (title, each) in zip(maps, weights, strict=True):
        _weights(axes, title, _folded(reasons, each, shown), reasons.heads, scale, len(reasons.items) > shown)
    if not layers:
        _subtitle(lower, f"{reasons.model} has no kernel of the gap between two events: it knows their order alone.")
        return figure
    _subtitle(lower, "Gates of the kernels")
    if reasons.kernels:
        _subtitle(lower, "Terms of the kernels of pairs of events in the last query's scores, by the gap")
        _legend(lower, reasons)
    for layer, row_of_axes in enumerate(lower.subplots(layers, len(panels), squeeze=False), 1):
        row_of_axes[0].set_title(f"layer {layer}", fontsize=8.5, loc="left")
        for axes, panel in zip(row_of_axes, panels, strict=True):
            panel(axes, reasons, layer)
            axes.tick_params(labelsize=7, color=FAINT)
            axes.spines[["right", "top"]].set_visible(False)
    return figure


def _subtitle(figure: Any, text: str, fontsize: float = 9.5) -> None:
    figure.suptitle(text, x=0.012, ha="left", fontsize=fontsize, fontweight="bold")


def remark(reasons: Reasons) -> str:
    """Remark on the weights of a model whose weights are no distribution; else nothing."""
    return "" if reasons.sums_to_one else " (no shares: they have either sign, and any sum)"


def groups(reasons: Reasons) -> list[tuple[str, NDArray[np.float64]]]:
    """Titles and weights, [n_heads, n_keys], of each heat map."""
    found = []
    for layer, (plain, refined) in enumerate(zip(reasons.plain, reasons.refined, strict=True), 1):
        if reasons.is_refined:
            found += [(f"layer {layer}\nbefore", plain), (f"layer {layer}\nrefined", refined)]
        else:
            found.append((f"layer {layer}", plain))
    return found


def _labels(reasons: Reasons, titles: Mapping[str, str], shown: int) -> list[str]:
    """A label for each line, newest first."""
    events = list(zip(reasons.items, reasons.times, strict=True))[::-1]
    labels = [f"{_short(title_of(item, titles))}   {minute(time)}" for item, time in events[:shown]]
    earlier = [f"{len(events) - shown} earlier events together"] if len(events) > shown else []
    return [*([MASK_KEY] if reasons.has_mask_key else []), *labels, *earlier]


def _folded(reasons: Reasons, weights: NDArray[np.float64], shown: int) -> NDArray[np.float64]:
    """Weights by line, [n_lines, n_heads], newest first, those of earlier events added up."""
    ordered, kept = weights[:, ::-1].T, shown + reasons.has_mask_key
    return ordered if len(ordered) <= kept else np.vstack([ordered[:kept], ordered[kept:].sum(0)])


def _timeline(axes: Any, reasons: Reasons, labels: list[str], shown: int) -> None:
    times = np.asarray(reasons.times, dtype="datetime64[s]")[::-1]
    # Earlier events share the last line.
    line = int(reasons.has_mask_key) + np.minimum(np.arange(len(times)), shown)
    axes.plot(times[:shown], line[:shown], color=FAINT, linewidth=0.8, zorder=1)
    axes.scatter(times[:shown], line[:shown], s=18, color=COLOURS[0], zorder=2)
    axes.scatter(times[shown:], line[shown:], s=10, color=FAINT, marker="|", zorder=2)
    span = int(reasons.times[-1] - reasons.times[0])
    if 0 <= reasons.at - int(reasons.times[-1]) <= span:
        axes.axvline(np.datetime64(reasons.at, "s"), color=ACCENT, linewidth=1)
        where = (np.datetime64(reasons.at, "s"), len(labels) - 0.5)
        axes.annotate("query", where, (0, -1.3), textcoords="offset fontsize", color=ACCENT, fontsize=7.5, ha="center")
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.tick_top()
    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axes.tick_params(axis="x", labelsize=7, color=FAINT)
    axes.set_xlabel("time (UTC)", fontsize=7.5)
    axes.grid(axis="y", color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["right", "bottom", "left"]].set_visible(False)


def _gap(gap: int) -> str:
    for name, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if gap >= 2 * size:
            return f"{gap // size:,} {name}"
    return f"{gap} seconds"


def _weights(
    axes: Any, title: str, weights: NDArray[np.float64], heads: list[str], scale: float, has_sum: bool
) -> None:
    digits, least = (0, 0.005) if scale >= 0.3 else (1, 0.0005)
    coloured = weights.copy()
    if has_sum:
        coloured[-1] = np.nan  # a sum doesn't compare with single events
    axes.imshow(coloured, aspect="auto", cmap="Blues", vmin=0, vmax=scale, interpolation="nearest")
    for line, row in enumerate(weights):
        for head, weight in enumerate(row):
            colour = "white" if coloured[line, head] > 0.6 * scale else INK
            text = f"{100 * weight:.{digits}f}" if abs(weight) >= least else "·"
            axes.text(head, line, text, ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(heads)), heads, fontsize=6.5, rotation=35, ha="left", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0, pad=1)
    axes.set_xlabel(title, fontsize=7.5)
    axes.spines[:].set_visible(False)


def _panels(reasons: Reasons) -> list[Panel]:
    """Functions that draw the panels of a layer, from left to right."""
    units = {kernel.unit for kernel in reasons.kernels}
    panels: list[Panel] = [_gates] if reasons.gated else []
    if "places" in units:
        panels.append(_by_places)
    if "seconds" in units:
        panels += [partial(_by_time, span=span) for span in SPANS]
    return panels


def _legend(figure: Any, reasons: Reasons) -> None:
    """Name the colours of kernels and, where a kernel is in several heads, the dashes of heads."""
    lines = [Line2D([], [], color=colour, label=name) for name, colour in _colours(reasons).items()]
    if not reasons.owned:
        heads = sorted({kernel.head for kernel in reasons.kernels})
        lines += [Line2D([], [], color=INK, linestyle=_dash(head), label=f"head {head}") for head in heads]
    note = "Line: mean of a short span of gaps. Shade: lowest to highest in it. Marks on the axis: this user's gaps."
    lines.append(Line2D([], [], linestyle="", label=note))
    figure.legend(handles=lines, loc="outside lower left", ncols=12, fontsize=7.5, frameon=False)


def _colours(reasons: Reasons) -> dict[str, str]:
    names = dict.fromkeys(kernel.name for kernel in reasons.kernels)
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def _dash(head: int) -> str:
    return DASHES[(head - 1) % len(DASHES)]


def _line(reasons: Reasons, kernel: Kernel) -> dict[str, Any]:
    return {
        "color": _colours(reasons)[kernel.name],
        "linestyle": "-" if reasons.owned else _dash(kernel.head),
        "linewidth": 1.2,
    }


def _gates(axes: Any, reasons: Reasons, layer: int) -> None:
    """A bar for each kernel and head."""
    colours = _colours(reasons)
    names = [(name, head) for name in reasons.gated for head in range(1, len(reasons.heads) + 1)]
    values = reasons.gates[layer - 1].ravel()
    places = range(len(names))
    axes.barh(places, values, height=0.65, color=[colours.get(name, FAINT) for name, _ in names])
    axes.set_yticks(places, [f"{name}, head {head}" for name, head in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.25)
    for place, value in enumerate(values):
        shift, side = (2, "left") if value >= 0 else (-2, "right")
        axes.annotate(
            f"{value:.2f}", (value, place), (shift, 0), textcoords="offset points", fontsize=6, ha=side, va="center"
        )
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.set_xlabel("gate of the last query", fontsize=7.5)


def _by_places(axes: Any, reasons: Reasons, layer: int) -> None:
    gaps = np.arange(max(2, len(reasons.items) + 1), dtype=np.float64)
    for kernel in reasons.kernels:
        if (kernel.layer, kernel.unit) == (layer, "places"):
            axes.plot(gaps, kernel.curve(gaps), marker=".", markersize=3, **_line(reasons, kernel))
    _finish(axes, "gap in places")


def _by_time(axes: Any, reasons: Reasons, layer: int, span: tuple[str, float, float, float]) -> None:
    unit, size, least, most = span
    gaps_had = np.abs(reasons.query_time - np.asarray(reasons.times, dtype=np.float64))
    end = float(np.clip(1.05 * gaps_had.max() / size, least, most))
    edges = np.linspace(0, end, BINS + 1)
    width = edges[1]
    fine = edges[:-1, None] + width * np.arange(A_BIN) / A_BIN
    middle = edges[:-1] + width / 2
    for kernel in reasons.kernels:
        if (kernel.layer, kernel.unit) == (layer, "seconds"):
            values, line = kernel.curve(fine * size), _line(reasons, kernel)
            axes.fill_between(middle, values.min(1), values.max(1), color=line["color"], alpha=0.22, linewidth=0)
            axes.plot(middle, values.mean(1), **line)
    had = gaps_had[gaps_had <= end * size] / size
    on_axis = {"transform": axes.get_xaxis_transform(), "clip_on": False, "in_layout": False}
    axes.plot(had, np.zeros_like(had), "|", color=INK, markersize=7, **on_axis)
    axes.set_xlim(0, end)
    _finish(axes, f"gap in {unit}")


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel(label, fontsize=7.5)
    axes.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
