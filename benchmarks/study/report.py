"""The report of a results folder: Markdown, CSV, LaTeX and one HTML page, all from the same blocks.

Figures of different protocols never share a table. Only :class:`study.statistics.Verdict` puts into words which model
does better, so no sentence of the report can say what the corrected test doesn't.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recbole_adrrec.files import AtomicFile
from study import plots
from study.measurements import Measurement, read_measurements
from study.results import Protocol, Results, Run, sample_of
from study.statistics import (
    Comparison,
    Spread,
    Verdict,
    bootstrap_interval,
    compare,
    correct,
    spread,
    users_over_seeds,
)

NONE = "–"


# Blocks


@dataclass(frozen=True)
class Heading:
    """A heading; ``anchor`` names it for links."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of plain texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Text in rows; ``name`` is a label for references and ``numbers`` the columns that hold numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    name: str
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Made:
    """What made a figure: pairs of a word and what it stands for."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Shown:
    """A figure."""

    name: str
    caption: str
    alt: str
    picture: plots.Picture
    made: Made


Block = Heading | Paragraph | Items | Table | Shown


# Numbers as text


def number(value: float | None, places: int = 4) -> str:
    """A number with fixed places; ``–`` for none."""
    return NONE if value is None else f"{value:.{places}f}"


def signed(value: float | None, places: int = 4) -> str:
    """The same with its sign."""
    return NONE if value is None else f"{value:+.{places}f}"


def p_value(value: float | None) -> str:
    """A p value as papers write it."""
    if value is None:
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in percent, with its sign."""
    return NONE if value is None else f"{100 * value:+.1f} %"


def duration(seconds: float) -> str:
    """Seconds in the largest fitting units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _mean_and_sd(found: Spread | None) -> str:
    if found is None:
        return NONE
    return number(found.mean) if found.sd is None else f"{found.mean:.4f} ± {found.sd:.4f}"


# Analysis


@dataclass(frozen=True)
class Entry:
    """All runs of one label in a table."""

    label: str
    model: str
    runs: tuple[Run, ...]
    missing: tuple[int, ...]
    spreads: Mapping[str, Spread]
    interval: tuple[float, float] | None
    valid: Spread | None

    @property
    def n_parameters(self) -> int | None:
        """Parameters of the model, where the runs agree."""
        counts = {run.facts.get("n_parameters") for run in self.runs}
        found = counts.pop() if len(counts) == 1 else None
        return None if found is None else int(found)

    @property
    def train_s(self) -> float | None:
        """Mean training time of a run, in seconds."""
        times = [run.facts["train_s"] for run in self.runs if run.facts.get("train_s") is not None]
        return float(np.mean(times)) if times else None


@dataclass(frozen=True)
class Tested:
    """A model beside its reference."""

    label: str
    reference: str
    comparison: Comparison


@dataclass(frozen=True)
class Analysed:
    """One protocol's entries and comparisons."""

    protocol: Protocol
    entries: Mapping[str, Entry]
    baseline: str | None
    why: str
    tested: tuple[Tested, ...] = ()
    untested: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """All that a report shows."""

    results: Results
    metric: str
    metrics: tuple[str, ...]
    tables: tuple[Analysed, ...]
    measurements: tuple[Measurement, ...] = ()
    ties: Mapping[str, Any] = field(default_factory=dict)

    def verdict(self, tested: Tested) -> Verdict:
        """What may be said of a comparison."""
        return Verdict.of(tested.comparison, self.results.settings.alpha)


def analyse(results: Results) -> Analysis:
    """Take means, choose baselines, test, and correct over all comparisons of the folder."""
    metric, settings = results.metric, results.settings
    metrics = list(dict.fromkeys(name for run in results.done for name in run.metrics))
    metrics.sort(key=lambda name: name != metric)
    tables = []
    with tqdm(desc="statistics", unit="model", disable=None, total=sum(map(len, results.tables.values()))) as bar:
        for protocol, labelled in results.tables.items():
            entries = {label: _entry(results, protocol, label, runs, metric) for label, runs in labelled.items()}
            baseline, why = _best_baseline(entries, settings.ours)
            tested, untested = [], []
            for label, entry in entries.items():
                bar.update()
                reference = settings.references.get(label, baseline)
                if reference is None or reference == label:
                    continue
                if reference not in entries:
                    untested.append(f"{label}: {reference} has no run under this protocol, so they are not compared.")
                    continue
                beside = sample_of(entries[reference].runs, metric)
                tested.append(Tested(label, reference, compare(sample_of(entry.runs, metric), beside)))
            tables.append(Analysed(protocol, entries, baseline, why, tuple(tested), tuple(untested)))
    corrected = iter(correct([each.comparison for table in tables for each in table.tested]))
    tables = [
        Analysed(
            table.protocol,
            table.entries,
            table.baseline,
            table.why,
            tuple(Tested(each.label, each.reference, next(corrected)) for each in table.tested),
            table.untested,
        )
        for table in tables
    ]
    return Analysis(
        results, metric, tuple(metrics), tuple(tables), tuple(read_measurements(results)), _read_ties(results.folder)
    )


def _entry(results: Results, protocol: Protocol, label: str, runs: Sequence[Run], metric: str) -> Entry:
    spreads = {}
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        spreads[name] = spread([run.metrics[name] for run in runs if name in run.metrics])
    interval = None
    sample = sample_of(runs, metric)
    if sample.by_user:
        _, values = users_over_seeds(sample)
        if len(values) > 1:
            low, high = bootstrap_interval(values)
            interval = float(low), float(high)
    valid = [float(run.facts["best_valid"]) for run in runs if run.facts.get("best_valid") is not None]
    return Entry(
        label=label,
        model=str(runs[0].facts["model"]),
        runs=tuple(runs),
        missing=tuple(results.missing_seeds(protocol, runs)),
        spreads=spreads,
        interval=interval,
        valid=spread(valid) if valid else None,
    )


def _best_baseline(entries: Mapping[str, Entry], ours: Iterable[str]) -> tuple[str | None, str]:
    """The baseline with the highest mean validation score, and the sentence that says so."""
    baselines = {label: entry for label, entry in entries.items() if entry.model not in set(ours)}
    if not baselines:
        return None, "No baseline ran under this protocol."
    most = max(len(entry.runs) for entry in baselines.values())
    short = [label for label, entry in baselines.items() if len(entry.runs) < most]
    baselines = {label: entry for label, entry in baselines.items() if label not in short}
    judged = {label: entry for label, entry in baselines.items() if entry.valid is not None}
    metrics = {str(run.facts.get("valid_metric")).lower() for entry in judged.values() for run in entry.runs}
    if len(judged) < len(baselines) or len(metrics) > 1:
        return None, "No baseline was chosen: they have no validation score in one metric."
    best = max(judged, key=lambda label: (judged[label].valid or Spread(0, None, 0)).mean)
    score = number((judged[best].valid or Spread(0, None, 0)).mean)
    found = plots.metric_name(metrics.pop())
    why = f"Best baseline, chosen by mean validation {found} alone: {best} ({score})."
    return best, why + (f" Not eligible, with fewer seeds: {', '.join(short)}." if short else "")


def _read_ties(folder: Path) -> dict[str, Any]:
    path = folder / "ties.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# What made a figure


def made_by(runs: Iterable[Run], extra: Sequence[tuple[str, str]] = ()) -> Made:
    """Command, commit, versions, seeds, wall time and hardware of the runs behind a figure."""
    runs = list(runs)

    def each(name: str) -> str:
        return "; ".join(dict.fromkeys(_as_text(run.facts.get(name)) for run in runs if run.facts.get(name))) or NONE

    wall = sum(float(run.facts.get("wall_s") or 0) for run in runs)
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    facts = (
        ("Command", each("command")),
        ("Commit", each("commit")),
        ("Versions", each("versions")),
        ("Seeds", seeds or NONE),
        ("Wall time", f"{duration(wall)} for {len(runs)} run{'s' if len(runs) != 1 else ''}"),
        ("Hardware", each("hardware")),
    )
    return Made((*facts, *extra))


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        names = {"ram_gib": "GiB of memory", "cores": "cores"}
        parts = []
        for key, found in value.items():
            if found in (None, ""):
                continue
            if key in names:
                parts.append(f"{round(found, 1) if isinstance(found, float) else found} {names[key]}")
            else:
                parts.append(str(found) if key in ("cpu", "gpu") else f"{key} {found}")
        return ", ".join(parts)
    return str(value)


# Blocks of a report


def blocks_of(analysis: Analysis) -> list[Block]:
    """The whole report, in order."""
    results = analysis.results
    title = results.settings.title or f"Study {results.runs[0].facts.get('study') or results.folder.name}"
    blocks: list[Block] = [Heading(title, 1, "top")]
    blocks += [Paragraph(note) for note in results.settings.notes]
    blocks += list(_overview(analysis))
    for table in analysis.tables:
        blocks += list(_table_blocks(analysis, table))
    blocks += list(_measured_blocks(analysis))
    blocks += list(_ties(analysis))
    blocks += list(_failures(analysis))
    blocks += list(_how(analysis))
    return blocks


def _overview(analysis: Analysis) -> Iterator[Block]:
    results = analysis.results
    done, failed = len(results.done), len(results.failed)
    seeds = ", ".join(map(str, results.seeds))
    yield Paragraph(
        f"{done} run{'s' if done != 1 else ''} finished, {failed} failed; seeds {seeds}. "
        f"Tested and drawn: {plots.metric_name(analysis.metric) or NONE}. Figures stand in one table only if they "
        "share data set, split, ranked items and what is known of the query time."
    )
    gaps = [
        f"{table.protocol.title}: {entry.label} lacks seed{'s' if len(entry.missing) != 1 else ''} "
        f"{', '.join(map(str, entry.missing))}"
        for table in analysis.tables
        for entry in table.entries.values()
        if entry.missing
    ]
    gaps += [f"{name} never ran" for name in results.never_ran]
    if gaps:
        yield Heading("Missing runs", 2, "missing")
        yield Items(tuple(gaps))


def _shown_label(entry: Entry, protocol: Protocol) -> str:
    return f"{entry.label} †" if protocol.query_time else entry.label


def _table_blocks(analysis: Analysis, table: Analysed) -> Iterator[Block]:
    protocol = table.protocol
    yield Heading(protocol.title, 2, protocol.key)
    if protocol.sampled:
        yield Paragraph(
            "SAMPLED METRICS: each target is ranked among a sample, not among all items. These figures are higher than "
            "those of full ranking and may order models otherwise; never set them beside each other."
        )
    runs = [run for entry in table.entries.values() for run in entry.runs]
    told = list(dict.fromkeys(text for run in runs if (text := _data_told(run.facts.get("data") or {}))))
    if told:
        yield Paragraph("Data: " + " Or: ".join(told))
    yield _quality_table(analysis, table)
    if protocol.query_time:
        yield Paragraph("† is told the moment of the event that it is to predict.")
    yield Paragraph(table.why)
    if table.tested:
        yield _tests_table(analysis, table)
    if table.untested:
        yield Items(table.untested)
    name = plots.metric_name(analysis.metric)
    rows = [
        plots.QualityRow(
            entry.label,
            entry.spreads[analysis.metric].mean,
            entry.interval[0] if entry.interval else None,
            entry.interval[1] if entry.interval else None,
            tuple(run.metrics[analysis.metric] for run in entry.runs if analysis.metric in run.metrics),
            entry.model in analysis.results.settings.ours,
        )
        for entry in table.entries.values()
        if analysis.metric in entry.spreads
    ]
    if rows:
        listed = "; ".join(f"{row.label} {number(row.mean)}" for row in rows)
        yield Shown(
            f"quality-{protocol.key}",
            f"Test {name} with 95 % intervals over users (bootstrap). Diamonds: ours; circles: baselines; ticks: "
            f"seeds. {protocol.title}.",
            f"Dot plot of test {name}. {listed}.",
            plots.render(lambda: plots.quality(rows, analysis.metric)),
            made_by(runs),
        )
    yield from _curves(table, runs)
    yield from _groups(analysis, table)


def _data_told(data: Mapping[str, Any]) -> str:
    """What there was to learn from and to be judged by, cold items and users counted."""
    if "test_rows" not in data:
        return ""
    text = (
        f"{data['items']:,} items; {data['train_targets']:,} training targets, {data['test_rows']:,} test targets of "
        f"{data['test_users']:,} users, {data['test_targets_never_trained']:,} of them items that training never "
        f"shows, {data['test_targets_met_before']:,} items that the user had met."
    )
    split = data.get("split")
    if split:
        cold = "; ".join(
            f"{split[f'cold_{kind}s']:,} {kind}s without a training event ({split[f'cold_{kind}s_are']}), with "
            f"{split[f'cold_{kind}_events']['test']:,} test events"
            for kind in ("item", "user")
        )
        text += f" Training ends at {_day(split['train_before'])}, validation at {_day(split['test_from'])}; {cold}."
    return text


def _day(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _quality_table(analysis: Analysis, table: Analysed) -> Table:
    header = ("Model", "Parameters", "Seeds", *(plots.metric_name(name) for name in analysis.metrics))
    rows = []
    for entry in table.entries.values():
        seeds = str(len(entry.runs)) + (f" of {len(entry.runs) + len(entry.missing)}" if entry.missing else "")
        parameters = NONE if entry.n_parameters is None else f"{entry.n_parameters:,}"
        figures = (_mean_and_sd(entry.spreads.get(name)) for name in analysis.metrics)
        rows.append((_shown_label(entry, table.protocol), parameters, seeds, *figures))
    caption = f"Test metrics, mean ± standard deviation over seeds. {table.protocol.title}."
    return Table(caption, header, tuple(rows), f"quality-{table.protocol.key}")


def _tests_table(analysis: Analysis, table: Analysed) -> Table:
    name = plots.metric_name(analysis.metric)
    alpha = analysis.results.settings.alpha
    rows = []
    for each in table.tested:
        c = each.comparison
        interval = NONE if c.low is None or c.high is None else f"[{c.low:+.4f}, {c.high:+.4f}]"
        rows.append(
            (
                each.label,
                each.reference,
                analysis.verdict(each).value,
                signed(c.difference),
                interval,
                p_value(c.p_users_holm),
                signed(c.d_z, 3),
                signed(c.rank_biserial, 3),
                p_value(c.p_seeds_holm),
                f"{c.n_users:,} / {c.n_seeds}",
                "; ".join(c.remarks) or NONE,
            )
        )
    header = (
        *("Model", "Reference", f"Verdict at {alpha:g}", f"Difference in {name}", "95 % interval", "p, users"),
        *("d_z", "Rank-biserial", "p, seeds", "Users / seeds", "Remarks"),
    )
    return Table(
        f"Paired tests of {name}; p values corrected by Holm over all comparisons. {table.protocol.title}.",
        header,
        tuple(rows),
        f"tests-{table.protocol.key}",
        frozenset({0, 1, 2, 10}),
    )


def _curves(table: Analysed, runs: Sequence[Run]) -> Iterator[Block]:
    found = []
    for run in runs:
        points = [point for point in run.facts.get("curve") or () if point.get("valid") is not None]
        if points:
            scores = tuple(float(point["valid"]) for point in points)
            seconds = tuple(float(point["train_s"]) for point in points)
            found.append(plots.Curve(run.label, seconds, scores, int(np.argmax(scores))))
    if not found:
        return
    metric = str(runs[0].facts.get("valid_metric") or "score").lower()
    labels = list(dict.fromkeys(curve.label for curve in found))
    limit = (1.03 * max(c.seconds[-1] for c in found), 1.05 * max(max(c.scores) for c in found))
    parts = [labels[start : start + plots.MOST_LINES] for start in range(0, len(labels), plots.MOST_LINES)]
    for place, part in enumerate(parts, 1):
        drawn = [curve for curve in found if curve.label in part]
        which = f" ({place} of {len(parts)}, same axes)" if len(parts) > 1 else ""
        ends = "; ".join(
            f"{label} best {number(max(max(c.scores) for c in drawn if c.label == label))} after at most "
            f"{duration(max(c.seconds[c.best or 0] for c in drawn if c.label == label))}"
            for label in part
        )
        yield Shown(
            f"time-{table.protocol.key}" + (f"-{place}" if len(parts) > 1 else ""),
            f"Validation {plots.metric_name(metric)} against training time, a line for each seed{which}. Times are "
            f"comparable only within one machine and one load. {table.protocol.title}.",
            f"Line plot of validation {plots.metric_name(metric)} over training time. {ends}.",
            plots.render(lambda drawn=drawn: plots.training_time(drawn, metric, limit)),  # type: ignore[misc]
            made_by(run for run in runs if run.label in part),
        )


def _groups(analysis: Analysis, table: Analysed) -> Iterator[Block]:
    tested = {each.label: each for each in table.tested}
    name = plots.metric_name(analysis.metric)
    for group, labels in analysis.results.settings.groups.items():
        here = [label for label in labels if label in table.entries]
        runs = [run for label in here for run in table.entries[label].runs]
        lengths = {label: table.entries[label].runs[0].facts["options"].get("MAX_ITEM_LIST_LENGTH") for label in here}
        if len(set(lengths.values()) - {None}) > 1:
            yield from _length_sweep(analysis, table, group, {k: v for k, v in lengths.items() if v is not None})
            continue
        by_reference: dict[str, list[plots.Bar]] = {}
        for label in here:
            each = tested.get(label) if label in analysis.results.settings.references else None
            if each is not None and each.comparison.difference is not None:
                shown = analysis.verdict(each) in (Verdict.BETTER, Verdict.WORSE)
                c = each.comparison
                bar = plots.Bar(label, each.comparison.difference, c.low, c.high, shown)
                by_reference.setdefault(each.reference, []).append(bar)
        for reference, bars in by_reference.items():
            listed = "; ".join(
                f"{bar.label} {signed(bar.difference)} ({'shown' if bar.shown else 'not shown'})" for bar in bars
            )
            yield Shown(
                f"ablation-{_slug(group)}-{_slug(reference)}-{table.protocol.key}",
                f"{group}: change in test {name} from {reference}, with 95 % intervals. Full bars: the corrected test "
                f"shows a difference; hatched: it doesn't. {table.protocol.title}.",
                f"Bar chart of changes in {name} from {reference}. {listed}.",
                plots.render(lambda bars=bars, reference=reference: plots.ablation(bars, reference, analysis.metric)),  # type: ignore[misc]
                made_by(run for run in runs if run.label in {reference, *(bar.label for bar in bars)}),
            )


def _length_sweep(analysis: Analysis, table: Analysed, group: str, lengths: Mapping[str, int]) -> Iterator[Block]:
    name = plots.metric_name(analysis.metric)
    by_model: dict[str, list[tuple[float, Spread]]] = {}
    for label, length in lengths.items():
        entry = table.entries[label]
        if analysis.metric in entry.spreads:
            by_model.setdefault(entry.model, []).append((float(length), entry.spreads[analysis.metric]))
    drawn = []
    for model, points in by_model.items():
        points.sort(key=lambda point: point[0])
        x, found = zip(*points, strict=True)
        drawn.append(plots.Line(model, x, tuple(each.mean for each in found), tuple(each.sd for each in found)))
    listed = "; ".join(
        f"{line.label} {number(line.y[0])} at {line.x[0]:g}, {number(line.y[-1])} at {line.x[-1]:g}" for line in drawn
    )
    runs = [run for label in lengths for run in table.entries[label].runs]
    yield Shown(
        f"length-{_slug(group)}-{table.protocol.key}",
        f"{group}: test {name} over the most events that a model sees; bands: standard deviation over seeds. "
        f"{table.protocol.title}.",
        f"Line plot of {name} over the length of the history. {listed}.",
        plots.render(lambda: plots.lines({"": drawn}, "most events shown (MAX_ITEM_LIST_LENGTH)", f"test {name}")),
        made_by(runs),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


KINDS = {"replace": "items replaced", "drop": "events dropped", "jitter": "times jittered"}


def _measured_blocks(analysis: Analysis) -> Iterator[Block]:
    by_protocol: dict[Protocol, list[Measurement]] = {}
    for found in analysis.measurements:
        by_protocol.setdefault(found.run.protocol, []).append(found)
    for protocol, measured in sorted(by_protocol.items()):
        yield from _robustness(analysis, protocol, [each for each in measured if each.robustness])
        yield from _noise(analysis, protocol, [each for each in measured if each.noise])
        yield from _heads(analysis, protocol, [each for each in measured if each.heads])
    yield from _inside(analysis)


def _by_label(measured: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for each in measured:
        found.setdefault(each.run.label, []).append(each)
    return found


def _drops(measured: Sequence[Measurement], key: str, wanted: Mapping[str, Any]) -> Spread | None:
    values = [
        float(row["drop"])
        for each in measured
        for row in getattr(each, key)
        if all(row[name] == value for name, value in wanted.items()) and row["drop"] is not None
    ]
    return spread(values) if values else None


def _share(found: Spread | None) -> str:
    if found is None:
        return NONE
    return percent(found.mean) + ("" if found.sd is None else f" ± {100 * found.sd:.1f}")


def _robustness(analysis: Analysis, protocol: Protocol, measured: Sequence[Measurement]) -> Iterator[Block]:
    if not measured:
        return
    metric = str(measured[0].facts["metric"])
    labelled = _by_label(measured)
    kinds = list(dict.fromkeys(row["kind"] for each in measured for row in each.robustness))
    shares = sorted({float(row["share"]) for each in measured for row in each.robustness})
    yield Heading(f"Robustness. {protocol.title}", 2, f"robustness-{protocol.key}")
    yield Paragraph(
        f"Drop in test {plots.metric_name(metric)}, as a share of its value on the whole history, when a part of each "
        "history is changed at test time only; the targets stay. Mean ± standard deviation over seeds, in percent."
    )
    panels: dict[str, list[plots.Line]] = {}
    for kind in kinds:
        rows = []
        for label, found in labelled.items():
            drops = [_drops(found, "robustness", {"kind": kind, "share": share}) for share in shares]
            rows.append((label, str(len(found)), *(_share(drop) for drop in drops)))
            known = [(share, drop) for share, drop in zip(shares, drops, strict=True) if drop is not None]
            line = plots.Line(
                label,
                (0.0, *(100 * share for share, _ in known)),
                (0.0, *(100 * drop.mean for _, drop in known)),
                (0.0, *(None if drop.sd is None else 100 * drop.sd for _, drop in known)),
            )
            panels.setdefault(KINDS.get(kind, kind), []).append(line)
        yield Table(
            f"Drop in {plots.metric_name(metric)}, {KINDS.get(kind, kind)}. {protocol.title}.",
            ("Model", "Seeds", *(f"{100 * share:g} % of the history" for share in shares)),
            tuple(rows),
            f"robustness-{_slug(kind)}-{protocol.key}",
        )
    labels = list(labelled)
    for start in range(0, len(labels), plots.MOST_LINES):
        part = labels[start : start + plots.MOST_LINES]
        drawn = {kind: [line for line in found if line.label in part] for kind, found in panels.items()}
        listed = "; ".join(
            f"{line.label}, {kind}: {line.y[-1]:.1f} % lost at {line.x[-1]:g} %"
            for kind, found in drawn.items()
            for line in found
        )
        yield Shown(
            f"robustness-{protocol.key}"
            + (f"-{start // plots.MOST_LINES + 1}" if len(labels) > plots.MOST_LINES else ""),
            f"Drop in test {plots.metric_name(metric)} over the part of each history that is changed; bands: standard "
            f"deviation over seeds. {protocol.title}.",
            f"Line plots of the drop in {plots.metric_name(metric)}. {listed}.",
            plots.render(
                lambda drawn=drawn: plots.lines(  # type: ignore[misc]
                    drawn, "part of the history changed (%)", f"{plots.metric_name(metric)} lost (%)", zero=True
                )
            ),
            _made_by_measurements([each for label in part for each in labelled[label]]),
        )


def _made_by_measurements(measured: Sequence[Measurement]) -> Made:
    commands = "; ".join(dict.fromkeys(str(each.facts["command"]) for each in measured))
    wall = sum(float(each.facts["wall_s"]) for each in measured)
    return made_by([each.run for each in measured], (("Measured by", f"{commands} ({duration(wall)})"),))


def _noise(analysis: Analysis, protocol: Protocol, measured: Sequence[Measurement]) -> Iterator[Block]:
    if not measured:
        return
    metric = str(measured[0].facts["metric"])
    sigmas = sorted({float(row["sigma"]) for each in measured for row in each.noise})
    rows = []
    for label, found in _by_label(measured).items():
        trained = found[0].facts.get("lni") or NONE
        moved = [
            spread([float(row["moved"]) for each in found for row in each.noise if row["sigma"] == sigma])
            for sigma in sigmas
        ]
        drops = [_drops(found, "noise", {"sigma": sigma}) for sigma in sigmas]
        cells = [f"{_share(drop)} ({100 * each.mean:.1f} %)" for drop, each in zip(drops, moved, strict=True)]
        rows.append((label, str(trained), *cells))
    yield Heading(f"Noise at test time. {protocol.title}", 2, f"noise-{protocol.key}")
    yield Paragraph(
        "Gaussian noise of a size relative to each layer's input is added to it at test time. In brackets: how far "
        "the last states move, relative to their size. A model trained with well-calibrated noise moves and loses less "
        "than the same model without; one that moves as little but scores lower without any noise was held too tight."
    )
    yield Table(
        f"Drop in {plots.metric_name(metric)} under noise in the layers. {protocol.title}.",
        ("Model", "Noise in training", *(f"noise {sigma:g}" for sigma in sigmas)),
        tuple(rows),
        f"noise-{protocol.key}",
        frozenset({0, 1}),
    )


def _heads(analysis: Analysis, protocol: Protocol, measured: Sequence[Measurement]) -> Iterator[Block]:
    if not measured:
        return
    metric = str(measured[0].facts["metric"])
    yield Heading(f"Heads. {protocol.title}", 2, f"heads-{protocol.key}")
    yield Paragraph(
        f"Drop in test {plots.metric_name(metric)} when a head's weights are set to zero at test time, and the mean "
        "entropy of its weights over the log of the number of events that it may see: 1 is spread evenly, 0 looks at "
        "one event. A kind of heads whose drops are all near zero while the other's are large is out of balance; an "
        "entropy near 1 everywhere says that the head tells events apart little."
    )
    for label, found in _by_label(measured).items():
        places = list(dict.fromkeys((row["layer"], row["head"], row["kind"]) for row in found[0].heads))
        rows = []
        drawn: dict[str, list[tuple[str, float, bool]]] = {}
        for layer, head, kind in places:
            at = {"layer": layer, "head": head}
            drop = _drops(found, "heads", at)
            entropies = [
                float(row["entropy"])
                for each in found
                for row in each.heads
                if row["layer"] == layer and row["head"] == head and row["entropy"] is not None
            ]
            entropy = spread(entropies) if entropies else None
            text = (
                NONE
                if entropy is None
                else number(entropy.mean, 3) + (f" ± {entropy.sd:.3f}" if entropy.sd is not None else "")
            )
            rows.append((str(layer), head, kind, _share(drop), text))
            if drop is not None and kind != "all":
                drawn.setdefault(f"layer {layer}", []).append((head, drop.mean, kind == "absolute"))
        yield Table(
            f"Heads of {label}, {len(found)} seed{'s' if len(found) != 1 else ''}. {protocol.title}.",
            ("Layer", "Head", "Kind", f"{plots.metric_name(metric)} lost when silenced", "Entropy"),
            tuple(rows),
            f"heads-{_slug(label)}-{protocol.key}",
            frozenset({0, 1, 2}),
        )
        drawn = {layer: rows_ for layer, rows_ in drawn.items() if layer != "layer all"}
        if drawn:
            listed = "; ".join(
                f"{layer} {head} {percent(drop)}" for layer, each in drawn.items() for head, drop, _ in each
            )
            yield Shown(
                f"heads-{_slug(label)}-{protocol.key}",
                f"{label}: {plots.metric_name(metric)} lost when each head is silenced. {protocol.title}.",
                f"Bar chart of the drop for each head. {listed}.",
                plots.render(lambda drawn=drawn: plots.head_drops(drawn, metric)),  # type: ignore[misc]
                _made_by_measurements(found),
            )


def _inside(analysis: Analysis) -> Iterator[Block]:
    """What one seed's model learned: kernels and attention; the first seed of each label that has them."""
    first: dict[tuple[Protocol, str], Measurement] = {}
    for each in analysis.measurements:
        first.setdefault((each.run.protocol, each.run.label), each)
    shown = [each for each in first.values() if each.kernels or each.attention is not None]
    if shown:
        yield Heading("What the models learned", 2, "learned")
    for each in shown:
        run = each.run
        where = f"{run.label}, seed {run.seed}. {run.protocol.title}"
        name = f"{_slug(run.label)}-{run.protocol.key}"
        if each.kernels:
            listed = "; ".join(
                f"{curve.kernel}, {curve.where}: {curve.added.min():+.2f} to {curve.added.max():+.2f}"
                for curve in each.kernels
            )
            yield Shown(
                f"kernels-{name}",
                "What relative kernels add to the score of an earlier event, mean of the test users' last queries; "
                "counted from its value at no gap, as a softmax ignores what all share. Bands: the least and the most "
                f"around each gap. {where}.",
                f"Line plots of learned kernels over the gap. {listed}.",
                plots.render(lambda each=each: plots.kernels(each.kernels)),  # type: ignore[misc]
                _made_by_measurements([each]),
            )
        if each.attention is not None:
            plain, refined, heads = each.attention
            after = " before and after refinement" if refined is not None else ""
            change = (
                ""
                if refined is None
                else f" The refinement moves {50 * float(np.abs(refined - plain).sum(-1).mean()):.0f} % of the weight."
            )
            yield Shown(
                f"attention-{name}",
                f"Attention weights{after} of the last layer for user {each.facts.get('user')}. Empty cells may not be "
                f"looked at. {where}.",
                f"Heat maps of {len(heads)} heads over {plain.shape[-1]} events.{change}",
                plots.render(lambda p=plain, r=refined, h=heads: plots.attention(p, r, h)),  # type: ignore[misc]
                _made_by_measurements([each]),
            )


TIES = {
    "users": "Users",
    "events": "Events",
    "tied_events": "Events that tie with another of their user",
    "tied_gaps": "Zero gaps between a user's events",
    "last_two_tie": "Users whose last two events tie",
    "whole_days": "Events at midnight UTC",
}


def _ties(analysis: Analysis) -> Iterator[Block]:
    if not analysis.ties:
        return
    yield Heading("Ties in time", 2, "ties")
    columns = list(dict.fromkeys(name for facts in analysis.ties.values() for name in facts))

    def cell(column: str, value: Any) -> str:
        if value is None:
            return NONE
        if column in TIES:
            return f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}"
        return f"{value:+.4f}" if isinstance(value, float) else str(value)

    rows = tuple(
        (name, *(cell(column, facts.get(column)) for column in columns)) for name, facts in analysis.ties.items()
    )
    header = ("Data set", *(TIES.get(column, plots.metric_name(column).replace("_", " ")) for column in columns))
    yield Table("Events of equal time, whose order the data does not tell.", header, rows, "ties")


def _failures(analysis: Analysis) -> Iterator[Block]:
    if not analysis.results.failed:
        return
    yield Heading("Failed runs", 2, "failed")
    rows = tuple(
        (run.label, str(run.facts["dataset"]), str(run.seed), _last_line(run.facts.get("error")))
        for run in analysis.results.failed
    )
    yield Table(
        "Runs that ended with an error.", ("Model", "Data set", "Seed", "Error"), rows, "failed", frozenset({0, 1, 3})
    )


def _last_line(error: Any) -> str:
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _how(analysis: Analysis) -> Iterator[Block]:
    alpha = analysis.results.settings.alpha
    yield Heading("How to read the tests", 2, "tests")
    yield Items(
        (
            "Each user has one value, the mean over the seeds; compared are the users and seeds that both have.",
            "p, users: Wilcoxon's signed-rank test, two-sided. p, seeds: paired t test on the seeds' metrics. Both are "
            "corrected by Holm over all comparisons of this report, each kind by itself.",
            "Intervals: percentile bootstrap of users, drawn with both of their values; not corrected.",
            "d_z: mean difference over its standard deviation. Rank-biserial: balance of the ranks, from -1 to 1.",
            f"A verdict for or against a model needs a corrected p over users below {alpha:g}, and an interval and "
            "ranks on one side of zero. It speaks of users, for the seeds that ran; the test over seeds never decides.",
            "Standard deviations are over seeds, with n - 1; none is given for a single seed.",
        )
    )
    yield Heading("How it was made", 2, "made")
    facts = made_by(analysis.results.runs).facts
    yield Items(
        (*(f"{name}: {value}" for name, value in facts), "This report: python benchmarks/report.py <results folder>")
    )


# Formats


def markdown(blocks: Sequence[Block]) -> str:
    """The report as Markdown; figures are files in ``figures/``."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append("#" * block.level + " " + _md(block.text))
        elif isinstance(block, Paragraph):
            parts.append(_md(block.text))
        elif isinstance(block, Items):
            parts.append("\n".join(f"- {_md(text)}" for text in block.texts))
        elif isinstance(block, Table):
            rule = ["---" if place in block.words else "---:" for place in range(len(block.header))]
            rows = [[_md(cell) for cell in row] for row in (block.header, *block.rows)]
            rows.insert(1, rule)
            parts.append(f"{_md(block.caption)}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
        else:
            made = ". ".join(f"{name}: {value}" for name, value in block.made.facts)
            alt = _md(block.alt).replace("[", r"\[").replace("]", r"\]")
            parts.append(f"![{alt}](figures/{block.name}.png)\n\n{_md(block.caption)} {_md(made)}")
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_|<>#])", r"\\\1", flat)


LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "†": r"$\dagger$", "–": "--", "<": r"$<$", ">": r"$>$", "−": "$-$"},
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands; a sign before a number becomes a minus of mathematics."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)


def latex(blocks: Sequence[Block]) -> str:
    """The tables for a paper; they need the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for block in blocks:
        if not isinstance(block, Table):
            continue
        columns = "".join("l" if place in block.words else "r" for place in range(len(block.header)))
        rows = [" & ".join(escape_latex(cell) for cell in row) + r" \\" for row in (block.header, *block.rows)]
        parts.append(
            "\n".join(
                (
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{escape_latex(block.caption)}}}",
                    rf"\label{{tab:{block.name}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    rows[0],
                    r"\midrule",
                    *rows[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                )
            )
        )
    return "\n\n".join(parts) + "\n"


def results_csv(analysis: Analysis) -> str:
    """One line for each protocol, label and metric. Holds no times, so that equal runs give equal files."""
    header = [*_PROTOCOL, "label", "model", "metric", "mean", "sd", "seeds", "missing_seeds"]
    rows = [
        [
            *(getattr(table.protocol, name) for name in _PROTOCOL),
            *(entry.label, entry.model, metric, found.mean, found.sd, found.n, " ".join(map(str, entry.missing))),
        ]
        for table in analysis.tables
        for entry in table.entries.values()
        for metric, found in entry.spreads.items()
    ]
    return _csv(header, rows)


_PROTOCOL = ("dataset", "split", "candidates", "seen", "query_time", "ties")
_COMPARISON = (
    *("n_users", "n_only_one", "n_differ", "difference", "low", "high", "p_users", "p_users_holm", "d_z"),
    *("rank_biserial", "n_seeds", "p_seeds", "p_seeds_holm"),
)


def comparisons_csv(analysis: Analysis) -> str:
    """One line for each comparison."""
    header = [*_PROTOCOL, "metric", "label", "reference", *_COMPARISON, "verdict", "remarks"]
    rows = [
        [
            *(getattr(table.protocol, name) for name in _PROTOCOL),
            *(analysis.metric, each.label, each.reference),
            *(getattr(each.comparison, name) for name in _COMPARISON),
            *(analysis.verdict(each).value, "; ".join(each.comparison.remarks)),
        ]
        for table in analysis.tables
        for each in table.tested
    ]
    return _csv(header, rows)


def runs_csv(results: Results) -> str:
    """One line for each run, failed ones too, with what made it."""
    plain = (
        *(
            "label",
            "model",
            "dataset",
            "seed",
            "status",
            "error",
            "started",
            "wall_s",
            "train_s",
            "epochs",
            "best_epoch",
        ),
        *("best_valid", "valid_metric", "n_parameters", "query_time", "command", "commit", "saved"),
    )
    packed = ("protocol", "versions", "hardware", "options")
    rows = [
        [
            run.id,
            *(run.facts.get(name) for name in plain),
            *(json.dumps(run.facts.get(name), sort_keys=True) for name in packed),
        ]
        for run in results.runs
    ]
    return _csv(["id", *plain, *packed], rows)


def measurements_csv(analysis: Analysis, key: str) -> str:
    """One line for each measurement of one kind (``robustness``, ``heads``, ``noise``); empty without any."""
    rows = [(each.run, row) for each in analysis.measurements for row in getattr(each, key)]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    lines = [
        [*(getattr(run.protocol, name) for name in _PROTOCOL), run.label, run.seed, *(row.get(name) for name in names)]
        for run, row in rows
    ]
    return _csv([*_PROTOCOL, "label", "seed", *names], lines)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()


def write(results_folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write the report of a results folder into its folder ``report``.

    Returns
    -------
    dict of str to Path
        Where each format is: ``markdown``, ``html``, ``latex`` and the tables as CSV.

    Raises
    ------
    DataError
        If the folder holds no finished runs, or a file in it is unfit.
    """
    from study.page import html_page

    results = Results.read(Path(results_folder))
    analysis = analyse(results)
    blocks = blocks_of(analysis)
    folder = results.folder / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    texts = {
        "markdown": ("report.md", markdown(blocks)),
        "html": ("report.html", html_page(blocks)),
        "latex": ("tables.tex", latex(blocks)),
        "results": ("results.csv", results_csv(analysis)),
        "comparisons": ("comparisons.csv", comparisons_csv(analysis)),
        "runs": ("runs.csv", runs_csv(results)),
        **{key: (f"{key}.csv", measurements_csv(analysis, key)) for key in ("robustness", "heads", "noise")},
    }
    for block in blocks:
        if isinstance(block, Shown):
            for kind, content in (("png", block.picture.png), ("svg", block.picture.light)):
                _write(folder / "figures" / f"{block.name}.{kind}", content)
    paths = {}
    for key, (name, text) in texts.items():
        if text:
            paths[key] = folder / name
            _write(paths[key], text.encode())
    return paths


def _write(path: Path, content: bytes) -> None:
    with AtomicFile(path) as file:
        file.write(content)
