"""Refinements: attention weights in, other attention weights out (AWRSR, arXiv 2410.21048, RecSys 2024).

The paper's idea: a row of attention weights says how a position relates to all others, so weights of alike rows
belong together; map rows by learned matrices and attend once more. It gives no code; ``docs/interpretation.md`` says
where the forms below are ours.

All are pure functions of the weights and the mask, work on any attention of this package, and keep what the mask
promises: row ``i`` depends on keys that ``i`` may see, and on their rows, which see no more. That needs a mask where
whatever a visible key may see is visible too, as causal and two-sided masks are.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``L_max`` most places, ``r`` rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.gaussian_points import gaussian_points, nearness, positive
from recbole_adrrec.layers.masks import masked_softmax


class Refinement(nn.Module):
    """Gives other weights for an attention's weights; this one leaves them as they are."""

    def forward(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Refine.

        Parameters
        ----------
        weights : Float[B, H, L, L]
            Weights after softmax, query by key; rows of queries without any key are zero.
        mask : Bool[B, 1, L, L]
            True where query ``i`` may attend to key ``j``.

        Returns
        -------
        Float[B, H, L, L]
            Other weights of the same kind: rows sum to one or, without any key, to zero.
        """
        return weights


class LearnedRefinement(Refinement):
    """What the learned refinements share: two maps of each head's rows, and the heads that are refined.

    Rows of the maps belong to key *places*; a batch whose rows are shorter than ``L_max`` uses the first ``L``.

    Parameters
    ----------
    n_heads : int
        Heads ``H`` of the attention.
    max_length : int
        Most places ``L_max``.
    rank : int, optional
        Columns ``r`` of the maps; ``L_max`` by default.
    heads : sequence of int, optional
        Numbers from 1 of the heads that are refined; the others' weights stay as they are. All by default.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(
        self, n_heads: int, max_length: int, rank: int | None = None, heads: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        chosen = list(range(1, n_heads + 1)) if heads is None else list(heads)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(1, n_heads + 1)):
            raise ValueError(f"refinement_heads: {heads}; must be different head numbers from 1 to {n_heads}")
        rank = max_length if rank is None else rank
        if rank < 1:
            raise ValueError(f"refinement_rank: {rank}; must be a whole number of at least 1")
        self.heads = None if len(chosen) == n_heads else [head - 1 for head in sorted(chosen)]
        self.scale = rank**-0.5
        self.first_map = nn.Parameter(torch.randn(len(chosen), max_length, rank))
        self.second_map = nn.Parameter(torch.randn(len(chosen), max_length, rank))

    def forward(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Refine the chosen heads."""
        if self.heads is None:
            return self.refine(weights, mask)
        refined = list(weights.unbind(1))
        for head, changed in zip(self.heads, self.refine(weights[:, self.heads], mask).unbind(1), strict=True):
            refined[head] = changed
        return torch.stack(refined, 1)

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Refined weights, Float[B, h, L, L], of the ``h`` chosen heads alone."""
        raise NotImplementedError

    def _mapped(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the weights under both maps, Float[B, h, L, r] each."""
        length = weights.size(-1)
        return weights @ self.first_map[:, :length], weights @ self.second_map[:, :length]


class SimpleRefinement(LearnedRefinement):
    """``A' = softmax(mask((A W_q)(A W_k)^T / sqrt(r)))``, with ``W_q``, ``W_k`` the two maps."""

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Attend to rows of weights by rows of weights."""
        query, key = self._mapped(weights)
        return masked_softmax(query @ key.transpose(2, 3) * self.scale, mask)


class ValueRefinement(SimpleRefinement):
    """``A' A`` (two hops) or ``A' A W_v``, with ``A'`` the simple refinement.

    ``W_v = softmax(mask(V))``: its row ``j`` spreads the weight on key ``j`` over the keys that ``j`` may see, so that
    rows go on summing to one and no weight moves to the future. It starts near the identity.

    Parameters
    ----------
    n_heads, max_length, rank, heads
        As for ``LearnedRefinement``.
    value_map : bool
        Whether there is a ``W_v``.
    """

    def __init__(
        self,
        n_heads: int,
        max_length: int,
        rank: int | None = None,
        heads: Sequence[int] | None = None,
        value_map: bool = False,
    ) -> None:
        super().__init__(n_heads, max_length, rank, heads)
        if value_map:
            # Off the diagonal at most 1 / (1 + L_max) of each row's weight.
            start = 2 * math.log(max_length) * torch.eye(max_length)
            self.value_map = nn.Parameter(start.repeat(len(self.first_map), 1, 1))
        else:
            self.register_parameter("value_map", None)

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Walk from the refined weights on by the plain ones."""
        walked = super().refine(weights, mask) @ weights
        if self.value_map is None:
            return walked
        length = weights.size(-1)
        spread = self.value_map[:, :length, :length].expand(len(mask), -1, -1, -1)
        return walked @ masked_softmax(spread, mask)


class AdditiveRefinement(SimpleRefinement):
    """``(1 - g) A + g A'``, with ``A'`` the simple refinement and ``g = sigmoid(gate)`` learned for each head."""

    def __init__(
        self, n_heads: int, max_length: int, rank: int | None = None, heads: Sequence[int] | None = None
    ) -> None:
        super().__init__(n_heads, max_length, rank, heads)
        self.gate = nn.Parameter(torch.zeros(len(self.first_map), 1, 1))

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Mix plain and refined weights."""
        share = self.gate.sigmoid()
        return (1 - share) * weights + share * super().refine(weights, mask)


class StochasticRefinement(LearnedRefinement):
    """Rows as Gaussians: ``mu = A W_mu``, ``s = ELU(A W_s) + 1``, ``A' = softmax(mask(-W2 / sqrt(r)))``.

    ``W2`` is the squared 2-Wasserstein distance of the Gaussians of row ``i`` and row ``j`` (STOSA's attention).
    ``W_mu`` and ``W_s`` are the two maps.
    """

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Attend to near rows of weights."""
        mean, raw = self._mapped(weights)
        points = gaussian_points(mean, positive(raw))
        return masked_softmax(nearness(points, points) * self.scale, mask)


REFINEMENTS: dict[str, type[LearnedRefinement]] = {
    "simple": SimpleRefinement,
    "value": ValueRefinement,
    "additive": AdditiveRefinement,
    "stochastic": StochasticRefinement,
}
