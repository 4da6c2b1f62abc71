"""Scores on validation of a study's runs, a Markdown table for each data set: nothing of the test is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from engine.store import write_text

from study.document import NONE, Block, Heading, Paragraph, Table, render
from study.results import Results, Run
from study.statistics import spread

FILE = "validation.md"


def write(folder: Path) -> Path:
    """Write the tables of a folder of results into it.

    Raises
    ------
    DataError
        If there are no runs, or a file is not what it should be.
    """
    write_text(folder / FILE, render("report.md", blocks_of(Results.read(folder))))
    return folder / FILE


def blocks_of(results: Results) -> list[Block]:
    """Tables with rows in the study's order, each entry compared with its reference on the same seeds."""
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in results.done:
        if run.facts.get("best_valid") is not None:
            group = groups.setdefault((run.table.dataset, run.table.ranked), {})
            group.setdefault(run.label, []).append(run)
    blocks: list[Block] = [
        Heading(f"{results.settings.title or results.stated.get('name', 'Validation')}: validation", 1),
        Paragraph(
            "The best epoch's score of each run: the mean over seeds and their standard deviation. Against: the change "
            "from the entry named, on the seeds that both have, in percent. Nothing here has seen the test data."
        ),
    ]
    order = [str(entry["label"]) for entry in results.stated.get("models", ())]
    for (dataset, ranked), by_label in groups.items():
        labels = sorted(by_label, key=lambda label: order.index(label) if label in order else len(order))
        metric = by_label[labels[0]][0].facts["valid_metric"]
        header = ("entry", f"{metric}, mean (sd)", "against", "seeds", "best epoch", "s / epoch", "parameters")
        rows = tuple(_row(label, by_label, results.settings.references.get(label)) for label in labels)
        blocks += [Heading(dataset), Table(ranked, header, rows, "")]
    if results.failed:
        blocks.append(Paragraph("Failed: " + ", ".join(run.id for run in results.failed)))
    return blocks


def _row(label: str, by_label: Mapping[str, Sequence[Run]], reference: str | None) -> tuple[str, ...]:
    runs = by_label[label]
    scores, beside = _by_seed(runs), _by_seed(by_label.get(reference or "", ()))
    found = spread(list(scores.values()))
    shared = sorted(set(scores) & set(beside))
    change = NONE
    if shared and (base := fmean(beside[seed] for seed in shared)):
        change = f"{100 * (fmean(scores[seed] for seed in shared) / base - 1):+.1f} % {reference}"
    return (
        f"{label} (query time known)" if runs[0].table.query_time else label,
        f"{found.mean:.4f}" + ("" if found.sd is None else f" ({found.sd:.4f})"),
        change,
        str(len(scores)),
        f"{fmean(int(run.facts['best_epoch']) + 1 for run in runs):.0f}",
        f"{fmean(run.facts['train_s'] / run.facts['epochs'] for run in runs):.1f}",
        f"{runs[0].facts['n_parameters']:,}",
    )


def _by_seed(runs: Iterable[Run]) -> dict[int, float]:
    return {run.seed: float(run.facts["best_valid"]) for run in runs}
