"""The report of a results folder: Markdown, CSV, LaTeX and one HTML page, all from the same blocks.

Figures of different protocols never share a table. Only :class:`study.statistics.Verdict` puts into words which model
does better, so no sentence of the report can say what the corrected test doesn't.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from recbole_adrrec.files import AtomicFile
from study import plots
from study.analysis import AnalysedTable, Analysis, Entry, analyse, provenance_of
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
    to_csv,
)
from study.report_measured import measured_blocks
from study.results import Results, Run, slug
from study.statistics import Spread, Verdict
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
    rows = []
    for entry in table.entries.values():
        if metric in entry.spreads:
            low, high = entry.interval or (None, None)
            seeds = tuple(run.metrics[metric] for run in entry.runs if metric in run.metrics)
            is_ours = settings.is_ours(entry.label, entry.model)
            rows.append(plots.QualityRow(entry.label, entry.spreads[metric].mean, low, high, seeds, is_ours))
    if rows:
        name = plots.metric_name(metric)
        yield Figure(
            f"quality-{table.key.key}",
            f"Test {name} with 95 % intervals over users (bootstrap). Diamonds: ours; circles: baselines; ticks: "
            f"seeds. {table.key.title}.",
            f"Dot plot of test {name}. {'; '.join(f'{row.label} {number(row.mean)}' for row in rows)}.",
            plots.render(lambda: plots.quality(rows, metric)),
            provenance_of(runs),
        )


def _curves(table: AnalysedTable, runs: Sequence[Run]) -> Iterator[Block]:
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
    limit = (1.03 * max(c.seconds[-1] for c in found), 1.05 * max(max(c.scores) for c in found))
    parts = plots.parts_of(list(dict.fromkeys(curve.label for curve in found)))
    for suffix, part in parts.items():
        drawn = [curve for curve in found if curve.label in part]
        ends = []
        for label in part:
            best = [(max(c.scores), c.seconds[c.best]) for c in drawn if c.label == label]
            scores_, seconds_ = zip(*best, strict=True)
            ends.append(f"{label} best {number(max(scores_))} after at most {duration(max(seconds_))}")
        yield Figure(
            f"time-{table.key.key}{suffix}",
            f"Validation {plots.metric_name(metric)} against training time, a line for each seed"
            f"{f' ({suffix[1:]} of {len(parts)}, same axes)' if suffix else ''}. Times are "
            f"comparable only within one machine and one load. {table.key.title}.",
            f"Line plot of validation {plots.metric_name(metric)} over training time. {'; '.join(ends)}.",
            plots.render(lambda drawn=drawn: plots.training_time(drawn, metric, limit)),  # type: ignore[misc]
            provenance_of(run for run in runs if run.label in part),
        )


def _groups(analysis: Analysis, table: AnalysedTable) -> Iterator[Block]:
    """Figures of the ablation's groups: changes from their references, or a metric over the length of the history."""
    tested = {each.label: each for each in table.tested if each.label in analysis.results.settings.references}
    name = plots.metric_name(analysis.metric)
    for group, labels in analysis.results.settings.groups.items():
        here = {label: table.entries[label] for label in labels if label in table.entries}
        lengths = {label: each.runs[0].facts["options"].get("MAX_ITEM_LIST_LENGTH") for label, each in here.items()}
        if len(set(lengths.values()) - {None}) > 1:
            yield _length_sweep(analysis, table, group, [(here[label], n) for label, n in lengths.items() if n])
            continue
        by_reference: dict[str, list[plots.Bar]] = {}
        for each in (tested[label] for label in here if label in tested):
            c = each.comparison
            if c.difference is not None:
                shown = analysis.verdict(each) in (Verdict.BETTER, Verdict.WORSE)
                bar = plots.Bar(each.label, c.difference, c.low, c.high, shown)
                by_reference.setdefault(each.reference, []).append(bar)
        for reference, bars in by_reference.items():
            listed = "; ".join(
                f"{bar.label} {signed(bar.difference)} ({'shown' if bar.shown else 'not shown'})" for bar in bars
            )
            drawn = {reference, *(bar.label for bar in bars)}
            yield Figure(
                f"ablation-{slug(group)}-{slug(reference)}-{table.key.key}",
                f"{group}: change in test {name} from {reference}, with 95 % intervals. Full bars: the corrected test "
                f"shows a difference; hatched: it doesn't. {table.key.title}.",
                f"Bar chart of changes in {name} from {reference}. {listed}.",
                plots.render(lambda bars=bars, reference=reference: plots.ablation(bars, reference, analysis.metric)),  # type: ignore[misc]
                provenance_of(run for label, each in here.items() if label in drawn for run in each.runs),
            )


def _length_sweep(analysis: Analysis, table: AnalysedTable, group: str, found: Sequence[tuple[Entry, int]]) -> Block:
    name = plots.metric_name(analysis.metric)
    by_model: dict[str, list[tuple[float, Spread]]] = {}
    for entry, length in sorted(found, key=lambda each: each[1]):
        if analysis.metric in entry.spreads:
            by_model.setdefault(entry.model, []).append((float(length), entry.spreads[analysis.metric]))
    drawn = [
        plots.Line(model, tuple(x for x, _ in points), tuple(s.mean for _, s in points), tuple(s.sd for _, s in points))
        for model, points in by_model.items()
    ]
    listed = "; ".join(
        f"{line.label} {number(line.y[0])} at {line.x[0]:g}, {number(line.y[-1])} at {line.x[-1]:g}" for line in drawn
    )
    return Figure(
        f"length-{slug(group)}-{table.key.key}",
        f"{group}: test {name} over the most events that a model sees; bands: standard deviation over seeds. "
        f"{table.key.title}.",
        f"Line plot of {name} over the length of the history. {listed}.",
        plots.render(lambda: plots.lines({"": drawn}, "most events shown (MAX_ITEM_LIST_LENGTH)", f"test {name}")),
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

_KEY = ("dataset", "split", "candidates", "seen", "query_time", "ties")
_COMPARISON = (
    *("n_users", "n_only_one", "n_differ", "difference", "low", "high", "p_users", "p_users_holm", "d_z"),
    *("rank_biserial", "n_seeds", "p_seeds", "p_seeds_holm"),
)
_RUN = (
    *("label", "model", "dataset", "seed", "status", "error", "started", "wall_s", "train_s", "epochs", "best_epoch"),
    *("best_valid", "valid_metric", "n_parameters", "query_time", "command", "commit", "saved"),
)
_PACKED = ("protocol", "versions", "hardware", "options")


def csv_files(analysis: Analysis) -> dict[str, str]:
    """The tables as CSV; ``results`` and ``comparisons`` hold no times, so that equal runs give equal files."""
    results: list[list[Any]] = []
    comparisons: list[list[Any]] = []
    for table in analysis.tables:
        key = [getattr(table.key, name) for name in _KEY]
        for entry in table.entries.values():
            missing = " ".join(map(str, entry.missing))
            for metric, found in entry.spreads.items():
                results.append([*key, entry.label, entry.model, metric, found.mean, found.sd, found.n, missing])
        for each in table.tested:
            values = [getattr(each.comparison, name) for name in _COMPARISON]
            words = [analysis.verdict(each).value, "; ".join(each.comparison.remarks)]
            comparisons.append([*key, analysis.metric, each.label, each.reference, *values, *words])
    packed = [[json.dumps(run.facts.get(name), sort_keys=True) for name in _PACKED] for run in analysis.results.runs]
    runs = [
        [run.id, *(run.facts.get(name) for name in _RUN), *more]
        for run, more in zip(analysis.results.runs, packed, strict=True)
    ]
    header = [*_KEY, "label", "model", "metric", "mean", "sd", "seeds", "missing_seeds"]
    texts = {
        "results": to_csv(header, results),
        "comparisons": to_csv([*_KEY, "metric", "label", "reference", *_COMPARISON, "verdict", "remarks"], comparisons),
        "runs": to_csv(["id", *_RUN, *_PACKED], runs),
    }
    for kind in ("robustness", "heads"):
        rows = [(each.run, row) for each in analysis.measurements for row in getattr(each, kind)]
        if rows:
            names = list(dict.fromkeys(name for _, row in rows for name in row))
            lines = [
                [*(getattr(run.table, each) for each in _KEY), run.label, run.seed, *(row.get(name) for name in names)]
                for run, row in rows
            ]
            texts[kind] = to_csv([*_KEY, "label", "seed", *names], lines)
    return texts


def write(results_folder: str | Path) -> dict[str, Path]:
    """Write the report of a results folder into its folder ``report``.

    Returns
    -------
    dict of str to Path
        Files by format: ``markdown``, ``html``, ``latex`` and the tables as CSV.

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
