"""Why a model recommends what it does: what one user's last query attends to, and what it knows of time.

The weights are those of :meth:`recbole_adrrec.models.base.SequenceRecommender.explain`; the curves are what a kernel
of time adds to the attention score of that query, as a function of the gap in time.
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
from recbole_adrrec.layers.attention import Attention, MixAttention
from recbole_adrrec.layers.intervals import IntervalAttention
from recbole_adrrec.layers.kernels import ABSOLUTE_KERNELS, RELATIVE_KERNELS
from recbole_adrrec.layers.moments import Moments
from recbole_adrrec.layers.relative_kernels import DistanceKernel
from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.recommend import At, Recommender

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From gaps in seconds (or in places, for ``distance``) to what is added to the attention score."""


@dataclass(frozen=True)
class Kernel:
    """What one kernel of a pair of events adds to the last query's scores.

    Attributes
    ----------
    name : str
        As in ``relative_kernels``; ``interval`` for TiSASRec's.
    layer, head : int
        From 1.
    unit : {'seconds', 'places'}
        Of the gap.
    curve : callable
        See ``Curve``; only gaps of at least 0 are asked in causal models.
    """

    name: str
    layer: int
    head: int
    unit: str
    curve: Curve


@dataclass(frozen=True)
class Reasons:
    """What is known of one recommendation.

    Attributes
    ----------
    user, model : str
        Names.
    at : int
        The moment asked, in seconds since 1970 (UTC).
    query_time : int
        The moment from which gaps are counted: ``at`` for models that are told of it, else that of the last event.
    items : list of str
        The events that the model was shown, oldest first.
    times : int64 array, [n_events]
        Their times, in seconds since 1970 (UTC).
    heads : list of str
        What each head knows of place and time; numbers where heads don't differ in that.
    plain, refined : float64 array, [n_layers, n_heads, n_keys]
        Weights of the last query before and after refinement. There are as many keys as events, and one more, last,
        where the query is a mask token that may attend to itself.
    is_refined : bool
        Whether the model refines weights at all.
    kernels : list of Kernel
        Of layers, then heads; empty where the model has none of pairs of events.
    recommended : list of (str, float)
        Items and scores, best first.
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
    kernels: list[Kernel]
    recommended: list[tuple[str, float]]

    @property
    def asks_itself(self) -> bool:
        """Whether the last key is the mask token that asks."""
        return self.plain.shape[-1] > len(self.items)


def explain(recommender: Recommender, user: object, at: At | None = None, top: int = 5) -> Reasons:
    """Look into the model while it recommends for a user.

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
        The model is not one of this package's.
    DataError
        The user is unknown, or has no event up to then.
    """
    model, name = recommender.model, str(recommender.config["model"])
    if not isinstance(model, SequenceRecommender):
        raise OptionError(
            f"model: {name} is RecBole's own and doesn't tell its attention weights; explain works for ADRRec, AWRSR, "
            "MEANTIME, STOSA and TiSASRec"
        )
    answers = recommender.recommend([user], at, top)
    row = recommender.rows([user], at).to(recommender.config["device"])
    with recommender.units(), _last_queries(model) as asked:
        seen = model.explain(row)
    n_keys = len(seen.items)
    shown = n_keys - int(model.objective == "cloze")
    names = [recommender.carried.items[number] for number in seen.items[:shown].tolist()]
    at = int(answers.at[0])
    return Reasons(
        user=answers.users[0],
        model=name,
        at=at,
        query_time=at if recommender.knows_query_time else int(seen.times[shown - 1]),
        items=names,
        times=seen.times[:shown].cpu().numpy().astype(np.int64),
        heads=_heads(model, seen.plain.size(1)),
        plain=seen.plain[:, :, -1].double().cpu().numpy(),
        refined=seen.refined[:, :, -1].double().cpu().numpy(),
        is_refined=any(_refines(part) for part in model.encoder.modules()),
        kernels=list(_kernels(recommender, asked, row)),
        recommended=next(iter(answers))[1],
    )


def _refines(part: nn.Module) -> bool:
    return isinstance(part, Attention) and bool(list(part.refinement.parameters()))


def _name(kernel: nn.Module) -> str:
    known = {**ABSOLUTE_KERNELS, **RELATIVE_KERNELS}
    return next((name for name, kind in known.items() if type(kernel) is kind), type(kernel).__name__)


def _heads(model: Any, count: int) -> list[str]:
    kernels = [*getattr(model.kernels, "absolute", []), *getattr(model.kernels, "relative", [])]
    return [_name(kernel) for kernel in kernels] if kernels else [f"head {number}" for number in range(1, count + 1)]


@contextmanager
def _last_queries(model: SequenceRecommender) -> Iterator[list[tuple[Attention, Tensor]]]:
    """Collect each attention, in the order of running, with the state of the last query, Float[1, 1, d]."""
    collected: list[tuple[Attention, Tensor]] = []

    def collect(part: Attention, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        query = named.get("query", arguments[3] if len(arguments) > 3 else None)
        states = arguments[0] if query is None else query
        # The only row has no padding behind its last place, which asks.
        collected.append((part, states[:, -1:].detach()))

    parts = [part for part in model.encoder.modules() if isinstance(part, Attention)]
    handles = [part.register_forward_pre_hook(collect, with_kwargs=True) for part in parts]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _kernels(recommender: Recommender, asked: list[tuple[Attention, Tensor]], row: Any) -> Iterator[Kernel]:
    model = recommender.model
    for layer, (part, query) in enumerate(asked, 1):
        if isinstance(part, MixAttention):
            yield from _mix_kernels(part, query, model.kernels.relative, layer)
        elif isinstance(part, IntervalAttention):
            yield from _interval_kernels(recommender, part, query, layer, row)


def _mix_kernels(part: MixAttention, query: Tensor, kernels: Any, layer: int) -> Iterator[Kernel]:
    """``(q_i + b) . P phi(gap) / sqrt(dh)`` of each relative head."""
    scaled = part._scaled_query(query)[:, part.n_absolute :]  # [1, n_relative, 1, dh]
    biased = scaled + part.relative_bias.unsqueeze(1) * part.scale
    for head, (projection, kernel) in enumerate(zip(part.relative_key, kernels, strict=True)):
        projected = (biased[:, head] @ projection.weight).detach()  # [1, 1, d]
        constant = (biased[:, head] * projection.bias).sum(-1, keepdim=True).detach()  # [1, 1, 1]
        number = part.n_absolute + head + 1
        if isinstance(kernel, DistanceKernel):
            yield Kernel(_name(kernel), layer, number, "places", _DistanceCurve(kernel, projected, constant))
        else:
            yield Kernel(_name(kernel), layer, number, "seconds", _GapCurve(kernel, projected, constant))


@dataclass(frozen=True)
class _GapCurve:
    kernel: Any
    projected: Tensor
    constant: Tensor

    @torch.no_grad()
    def __call__(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        key = torch.zeros(1, len(gaps), dtype=torch.float64, device=self.projected.device)
        query = key + torch.from_numpy(np.asarray(gaps, dtype=np.float64)).to(key.device)
        # A row for each gap, of one place: nothing but these pairs is computed.
        key, query = key.T, query.T
        place = torch.zeros_like(key, dtype=torch.int64)
        moments = Moments(place, query, key, torch.ones_like(place, dtype=torch.bool))
        score = self.kernel(moments, self.projected.dtype)
        count = len(gaps)
        found: Tensor = score(self.projected.expand(count, -1, -1), self.constant.expand(count, -1, -1))
        return found.flatten().double().cpu().numpy()


@dataclass(frozen=True)
class _DistanceCurve:
    kernel: DistanceKernel
    projected: Tensor
    constant: Tensor

    @torch.no_grad()
    def __call__(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        bound = self.kernel.max_distance
        row = torch.from_numpy(np.asarray(gaps)).long().clamp(-bound, bound) + bound
        table = self.kernel.embedding.weight[row.to(self.projected.device)]
        found: Tensor = table @ self.projected.flatten() + self.constant.flatten()
        return found.double().cpu().numpy()


def _interval_kernels(
    recommender: Recommender, part: IntervalAttention, query: Tensor, layer: int, row: Any
) -> Iterator[Kernel]:
    """``q_i . RK_r / sqrt(dh)`` of each head, ``r`` by the gap in units of the user's own."""
    model = recommender.model
    with torch.no_grad(), recommender.units():
        _, moments, _ = model._asked(row)
        unit = float(model.kernels.units(moments))
        table = part._table(model.kernels.interval_key.weight)  # [H, S, dh]
        scores = (part._scaled_query(query) @ table.transpose(1, 2))[0, :, 0].double().cpu().numpy()  # [H, S]
    for head, by_interval in enumerate(scores):
        yield Kernel("interval", layer, head + 1, "seconds", _StepCurve(by_interval, unit))


@dataclass(frozen=True)
class _StepCurve:
    by_interval: NDArray[np.float64]
    unit: float

    def __call__(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        step = np.minimum(np.abs(gaps) // self.unit, len(self.by_interval) - 1).astype(np.int64)
        return self.by_interval[step]
