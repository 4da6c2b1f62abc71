"""The report of a results folder: Markdown, CSV, LaTeX and one HTML page, all from the same blocks.

Figures of different protocols never share a table. Only :class:`study.statistics.Verdict` puts into words which model
does better, so no sentence of the report can say what the corrected test doesn't.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_adrrec.files import AtomicFile
from study import plots
from study.analysis import AnalysedTable, Analysis, Entry, Tested, analyse, provenance_of
from study.document import (
    NONE,
    Block,
    Figure,
    Heading,
    Items,
    Paragraph,
    Table,
    duration,
    number,
    p_value,
    plural,
    render,
    shown_once,
    signed,
)
from study.report_measured import measured_blocks
from study.results import Results, Run, TableKey, slug
from study.statistics import Comparison, Spread, Verdict
from study.strata import strata_blocks

# Sections


def blocks_of(analysis: Analysis) -> list[Block]:
    """The whole report, in order."""
    results = analysis.results
    title = results.settings.title or f"Study {results.runs[0].facts.get('study') or results.folder.name}"
    blocks: list[Block] = [Heading(title, 1, "top")]
    blocks += [Paragraph(note) for note in results.settings.notes]
    blocks += _overview(analysis)
    for table in analysis.tables:
        blocks += _table_blocks(analysis, table)
    blocks += strata_blocks(analysis)
    blocks += measured_blocks(analysis)
    blocks += _ties(analysis)
    if gaps := _gaps(analysis):
        blocks += [Heading("Missing runs", 2, "missing"), Items(tuple(gaps))]
    blocks += _failures(analysis)
    blocks += _how(analysis)
    return blocks


def _overview(analysis: Analysis) -> Iterator[Block]:
    results = analysis.results
    yield Paragraph(
        f"{plural(len(results.done), 'run')} finished, {len(results.failed)} failed; seeds "
        f"{', '.join(map(str, results.seeds))}. Tested and drawn: {plots.metric_name(analysis.metric) or NONE}. "
        "Figures stand in one table only if they share data set, split, ranked items and knowledge of the query time."
    )
    if _gaps(analysis):
        yield Paragraph("Not everything has been run: see Missing runs, below.")


def _gaps(analysis: Analysis) -> list[str]:
    """Runs that are missing, those of one data set, split and seeds together."""
    found: dict[str, dict[str, None]] = {}
    for table in analysis.tables:
        split = table.key.split.replace("_", "-").replace("temporal", "temporal split")
        for entry in table.entries.values():
            if entry.missing:
                seeds = f"seed{'s' if len(entry.missing) != 1 else ''} {', '.join(map(str, entry.missing))}"
                found.setdefault(f"{table.key.dataset}, {split}, {seeds}", {})[entry.label] = None
    for name in analysis.results.never_ran:
        place, _, label = name.partition(": ")
        found.setdefault(f"{place}, all seeds", {})[label] = None
    return [f"{place}: {'; '.join(labels)}" for place, labels in found.items()]


def _table_blocks(analysis: Analysis, table: AnalysedTable) -> Iterator[Block]:
    key = table.key
    runs = [run for entry in table.entries.values() for run in entry.runs]
    yield Heading(key.title, 2, key.key)
    if key.sampled:
        yield Paragraph(
            "SAMPLED METRICS: each target is ranked among a sample, not among all items. These figures are higher than "
            "those of full ranking and may order models otherwise; never set them beside each other."
        )
    texts = dict.fromkeys(text for run in runs if (text := _data_text(run.facts.get("data") or {})))
    if texts:
        yield Paragraph("Data: " + " Or: ".join(texts))
    yield _quality_table(analysis, table)
    if _lists(analysis):
        yield _lists_table(analysis, table)
    if key.query_time:
        yield Paragraph("† knows the time of the event that it is to predict.")
    yield Paragraph(table.why)
    if table.tested:
        yield _tests_table(analysis, table)
    if table.untested:
        yield Items(table.untested)
    yield from _quality_figure(analysis, table, runs)
    yield from _curves(table, runs)
    yield from _groups(analysis, table)


def _data_text(data: Mapping[str, Any]) -> str:
    """Numbers of targets and users in words, cold items and users among them."""
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
        ends = [f"{datetime.fromtimestamp(split[name], timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
                for name in ("train_before", "test_from")]  # fmt: skip
        text += f" Training ends at {ends[0]}, validation at {ends[1]}; {cold}."
    return text


def _mean_and_sd(found: Spread | None) -> str:
    if found is None:
        return NONE
    return number(found.mean) if found.sd is None else f"{found.mean:.4f} ± {found.sd:.4f}"


def _quality_table(analysis: Analysis, table: AnalysedTable) -> Table:
    metrics = [name for name in analysis.metrics if name not in _lists(analysis)]
    header = ("Model", "Parameters", "Seeds", *map(plots.metric_name, metrics))
    rows = []
    for entry in table.entries.values():
        seeds = str(len(entry.runs)) + (f" of {len(entry.runs) + len(entry.missing)}" if entry.missing else "")
        parameters = NONE if entry.n_parameters is None else f"{entry.n_parameters:,}"
        figures = (_mean_and_sd(entry.spreads.get(name)) for name in metrics)
        rows.append((f"{entry.label} †" if table.key.query_time else entry.label, parameters, seeds, *figures))
    caption = f"Test metrics, mean ± standard deviation over seeds. {table.key.title}."
    return Table(caption, header, tuple(rows), f"quality-{table.key.key}")


def _lists(analysis: Analysis) -> list[str]:
    """Metrics of what is recommended, whether it is right or not."""
    return [name for name in analysis.metrics if name.partition("@")[0] not in plots.ACCURACY]


def _lists_table(analysis: Analysis, table: AnalysedTable) -> Table:
    names = _lists(analysis)
    rows = tuple(
        (entry.label, *(_mean_and_sd(entry.spreads.get(name)) for name in names)) for entry in table.entries.values()
    )
    caption = (
        "The lists themselves, mean ± standard deviation over seeds. Novelty: mean self-information of the items in "
        "bits. Diversity: mean distance of two items of a list, 1 - cosine of their users. Coverage: share of all "
        f"items that are in a list. Gini: inequality of how often (0: all alike). {table.key.title}."
    )
    return Table(caption, ("Model", *map(plots.metric_name, names)), rows, f"lists-{table.key.key}")


def _tests_table(analysis: Analysis, table: AnalysedTable) -> Table:
    name = plots.metric_name(analysis.metric)
    rows = []
    for each in table.tested:
        c = each.comparison
        interval = NONE if c.low is None or c.high is None else f"[{c.low:+.4f}, {c.high:+.4f}]"
        rows.append(
            (
                *(each.label, each.reference, analysis.verdict(each).value, signed(c.difference), interval),
                *(p_value(c.p_users_holm), signed(c.d_z, 3), signed(c.rank_biserial, 3), p_value(c.p_seeds_holm)),
                *(f"{c.n_users:,} / {c.n_seeds}", "; ".join(c.remarks) or NONE),
            )
        )
    verdict = f"Verdict at {analysis.results.settings.alpha:g}"
    header = (
        *("Model", "Reference", verdict, f"Difference in {name}", "95 % interval", "p, users"),
        *("d_z", "Rank-biserial", "p, seeds", "Users / seeds", "Remarks"),
    )
    caption = f"Paired tests of {name}; p values corrected by Holm over all comparisons. {table.key.title}."
    return Table(caption, header, tuple(rows), f"tests-{table.key.key}", frozenset({0, 1, 2, 10}))


def _quality_figure(analysis: Analysis, table: AnalysedTable, runs: Sequence[Run]) -> Iterator[Block]:
    metric, settings = analysis.metric, analysis.results.settings
    entries = [entry for entry in table.entries.values() if metric in entry.spreads]
    ours = {entry.label for entry in entries if settings.is_ours(entry.label, entry.model)}
    if entries:
        name = plots.metric_name(metric)
        listed = "; ".join(f"{entry.label} {number(entry.spreads[metric].mean)}" for entry in entries)
        yield Figure(
            f"quality-{table.key.key}",
            f"Test {name} with 95 % intervals over users (bootstrap). Diamonds: ours; circles: baselines; ticks: "
            f"seeds. {table.key.title}.",
            f"Dot plot of test {name}. {listed}.",
            plots.render(lambda: plots.quality(entries, ours, metric)),
            provenance_of(runs),
        )


def _curves(table: AnalysedTable, runs: Sequence[Run]) -> Iterator[Block]:
    drawn = [run for run in runs if run.curve[0]]
    if not drawn:
        return
    metric = str(runs[0].facts.get("valid_metric") or "score").lower()
    limit = (1.03 * max(run.curve[0][-1] for run in drawn), 1.05 * max(max(run.curve[1]) for run in drawn))
    parts = plots.parts_of(list(dict.fromkeys(run.label for run in drawn)))
    for suffix, part in parts.items():
        ends = []
        for label in part:
            scores = [max(run.curve[1]) for run in drawn if run.label == label]
            latest = max(run.curve[0][int(np.argmax(run.curve[1]))] for run in drawn if run.label == label)
            ends.append(f"{label} best {number(max(scores))} after at most {duration(latest)}")
        these = [run for run in drawn if run.label in part]
        yield Figure(
            f"time-{table.key.key}{suffix}",
            f"Validation {plots.metric_name(metric)} against training time, a line for each seed"
            f"{f' ({suffix[1:]} of {len(parts)}, same axes)' if suffix else ''}. Times are "
            f"comparable only within one machine and one load. {table.key.title}.",
            f"Line plot of validation {plots.metric_name(metric)} over training time. {'; '.join(ends)}.",
            plots.render(lambda these=these: plots.training_time(these, metric, limit)),  # type: ignore[misc]
            provenance_of(run for run in runs if run.label in part),
        )


def _groups(analysis: Analysis, table: AnalysedTable) -> Iterator[Block]:
    """Figures of the ablation's groups: changes from their references, or a metric over the length of the history."""
    settings, metric, name = analysis.results.settings, analysis.metric, plots.metric_name(analysis.metric)
    known = {label: entry for label, entry in table.entries.items() if metric in entry.spreads}
    compared = [each for each in table.tested if each.comparison.difference is not None]
    changed = {each.label: each for each in compared if each.label in settings.references}
    for group, labels in settings.groups.items():
        here = {label: known[label] for label in labels if label in known}
        lengths = {label: each.runs[0].facts["options"].get("MAX_ITEM_LIST_LENGTH") for label, each in here.items()}
        if len(set(lengths.values()) - {None}) > 1:
            yield _length_sweep(analysis, table, group, [(here[label], n) for label, n in lengths.items() if n])
            continue
        by_reference: dict[str, list[Tested]] = {}
        for each in (changed[label] for label in here if label in changed):
            by_reference.setdefault(each.reference, []).append(each)
        for reference, tested in by_reference.items():
            shown = {each.label for each in tested if analysis.verdict(each) in (Verdict.BETTER, Verdict.WORSE)}
            listed = "; ".join(
                f"{each.label} {signed(each.comparison.difference)} ({'' if each.label in shown else 'not '}shown)"
                for each in tested
            )
            drawn = {reference, *(each.label for each in tested)}
            yield Figure(
                f"ablation-{slug(group)}-{slug(reference)}-{table.key.key}",
                f"{group}: change in test {name} from {reference}, with 95 % intervals. Full bars: the corrected test "
                f"shows a difference; hatched: it doesn't. {table.key.title}.",
                f"Bar chart of changes in {name} from {reference}. {listed}.",
                plots.render(lambda tested=tested, shown=shown: plots.ablation(tested, shown, metric)),  # type: ignore[misc]
                provenance_of(run for label, each in here.items() if label in drawn for run in each.runs),
            )


def _length_sweep(analysis: Analysis, table: AnalysedTable, group: str, found: Sequence[tuple[Entry, int]]) -> Block:
    metric, name = analysis.metric, plots.metric_name(analysis.metric)
    points = pd.DataFrame(
        {"panel": "", "label": entry.model, "x": float(length), **vars(entry.spreads[metric])}
        for entry, length in sorted(found, key=lambda each: each[1])
    )
    listed = "; ".join(
        f"{label} " + ", ".join(f"{number(y)} at {x:g}" for x, y in line[["x", "mean"]].iloc[[0, -1]].to_numpy())
        for label, line in points.groupby("label", sort=False)
    )
    return Figure(
        f"length-{slug(group)}-{table.key.key}",
        f"{group}: test {name} over the most events that a model sees; bands: standard deviation over seeds. "
        f"{table.key.title}.",
        f"Line plot of {name} over the length of the history. {listed}.",
        plots.render(lambda: plots.lines(points, "most events shown (MAX_ITEM_LIST_LENGTH)", f"test {name}")),
        provenance_of(run for entry, _ in found for run in entry.runs),
    )


TIES = {
    "users": "Users",
    "events": "Events",
    "tied_events": "Events that tie with another of their user",
    "tied_gaps": "Zero gaps between a user's events",
    "last_two_tie": "Users whose last two events tie",
    "tie_consistency": "Repeated tied pairs in their commoner order",
    "consistency_by_chance": "The same by chance",
    "whole_days": "Events at midnight UTC",
}


def _ties(analysis: Analysis) -> Iterator[Block]:
    if not analysis.ties:
        return
    columns = list(dict.fromkeys(name for facts in analysis.ties.values() for name in facts))

    def cell(column: str, value: Any) -> str:
        if value is None:
            return NONE
        if column in TIES:
            return f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}"
        return f"{value:+.4f}" if isinstance(value, float) else str(value)

    rows = tuple((name, *(cell(each, facts.get(each)) for each in columns)) for name, facts in analysis.ties.items())
    header = ("Data set", *(TIES.get(column, plots.metric_name(column).replace("_", " ")) for column in columns))
    yield Heading("Tied timestamps", 2, "ties")
    yield Table("Events of equal time, whose order the data does not say.", header, rows, "ties")


def _failures(analysis: Analysis) -> Iterator[Block]:
    rows = []
    for run in analysis.results.failed:
        lines = [line.strip() for line in str(run.facts.get("error") or "").splitlines() if line.strip()]
        rows.append((run.label, str(run.facts["dataset"]), str(run.seed), lines[-1] if lines else "no message"))
    if rows:
        header = ("Model", "Data set", "Seed", "Error")
        yield Heading("Failed runs", 2, "failed")
        yield Table("Runs that ended with an error.", header, tuple(rows), "failed", frozenset({0, 1, 3}))


def _how(analysis: Analysis) -> Iterator[Block]:
    yield Heading("How to read the tests", 2, "tests")
    yield Items(
        (
            "Each user has one value, the mean over the seeds; compared are the users and seeds that both have.",
            "p, users: Wilcoxon's signed-rank test, two-sided. p, seeds: paired t test on the seeds' metrics. Both are "
            "corrected by Holm over all comparisons of this report, each kind by itself.",
            "Intervals: percentile bootstrap of users, drawn with both of their values; not corrected.",
            "d_z: mean difference over its standard deviation. Rank-biserial: balance of the ranks, from -1 to 1.",
            f"A verdict for or against a model needs a corrected p over users below "
            f"{analysis.results.settings.alpha:g}, and an interval and ranks on one side of zero. It speaks of users, "
            "for the seeds that ran; the test over seeds never decides.",
            "Standard deviations are over seeds, with n - 1; none is given for a single seed.",
        )
    )
    facts = provenance_of(analysis.results.runs).facts
    yield Heading("How it was made", 2, "made")
    yield Items(
        (*(f"{name}: {value}" for name, value in facts), "This report: python benchmarks/report.py <results folder>")
    )


# CSV

_KEY = [field.name for field in fields(TableKey)]
_COMPARISON = [field.name for field in fields(Comparison) if field.name != "remarks"]
_RUN = (
    *("label", "model", "dataset", "seed", "status", "error", "started", "wall_s", "train_s", "epochs", "best_epoch"),
    *("best_valid", "valid_metric", "n_parameters", "query_time", "command", "commit", "saved"),
)
_PACKED = ("protocol", "versions", "hardware", "options")


def csv_files(analysis: Analysis) -> dict[str, str]:
    """The tables as CSV; ``results`` and ``comparisons`` hold no times, so that equal runs give equal files."""
    results: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for table in analysis.tables:
        key = vars(table.key)
        for entry in table.entries.values():
            named = {**key, "label": entry.label, "model": entry.model}
            missing = " ".join(map(str, entry.missing))
            for metric, found in entry.spreads.items():
                figures = {"mean": found.mean, "sd": found.sd, "seeds": found.n, "missing_seeds": missing}
                results.append({**named, "metric": metric, **figures})
        for each in table.tested:
            named = {**key, "metric": analysis.metric, "label": each.label, "reference": each.reference}
            last = {"verdict": analysis.verdict(each).value, "remarks": "; ".join(each.comparison.remarks)}
            comparisons.append({**named, **vars(each.comparison), **last})
    runs = [
        {"id": run.id}
        | {name: run.facts.get(name) for name in _RUN}
        | {name: json.dumps(run.facts.get(name), sort_keys=True) for name in _PACKED}
        for run in analysis.results.runs
    ]
    texts = {
        "results": _csv(results, [*_KEY, "label", "model", "metric", "mean", "sd", "seeds", "missing_seeds"]),
        "comparisons": _csv(comparisons, [*_KEY, "metric", "label", "reference", *_COMPARISON, "verdict", "remarks"]),
        "runs": _csv(runs),
    }
    for kind in ("robustness", "heads"):
        rows = [
            {**vars(each.run.table), "label": each.run.label, "seed": each.run.seed, **row}
            for each in analysis.measurements
            for row in getattr(each, kind)
        ]
        if rows:
            texts[kind] = _csv(rows)
    return texts


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV, numbers to their last digit; None is an empty cell."""
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def write(results_folder: str | Path) -> dict[str, Path]:
    """Write the report of a results folder into its folder ``report``: files by format, and the tables as CSV.

    Raises
    ------
    DataError
        If the folder holds no finished runs, or a file in it is unfit.
    """
    results = Results.read(Path(results_folder))
    analysis = analyse(results)
    blocks = shown_once(blocks_of(analysis))
    folder = results.folder / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    templates = {"markdown": "report.md", "html": "report.html", "latex": "tables.tex"}
    files = {key: (folder / name, render(name, blocks).encode()) for key, name in templates.items()}
    files |= {key: (folder / f"{key}.csv", text.encode()) for key, text in csv_files(analysis).items()}
    pictures = [block for block in blocks if isinstance(block, Figure) and not block.first]
    drawn = [(folder / "figures" / f"{each.name}.png", each.picture.png) for each in pictures]
    drawn += [(folder / "figures" / f"{each.name}.svg", each.picture.light) for each in pictures]
    for path, content in (*files.values(), *drawn):
        with AtomicFile(path) as file:
            file.write(content)
    return {key: path for key, (path, _) in files.items()}
