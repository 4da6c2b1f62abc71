"""Explanations of a recommendation: attention of the user's last query, kernels, and the trend of the scores.

The weights are those of :meth:`recbole_adrrec.models.base.SequenceRecommender.explain`; the curves are what a relative
kernel adds to the attention score of that query, as a function of the gap in time or in places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recbole_adrrec.errors import OptionError
from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, MixAttention
from recbole_adrrec.layers.intervals import IntervalAttention
from recbole_adrrec.layers.kernels import MixContext, MixKernels
from recbole_adrrec.layers.layout import SequenceTimes
from recbole_adrrec.layers.pointwise import PointwiseAttention, gap_buckets
from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.times import Moment
from recbole_adrrec.tools.recommend import Recommender

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From gaps in seconds or in places to what is added to the attention score."""

PLACE_KERNELS = frozenset({"distance", "distance_bias"})
"""Relative kernels of the gap in places."""


@dataclass(frozen=True)
class Kernel:
    """Term of one kernel of a pair of events in the last query's scores in one head, its gate included.

    Attributes
    ----------
    name : str
        As in ``relative_kernels``; ``interval`` for TiSASRec's, ``position_bias`` and ``time_bias`` for HSTU's.
    layer, head : int
        From 1.
    unit : {'seconds', 'places'}
        Of the gap.
    curve : callable
        See ``Curve``; causal models only ever see gaps of at least 0.
    """

    name: str
    layer: int
    head: int
    unit: str
    curve: Curve


@dataclass(frozen=True)
class Reasons:
    """Explanation of one recommendation.

    Attributes
    ----------
    user, model : str
        Names.
    at : int
        The moment of the recommendation, in seconds since 1970 (UTC).
    query_time : int
        The moment from which gaps are counted: ``at`` for models that know it, else that of the last event.
    items : list of str
        Items of the events that the model was shown, oldest first.
    times : int64 array, [n_events]
        Their times, in seconds since 1970 (UTC).
    heads : list of str
        The kernel of each head; numbers where heads don't differ in that.
    plain, refined : float64 array, [n_layers, n_heads, n_keys]
        Weights of the last query before and after refinement. There are as many keys as events, and one more, last,
        where the query is a mask token that may attend to itself.
    is_refined : bool
        Whether the model refines weights at all.
    sums_to_one : bool
        Whether the weights are a distribution over the keys; HSTU's are not.
    kernels : list of Kernel
        Of layers, then kernels, then heads; empty where the model has none of pairs of events.
    gated : list of str
        Names of the kernels behind gates, absolute ones first; empty where there are no gates.
    gates : float64 array, [n_layers, n_gated, n_heads]
        Gates that the last query sets.
    recommended : list of (str, float)
        Items and scores, best first.
    trend : list of float
        Part of each of these scores that the trend adds, ``a_v . e(tau)``; empty for models with ``trend_rank: 0``.
    """

    user: str
    model: str
    at: int
    query_time: int
    items: list[str]
    times: NDArray[np.int64]
    heads: list[str]
    plain: NDArray[np.float64]
    refined: NDArray[np.float64]
    is_refined: bool
    sums_to_one: bool
    kernels: list[Kernel]
    gated: list[str]
    gates: NDArray[np.float64]
    recommended: list[tuple[str, float]]
    trend: list[float]

    @property
    def has_mask_key(self) -> bool:
        """True where the last key is the query's own mask token."""
        return self.plain.shape[-1] > len(self.items)

    @property
    def owned(self) -> bool:
        """True where each kernel has a head to itself."""
        return len({(kernel.layer, kernel.name) for kernel in self.kernels}) == len(self.kernels)


def explain(recommender: Recommender, user: object, at: Moment | None = None, top: int = 5) -> Reasons:
    """Explain what a model recommends to a user.

    Parameters
    ----------
    recommender : Recommender
        Of one of this package's models.
    user : str
        Name of the user.
    at : int, float, str or datetime, optional
        The moment, as for ``recommend``.
    top : int
        Recommended items to name.

    Raises
    ------
    OptionError
        The model is not one of this package's, or has no attention.
    DataError
        The user is unknown, or has no event up to then.
    """
    model, name = recommender.model, str(recommender.config["model"])
    if not isinstance(model, SequenceRecommender):
        raise OptionError(
            f"model: {name} has no attention weights to show, or is RecBole's own, whose weights stay inside; explain "
            "works for ADRRec, AWRSR, HSTU, MEANTIME, STOSA and TiSASRec"
        )
    answers = recommender.recommend([user], at, top)
    row = recommender.rows([user], at).to(recommender.config["device"])
    with recommender.units(), _last_queries(model) as queries:
        seen = model.explain(row)
    shown = len(seen.items) - int(model.objective == "cloze")
    kernels: Any = model.kernels
    gates = [part.gate(query)[0].detach() for part, query in queries if isinstance(part, AdaptiveMixAttention)]
    names = [*kernels.absolute_names, *kernels.relative_names] if isinstance(kernels, MixKernels) else []
    owned = any(isinstance(part, MixAttention) for part, _ in queries)
    n_layers, n_heads = seen.plain.shape[:2]
    at = int(answers.at[0])
    query_time = at if recommender.knows_query_time else int(seen.times[shown - 1])
    recommended = next(iter(answers))[1]
    return Reasons(
        user=answers.users[0],
        model=name,
        at=at,
        query_time=query_time,
        items=[recommender.data.items[number] for number in seen.items[:shown].tolist()],
        times=seen.times[:shown].cpu().numpy().astype(np.int64),
        heads=names if owned else [f"head {number}" for number in range(1, n_heads + 1)],
        plain=seen.plain[:, :, -1].double().cpu().numpy(),
        refined=seen.refined[:, :, -1].double().cpu().numpy(),
        is_refined=any(_refines(part) for part, _ in queries),
        sums_to_one=all(part.weights_sum_to_one for part, _ in queries),
        kernels=list(_kernels(recommender, queries, row)),
        gated=names if gates else [],
        gates=torch.stack(gates).double().cpu().numpy() if gates else np.zeros((n_layers, 0, n_heads)),
        recommended=recommended,
        trend=_trend(recommender, [item for item, _ in recommended], query_time),
    )


@torch.no_grad()
def _trend(recommender: Recommender, items: list[str], time: int) -> list[float]:
    """Part of the items' scores that the trend adds at a moment; empty without a trend."""
    trend, device = recommender.model.head.trend, recommender.config["device"]
    if trend is None:
        return []
    numbers = torch.tensor([recommender.data.items.index(item) for item in items], device=device)
    moment: Tensor = trend(torch.tensor([time], device=device))
    return (trend.item_factors(numbers) @ moment[0]).tolist()


def _refines(part: nn.Module) -> bool:
    return isinstance(part, Attention) and bool(list(part.refinement.parameters()))


@contextmanager
def _last_queries(model: SequenceRecommender) -> Iterator[list[tuple[Attention, Tensor]]]:
    """Collect each attention, in the order of running, with the state of the last query of each row, Float[B, d]."""
    collected: list[tuple[Attention, Tensor]] = []

    def collect(part: Attention, arguments: tuple[Any, ...]) -> None:
        hidden, layout, _, *query = arguments
        states = hidden if not query or query[0] is None else query[0]
        collected.append((part, states[layout.at((layout.valid.sum(1) - 1).clamp(min=0))].detach()))

    parts = [part for part in model.encoder.modules() if isinstance(part, Attention)]
    handles = [part.register_forward_pre_hook(collect) for part in parts]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _kernels(recommender: Recommender, queries: list[tuple[Attention, Tensor]], row: Any) -> Iterator[Kernel]:
    for layer, (part, query) in enumerate(queries, 1):
        if isinstance(part, MixAttention | AdaptiveMixAttention):
            yield from _relative_kernels(recommender.model.kernels, part, query, layer)
        elif isinstance(part, IntervalAttention):
            yield from _interval_kernels(recommender, part, query, layer, row)
        elif isinstance(part, PointwiseAttention):
            yield from _pointwise_kernels(part, layer)


def _relative_kernels(
    kernels: MixKernels, part: MixAttention | AdaptiveMixAttention, query: Tensor, layer: int
) -> Iterator[Kernel]:
    """``u . phi`` of each relative kernel and head that has it; ``u`` has gate, projection and scale in it."""
    projected = [pair[0] for pair in part.project(query, query, MixContext([], [])).pairs]  # [h, F]
    for number, (name, kernel, pair) in enumerate(
        zip(kernels.relative_names, kernels.relative, projected, strict=True)
    ):
        unit = "places" if name in PLACE_KERNELS else "seconds"
        if isinstance(part, MixAttention):
            # The head of its own, whose last feature is a constant.
            curve = _relative_curve(kernel, pair[0, :-1], pair[0, -1:], unit)
            yield Kernel(name, layer, part.n_absolute + number + 1, unit, curve)
            continue
        for head, vector in enumerate(pair, 1):
            yield Kernel(name, layer, head, unit, _relative_curve(kernel, vector, vector.new_zeros(1), unit))


def _relative_curve(kernel: Any, vector: Tensor, constant: Tensor, unit: str) -> Curve:
    """Products of a relative kernel's features with a vector, Float[F], plus a constant, Float[1], by the gap."""

    @torch.no_grad()
    def curve(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        gap = torch.from_numpy(np.asarray(gaps, dtype=np.float64)).flatten().to(vector.device)
        places = unit == "places"
        # Rows of one place with a query so much later than its key, or one row with the query in its middle.
        span = int(gap.abs().max()) + 1 if places and len(gap) else 1
        width = 2 * span - 1
        key = torch.zeros(1 if places else len(gap), width, dtype=torch.float64, device=gap.device)
        place = torch.arange(width, device=key.device).expand(key.shape)
        query = key if places else gap.unsqueeze(1)
        score = kernel(SequenceTimes(place, query, key, torch.ones_like(key, dtype=torch.bool)), vector.dtype)
        shape = (len(key), 1, width, -1)
        found = score(vector.expand(shape), constant.expand(shape))
        added = found[0, 0, span - 1, span - 1 - gap.long()] if places else found.flatten()
        return added.double().cpu().numpy().reshape(np.shape(gaps))

    return curve


def _interval_kernels(
    recommender: Recommender, part: IntervalAttention, query: Tensor, layer: int, row: Any
) -> Iterator[Kernel]:
    """``q_i . RK_r / sqrt(dh)`` of each head, ``r`` by the gap in units of the user's own."""
    model = recommender.model
    with recommender.units():
        _, moments, _ = model._inference_inputs(row)
        unit = float(model.kernels.units(moments))
    table = part.table(model.kernels.interval_key.weight)  # [H, S, dh]
    scores = torch.einsum("hd,hsd->hs", part.scaled_query(query)[0], table).double().cpu()
    for head, by_interval in enumerate(scores, 1):
        yield Kernel("interval", layer, head, "seconds", _table_curve(by_interval, lambda gap: gap // unit))


def _pointwise_kernels(part: PointwiseAttention, layer: int) -> Iterator[Kernel]:
    """The biases of a layer, the same in each head; they are inside the SiLU."""
    tables = (
        ("position_bias", "places", part.distance_bias, torch.Tensor.long),
        ("time_bias", "seconds", part.gap_bias, gap_buckets),
    )
    for name, unit, table, index in tables:
        if table is not None:
            curve = _table_curve(table.weight.squeeze(1).double().cpu(), index)
            for head in range(1, part.n_heads + 1):
                yield Kernel(name, layer, head, unit, curve)


def _table_curve(table: Tensor, index: Callable[[Tensor], Tensor]) -> Curve:
    """Entries of a table by the index of the gap's size; those beyond it are the last one."""

    def curve(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        gap = torch.from_numpy(np.asarray(gaps, dtype=np.float64)).abs()
        found: NDArray[np.float64] = table[index(gap).long().clamp(max=len(table) - 1)].numpy()
        return found

    return curve
