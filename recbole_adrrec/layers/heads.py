"""From states to scores of items, and the drift of popularity that may be added to them.

Letters: ``N`` states, ``d`` hidden size, ``D`` width of the item table, ``V`` items (padding included), ``k`` items
scored for each state, ``T`` temperature, ``r`` rank of the trend. Query times, Tensor[N], are in seconds since 1970
(UTC).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from recbole_adrrec.layers.gaussian_points import gaussian_points, negative_squared_distance
from recbole_adrrec.layers.kernels import vectors_at, vectors_of_days
from recbole_adrrec.layers.transformer import ACTIVATIONS


def unit_length(rows: Tensor) -> Tensor:
    """Rows, Float[..., D], divided by their lengths; a row of zeros (padding) stays one and gets no gradient."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / length.masked_fill(length == 0, torch.inf)


class Trend(nn.Module):
    """Low-rank drift of popularity, ``a_v . e(tau)``, added to the score of item ``v`` at the query time ``tau``.

    After timeSVD++ (Koren, KDD 2009), whose items have a bias for each bin of time; this form, of low rank and
    continuous in time, is ours: ``docs/models.md``. ``e`` is learned at knots and interpolated between them
    (``kernels.vectors_at``). ``a`` starts at zero, so that a model begins as it would without a trend; ``e`` does not,
    or neither would have a gradient.

    Parameters
    ----------
    n_items, rank : int
        Items ``V``, padding included, and width ``r`` of ``a`` and ``e``.
    trained_days : Int64[n_days]
        Whole days since 1970 (UTC) that training shows, sorted. The first and the last are kept with the weights, as
        ``trained_range``.
    spacing : float
        Days between two knots.
    decay : float
        Weight of the L2 penalty on both factors.
    """

    trained_range: Tensor

    def __init__(self, n_items: int, rank: int, trained_days: Tensor, spacing: float, decay: float) -> None:
        super().__init__()
        if trained_days.numel() == 0:
            raise ValueError("trained_days: 0 days given; a trend needs at least one")
        first, last = int(trained_days[0]), int(trained_days[-1])
        self.spacing = spacing
        self.decay = decay
        self.items = nn.Parameter(torch.zeros(n_items, rank))
        self.knots = nn.Embedding(1 + math.ceil((last - first) / spacing), rank)
        self.register_buffer("trained_range", torch.tensor([first, last]))

    def forward(self, query_time: Tensor) -> Tensor:
        """``e(tau)``, Float[N, r], for times, Int64[N] or Float64[N], in seconds since 1970 (UTC)."""
        return vectors_at(self.knots.weight, self.trained_range, self.spacing, query_time)

    @property
    def row_days(self) -> Tensor:
        """Day of each knot, Float64[n], since 1970."""
        return int(self.trained_range[0]) + self.spacing * torch.arange(self.knots.num_embeddings, dtype=torch.float64)

    def vectors_of(self, days: Tensor) -> Tensor:
        """``e`` of days since 1970, Float[m, r], to the knot after the last trained day; see ``vectors_of_days``."""
        return vectors_of_days(self.knots.weight, self.trained_range, self.spacing, days)

    def item_factors(self, items: Tensor | None) -> Tensor:
        """``a`` of all items or of ``items``, Int64[...]: Float[..., r]."""
        return self.items if items is None else F.embedding(items, self.items)

    def penalty(self) -> Tensor:
        """``decay / 2 (|a|^2 + |e|^2)``, Float[], over all items and knots."""
        return 0.5 * self.decay * (self.items.square().sum() + self.knots.weight.square().sum())


class ItemHead(nn.Module):
    """Scores by the dot product with the item table: the one that embeds the items (tied weights).

    With a trend, ``a_v . e(tau)`` is added: states and items are wider as products, ``[h ; e(tau)] . [w_v ; a_v]``,
    so that every loss and every ranking takes it. Without one, query times are not read and may be None.

    Parameters
    ----------
    n_items : int
        Items that get scores, padding included; rows of the table beyond them get none.
    temperature : float, optional
        ``T``, above 0: scores are ``cos(state, item) / T``; the plain product if None. A trend is added as it is.
    """

    bias: Parameter | None
    trend: Trend | None

    def __init__(self, n_items: int, temperature: float | None = None) -> None:
        super().__init__()
        self.n_items = n_items
        self.temperature = temperature
        self.register_parameter("bias", None)
        self.register_module("trend", None)

    def _transform(self, hidden: Tensor) -> Tensor:
        return hidden

    def _states(self, hidden: Tensor, query_time: Tensor | None) -> Tensor:
        """Query states, Float[N, D], or Float[N, D + r] with a trend."""
        states = self._transform(hidden)
        if self.temperature is not None:
            states = unit_length(states) / self.temperature
        if self.trend is None:
            return states
        if query_time is None:
            raise ValueError("query_time: None; scores with a trend depend on the time of each state")
        return torch.cat([states, self.trend(query_time).to(states.dtype)], -1)

    def _items(self, table: Tensor, items: Tensor | None) -> Tensor:
        """Rows of all items or of ``items``, Int64[...]: Float[..., D], or Float[..., D + r] with a trend."""
        rows = table[: self.n_items] if items is None else F.embedding(items, table)
        if self.temperature is not None:
            rows = unit_length(rows)
        return rows if self.trend is None else torch.cat([rows, self.trend.item_factors(items).to(rows.dtype)], -1)

    def forward(self, hidden: Tensor, table: Tensor, query_time: Tensor | None = None) -> Tensor:
        """Scores of all items, Float[N, V], from states, Float[N, d]."""
        return F.linear(*self.as_product(hidden, table, query_time=query_time))

    def as_product(
        self, hidden: Tensor, table: Tensor, items: Tensor | None = None, query_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, Float[N, D], items, Float[V, D], and bias, Float[V], of all items or of ``items``, Int64[V].

        ``states @ items.T + bias`` are the scores up to an additive constant per row (softmax is shift-invariant). With
        a trend both are wider by its rank.
        """
        bias = self.bias if self.bias is None or items is None else self.bias[items]
        return self._states(hidden, query_time), self._items(table, items), bias

    def score_items(
        self, hidden: Tensor, table: Tensor, *items: Tensor, query_time: Tensor | None = None
    ) -> list[Tensor]:
        """Scores of some items for each state, shaped like the items: Int64[N] or Int64[N, k] each."""
        states = self._states(hidden, query_time)
        scores = []
        for item in items:
            score = self.compare(states if item.dim() == 1 else states.unsqueeze(1), self._items(table, item))
            scores.append(score if self.bias is None else score + self.bias[item])
        return scores

    def compare(self, left: Tensor, right: Tensor) -> Tensor:
        """Similarity of rows of width ``D``, Float[...], without the items' bias."""
        return (left * right).sum(-1)


class ProjectedItemHead(ItemHead):
    """``Linear -> activation -> LayerNorm`` before the dot product, and a bias for each item (BERT4Rec, MEANTIME).

    With a temperature there is no bias: scores are the cosines alone. Other arguments as for ``ItemHead`` and
    ``FeedForward``.
    """

    def __init__(
        self,
        hidden_size: int,
        n_items: int,
        layer_norm_eps: float,
        temperature: float | None = None,
        activation: str = "gelu_tanh",
    ) -> None:
        super().__init__(n_items, temperature)
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation]()
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        if temperature is None:
            self.bias = Parameter(torch.zeros(n_items))

    def _transform(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.linear(hidden)))


class GaussianItemHead(ItemHead):
    """``-W2`` between states that are Gaussians, Float[N, 2, d], and a table of points (STOSA, section 3.4).

    Distances take neither a temperature nor a trend.
    """

    def __init__(self, n_items: int) -> None:
        super().__init__(n_items)

    def _transform(self, hidden: Tensor) -> Tensor:
        return gaussian_points(hidden[..., 0, :], hidden[..., 1, :])

    def forward(self, hidden: Tensor, table: Tensor, query_time: Tensor | None = None) -> Tensor:
        """Scores of all items, Float[N, V]."""
        return negative_squared_distance(self._transform(hidden), table[: self.n_items])

    def as_product(
        self, hidden: Tensor, table: Tensor, items: Tensor | None = None, query_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See ``ItemHead.as_product``: ``-|s - t|^2 = 2 s.t - |t|^2 - |s|^2``, the last the same for all items."""
        states, points, _ = super().as_product(hidden, table, items)
        return states, 2 * points, -points.square().sum(-1)

    def compare(self, left: Tensor, right: Tensor) -> Tensor:
        """Minus the squared distance of points."""
        return -(left - right).square().sum(-1)
