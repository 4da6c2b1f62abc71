"""Figures of the tables of training and of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from measure.tables import LABELS, Row
from measure.variants import BASELINE, TRAINING


def training(rows: Sequence[Row], folder: Path) -> None:
    """Bars of seconds an epoch and of memory over imports, ``training.png``; nothing where nothing was measured."""
    rows = [row for row in rows if row["runs"]][::-1]
    if not rows:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(rows) + 1.4), sharey=True, layout="constrained")
    names = [row["variant"] for row in rows]
    ours = {variant.name for variant in TRAINING if variant.source == "ours"}
    labels = {"epoch_s": "seconds an epoch (log)", "rise_mib": "peak memory over imports, MiB (log)"}
    for plot, (key, label) in zip(axes, labels.items(), strict=True):
        values = [max(row[key], 1e-3) for row in rows]
        bars = plot.barh(names, values, color=["tab:blue" if name in ours else "tab:gray" for name in names])
        plot.set_xscale("log")
        plot.set_xlim(min(values) / 3, max(values) * 4)
        _plain_logarithm(plot.xaxis, min(values), max(values), 20)
        plot.set_xlabel(label)
        plot.bar_label(bars, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3)
        plot.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Grey: other packages as they are; ratios are against {BASELINE}", fontsize=10)
    _save(figure, folder / "training.png")


def sweep(table: Row, axis: str, quantities: Sequence[str], folder: Path) -> None:
    """Curves of each quantity over the sizes, both logarithmic, with exponents in the legend: ``sweep-<axis>.png``."""
    sizes = sorted({size for row in table.values() for size in row["sizes"]})
    if not sizes:
        return
    figure, axes = plt.subplots(1, len(quantities), figsize=(4.6 * len(quantities), 4), layout="constrained")
    for plot, quantity in zip(axes, quantities, strict=True):
        for name, row in table.items():
            exponent = row["exponents"][quantity]
            label = name if exponent is None else f"{name}: exponent {exponent:.2f}"
            plot.plot(row["sizes"], row["values"][quantity], marker="o", label=label)
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.set_xticks(sizes, [f"{size:,}" for size in sizes])
        plot.xaxis.set_minor_locator(NullLocator())
        low, high = plot.get_ylim()
        _plain_logarithm(plot.yaxis, low, high, 50)
        plot.set_xlabel(axis)
        plot.set_ylabel(LABELS[quantity])
        plot.grid(alpha=0.3)
        plot.legend(fontsize=8)
    _save(figure, folder / f"sweep-{axis}.png")


def _plain_logarithm(axis: Any, low: float, high: float, narrow: float) -> None:
    """Plain numbers on a logarithmic axis, also between powers of ten where ``high / low`` is below ``narrow``."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < narrow * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
