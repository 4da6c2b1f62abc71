"""Growth of time and memory with the length, the users, the items: ``efficiency.py --sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from measure import attention
from measure.tables import LABELS, Row, exponent, failures, markdown, medians, shown
from measure.variants import ATTENTION, BASELINE, LENGTH_SWEEP, Variant

if TYPE_CHECKING:
    from measure.session import Job, Session

SIZES = {
    "length": [50, 100, 200, 500, 1000],
    "users": [1_000, 2_000, 4_000, 8_000],
    "items": [1_000, 10_000, 100_000, 1_000_000],
}
QUICK_SIZES = {"length": [20, 40], "users": [100, 200], "items": [100, 1_000]}

BATCH_ROWS = 8
"""Rows of a batch in the sweep over the length: the longest must fit."""

EVENTS_A_USER, ITEMS, USERS = 50, 5_000, 2_000
"""Of the synthetic data of the other sweeps, where they don't vary."""

VARIANTS = (BASELINE, "SASRec, windows", "ADRRec, windows")
"""Variants of the sweeps over users and items, unless others are named."""


def report(session: Session) -> str:
    """Measure all sizes of each axis of the command line; tables in Markdown."""
    parts = []
    for axis in session.arguments.sweep:
        sizes = (QUICK_SIZES if session.arguments.quick else SIZES)[axis]
        if axis == "length":
            variants = session.variants(LENGTH_SWEEP, ATTENTION)
            jobs = _length_jobs(session, sizes, variants)
            quantities = ["step_s", "peak_mib", "saved_mib", "saved_others_mib"]
        else:
            variants = [variant for variant in session.variants(VARIANTS) if variant.source != "peer"]
            jobs = _data_jobs(session, axis, sizes, variants)
            quantities = ["prepare_s", "epoch_s", "rise_mib"]
        names = [variant.name for variant in variants]
        found = table(session.measure(jobs, f"sweep over {axis}"), axis, names, quantities)
        session.store.note(f"sweep-{axis}", found)
        if session.arguments.plots:
            from measure import plots

            plots.sweep(found, axis, quantities, session.arguments.plots)
        parts.append(f"### Growth with the {axis}\n\n{table_text(found, axis, quantities)}")
    return "\n\n".join(parts)


def _length_jobs(session: Session, sizes: Sequence[int], variants: Sequence[Variant]) -> list[Job]:
    return [
        attention.job(session, "sweep-length", variant, run, BATCH_ROWS, size, sweep={"length": size})
        for run in range(session.arguments.runs)
        for size in sizes
        for variant in variants
    ]


def _data_jobs(session: Session, axis: str, sizes: Sequence[int], variants: Sequence[Variant]) -> list[Job]:
    import synthetic

    arguments, jobs = session.arguments, []
    for size in sizes:
        items = size if axis == "items" else ITEMS
        users = size if axis == "users" else QUICK_SIZES["users"][0] if arguments.quick else USERS
        name = f"synthetic-{users}-{items}"
        if not (session.scratch / name / f"{name}.inter").exists():
            synthetic.write(session.scratch, name, users, items, users * EVENTS_A_USER, progress=False)
        # Growth shows in a few steps; whole epochs of RecBole's would take the day.
        given: dict[str, Any] = {"steps": arguments.steps or 5, "sweep": {axis: size}}
        jobs += [
            session.training_job(f"sweep-{axis}", variant, run, name, str(session.scratch), **given)
            for run in range(arguments.runs)
            for variant in variants
        ]
    return jobs


def table(measurements: Sequence[Row], axis: str, names: Sequence[str], quantities: Sequence[str]) -> Row:
    """Points and growth exponents of a sweep.

    For each variant: ``sizes`` (those that succeeded), ``failed`` (size to error), for each quantity its ``values``
    (medians) and ``exponents``.
    """
    sizes = sorted({one["given"]["sweep"][axis] for one in measurements})
    by_size = {
        size: medians([one for one in measurements if one["given"]["sweep"][axis] == size], names, quantities)
        for size in sizes
    }
    found: Row = {}
    for place, name in enumerate(names):
        rows = {size: by_size[size][place] for size in sizes}
        measured = [size for size, row in rows.items() if row["runs"]]
        values = {quantity: [rows[size][quantity] for size in measured] for quantity in quantities}
        found[name] = {
            "sizes": measured,
            "failed": {str(size): row["error"] for size, row in rows.items() if not row["runs"]},
            "values": values,
            "exponents": {quantity: exponent(measured, values[quantity]) for quantity in quantities},
        }
    return found


def table_text(found: Row, axis: str, quantities: Sequence[str]) -> str:
    """Markdown of :func:`table`: a row for each variant and quantity, sizes as columns, the exponent last."""
    sizes = sorted({size for row in found.values() for size in [*row["sizes"], *map(int, row["failed"])]})
    cells: list[list[str]] = []
    failed: dict[str, str] = {}
    for name, row in found.items():
        for quantity in quantities:
            at = dict(zip(row["sizes"], row["values"][quantity], strict=True))
            numbers = [*(at.get(size) for size in sizes), row["exponents"][quantity]]
            cells.append([f"{name}: {LABELS[quantity]}", *map(shown, numbers)])
        failed |= {f"{name} at {size}": error for size, error in row["failed"].items()}
    head = [f"by {axis}", *(f"{size:,}" for size in sizes), "exponent"]
    return "\n\n".join([markdown(head, cells), *failures(failed)])
