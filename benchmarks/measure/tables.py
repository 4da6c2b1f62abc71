"""From measurements to tables: medians, ratios, exponents, Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from measure.variants import BASELINE, WRITTEN_OUT, Variant

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


def median(values: Sequence[float | None]) -> float | None:
    """Median of the values that there are."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of a line through the logarithms: ``value ~ size ** exponent``. None with fewer than two sizes."""
    pairs = [(size, value) for size, value in zip(sizes, values, strict=True) if size > 0 and value > 0]
    if len({size for size, _ in pairs}) < 2:
        return None
    size, value = np.log(np.array(pairs, dtype=np.float64)).T
    return float(np.polyfit(size, value, 1)[0])


def line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the straight line of least squares; a constant with a single size."""
    if len(set(sizes)) < 2:
        return float(np.mean(values)), 0.0
    slope, intercept = np.polyfit(np.asarray(sizes, float), np.asarray(values, float), 1)
    return float(intercept), float(slope)


def results(measurements: Sequence[Row], name: str) -> list[Row]:
    """What the runs of a variant gave, without those that failed."""
    return [one["result"] for one in measurements if one["variant"] == name and one["result"] is not None]


def training(measurements: Sequence[Row], variants: Sequence[Variant]) -> list[Row]:
    """One row for each variant: medians over runs and epochs, and ratios against ``BASELINE``.

    Keys: ``variant``, ``runs``, ``epoch_s``, ``scaled``, ``targets``, ``targets_per_s`` (null for cloze models),
    ``rows_per_s``, ``times_faster`` (the baseline's seconds an epoch over these; null where an epoch has fewer
    targets), ``targets_ratio`` (targets a second over the baseline's), ``prepare_s``, ``eval_s``, ``parameters``,
    ``peak_mib``, ``rise_mib`` (peak over what the process held after imports), ``gpu_peak_mib``,
    ``first_step_s``, ``error``.
    """
    table = []
    for variant in variants:
        found = results(measurements, variant.name)
        row: Row = {"variant": variant.name, "runs": len(found), "error": None}
        if not found:
            errors = [one["error"] for one in measurements if one["variant"] == variant.name]
            table.append({**row, "error": errors[-1] if errors else "not measured"})
            continue
        epoch = median([second for one in found for second in one["epoch_s"]])
        assert epoch is not None
        first = found[0]
        row |= {
            "epoch_s": epoch,
            "scaled": first["scaled"],
            "targets": first["targets"],
            "targets_per_s": None if variant.cloze else first["targets"] / epoch,
            "rows_per_s": first["rows"] / epoch,
            "prepare_s": median([one["prepare_s"] for one in found]),
            "eval_s": median([one["eval_s"] for one in found]),
            "parameters": first["parameters"],
            "peak_mib": median([one["peak_mib"] for one in found]),
            "rise_mib": median([one["peak_mib"] - one["base_mib"] for one in found]),
            "gpu_peak_mib": median([one["gpu_peak_mib"] for one in found]),
            "first_step_s": median([one["first_step_s"] for one in found]),
        }
        table.append(row)
    base = next((row for row in table if row["variant"] == BASELINE and row["runs"]), None)
    for row, variant in zip(table, variants, strict=True):
        if base is None or not row["runs"]:
            row |= {"times_faster": None, "targets_ratio": None}
            continue
        # A cloze model may mask a user's first event too: its epoch has a target a user more, never fewer.
        comparable = row["targets"] >= base["targets"]
        row["times_faster"] = base["epoch_s"] / row["epoch_s"] if comparable else None
        row["targets_ratio"] = None if variant.cloze else row["targets_per_s"] / base["targets_per_s"]
    return table


def attention(measurements: Sequence[Row], variants: Sequence[Variant]) -> list[Row]:
    """One row for each variant of the attention step.

    Keys: ``variant``, ``runs``, ``step_s``, ``peak_mib``, ``saved_mib``, ``saved_weights_mib``, ``saved_others_mib``,
    and ``times_faster``, ``peak_share``, ``saved_share`` against ``WRITTEN_OUT``; ``error``.
    """
    table = []
    for variant in variants:
        found = results(measurements, variant.name)
        row: Row = {"variant": variant.name, "runs": len(found), "error": None}
        if found:
            row["step_s"] = median([second for one in found for second in one["step_s"]])
            for key in ("peak_mib", "saved_mib", "saved_weights_mib", "saved_others_mib"):
                row[key] = median([one[key] for one in found])
        else:
            errors = [one["error"] for one in measurements if one["variant"] == variant.name]
            row["error"] = errors[-1] if errors else "not measured"
        table.append(row)
    base = next((row for row in table if row["variant"] == WRITTEN_OUT and row["runs"]), None)
    for row in table:
        ratio = base is not None and row["runs"]
        row["times_faster"] = base["step_s"] / row["step_s"] if base and ratio else None
        row["peak_share"] = row["peak_mib"] / base["peak_mib"] if base and ratio else None
        row["saved_share"] = row["saved_mib"] / base["saved_mib"] if base and ratio else None
    return table


def prepare(measurements: Sequence[Row], ours: str, theirs: str) -> Row:
    """Making of training rows, RecBole's over ours: medians, and ``time_ratio``, ``rows_ratio``, ``peak_ratio``."""
    sides: dict[str, Row] = {}
    for name in (theirs, ours):
        found = results(measurements, name)
        keys = ("augment_s", "rows_mib", "peak_mib", "dataset_s", "rows")
        sides[name] = {key: median([one[key] for one in found]) for key in keys}

    def ratio(key: str) -> float | None:
        above, below = sides[theirs][key], sides[ours][key]
        return above / below if above is not None and below else None

    return {
        "sides": sides,
        "time_ratio": ratio("augment_s"),
        "rows_ratio": ratio("rows_mib"),
        "peak_ratio": ratio("peak_mib"),
    }


def sweep(measurements: Sequence[Row], axis: str, names: Sequence[str], quantities: Sequence[str]) -> Row:
    """Points and growth exponents of a sweep.

    Returns
    -------
    dict
        For each variant: ``sizes`` (those that succeeded), ``failed`` (size to error), for each quantity its ``values``
        (medians) and ``exponents``.
    """
    table: Row = {}
    for name in names:
        of_variant = [one for one in measurements if one["variant"] == name]
        sizes = sorted({one["given"]["sweep"][axis] for one in of_variant})
        values: dict[str, list[float]] = {quantity: [] for quantity in quantities}
        measured, failed = [], {}
        for size in sizes:
            at_size = [one for one in of_variant if one["given"]["sweep"][axis] == size]
            found = [one["result"] for one in at_size if one["result"] is not None]
            if not found:
                failed[str(size)] = at_size[-1]["error"]
                continue
            measured.append(size)
            for quantity in quantities:
                middle = median([_quantity(one, quantity) for one in found])
                values[quantity].append(float("nan") if middle is None else middle)
        table[name] = {
            "sizes": measured,
            "failed": failed,
            "values": values,
            "exponents": {quantity: exponent(measured, values[quantity]) for quantity in quantities},
        }
    return table


def _quantity(result: Row, name: str) -> float | None:
    if name == "rise_mib":
        return float(result["peak_mib"] - result["base_mib"])
    value = result[name]
    return median(value) if isinstance(value, list) else value


def shown(value: float | None, digits: int = 3) -> str:
    """A number for people: so many digits, thousands set apart, a dash for None."""
    if value is None or value != value:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 10 else f"{value:.1f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column left, the others right; padded, so that it reads as plain text too."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def joined(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = [("-" * width if column == 0 else "-" * (width - 1) + ":") for column, width in enumerate(widths)]
    return "\n".join([joined(head), f"| {' | '.join(rule)} |", *(joined(row) for row in cells[1:])])


def _failures(table: Sequence[Row]) -> str:
    """A line for each row that has no figures."""
    lines = [f"- {row['variant']}: {row['error']}" for row in table if not row["runs"]]
    return "\n\n" + "\n".join(lines) if lines else ""


def training_text(table: Sequence[Row]) -> str:
    """Markdown of :func:`training`."""
    on_gpu = any(row.get("gpu_peak_mib") is not None for row in table)
    head = [
        *("variant", "s / epoch", "times faster", "targets / s", "over RecBole", "rows / s", "prepare s", "evaluate s"),
        *("peak MiB", "over imports", "parameters", "runs"),
    ]
    rows = []
    for row in table:
        if not row["runs"]:
            rows.append([row["variant"], "failed", *["–"] * (len(head) - 3), "0"])
            continue
        mark = "*" if row["scaled"] else ""
        rows.append(
            [
                row["variant"],
                shown(row["epoch_s"]) + mark,
                shown(row["times_faster"]),
                shown(row["targets_per_s"]),
                shown(row["targets_ratio"]),
                shown(row["rows_per_s"]),
                shown(row["prepare_s"]),
                shown(row["eval_s"]),
                shown(row["peak_mib"]),
                shown(row["rise_mib"]),
                f"{row['parameters']:,}",
                str(row["runs"]),
            ]
        )
    if on_gpu:
        head.insert(-2, "GPU MiB")
        for cells, row in zip(rows, table, strict=True):
            cells.insert(-2, shown(row.get("gpu_peak_mib")))
    text = markdown(head, rows)
    if any(row.get("scaled") for row in table):
        text += "\n\n\\* told from some steps of an epoch."
    return text + _failures(table)


def attention_text(table: Sequence[Row]) -> str:
    """Markdown of :func:`attention`."""
    head = [
        "step",
        "s",
        "times faster",
        "peak MiB",
        "of written out",
        "kept for backward MiB",
        "of written out",
        "runs",
    ]
    rows = []
    for row in table:
        if not row["runs"]:
            rows.append([row["variant"], "failed", *["–"] * (len(head) - 3), "0"])
            continue
        keys = ("step_s", "times_faster", "peak_mib", "peak_share", "saved_mib", "saved_share")
        rows.append([row["variant"], *(shown(row[key]) for key in keys), str(row["runs"])])
    return markdown(head, rows) + _failures(table)


def prepare_text(table: Row) -> str:
    """Markdown of :func:`prepare`."""
    head = ["training rows", "make them s", "they hold MiB", "peak while made MiB", "whole data set s"]
    rows = [
        [name, *(shown(side[key]) for key in ("augment_s", "rows_mib", "peak_mib", "dataset_s"))]
        for name, side in table["sides"].items()
    ]
    ratios = [shown(table[key]) for key in ("time_ratio", "rows_ratio", "peak_ratio")]
    return markdown(head, [*rows, ["ratio", *ratios, ""]])


def sweep_text(table: Row, axis: str, quantities: Sequence[str]) -> str:
    """Markdown of :func:`sweep`: a row for each variant and quantity, sizes as columns, the exponent last."""
    sizes = sorted({size for row in table.values() for size in [*row["sizes"], *map(int, row["failed"])]})
    head = [f"by {axis}", *(f"{size:,}" for size in sizes), "exponent"]
    rows, failed = [], []
    for name, row in table.items():
        for quantity in quantities:
            at = dict(zip(row["sizes"], row["values"][quantity], strict=True))
            cells = [shown(at.get(size)) for size in sizes]
            rows.append([f"{name}: {LABELS.get(quantity, quantity)}", *cells, shown(row["exponents"][quantity])])
        failed += [f"- {name} at {size}: {error}" for size, error in row["failed"].items()]
    return "\n".join([markdown(head, rows), *(["", *failed] if failed else [])])
