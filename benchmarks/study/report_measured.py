"""Sections of a report on what was measured of trained models: robustness and heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from study import plots
from study.analysis import Analysis, provenance_of
from study.document import (
    NONE,
    Block,
    Figure,
    Heading,
    Paragraph,
    Provenance,
    Table,
    duration,
    number,
    percent,
    plural,
)
from study.measurements import Measurement
from study.results import TableKey, slug
from study.statistics import Spread, spread

KINDS = {
    "replace": "items replaced",
    "drop": "events dropped",
    "jitter": "times jittered",
    "noise": "noise in the layers",
}


def measured_blocks(analysis: Analysis) -> Iterator[Block]:
    """The sections of each table's measurements."""
    by_table: dict[TableKey, dict[str, list[Measurement]]] = {}
    for found in analysis.measurements:
        by_table.setdefault(found.run.table, {}).setdefault(found.run.label, []).append(found)
    for key, labelled in sorted(by_table.items()):
        for kind, section in (("robustness", _robustness), ("heads", _heads)):
            having = {label: [each for each in found if getattr(each, kind)] for label, found in labelled.items()}
            having = {label: found for label, found in having.items() if found}
            if having:
                metric = plots.metric_name(str(next(iter(having.values()))[0].facts["metric"]))
                yield from section(key, having, metric)


def _provenance(measured: Sequence[Measurement]) -> Provenance:
    commands = "; ".join(dict.fromkeys(str(each.facts["command"]) for each in measured))
    wall = sum(float(each.facts["wall_s"]) for each in measured)
    return provenance_of([each.run for each in measured], (("Measured by", f"{commands} ({duration(wall)})"),))


def _over_seeds(rows: Sequence[Mapping[str, Any]], column: str, **wanted: Any) -> Spread | None:
    values = [row[column] for row in rows if all(row[name] == value for name, value in wanted.items())]
    known = [float(value) for value in values if value is not None]
    return spread(known) if known else None


def _share(found: Spread | None) -> str:
    if found is None:
        return NONE
    return percent(found.mean) + ("" if found.sd is None else f" ± {100 * found.sd:.1f}")


def _robustness(key: TableKey, labelled: Mapping[str, list[Measurement]], metric: str) -> Iterator[Block]:
    rows_of = {label: [row for each in found for row in each.robustness] for label, found in labelled.items()}
    everything = [row for rows in rows_of.values() for row in rows]
    yield Heading(f"Robustness. {key.title}", 2, f"robustness-{key.key}")
    yield Paragraph(
        f"Drop in test {metric}, as a share of its value on the whole history, when a part of each history is changed "
        "at test time only, or noise of that size relative to each layer's input is added to it; the targets stay. "
        "Mean ± standard deviation over seeds, in percent."
    )
    panels: dict[str, list[plots.Line]] = {}
    for kind in dict.fromkeys(row["kind"] for row in everything):
        name = KINDS.get(kind, kind)
        shares = sorted({float(row["share"]) for row in everything if row["kind"] == kind})
        cells = []
        for label, rows in rows_of.items():
            if not any(row["kind"] == kind for row in rows):
                continue
            drops = [_over_seeds(rows, "drop", kind=kind, share=share) for share in shares]
            cells.append((label, str(len(labelled[label])), *map(_share, drops)))
            known = [(0.0, Spread(0.0, 0.0, 1)), *((x, drop) for x, drop in zip(shares, drops, strict=True) if drop)]
            line = plots.Line(
                label,
                tuple(100 * x for x, _ in known),
                tuple(100 * drop.mean for _, drop in known),
                tuple(None if drop.sd is None else 100 * drop.sd for _, drop in known),
            )
            panels.setdefault(name, []).append(line)
        yield Table(
            f"Drop in {metric}, {name}. {key.title}.",
            ("Model", "Seeds", *(f"{100 * share:g} %" for share in shares)),
            tuple(cells),
            f"robustness-{slug(kind)}-{key.key}",
        )
    for suffix, part in plots.parts_of(list(labelled)).items():
        drawn = {kind: [line for line in found if line.label in part] for kind, found in panels.items()}
        listed = "; ".join(
            f"{line.label}, {kind}: {line.y[-1]:.1f} % lost at {line.x[-1]:g} %"
            for kind, found in drawn.items()
            for line in found
        )
        yield Figure(
            f"robustness-{key.key}{suffix}",
            f"Drop in test {metric} over the part of each history that is changed, or the size of the noise; bands: "
            f"standard deviation over seeds. {key.title}.",
            f"Line plots of the drop in {metric}. {listed}.",
            plots.render(
                lambda drawn=drawn: plots.lines(  # type: ignore[misc]
                    drawn, "part of the history changed, or size of the noise (%)", f"{metric} lost (%)", zero=True
                )
            ),
            _provenance([each for label in part for each in labelled[label]]),
        )


def _heads(key: TableKey, labelled: Mapping[str, list[Measurement]], metric: str) -> Iterator[Block]:
    yield Heading(f"Heads. {key.title}", 2, f"heads-{key.key}")
    yield Paragraph(
        f"Drop in test {metric} when a head's weights are set to zero at test time, and the mean "
        "entropy of its weights over the log of the number of events that it may see: 1 is spread evenly, 0 looks at "
        "one event. A kind of heads whose drops are all near zero while the other's are large is out of balance; an "
        "entropy near 1 everywhere says that the head tells events apart little."
    )
    for label, found in labelled.items():
        rows = [row for each in found for row in each.heads]
        cells = []
        drawn: dict[str, list[tuple[str, float, bool]]] = {}
        for layer, head, kind in dict.fromkeys((row["layer"], row["head"], row["kind"]) for row in rows):
            drop = _over_seeds(rows, "drop", layer=layer, head=head)
            entropy = _over_seeds(rows, "entropy", layer=layer, head=head)
            text = number(entropy.mean if entropy else None, 3)
            text += f" ± {entropy.sd:.3f}" if entropy and entropy.sd is not None else ""
            cells.append((str(layer), head, kind, _share(drop), text))
            if drop is not None and layer != "all":
                drawn.setdefault(f"layer {layer}", []).append((head, drop.mean, kind == "absolute"))
        yield Table(
            f"Heads of {label}, {plural(len(found), 'seed')}. {key.title}.",
            ("Layer", "Head", "Kind", f"{metric} lost when silenced", "Entropy"),
            tuple(cells),
            f"heads-{slug(label)}-{key.key}",
            frozenset({0, 1, 2}),
        )
        if drawn:
            listed = "; ".join(
                f"{layer} {head} {percent(drop)}" for layer, each in drawn.items() for head, drop, _ in each
            )
            yield Figure(
                f"heads-{slug(label)}-{key.key}",
                f"{label}: {metric} lost when each head is silenced. {key.title}.",
                f"Bar chart of the drop for each head. {listed}.",
                plots.render(lambda drawn=drawn: plots.head_drops(drawn, metric)),  # type: ignore[misc]
                _provenance(found),
            )
