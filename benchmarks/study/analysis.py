"""Analysis of a results folder: means, best baselines, paired tests, and their correction over the whole folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.store import read_json
from tqdm import tqdm

from study import plots
from study.document import NONE, Provenance, duration, number, plural
from study.measurements import Measurement, read_measurements
from study.results import Results, Run, Settings, TableKey, sample_of
from study.statistics import Comparison, Spread, Verdict, bootstrap_interval, compare, correct, spread


@dataclass(frozen=True)
class Entry:
    """All runs of one label in a table; ``interval`` is the bootstrap's over users."""

    label: str
    model: str
    runs: tuple[Run, ...]
    missing: tuple[int, ...]
    spreads: Mapping[str, Spread]
    interval: tuple[float, float] | None
    valid: Spread | None

    def values(self, metric: str) -> list[float]:
        """A test metric of the runs that have it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    @property
    def n_parameters(self) -> int | None:
        """Parameters of the model, where the runs agree."""
        counts = {run.facts.get("n_parameters") for run in self.runs}
        return counts.pop() if len(counts) == 1 else None


@dataclass(frozen=True)
class Tested:
    """A model beside its reference."""

    label: str
    reference: str
    comparison: Comparison


@dataclass(frozen=True)
class AnalysedTable:
    """Entries and comparisons of one table; ``why`` says how the baseline was chosen."""

    key: TableKey
    entries: Mapping[str, Entry]
    baseline: str | None
    why: str
    tested: tuple[Tested, ...] = ()
    untested: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """All content of a report."""

    results: Results
    metric: str
    metrics: tuple[str, ...]
    tables: tuple[AnalysedTable, ...]
    measurements: tuple[Measurement, ...] = ()
    ties: Mapping[str, Any] = field(default_factory=dict)

    def verdict(self, tested: Tested) -> Verdict:
        """The words that a comparison allows."""
        return Verdict.of(tested.comparison, self.results.settings.alpha)


def analyse(results: Results) -> Analysis:
    """Take means, choose baselines, test, and correct over all comparisons of the folder."""
    metric = results.metric
    metrics = sorted(
        dict.fromkeys(name for run in results.done for name in run.metrics), key=lambda name: name != metric
    )
    tables = []
    with tqdm(desc="statistics", unit="model", disable=None, total=sum(map(len, results.tables.values()))) as bar:
        for key, labelled in results.tables.items():
            tables.append(_table(results, key, labelled, metric))
            bar.update(len(labelled))
    corrected = iter(correct([each.comparison for table in tables for each in table.tested]))
    tables = [
        replace(table, tested=tuple(replace(each, comparison=next(corrected)) for each in table.tested))
        for table in tables
    ]
    measured, ties = tuple(read_measurements(results)), read_json(Path(results.folder, "ties.json")) or {}
    return Analysis(results, metric, tuple(metrics), tuple(tables), measured, ties)


def _table(results: Results, key: TableKey, labelled: Mapping[str, Sequence[Run]], metric: str) -> AnalysedTable:
    entries = {label: _entry(results, key, label, runs, metric) for label, runs in labelled.items()}
    baseline, why = _best_baseline(entries, results.settings)
    tested, untested = [], []
    for label, entry in entries.items():
        reference = results.settings.references.get(label, baseline)
        if reference is None or reference == label:
            continue
        if reference not in entries:
            untested.append(f"{label}: {reference} has no run under this protocol, so they are not compared.")
            continue
        beside = sample_of(entries[reference].runs, metric)
        tested.append(Tested(label, reference, compare(sample_of(entry.runs, metric), beside)))
    return AnalysedTable(key, entries, baseline, why, tuple(tested), tuple(untested))


def _entry(results: Results, key: TableKey, label: str, runs: Sequence[Run], metric: str) -> Entry:
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    sample = sample_of(runs, metric)
    values = sample.over_seeds()
    interval = bootstrap_interval(values) if len(values) > 1 else None
    valid = [float(run.facts["best_valid"]) for run in runs if run.facts.get("best_valid") is not None]
    return Entry(
        label=label,
        model=str(runs[0].facts["model"]),
        runs=tuple(runs),
        missing=tuple(results.missing_seeds(key, runs)),
        spreads={name: spread([run.metrics[name] for run in runs if name in run.metrics]) for name in names},
        interval=interval,
        valid=spread(valid) if valid else None,
    )


def _best_baseline(entries: Mapping[str, Entry], settings: Settings) -> tuple[str | None, str]:
    """The baseline with the highest mean validation score, and the sentence that says so."""
    baselines = {label: entry for label, entry in entries.items() if not settings.is_ours(label, entry.model)}
    if not baselines:
        return None, "No baseline ran under this protocol."
    # Popularity is the same with every seed: it keeps nobody out with more of them, and is not kept out with fewer.
    drawn = {label: len(entry.runs) for label, entry in baselines.items() if entry.model != "Popularity"}
    short = [label for label, count in drawn.items() if count < max(drawn.values())]
    eligible = {label: entry for label, entry in baselines.items() if label not in short}
    scores = {label: entry.valid.mean for label, entry in eligible.items() if entry.valid is not None}
    metrics = {str(run.facts.get("valid_metric")).lower() for label in scores for run in eligible[label].runs}
    if len(scores) < len(eligible) or len(metrics) > 1:
        return None, "No baseline was chosen: they have no validation score in one metric."
    best = max(scores, key=lambda label: scores[label])
    metric = plots.metric_name(metrics.pop())
    why = f"Best baseline, chosen by mean validation {metric} alone: {best} ({number(scores[best])})."
    return best, why + (f" Not eligible, with fewer seeds: {', '.join(short)}." if short else "")


# Origin of a figure


def provenance_of(runs: Iterable[Run], extra: Sequence[tuple[str, str]] = ()) -> Provenance:
    """Command, commit, versions, seeds, wall time and hardware of the runs behind a figure."""
    runs = list(runs)

    def each(name: str) -> str:
        return "; ".join(dict.fromkeys(_as_text(run.facts.get(name)) for run in runs if run.facts.get(name))) or NONE

    wall = sum(float(run.facts.get("wall_s") or 0) for run in runs)
    facts = (
        ("Command", each("command")),
        ("Commit", each("commit")),
        ("Versions", each("versions")),
        ("Seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in runs})) or NONE),
        ("Wall time", f"{duration(wall)} for {plural(len(runs), 'run')}"),
        ("Hardware", each("hardware")),
    )
    return Provenance((*facts, *extra))


def _as_text(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    texts = {"ram_gib": "{} GiB of memory", "cores": "{} cores", "cpu": "{}", "gpu": "{}"}
    return ", ".join(
        texts.get(key, f"{key} {{}}").format(found) for key, found in value.items() if found not in (None, "")
    )
