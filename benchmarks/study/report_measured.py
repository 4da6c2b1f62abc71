"""Sections of a report on what was measured of trained models: robustness and heads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

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


def _share(mean: float, sd: float) -> str:
    """A share in percent, with its deviation over seeds where there are several; NaN where there is none."""
    if math.isnan(mean):
        return NONE
    return percent(mean) + ("" if math.isnan(sd) else f" ± {100 * sd:.1f}")


def _robustness(key: TableKey, labelled: Mapping[str, list[Measurement]], metric: str) -> Iterator[Block]:
    rows = pd.DataFrame(
        {"label": label, **row} for label, found in labelled.items() for each in found for row in each.robustness
    ).astype({"drop": float})
    yield Heading(f"Robustness. {key.title}", 2, f"robustness-{key.key}")
    yield Paragraph(
        f"Drop in test {metric}, as a share of its value on the whole history, when a part of each history is changed "
        "at test time only, or noise of that size relative to each layer's input is added to it; the targets stay. "
        "Mean ± standard deviation over seeds, in percent."
    )
    lines = []
    for kind, of_kind in rows.groupby("kind", sort=False):
        name, shares = KINDS.get(kind, kind), sorted(of_kind["share"].unique())
        cells = []
        for label, own in of_kind.groupby("label", sort=False):
            drops = own.groupby("share")["drop"].agg(mean="mean", sd="std").reindex(shares)
            cells.append((label, str(len(labelled[label])), *map(_share, drops["mean"], drops["sd"])))
            line = 100 * pd.concat([pd.DataFrame({"mean": 0.0, "sd": 0.0}, [0.0]), drops.dropna(subset="mean")])
            lines.append(line.assign(panel=name, label=label, x=100 * line.index))
        yield Table(
            f"Drop in {metric}, {name}. {key.title}.",
            ("Model", "Seeds", *(f"{100 * share:g} %" for share in shares)),
            tuple(cells),
            f"robustness-{slug(kind)}-{key.key}",
        )
    points = pd.concat(lines)
    for suffix, part in plots.parts_of(list(labelled)).items():
        drawn = points[points["label"].isin(part)]
        last = drawn.groupby(["panel", "label"], sort=False).last()
        listed = "; ".join(
            f"{label}, {kind}: {mean:.1f} % lost at {x:g} %"
            for (kind, label), x, mean in zip(last.index, last["x"], last["mean"], strict=True)
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
        rows = pd.DataFrame(row for each in found for row in each.heads).astype({"drop": float, "entropy": float})
        cells = []
        drawn: dict[str, list[tuple[str, float, bool]]] = {}
        for (layer, head, kind), own in rows.groupby(["layer", "head", "kind"], sort=False):
            drop, entropy, sd = own["drop"].mean(), own["entropy"].mean(), own["entropy"].std()
            text = NONE if math.isnan(entropy) else number(entropy, 3) + ("" if math.isnan(sd) else f" ± {sd:.3f}")
            cells.append((str(layer), head, kind, _share(drop, own["drop"].std()), text))
            if not math.isnan(drop) and layer != "all":
                drawn.setdefault(f"layer {layer}", []).append((head, drop, kind == "absolute"))
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
