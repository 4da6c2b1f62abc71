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
from recbole_adrrec.layers.layout import Layout, SequenceTimes
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
    n_keys = len(seen.items)
    shown = n_keys - int(model.objective == "cloze")
    names = [recommender.data.items[number] for number in seen.items[:shown].tolist()]
    kernels: Any = model.kernels
    gates = [part.gate(query)[0].detach() for part, query in queries if isinstance(part, AdaptiveMixAttention)]
    n_heads = seen.plain.size(1)
    at = int(answers.at[0])
    recommended = next(iter(answers))[1]
    query_time = at if recommender.knows_query_time else int(seen.times[shown - 1])
    return Reasons(
        user=answers.users[0],
        model=name,
        at=at,
        query_time=query_time,
        items=names,
        times=seen.times[:shown].cpu().numpy().astype(np.int64),
        heads=head_names(model) or [f"head {number}" for number in range(1, n_heads + 1)],
        plain=seen.plain[:, :, -1].double().cpu().numpy(),
        refined=seen.refined[:, :, -1].double().cpu().numpy(),
        is_refined=any(_refines(part) for part in model.encoder.modules()),
        sums_to_one=all(part.weights_sum_to_one for part, _ in queries),
        kernels=list(_kernels(recommender, queries, row)),
        gated=[*kernels.absolute_names, *kernels.relative_names] if gates else [],
        gates=torch.stack(gates).double().cpu().numpy() if gates else np.zeros((len(seen.plain), 0, n_heads)),
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


def head_names(model: nn.Module) -> list[str]:
    """Names of the kernels that heads have to themselves; none where all heads know the same."""
    if not any(isinstance(part, MixAttention) for part in model.modules()):
        return []
    kernels = next(part for part in model.modules() if isinstance(part, MixKernels))
    return [*kernels.absolute_names, *kernels.relative_names]


def _refines(part: nn.Module) -> bool:
    return isinstance(part, Attention) and bool(list(part.refinement.parameters()))


@contextmanager
def _last_queries(model: SequenceRecommender) -> Iterator[list[tuple[Attention, Tensor]]]:
    """Collect each attention, in the order of running, with the state of the last query of each row, Float[B, d]."""
    collected: list[tuple[Attention, Tensor]] = []

    def collect(part: Attention, arguments: tuple[Any, ...]) -> None:
        collected.append((part, last_queries(*arguments)))

    parts = [part for part in model.encoder.modules() if isinstance(part, Attention)]
    handles = [part.register_forward_pre_hook(collect) for part in parts]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def last_queries(hidden: Tensor, layout: Layout, context: Any, query: Tensor | None = None) -> Tensor:
    """State of the query at each row's last event, Float[B, d], of what an attention is called with."""
    states = hidden if query is None else query
    found: Tensor = states[layout.at((layout.valid.sum(1) - 1).clamp(min=0))]
    return found.detach()


@dataclass(frozen=True)
class RelativeTerm:
    """Vectors that a relative kernel's features are multiplied with in one head, one for each query.

    Attributes
    ----------
    name : str
        Of the kernel.
    kernel : RelativeKernel
        Takes moments and a dtype to what scores them.
    head : int
        From 1.
    projected : Float[n, F]
        ``u``: gate, projection and scale included.
    constant : Float[n, 1]
        Added to ``u . phi``.
    """

    name: str
    kernel: Any
    head: int
    projected: Tensor
    constant: Tensor

    @property
    def unit(self) -> str:
        """Unit of the kernel's gaps: ``seconds`` or ``places``."""
        return "places" if self.name in PLACE_KERNELS else "seconds"

    @torch.no_grad()
    def curve(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Addition to the first query's score, Float64[...], at gaps in ``unit``, Float64[...]."""
        gap = torch.from_numpy(np.asarray(gaps, dtype=np.float64)).flatten().to(self.projected.device)
        places = self.unit == "places"
        # Rows of one place with a query so much later than its key, or one row with the query in its middle.
        span = int(gap.abs().max()) + 1 if places and len(gap) else 1
        width = 2 * span - 1
        key = torch.zeros(1 if places else len(gap), width, dtype=torch.float64, device=gap.device)
        place = torch.arange(width, device=key.device).expand(key.shape)
        query = key if places else gap.unsqueeze(1)
        score = self.kernel(
            SequenceTimes(place, query, key, torch.ones_like(key, dtype=torch.bool)), self.projected.dtype
        )
        shape = (len(key), 1, width, -1)
        found = score(self.projected[0].expand(shape), self.constant[0].expand(shape))
        added = found[0, 0, span - 1, span - 1 - gap.long()] if places else found.flatten()
        return added.double().cpu().numpy().reshape(np.shape(gaps))


def relative_terms(attention: Attention, kernels: MixKernels, query: Tensor) -> Iterator[RelativeTerm]:
    """The terms of a mix attention's relative kernels, of kernels, then heads, for states of queries, Float[n, d]."""
    pairs = [pair.detach() for pair in attention.project(query, query, MixContext([], [])).pairs]  # [n, h, F]
    first = 1
    for name, kernel, pair in zip(kernels.relative_names, kernels.relative, pairs, strict=True):
        if isinstance(attention, MixAttention):
            head = attention.n_absolute + first
            yield RelativeTerm(name, kernel, head, pair[:, 0, :-1], pair[:, 0, -1:])
            first += 1
            continue
        for head, projected in enumerate(pair.expand(len(query), -1, -1).unbind(1), 1):
            yield RelativeTerm(name, kernel, head, projected, projected.new_zeros(len(projected), 1))


def _kernels(recommender: Recommender, queries: list[tuple[Attention, Tensor]], row: Any) -> Iterator[Kernel]:
    kernels = recommender.model.kernels
    for layer, (part, query) in enumerate(queries, 1):
        if isinstance(part, MixAttention | AdaptiveMixAttention):
            for term in relative_terms(part, kernels, query):
                yield Kernel(term.name, layer, term.head, term.unit, term.curve)
        elif isinstance(part, IntervalAttention):
            yield from _interval_kernels(recommender, part, query, layer, row)
        elif isinstance(part, PointwiseAttention):
            yield from _pointwise_kernels(part, layer)


def _interval_kernels(
    recommender: Recommender, part: IntervalAttention, query: Tensor, layer: int, row: Any
) -> Iterator[Kernel]:
    """``q_i . RK_r / sqrt(dh)`` of each head, ``r`` by the gap in units of the user's own."""
    model = recommender.model
    with torch.no_grad(), recommender.units():
        _, moments, _ = model._inference_inputs(row)
        unit = float(model.kernels.units(moments))
        table = part.table(model.kernels.interval_key.weight)  # [H, S, dh]
        scores = torch.einsum("hd,hsd->hs", part.scaled_query(query)[0], table).double().cpu().numpy()
    for head, by_interval in enumerate(scores):
        yield Kernel("interval", layer, head + 1, "seconds", _StepCurve(by_interval, unit))


def _pointwise_kernels(part: PointwiseAttention, layer: int) -> Iterator[Kernel]:
    """The biases of a layer, the same in each head; they are inside the SiLU."""
    tables = (("position_bias", "places", part.distance_bias), ("time_bias", "seconds", part.gap_bias))
    for name, unit, table in tables:
        if table is not None:
            curve = _TableCurve(table.weight.detach().squeeze(1).double().cpu(), unit)
            for head in range(1, part.n_heads + 1):
                yield Kernel(name, layer, head, unit, curve)


@dataclass(frozen=True)
class _TableCurve:
    table: Tensor
    unit: str

    def __call__(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        gap = torch.from_numpy(np.asarray(gaps, dtype=np.float64)).abs()
        index = gap.long().clamp(max=len(self.table) - 1) if self.unit == "places" else gap_buckets(gap)
        return self.table[index].numpy()


@dataclass(frozen=True)
class _StepCurve:
    by_interval: NDArray[np.float64]
    unit: float

    def __call__(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        step = np.minimum(np.abs(gaps) // self.unit, len(self.by_interval) - 1).astype(np.int64)
        return self.by_interval[step]
