"""Refinements: attention weights in, other attention weights out (AWRSR, arXiv 2410.21048, RecSys 2024).

The paper's idea: a row of attention weights says how a position relates to all others, so weights of alike rows
belong together; map rows by learned matrices and attend once more. It gives no code; ``docs/interpretation.md`` says
where the forms below are ours.

All are pure functions of the weights and the mask, work on any attention of this package, and keep what the mask
promises: row ``i`` depends on keys that ``i`` may see, and on their rows, which see no more. That needs a mask where
whatever a visible key may see is visible too, as causal and two-sided masks are. Maps by distance know no distance but
to the past, so they need a causal mask.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``L_max`` most places, ``r`` rank, ``h`` refined heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.gaussian_points import elu_plus_one, gaussian_points, negative_squared_distance
from recbole_adrrec.layers.softmax import masked_softmax

REFINEMENT_MAPS = ("distance", "place")
"""Values of ``refinement_maps``: rows of the learned maps stand for distances or for places."""

DISTANCE_RANK = 8
"""Rank of maps by distance unless another is given."""

REFINEMENT_START = 0.05
"""Share of refined weights with which ``AdditiveRefinement`` starts unless another is given."""


def skewed(weights: Tensor) -> Tensor:
    """Weights by the distance of their key instead of its place.

    Of causal weights, Float[B, h, L, L], it gives Float[B, h, L, L + 1]: column ``c`` of row ``i`` holds the weight of
    key ``i - (L - 1 - c)``, zero where there is none. The last column but one is the query's own place, the first the
    farthest; the last is zero, and to cut it off would take a copy. Rows of the flat weights are read one element later
    each, as in the skewing of the Music Transformer (Huang et al., ICLR 2019): a copy, no index.
    """
    length = weights.size(-1)
    return F.pad(weights.flatten(-2), (length - 1, 1)).unflatten(-1, (length, length + 1))


def distance_features(max_length: int, rank: int) -> Tensor:
    """Smooth functions of a distance, Float[L_max, r], of an RMS of about one: first maps by distance.

    ``sqrt(2) cos(pi (c + 1/2) x)``, ``x = log(1 + distance) / log(1 + L_max)``, for columns ``c`` from 0: near
    distances are resolved finely, far ones coarsely. No column is constant, else its weights would add the same to
    every key's score and get no gradient.
    """
    place = torch.arange(max_length).log1p() / math.log1p(max_length)
    return math.sqrt(2) * torch.cos(math.pi * (torch.arange(rank) + 0.5) * place.unsqueeze(1))


class Refinement(nn.Module):
    """Identity refinement, and the interface of the others."""

    def forward(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Refined weights, Float[B, H, L, L], of weights after softmax, query by key.

        Rows sum to one or, where ``mask``, Bool[B, 1, L, L], allows a query no key, to zero.
        """
        return weights


@dataclass(frozen=True)
class RefinementSettings:
    """Everything that refinements are built from; each takes what it needs."""

    n_heads: int
    max_length: int
    """Most places, ``L_max``."""
    rank: int | None = None
    """Columns ``r`` of the maps; by default ``DISTANCE_RANK`` by distance and ``L_max`` by place."""
    heads: Sequence[int] | None = None
    """Numbers from 1 of the heads that are refined; the others' weights stay as they are. All by default."""
    maps: str = "distance"
    """One of ``REFINEMENT_MAPS``."""
    value_map: bool = False
    """True for a ``ValueRefinement`` with a ``W_v``."""
    start: float | None = None
    """``g`` of an ``AdditiveRefinement`` at first, in (0, 1); by default ``REFINEMENT_START``."""


class LearnedRefinement(Refinement):
    """Base of the learned refinements: two maps of each head's rows, and the heads that are refined.

    With ``maps="distance"`` row ``i`` becomes ``sum_j A_ij W[i - j]``: rows of the maps are the distances 0 to
    ``L_max - 1``, so that every row of a batch trains the near ones. Causal masks alone. Both maps start at
    ``distance_features``, so that at first rows attend to rows that look equally far back.

    With ``maps="place"`` it is ``sum_j A_ij W[j]``: rows of the maps are key places and start as normal numbers.

    Either way a batch whose rows are shorter than ``L_max`` uses the first ``L`` rows of the maps, and padding behind
    the events changes nothing at them.
    """

    def __init__(self, settings: RefinementSettings) -> None:
        super().__init__()
        n_heads, max_length, rank = settings.n_heads, settings.max_length, settings.rank
        chosen = list(range(1, n_heads + 1)) if settings.heads is None else list(settings.heads)
        self.by_distance = settings.maps == "distance"
        if rank is None:
            rank = DISTANCE_RANK if self.by_distance else max_length
        self.heads = None if len(chosen) == n_heads else [head - 1 for head in sorted(chosen)]
        self.scale = rank**-0.5
        shape = (len(chosen), max_length, rank)
        first, second = (
            distance_features(max_length, rank).repeat(len(chosen), 1, 1) if self.by_distance else torch.randn(shape)
            for _ in range(2)
        )
        self.first_map, self.second_map = nn.Parameter(first), nn.Parameter(second)

    def forward(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Weights with the chosen heads refined; see ``Refinement.forward``.

        ``ValueError`` if maps go by distance and the first query may see a later key.
        """
        # On a CPU alone: elsewhere it would wait for the device.
        checked = self.by_distance and mask.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and mask[..., 0, 1:].any():
            raise ValueError("refinement_maps: distance; needs a causal mask; choose place for a two-sided one")
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
        first, second = self.first_map[:, :length], self.second_map[:, :length]
        if not self.by_distance:
            return weights @ first, weights @ second
        mapped = skewed(weights) @ F.pad(torch.cat([first, second], -1).flip(1), (0, 0, 0, 1))
        return mapped[..., : first.size(-1)], mapped[..., first.size(-1) :]


class SimpleRefinement(LearnedRefinement):
    """``A' = softmax(mask((A W_q)(A W_k)^T / sqrt(r)))``, with ``W_q``, ``W_k`` the two maps."""

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See ``LearnedRefinement.refine``."""
        query, key = self._mapped(weights)
        return masked_softmax(query @ key.transpose(2, 3) * self.scale, mask)


class ValueRefinement(SimpleRefinement):
    """``A' A`` (two hops) or ``A' A W_v``, with ``A'`` the simple refinement.

    ``W_v = softmax(mask(V))``: its row ``j`` spreads the weight on key ``j`` over the keys that ``j`` may see, so that
    rows go on summing to one and no weight moves to the future. It starts near the identity. With maps by distance,
    ``V_jl = v[j - l]``.
    """

    def __init__(self, settings: RefinementSettings) -> None:
        super().__init__(settings)
        max_length = settings.max_length
        if settings.value_map:
            # Off the diagonal at most 1 / (1 + L_max) of each row's weight.
            start = 2 * math.log(max_length) * torch.eye(max_length)
            start = start[0] if self.by_distance else start
            self.value_map = nn.Parameter(start.expand(len(self.first_map), *start.shape).clone())
        else:
            self.register_parameter("value_map", None)

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See ``LearnedRefinement.refine``."""
        walked = super().refine(weights, mask) @ weights
        if self.value_map is None:
            return walked
        return walked @ masked_softmax(self._spread(weights.size(-1)).expand(mask.size(0), -1, -1, -1), mask)

    def _spread(self, length: int) -> Tensor:
        """``V`` of the first places, Float[h, L, L]."""
        if not self.by_distance:
            return self.value_map[:, :length, :length]
        place = torch.arange(length, device=self.value_map.device)
        # Keys later than the query are masked, whatever stands there.
        return self.value_map[:, (place.unsqueeze(1) - place).clamp(min=0)]


class AdditiveRefinement(SimpleRefinement):
    """``(1 - g) A + g A'``, with ``A'`` the simple refinement and ``g = sigmoid(gate)`` learned for each head."""

    def __init__(self, settings: RefinementSettings) -> None:
        super().__init__(settings)
        start = REFINEMENT_START if settings.start is None else settings.start
        self.gate = nn.Parameter(torch.full((len(self.first_map), 1, 1), math.log(start / (1 - start))))

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See ``LearnedRefinement.refine``."""
        share = self.gate.sigmoid()
        return (1 - share) * weights + share * super().refine(weights, mask)


class StochasticRefinement(LearnedRefinement):
    """Rows as Gaussians: ``mu = A W_mu``, ``s = ELU(A W_s) + 1``, ``A' = softmax(mask(-W2 / sqrt(r)))``.

    ``W2`` is the squared 2-Wasserstein distance of the Gaussians of row ``i`` and row ``j`` (STOSA's attention).
    ``W_mu`` and ``W_s`` are the two maps.
    """

    def refine(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See ``LearnedRefinement.refine``."""
        mean, raw = self._mapped(weights)
        points = gaussian_points(mean, elu_plus_one(raw))
        return masked_softmax(negative_squared_distance(points, points) * self.scale, mask)


REFINEMENTS: dict[str, type[LearnedRefinement]] = {
    "simple": SimpleRefinement,
    "value": ValueRefinement,
    "additive": AdditiveRefinement,
    "stochastic": StochasticRefinement,
}
