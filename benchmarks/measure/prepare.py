"""The making of training rows, RecBole's and ours: ``efficiency.py --prepare``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from measure import memory
from measure.tables import Row, failures, markdown, medians, ratio, shown
from measure.training import config_of, start
from measure.variants import CE

if TYPE_CHECKING:
    from measure.session import Session

SIDES = {"RecBole": "recbole", "ours": "ours"}
QUANTITIES = ("augment_s", "rows_mib", "peak_mib", "dataset_s", "rows")
RATIOS = {"time_ratio": "augment_s", "rows_ratio": "rows_mib", "peak_ratio": "peak_mib"}


def report(session: Session) -> str:
    """Measure both by turns; table in Markdown."""
    from measure.session import Job

    arguments = session.arguments
    options = {**session.options(), "use_gpu": False, **CE}
    jobs = [
        Job(
            "prepare",
            name,
            run,
            "measure.prepare:measure",
            {"source": source, "model": "SASRec", "dataset": arguments.dataset, "options": options},
            {"data_path": session.data_path},
        )
        for run in range(arguments.runs)
        for name, source in SIDES.items()
    ]
    found = table(session.measure(jobs, "prepare"))
    session.store.note("prepare", found)
    head = ["training rows", "make them s", "they hold MiB", "peak while made MiB", "whole data set s"]
    cells = [[row["variant"], *(shown(row.get(key)) for key in QUANTITIES[:4])] for row in found["sides"]]
    cells.append(["ratio", *(shown(found[key]) for key in RATIOS), ""])
    errors = failures({row["variant"]: row["error"] for row in found["sides"] if not row["runs"]})
    title = f"### Making training rows of {arguments.dataset}, L = {arguments.length}"
    return "\n\n".join([title, markdown(head, cells), *errors])


def table(measurements: Sequence[Row]) -> Row:
    """Medians of both ``sides``, and RecBole's over ours: ``time_ratio``, ``rows_ratio``, ``peak_ratio``."""
    theirs, ours = medians(measurements, list(SIDES), QUANTITIES)
    return {
        "sides": [theirs, ours],
        **{name: ratio(theirs.get(key), ours.get(key)) for name, key in RATIOS.items()},
    }


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Build a data set and measure the making of training rows alone, which RecBole calls augmentation.

    Given is what :func:`measure.training.measure` takes. Found are ``augment_s``, ``rows_mib`` (bytes of the tensors
    that hold events and rows), ``peak_mib`` (rise of resident memory meanwhile), ``rows``, and ``dataset_s`` (all of
    the data set, from the file to its three parts).
    """
    start(given["source"])
    ours = given["source"] == "ours"
    module = importlib.import_module("recbole_adrrec.data.dataset" if ours else "recbole.data.dataset")
    owner: Any = module.SequenceDataset if ours else module.SequentialDataset
    original, found = owner.data_augmentation, {}

    def timed(self: Any) -> None:
        before = memory.resident()
        memory.reset_peak()
        begin = time.perf_counter()
        original(self)
        found["augment_s"] = time.perf_counter() - begin
        found["peak_mib"] = max(0.0, memory.peak() - before)
        rows = self.inter_feat
        if ours:
            tensors = [rows.targets, rows.events.starts, *rows.events.columns.values()]
        else:
            tensors = list(rows.interaction.values())
        found["rows"] = len(rows)
        found["rows_mib"] = sum(tensor.untyped_storage().nbytes() for tensor in tensors) / memory.MIB

    owner.data_augmentation = timed
    from recbole.data import create_dataset

    config = config_of(given)
    begin = time.perf_counter()
    create_dataset(config).build()
    return {**found, "dataset_s": time.perf_counter() - begin}
