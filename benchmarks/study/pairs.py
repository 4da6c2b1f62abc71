"""One entry beside others on every data set of several results folders: paired tests, corrected over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from recbole_adrrec.errors import OptionError
from study import plots
from study.document import Block, Paragraph, Table, number, p_value, percent, signed
from study.results import Results, Run, TableKey, sample_of
from study.statistics import Comparison, Verdict, compare, correct


@dataclass(frozen=True)
class Pair:
    """Two entries of one table of results, with the means of both over the users and seeds that they share."""

    table: TableKey
    label: str
    reference: str
    mean: float
    beside: float
    comparison: Comparison
    tuned: bool = False

    @property
    def where(self) -> str:
        """Data set and split."""
        known = ", query time known" if self.table.query_time else ""
        return f"{self.table.dataset}, {self.table.split_name}{known}" + (", tuned" if self.tuned else "")

    def share(self, difference: float | None) -> float | None:
        """A difference as a share of the reference's mean."""
        return None if difference is None or not self.beside else difference / self.beside


def find(folders: Iterable[Results], label: str, references: Sequence[str], seen: str) -> list[Pair]:
    """All pairs of ``label`` and a reference that share a table, corrected by Holm over all of them.

    A reference that a folder does not have is taken from the first other one that has it on the same data, both tuned
    or neither. Tables are those of a full ranking; ``seen`` is ``unseen`` where only items new to the user are ranked,
    or ``all``. Those of a sample, or of shuffled ties, answer other questions.

    Raises
    ------
    OptionError
        If there is none.
    """
    folders = list(folders)
    found = []
    for results in folders:
        for table, labelled in results.tables.items():
            if table.seen == seen and not table.sampled and table.ties == "file" and label in labelled:
                alike = [results, *(each for each in folders if _alike(results, each, table.dataset))]
                for name in references:
                    runs = next(
                        (each.tables[table][name] for each in alike if name in each.tables.get(table, ())), None
                    )
                    if runs:
                        pair = _pair(results.metric, table, labelled[label], runs)
                        found.append(replace(pair, tuned=_tuned(results)))
    found = [pair for pair in found if pair.comparison.difference is not None]
    if not found:
        held = sorted({run.label for results in folders for run in results.done})
        raise OptionError(
            f"--of {label!r}, --against {'; '.join(references)!r}: no two of them were tested under one protocol with "
            f"items ranked: {seen}; the folders have {'; '.join(held)}"
        )
    corrected = correct([pair.comparison for pair in found])
    return [replace(pair, comparison=each) for pair, each in zip(found, corrected, strict=True)]


def _tuned(results: Results) -> bool:
    return bool(results.stated.get("tuned"))


def _alike(results: Results, other: Results, dataset: str) -> bool:
    """True for folders with the same events of a data set, both tuned or neither."""
    digests = [each.stated.get("data", {}).get(dataset) for each in (results, other)]
    return _tuned(results) == _tuned(other) and digests[0] == digests[1]


def _pair(metric: str, table: TableKey, runs: list[Run], others: list[Run]) -> Pair:
    ours, theirs = (sample_of(each, metric) for each in (runs, others))
    seeds = list((ours.by_seed - theirs.by_seed).dropna().index)
    mean, beside = (float(each.by_seed[seeds].mean()) for each in (ours, theirs))
    return Pair(table, runs[0].label, others[0].label, mean, beside, compare(ours, theirs))


def blocks_of(pairs: Sequence[Pair], metric: str) -> list[Block]:
    """Table of pairs."""
    name = plots.metric_name(metric)
    rows = []
    for pair in pairs:
        c = pair.comparison
        rows.append(
            (
                pair.where,
                f"{pair.label} {number(pair.mean)}",
                f"{pair.reference} {number(pair.beside)}",
                f"{signed(c.difference)} [{signed(c.low)}, {signed(c.high)}]",
                percent(pair.share(c.difference)),
                p_value(c.p_users),
                p_value(c.p_users_holm),
                p_value(c.p_seeds),
                f"{c.n_users:,} / {c.n_seeds}",
                Verdict.of(c).value,
            )
        )
    header = ("Data", "Model", "Beside", "Difference, 95 % interval", "In percent", "p, users", "p, corrected")
    words = frozenset({0, 1, 2, 9})
    ranked = "all items" if pairs[0].table.seen == "all" else "all items new to the user"
    text = (
        f"Test {name}, {ranked} ranked, on the users and seeds that both have. Intervals: bootstrap over users. p: "
        f"Wilcoxon over users, then corrected by Holm over the {len(pairs)} rows; a t test over seeds, not corrected."
    )
    return [Paragraph(text), Table("", (*header, "p, seeds", "Users / seeds", "Verdict"), tuple(rows), "pairs", words)]


def picture(pairs: Sequence[Pair], metric: str) -> plots.Picture:
    """Differences in percent of the reference's mean, with their intervals, a row for each data set and protocol."""
    rows: dict[str, dict[str, plots.Interval]] = {}
    for pair in pairs:
        c = pair.comparison
        middle, low, high = (share and 100 * share for share in map(pair.share, (c.difference, c.low, c.high)))
        if middle is not None:
            rows.setdefault(pair.where, {})[f"{pair.label} beside {pair.reference}"] = middle, low, high
    return plots.render(lambda: plots.groups({"": rows}, f"{metric}, percent"))
