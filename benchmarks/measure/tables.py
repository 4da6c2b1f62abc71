"""Medians and ratios of measurements, and tables of them in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

Row = dict[str, Any]

LABELS = {
    "step_s": "step, s",
    "peak_mib": "peak of a step, MiB",
    "saved_mib": "kept for backward, MiB",
    "saved_others_mib": "kept beyond L x L weights, MiB",
    "prepare_s": "prepare data, s",
    "epoch_s": "epoch, s",
    "rise_mib": "peak over imports, MiB",
}
"""Quantities of a sweep, for people."""


def ratio(above: float | None, below: float | None) -> float | None:
    """``above / below``; None where one is missing or ``below`` is zero."""
    return above / below if above is not None and below else None


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of a line through the logarithms: ``value ~ size ** exponent``. None with fewer than two sizes."""
    pairs = [(size, value) for size, value in zip(sizes, values, strict=True) if size > 0 and value > 0]
    if len({size for size, _ in pairs}) < 2:
        return None
    size, value = np.log(np.array(pairs, dtype=np.float64)).T
    return float(np.polyfit(size, value, 1)[0])


def values(result: Row, quantity: str) -> list[float]:
    """Values of one run, None left out; quantities as for :func:`medians`."""
    if quantity == "rise_mib":
        return [result["peak_mib"] - result["base_mib"]]
    if quantity == "later_epoch_s":
        return [float(np.median(result["epoch_s"][1:] or result["epoch_s"]))]
    value = result[quantity] if quantity in result else result["metrics"][quantity]
    return [each for each in (value if isinstance(value, list) else [value]) if each is not None]


def medians(measurements: Sequence[Row], names: Sequence[str], quantities: Sequence[str]) -> list[Row]:
    """One row for each variant named: ``variant``, ``runs`` (that succeeded), ``error`` (null unless all failed).

    And where there are runs the median of each quantity, over runs and the values of each run. ``measurements`` have
    ``variant``, ``result`` (None if it failed) and ``error``; quantities are keys of ``result`` or of its ``metrics``,
    ``rise_mib`` (peak over what was resident after imports) and ``later_epoch_s`` (epochs after a run's first).
    """
    table = []
    for name in names:
        own = [one for one in measurements if one["variant"] == name]
        found = [one["result"] for one in own if one["result"] is not None]
        row: Row = {"variant": name, "runs": len(found), "error": None}
        if not found:
            row["error"] = own[-1]["error"] if own else "not measured"
        for quantity in quantities if found else ():
            every = [value for result in found for value in values(result, quantity)]
            row[quantity] = float(np.median(every)) if every else None
        table.append(row)
    return table


def shown(value: float | None, digits: int = 3) -> str:
    """A number for people: so many digits, thousands set apart, a dash for None."""
    if value is None or value != value:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 10 else f"{value:.1f}"


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of text cells: the first column left, the others right."""
    align = ["left", *["right"] * (len(head) - 1)]
    return tabulate(cells, head, tablefmt="pipe", disable_numparse=True, colalign=align)


def text(rows: Sequence[Row], columns: dict[str, str], digits: dict[str, int] | None = None) -> str:
    """Markdown of rows as of :func:`medians`, and a line for each that failed.

    Between ``variant`` and ``runs`` stand the columns, heads by key, but for those without any figure; ``digits`` shown
    are three where it has no other number for the key.
    """
    keys = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cells = [
        [row["variant"], *(shown(row.get(key), (digits or {}).get(key, 3)) for key in keys), str(row["runs"])]
        for row in rows
    ]
    table = markdown(["", *(columns[key] for key in keys), "runs"], cells)
    return "\n\n".join([table, *failures({row["variant"]: row["error"] for row in rows if not row["runs"]})])


def failures(errors: dict[str, str]) -> list[str]:
    """One paragraph with a line for each error; none without errors."""
    return ["\n".join(f"- {name}: {error}" for name, error in errors.items())] if errors else []
