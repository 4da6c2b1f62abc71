"""Events of equal time: how many there are, what they decide, and runs in which their order is random.

Leave-one-out takes a user's last event, and a sequence has an order; where times are equal, the data decides
neither, and the order of the file does. Many data sets have whole days for times.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine.store import write_json

from recbole_adrrec.data.ties import tie_statistics
from recbole_adrrec.times import SECONDS_A_DAY


def measure(dataset: Any) -> dict[str, Any]:
    """Shares of the events and gaps of a built ``SequenceDataset``, or of any part of it, whose order is left open.

    ``users`` and ``events``; ``tied_events``: share of the events whose user has another of the same time;
    ``tied_gaps``, ``last_two_tie``, ``tie_consistency``, ``consistency_by_chance``: as ``TieStatistics`` has them;
    ``whole_days``: share of the events at midnight, UTC.
    """
    events = dataset.inter_feat.events
    everything = torch.arange(len(events))
    users = events.column(events.uid_field, everything)
    times = events.columns[dataset.time_field]
    same_user = users[1:] == users[:-1]
    tie = same_user & (times[1:] == times[:-1])
    tied = torch.zeros(len(events), dtype=torch.bool)
    tied[1:] |= tie
    tied[:-1] |= tie
    items = events.column(dataset.iid_field, everything)
    ties = tie_statistics(users.numpy(), items.numpy(), times.numpy())
    return {
        "users": len(users.unique()),
        "events": len(events),
        "tied_events": float(tied.double().mean()),
        "tied_gaps": ties.zero_gaps,
        "last_two_tie": ties.last_two_tie,
        "tie_consistency": ties.consistency,
        "consistency_by_chance": ties.by_chance,
        "whole_days": float((times % SECONDS_A_DAY == 0).double().mean()),
    }


def summarise(results: Path) -> dict[str, dict[str, Any]]:
    """Write ``ties.json`` into a folder of results: each data set's ties, and how far shuffling them moves a metric.

    For each data set the numbers of :func:`measure` and, where runs were repeated with ties shuffled, the metric of
    early stopping: the mean and the largest shift over pairs of runs that differ in the order of ties alone, and the
    largest shift of a model's mean.
    """
    found: dict[str, dict[str, Any]] = {}
    scores: dict[tuple[str, ...], dict[str, float]] = {}
    for path in sorted((results / "runs").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["status"] != "done":
            continue
        dataset, protocol = run["dataset"], dict(run["protocol"])
        ties, metric = protocol.pop("ties"), run["valid_metric"].lower()
        if ties == "file" and run.get("data", {}).get("ties"):
            found.setdefault(dataset, dict(run["data"]["ties"]))
        if metric in run["metrics"]:  # a study that tests nothing has none
            key = (dataset, metric, f"{run['label']} {protocol}", str(run["seed"]))
            scores.setdefault(key, {})[ties] = run["metrics"][metric]
    for dataset, facts in found.items():
        shifts: dict[str, list[float]] = {}
        for (where, metric, entry, _), each in scores.items():
            if where == dataset and len(each) == 2:
                shifts.setdefault(entry, []).append(each["shuffled"] - each["file"])
                name = metric
        every = [shift for each in shifts.values() for shift in each]
        if every:
            facts["runs_shuffled"] = len(every)
            facts[f"{name}_mean_shift"] = float(np.mean(every))
            facts[f"{name}_largest_shift"] = float(max(every, key=abs))
            facts[f"{name}_largest_shift_of_a_mean"] = float(max((np.mean(each) for each in shifts.values()), key=abs))
    write_json(results / "ties.json", found)
    return found
