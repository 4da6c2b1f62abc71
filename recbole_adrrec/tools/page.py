"""An explanation as one HTML page that needs nothing else: the figure, and all its numbers in tables."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from recbole_adrrec.times import minute
from recbole_adrrec.tools import plots
from recbole_adrrec.tools.explain import Reasons

GAPS = (
    *(("0 s", 0), ("1 s", 1), ("10 s", 10), ("1 min", 60), ("10 min", 600), ("1 h", 3600), ("6 h", 21_600)),
    *(("1 day", 86_400), ("1 week", 604_800), ("30 days", 2_592_000), ("1 year", 31_557_600)),
)
"""Gaps of the table of kernels of time, in seconds."""

PLACES = tuple((str(places), places) for places in (0, 1, 2, 3, 5, 8, 12, 20, 35, 50))
"""Gaps of the table of kernels of distance, in places."""

Rows = list[tuple[str, list[float]]]


def page(reasons: Reasons, titles: Mapping[str, str], shown: int = 30) -> bytes:
    """The page, in UTF-8; arguments as for :func:`recbole_adrrec.tools.plots.png`."""
    template = Environment(loader=PackageLoader("recbole_adrrec.tools"), autoescape=True).get_template(
        "explanation.html"
    )
    groups = plots.groups(reasons)
    trend: list[Any] = reasons.trend or [None] * len(reasons.recommended)
    names = [plots.title_of(item, titles) for item in reasons.items]
    moments = [minute(time) for time in reasons.times]
    if reasons.has_mask_key:
        names.append(plots.MASK_KEY)
        moments.append(minute(reasons.at))
    weights = np.concatenate([values for _, values in groups]).T
    return template.render(
        heading=plots.heading(reasons),
        remark=plots.remark(reasons),
        recommended=[
            (plots.title_of(item, titles), score, part)
            for (item, score), part in zip(reasons.recommended, trend, strict=True)
        ],
        figure=base64.b64encode(plots.svg(reasons, titles, shown)).decode(),
        groups=[title.replace("\n", ", ") for title, _ in groups],
        heads=reasons.heads,
        events=list(zip(names, moments, weights.tolist(), strict=True))[::-1],
        tables=list(_tables(reasons)),
    ).encode()


def _tables(reasons: Reasons) -> Iterator[tuple[str, list[str], Rows]]:
    """Title, columns and rows of the tables of gates and kernels; no rows where a model has none."""
    heads = [f"layer {layer + 1}, {head}" for layer in range(len(reasons.gates)) for head in reasons.heads]
    by_kernel = reasons.gates.swapaxes(0, 1).reshape(len(reasons.gated), len(heads))
    yield "Gates of the kernels at the last query", heads, list(zip(reasons.gated, by_kernel.tolist(), strict=True))
    for unit, title, columns in (
        ("seconds", "Terms of the kernels of time in the last query's score, by the gap", GAPS),
        ("places", "Terms of the kernels of distance in the last query's score, by the gap in places", PLACES),
    ):
        gaps = np.array([gap for _, gap in columns], dtype=np.float64)
        rows = [
            (f"{kernel.name}, layer {kernel.layer}, head {kernel.head}", kernel.curve(gaps).tolist())
            for kernel in reasons.kernels
            if kernel.unit == unit
        ]
        yield title, [name for name, _ in columns], rows
