"""Drifting popularity: a part of the items' scores that depends on the query time alone.

After timeSVD++ (Koren, "Collaborative Filtering with Temporal Dynamics", KDD 2009), whose items have a bias for each
bin of time; ours is of low rank and continuous in time. The form is ours: ``docs/models.md``.

Letters: ``N`` states, ``V`` items (padding included), ``r`` rank, ``n`` knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.knots import knot_vectors
from recbole_adrrec.times import SECONDS_A_DAY


class Trend(nn.Module):
    """Low-rank drift of popularity, ``a_v . e(tau)``, added to the score of item ``v`` at the query time ``tau``.

    ``e`` is learned at knots and interpolated linearly between them, over the days that training shows. An earlier or
    later time reads the first or the last of these days. ``a`` starts at zero, so that a model begins as it would
    without a trend; ``e`` does not, or neither would have a gradient.

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
        first, last = (self.trained_range * SECONDS_A_DAY).unbind()
        # Unix seconds in float32 come in steps of 128: the difference is taken in whole seconds.
        since = (query_time.clamp(first, last) - first).double() / (self.spacing * SECONDS_A_DAY)
        before = since.long()
        share = (since - before).to(self.knots.weight.dtype).unsqueeze(-1)
        after = (before + 1).clamp(max=self.knots.num_embeddings - 1)
        return torch.lerp(self.knots(before), self.knots(after), share)

    @property
    def row_days(self) -> Tensor:
        """Day of each knot, Float64[n], since 1970."""
        return int(self.trained_range[0]) + self.spacing * torch.arange(self.knots.num_embeddings, dtype=torch.float64)

    def vectors_of(self, days: Tensor) -> Tensor:
        """``e`` of days since 1970, Float[m, r], to the knot after the last trained day; see ``knot_vectors``."""
        return knot_vectors(self.knots.weight, self.trained_range, self.spacing, days)

    def item_factors(self, items: Tensor | None) -> Tensor:
        """``a`` of all items or of ``items``, Int64[...]: Float[..., r]."""
        return self.items if items is None else F.embedding(items, self.items)

    def penalty(self) -> Tensor:
        """``decay / 2 (|a|^2 + |e|^2)``, Float[], over all items and knots."""
        return 0.5 * self.decay * (self.items.square().sum() + self.knots.weight.square().sum())
