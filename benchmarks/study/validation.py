"""What a study's runs reached on validation, as one Markdown table for each data set: nothing of the test is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recbole_adrrec.files import AtomicFile
from study.results import Results, Run

FILE = "validation.md"

HEAD = ("entry", "{metric}, mean (sd)", "against", "seeds", "best epoch", "s / epoch", "parameters")


def write(folder: Path) -> Path:
    """Write the tables of a folder of results into it.

    Raises
    ------
    DataError
        If there are no runs, or a file is not what it should be.
    """
    path = folder / FILE
    with AtomicFile(path) as file:
        file.write((text(Results.read(folder)) + "\n").encode())
    return path


def text(results: Results) -> str:
    """Tables in Markdown: rows in the study's order, each compared with its reference on the same seeds."""
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in results.done:
        if run.facts.get("best_valid") is not None:
            told = (run.protocol.dataset, _ranked(run))
            groups.setdefault(told, {}).setdefault(run.label, []).append(run)
    parts = [
        f"# {results.settings.title or results.stated.get('name', 'Validation')}: validation",
        "The best epoch's score of each run: the mean over seeds and their standard deviation. Against: the change "
        "from the entry named, on the seeds that both have, in percent. Nothing here has seen the test data.",
    ]
    order = [str(entry["label"]) for entry in results.stated.get("models", ())]
    for (dataset, ranked), by_label in groups.items():
        labels = sorted(by_label, key=lambda label: order.index(label) if label in order else len(order))
        metric = str(by_label[labels[0]][0].facts["valid_metric"])
        rows = [_row(label, by_label, results.settings.references.get(label)) for label in labels]
        parts += [f"## {dataset}\n{ranked}", _table([each.format(metric=metric) for each in HEAD], rows)]
    if results.failed:
        parts.append("Failed: " + ", ".join(run.id for run in results.failed))
    return "\n\n".join(parts)


def _ranked(run: Run) -> str:
    """The protocol in words, without what is told row by row."""
    title = run.protocol.title.partition(": ")[2]
    return ", ".join(part for part in title.split(", ") if not part.startswith("query time"))


def _row(label: str, by_label: Mapping[str, Sequence[Run]], reference: str | None) -> list[str]:
    runs = by_label[label]
    scores = _by_seed(runs)
    spread = f" ({stdev(scores.values()):.4f})" if len(scores) > 1 else ""
    beside = _by_seed(by_label.get(reference or "", ()))
    shared = sorted(set(scores) & set(beside))
    change = "–"
    if shared and (base := fmean(beside[seed] for seed in shared)):
        change = f"{100 * (fmean(scores[seed] for seed in shared) / base - 1):+.1f} % {reference}"
    name = f"{label} (query time known)" if runs[0].protocol.query_time else label
    return [
        name,
        f"{fmean(scores.values()):.4f}{spread}",
        change,
        str(len(scores)),
        f"{fmean(_epoch(run) for run in runs):.0f}",
        f"{fmean(run.facts['train_s'] / run.facts['epochs'] for run in runs):.1f}",
        f"{runs[0].facts['n_parameters']:,}",
    ]


def _by_seed(runs: Iterable[Run]) -> dict[int, float]:
    return {run.seed: float(run.facts["best_valid"]) for run in runs}


def _epoch(run: Run) -> int:
    """The best epoch, counted from 1."""
    return int(run.facts["best_epoch"]) + 1


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
