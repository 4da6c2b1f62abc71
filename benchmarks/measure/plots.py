"""Pictures of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from measure.tables import LABELS
from measure.variants import BASELINE


def _plain(value: float, _: int) -> str:
    return f"{value:,.10g}"


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def training(table: Sequence[dict[str, Any]], folder: Path) -> Path | None:
    """Bars of seconds an epoch and of memory over imports, ``training.png``; None where nothing was measured."""
    rows = [row for row in table if row["runs"]][::-1]
    if not rows:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(rows) + 1.4), sharey=True, layout="constrained")
    names = [row["variant"] for row in rows]
    colours = ["tab:gray" if name.startswith("Rec") and "our" not in name else "tab:blue" for name in names]
    for axis, key, label in (
        (axes[0], "epoch_s", "seconds an epoch (log)"),
        (axes[1], "rise_mib", "peak memory over imports, MiB (log)"),
    ):
        values = [max(row[key], 1e-3) for row in rows]
        bars = axis.barh(names, values, color=colours)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 4)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 20 * min(values) else (1,)))
        axis.xaxis.set_major_formatter(FuncFormatter(_plain))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.bar_label(bars, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Grey: other packages as they are; ratios are against {BASELINE}", fontsize=10)
    return _save(figure, folder / "training.png")


def sweep(table: dict[str, Any], axis: str, quantities: Sequence[str], folder: Path) -> Path | None:
    """Curves of each quantity over the sizes, both logarithmic, with exponents in the legend: ``sweep-<axis>.png``."""
    if not any(row["sizes"] for row in table.values()):
        return None
    sizes = sorted({size for row in table.values() for size in row["sizes"]})
    figure, axes = plt.subplots(1, len(quantities), figsize=(4.6 * len(quantities), 4), layout="constrained")
    for plot, quantity in zip(axes if len(quantities) > 1 else [axes], quantities, strict=True):
        for name, row in table.items():
            exponent = row["exponents"][quantity]
            label = name if exponent is None else f"{name}: exponent {exponent:.2f}"
            plot.plot(row["sizes"], row["values"][quantity], marker="o", label=label)
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.set_xticks(sizes, [f"{size:,}" for size in sizes])
        plot.xaxis.set_minor_locator(NullLocator())
        low, high = plot.get_ylim()
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        plot.yaxis.set_major_formatter(FuncFormatter(_plain))
        plot.yaxis.set_minor_formatter(NullFormatter())
        plot.set_xlabel(axis)
        plot.set_ylabel(LABELS.get(quantity, quantity))
        plot.grid(alpha=0.3)
        plot.legend(fontsize=8)
    return _save(figure, folder / f"sweep-{axis}.png")
