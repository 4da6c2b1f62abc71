"""Where models differ: users by what the event they are tested on is like, and the metric of each group.

``users/<data set>-<split>-<ties>.npz`` in a results folder holds, for each user with one test event, the time since the
event before it, the number of events before it, and how often and how early training met its item.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recbole_adrrec.files import AtomicFile
from recbole_adrrec.times import SECONDS_A_DAY as DAY
from study import plots
from study.analysis import AnalysedTable, Analysis, provenance_of
from study.document import Block, Figure, Heading, Paragraph, Table, number, signed
from study.plan import RunSpec
from study.results import Results, TableKey, sample_of, slug
from study.statistics import bootstrap_interval

FOLDER = "users"
FEWEST = 30
"""Users from which a group has an interval."""


@dataclass(frozen=True)
class Attribute:
    """A number of each test event, and the groups it makes: ``names[i]`` from ``edges[i]`` to below the next edge."""

    key: str
    text: str
    edges: tuple[float, ...]
    names: tuple[str, ...]

    def groups(self, values: Any) -> pd.Categorical:
        """The group of each value."""
        return pd.cut(np.asarray(values), [*self.edges, np.inf], right=False, labels=self.names)


ATTRIBUTES = (
    Attribute(
        "gap",
        "Time since the user's last known event",
        (0, 1, DAY, 7 * DAY, 30 * DAY, 182 * DAY),
        ("none", "less than a day", "1 to 7 days", "7 to 30 days", "30 to 182 days", "182 days and more"),
    ),
    Attribute(
        "history",
        "Events before",
        (0, 6, 11, 21, 51, 101),
        ("up to 5", "6 to 10", "11 to 20", "21 to 50", "51 to 100", "more than 100"),
    ),
    Attribute(
        "popularity",
        "Training events of the item",
        (0, 1, 11, 31, 101, 301),
        ("none", "1 to 10", "11 to 30", "31 to 100", "101 to 300", "more than 300"),
    ),
    Attribute(
        "age",
        "Time since the item's first training event",
        (-np.inf, 0, 30 * DAY, 182 * DAY, 365 * DAY, 730 * DAY),
        ("not yet met", "less than 30 days", "30 to 182 days", "182 to 365 days", "1 to 2 years", "2 years and more"),
    ),
)


def path_of(folder: Path, table: TableKey) -> Path:
    """The file of a data set's users under a split."""
    return folder / FOLDER / f"{slug(table.dataset)}-{table.split}-{table.ties}.npz"


def describe(train: Any, test: Any) -> dict[str, NDArray[Any]]:
    """``users``, as the data file names them, and each attribute of their test event; users with several are left out.

    ``train`` and ``test`` are the ``SequenceDataset`` of one split; ``test`` has a row for each test event.
    """
    events, targets = test.inter_feat.events, test.inter_feat.targets.long()
    items, times = (events.column(name, targets).numpy() for name in (test.iid_field, test.time_field))
    before = events.columns[test.time_field][targets - 1].numpy()
    met_items, met_times = (column.numpy() for column in train.shown_events(True, train.iid_field, train.time_field))
    count = np.bincount(met_items, minlength=train.item_num)
    first = np.full(train.item_num, np.inf)
    np.minimum.at(first, met_items, met_times)
    numbers = events.column(test.uid_field, targets).numpy()
    once = np.isin(numbers, np.flatnonzero(np.bincount(numbers) == 1))
    found = {
        "users": np.asarray(test.field2id_token[test.uid_field])[numbers].astype(str),
        "gap": (times - before).astype(np.float64),
        "history": (targets - events.first(targets)).numpy().astype(np.float64),
        "popularity": count[items].astype(np.float64),
        "age": times - first[items],
    }
    return {name: values[once] for name, values in found.items()}


def measure(results: Results, data_path: str) -> list[Path]:
    """Write the users' file of each data set and split of a results folder that has none yet.

    Raises
    ------
    DataError
        If the data are not in ``data_path``.
    """
    from study.measurements import spec_of

    written = []
    for key, labelled in results.tables.items():
        path = path_of(results.folder, key)
        if not path.is_file():
            _write(spec_of(results, next(iter(labelled.values()))[0], data_path), path)
            written.append(path)
    return written


def _write(spec: RunSpec, path: Path) -> None:
    from study import session

    data = importlib.import_module("recbole.data")
    path.parent.mkdir(parents=True, exist_ok=True)
    with session.in_temporary_folder() as folder:
        config = session.configure(spec, folder)
        train, _, test = data.data_preparation(config, data.create_dataset(config))
    with AtomicFile(path) as file:
        np.savez_compressed(file, **describe(train._dataset, test._dataset))  # type: ignore[arg-type]


# Sections of a report


def strata_blocks(analysis: Analysis) -> Iterator[Block]:
    """Tables and a figure for each data set whose users are described."""
    for table in analysis.tables:
        path = path_of(analysis.results.folder, table.key)
        if path.is_file() and any(entry.interval for entry in table.entries.values()):
            with np.load(path, allow_pickle=False) as file:
                described = pd.DataFrame({name: file[name] for name in file.files}).set_index("users")
            yield from _blocks(analysis, table, described)


def _blocks(analysis: Analysis, table: AnalysedTable, described: pd.DataFrame) -> Iterator[Block]:
    metric, name = analysis.metric, plots.metric_name(analysis.metric)
    samples = {label: sample_of(entry.runs, metric).over_seeds() for label, entry in table.entries.items()}
    values = pd.DataFrame({label: each for label, each in samples.items() if len(each)}).reindex(described.index)
    settings = analysis.results.settings
    ours = [label for label in values if settings.is_ours(label, table.entries[label].model)]
    pairs = [(each.label, each.reference) for each in table.tested if each.label in ours and each.reference in values]
    columns = {f"{label} - {beside}": values[label] - values[beside] for label, beside in pairs}
    differences = pd.DataFrame(columns, index=values.index)
    yield Heading(f"Where they differ. {table.key.title}", 2, f"strata-{table.key.key}")
    yield Paragraph(
        f"Test {name} of users by what the event they are tested on is like; users' means over seeds. Differences have "
        f"95 % bootstrap intervals over the users of a group, from {FEWEST} users on; nothing is corrected for the "
        "number of groups."
    )
    panels: dict[str, dict[str, dict[str, plots.Interval]]] = {}
    for attribute in ATTRIBUTES:
        rows = []
        for group, users in described.groupby(attribute.groups(described[attribute.key]), observed=True).groups.items():
            share = f"{100 * len(users) / len(described):.1f} %"
            marks = {pair: _interval(column) for pair, column in differences.loc[users].items()}
            cells = (*map(number, values.loc[users].mean()), *map(_as_text, marks.values()))
            rows.append((group, f"{len(users):,}", share, *cells))
            if marks and len(users) >= FEWEST:
                panels.setdefault(attribute.text, {})[f"{group} ({share})"] = marks
        yield Table(
            f"{name} by: {attribute.text.lower()}. {table.key.title}.",
            (attribute.text, "Users", "Share", *values, *differences),
            tuple(rows),
            f"strata-{attribute.key}-{table.key.key}",
        )
    if panels:
        runs = [run for pair in pairs for label in pair for run in table.entries[label].runs]
        yield Figure(
            f"strata-{table.key.key}",
            f"Difference in test {name} by group of users, with 95 % bootstrap intervals. {table.key.title}.",
            f"Differences in {name} by group of users: the tables above in a picture.",
            plots.render(lambda: plots.groups(panels, metric)),
            provenance_of(runs),
        )


def _interval(differences: pd.Series) -> plots.Interval:
    """Mean of the users who have a value, and the ends of its interval where they are enough."""
    found = differences.dropna()
    if len(found) < FEWEST:
        return float(found.mean()), None, None
    return float(found.mean()), *bootstrap_interval(found)


def _as_text(found: plots.Interval) -> str:
    middle, low, high = found
    return signed(middle) + ("" if low is None else f" [{signed(low)}, {signed(high)}]")
