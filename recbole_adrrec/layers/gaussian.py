"""Attention between Gaussians (STOSA, Fan et al., WWW 2022, arXiv 2201.06035).

States hold a mean and a covariance, Float[..., 2, d].

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``d`` hidden size, ``dh = d / H``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.attention import Attention, Projected
from recbole_adrrec.layers.gaussian_points import elu_plus_one, gaussian_points, negative_squared_distance
from recbole_adrrec.layers.refinement import Refinement


class PerPart(nn.Module):
    """One module for means and one of the same kind for covariances, each by a call of ``make``."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.mean = make()
        self.covariance = make()

    def forward(self, states: Tensor) -> Tensor:
        """Map Float[..., 2, d] to Float[..., 2, d']."""
        mean, covariance = states.unbind(-2)
        return torch.stack([self.mean(mean), self.covariance(covariance)], -2)


class WassersteinAttention(Attention):
    """``-W2(query_i, key_j) / sqrt(dh)``: near Gaussians attend to each other.

    Means are summed with the weights ``A``, covariances with ``A^2``, as those of independent summands.
    Arguments as for ``ProjectedAttention``.
    """

    sums_are_products = False
    scores_are_products = False

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, refinement: Refinement | None = None) -> None:
        super().__init__(dropout, refinement)
        self.n_heads = n_heads
        self.scale = (hidden_size // n_heads) ** -0.5

        def projection() -> PerPart:
            return PerPart(lambda: nn.Linear(hidden_size, hidden_size))

        self.query, self.key, self.value, self.output = (projection() for _ in range(4))

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Means and covariances, Float[..., H, dh] each."""
        mean, raw = (part.unflatten(-1, (self.n_heads, -1)) for part in projected.unbind(-2))
        return mean, elu_plus_one(raw)

    def project(self, query: Tensor, hidden: Tensor, context: Any) -> Projected:
        """Points of queries and keys, and the values' means and covariances side by side."""
        return Projected(
            gaussian_points(*self._heads(self.query(query))),
            gaussian_points(*self._heads(self.key(hidden))),
            torch.cat(self._heads(self.value(hidden)), -1),
        )

    def score_parts(self, projected: Projected, context: Any, group: int) -> list[Tensor]:
        """Scores of all heads."""
        return [negative_squared_distance(projected.query, projected.key) * self.scale]

    def aggregate(self, weights: Tensor, projected: Projected, context: Any, group: int) -> Tensor:
        """Weighted sums of the values' means and covariances, side by side."""
        mean, covariance = projected.value.chunk(2, -1)
        return torch.cat([weights @ mean, weights.square() @ covariance], -1)

    def merge(self, summed: Tensor) -> Tensor:
        """Joined heads as means and covariances, Float[..., 2, d], projected."""
        return self.output(torch.stack([part.flatten(-2) for part in summed.chunk(2, -1)], -2))


class GaussianOutput(nn.Module):
    """End of a layer: covariances become positive again, ``ELU(x) + 1``.

    Parameters
    ----------
    mean_bypass : bool
        Whether the layer gives its input's means instead of its own, as the public code of STOSA does, where the
        encoder assigns the new mean to a misspelt name.
    """

    def __init__(self, mean_bypass: bool = False) -> None:
        super().__init__()
        self.mean_bypass = mean_bypass

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """The layer's output, from its input and its result, Float[..., 2, d] each."""
        mean = before[..., 0, :] if self.mean_bypass else after[..., 0, :]
        return torch.stack([mean, elu_plus_one(after[..., 1, :])], -2)
