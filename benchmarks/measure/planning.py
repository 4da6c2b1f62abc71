"""What a large data set will cost, from copies that fit: ``synthetic.py --plan``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
from engine.provenance import hardware, versions
from tqdm import tqdm

from measure.children import call
from measure.ledger import Ledger
from measure.settings import common
from measure.tables import line, markdown, shown
from recbole_adrrec.options import parse_value

STAGES = ("dataset", "loaders", "model", "warm-up", "training")


def run(arguments: argparse.Namespace, folder: Path) -> str:
    """Measure each fraction in a process of its own, then lay lines through time and memory.

    Parameters
    ----------
    arguments : Namespace
        Of ``synthetic.py``.
    folder : Path
        Where the data sets are put; one that is there already is used again.

    Returns
    -------
    str
        The report, in Markdown.

    Raises
    ------
    ValueError
        For a fraction or an option that is none.
    """
    extra = _extra(arguments.option)
    for fraction in arguments.fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"--fractions: {fraction} must be above 0 and at most 1")
    ledger = Ledger(arguments.json, {"hardware": hardware(), "versions": versions()})
    points = []
    bar = tqdm(sorted(arguments.fractions), desc="sizes")
    for fraction in bar:
        users, events = max(1, round(arguments.users * fraction)), max(1, round(arguments.events * fraction))
        name = f"synthetic-{users}-{arguments.items}-{events}-{arguments.seed}"
        bar.set_postfix_str(f"{events:,} events")
        if not (folder / name / f"{name}.inter").exists():
            size = (users, arguments.items, events, arguments.seed, arguments.least)
            synthetic.write(folder, name, *size, progress=False)
        options = common(name, str(folder), arguments.length, arguments.batch, "cpu")
        # The filter of our settings of MovieLens 20M: it costs time and memory too.
        options |= {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)"}
        # The folder is no part of what is measured.
        kept = {key: value for key, value in options.items() if key != "data_path"} | extra
        given = {
            "source": "ours",
            "model": arguments.model,
            "dataset": name,
            "epochs": 1,
            "steps": arguments.steps,
            "evaluate": False,
            "threads": arguments.threads,
            "options": kept,
        }

        def work(given: dict[str, Any] = given, options: dict[str, Any] = options) -> dict[str, Any]:
            child = {**given, "options": {**options, **extra}}
            return call("measure.training:measure", child, threads=arguments.threads)

        one = ledger.measure("plan", arguments.model, given, 0, work)
        points.append({"users": users, "events": events, "result": one["result"], "error": one["error"]})
    table = estimate(points, arguments.users, arguments.events)
    ledger.note("plan", table)
    return report(table, arguments)


def _extra(given: list[str]) -> dict[str, Any]:
    found = {}
    for option in given:
        name, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"--option: {option!r} is not of the form NAME=VALUE")
        found[name] = parse_value(text, name)
    return found


def estimate(points: list[dict[str, Any]], users: int, events: int) -> list[dict[str, Any]]:
    """Figures at each size that was tried and at the whole.

    Parameters
    ----------
    points : list of dict
        ``users``, ``events``, ``result`` of :func:`measure.training.measure` or None, ``error``.
    users, events : int
        Size of the whole.

    Returns
    -------
    list of dict
        ``users``, ``events``, ``how`` (``measured`` or ``extrapolated``), ``load_s`` (extrapolated along a line
        over the number of events), ``peak_mib`` (so for each stage, then the highest), ``steps_s`` (the median),
        ``epoch_s`` (in proportion to the events), ``stages`` (measured alone).

    Raises
    ------
    ValueError
        If no size could be measured.
    """
    known = [point for point in points if point["result"] is not None]
    if not known:
        raise ValueError(f"no size could be measured ({points[-1]['error'] if points else 'none given'})")
    if not any(point["events"] == events for point in points):
        points = [*points, {"users": users, "events": events, "result": None, "error": None}]
    sizes = [point["events"] for point in known]
    values = {
        "load_s": [point["result"]["prepare_s"] for point in known],
        "peak_mib": [point["result"]["peak_mib"] for point in known],
        "steps_s": [point["result"]["steps_s"] for point in known],
        "epoch_s": [point["result"]["epoch_s"][0] for point in known],
    }
    lines = {"load_s": line(sizes, values["load_s"])}
    # A step costs the same whatever the number of events, and an epoch has steps in proportion to it.
    lines["steps_s"] = (float(np.median(values["steps_s"])), 0.0)
    lines["epoch_s"] = (0.0, float(np.median([s / size for s, size in zip(values["epoch_s"], sizes, strict=True)])))
    table = []
    for point in points:
        row: dict[str, Any] = {"users": point["users"], "events": point["events"], "stages": None}
        if point["result"] is not None:
            at = known.index(point)
            row |= {"how": "measured", **{name: of_name[at] for name, of_name in values.items()}}
            row["stages"] = point["result"]["stages"]
        else:
            row |= {"how": "extrapolated"}
            row |= {name: intercept + slope * point["events"] for name, (intercept, slope) in lines.items()}
            row["peak_mib"] = max(
                _grown(sizes, [one["result"]["stages"][stage]["peak_mib"] for one in known], point["events"])
                for stage in known[0]["result"]["stages"]
            )
            if len(known) < 2:
                row["how"] = "extrapolated from one size: no line"
        table.append(row)
    return table


def _grown(sizes: list[int], peaks: list[float], events: int) -> float:
    """Peak of one stage at another size: along the line, and never below what was measured at a smaller size."""
    intercept, slope = line(sizes, peaks)
    smaller = [peak for size, peak in zip(sizes, peaks, strict=True) if size <= events]
    return max([intercept + slope * events, *smaller])


def report(table: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Markdown of :func:`estimate`."""
    rows = [
        [
            f"{row['events']:,}",
            f"{row['users']:,}",
            row["how"],
            shown(row["load_s"]),
            shown(row["steps_s"]),
            shown(row["epoch_s"]),
            f"{row['peak_mib'] / 1024:.2f}",
        ]
        for row in table
    ]
    head = ["events", "users", "how", "load s", f"{arguments.steps} steps s", "s / epoch", "peak GiB"]
    parts = [
        f"{arguments.model}, L = {arguments.length}, {arguments.items:,} items, {arguments.batch} targets a step, "
        f"{arguments.threads} threads",
        markdown(head, rows),
    ]
    largest = [row for row in table if row["stages"]][-1]
    stages = [
        [name, *(shown(largest["stages"][name][key]) for key in ("s", "rss_mib", "peak_mib"))]
        for name in STAGES
        if name in largest["stages"]
    ]
    parts += [
        f"Where time and memory go at {largest['events']:,} events:",
        markdown(["stage", "s", "resident after MiB", "peak MiB"], stages),
    ]
    return "\n\n".join(parts)
