"""Attention, in steps that other models and refinements can share.

``score -> weights -> refinement -> dropout -> aggregate``: a kind of attention defines ``score``
and ``aggregate``; a refinement gets the weights and the mask and gives other weights.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``d`` hidden size, ``dh = d / H``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.kernels import MixContext
from recbole_adrrec.layers.masks import masked_softmax


class Refinement(nn.Module):
    """Gives other weights for an attention's weights; this one leaves them as they are."""

    def forward(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Refine weights, Float[B, H, L, L], under a mask, Bool[B, 1, L, L]."""
        return weights


class Attention(nn.Module):
    """Frame of all attentions.

    Parameters
    ----------
    dropout : float
        Share of the weights that training drops, after refinement.
    refinement : Refinement, optional
        Applied to the weights before dropout.
    """

    def __init__(self, dropout: float, refinement: Refinement | None = None) -> None:
        super().__init__()
        self.refinement = Refinement() if refinement is None else refinement
        self.dropout = nn.Dropout(dropout)

    def score(self, hidden: Tensor, context: Any) -> Tensor:
        """Scores, Float[B, H, L, L], of states, Float[B, L, d], and what the layers share."""
        raise NotImplementedError

    def aggregate(self, weights: Tensor, hidden: Tensor, context: Any) -> Tensor:
        """Output, Float[B, L, d], of weights, Float[B, H, L, L]."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """Attend.

        Parameters
        ----------
        hidden : Float[B, L, d]
            States, the same for queries, keys and values.
        mask : Bool[B, 1, L, L]
            True where query ``i`` may attend to key ``j``.
        context : object
            What the layers share of a batch; its kind depends on the attention.
        """
        weights = masked_softmax(self.score(hidden, context), mask)
        weights = self.refinement(weights, mask)
        return self.aggregate(self.dropout(weights), hidden, context)


class MixAttention(Attention):
    r"""Mixture of absolute and relative heads (MEANTIME, section 3.4; ADRRec's mix-attention).

    Absolute head: ``(q_i + P^q E_i) . (k_j + P^k E_j) / sqrt(dh)``.
    Relative head: ``(q_i . k_j + (q_i + b) . P phi(i, j)) / sqrt(dh)``, computed as
    ``u_i . phi(i, j)`` with ``u_i = P^T (q_i + b)``. Kernels enter the scores, never the values.

    Parameters
    ----------
    hidden_size : int
        Width ``d``, divisible by the number of heads.
    n_absolute, n_relative : int
        Numbers of heads of either kind; absolute heads come first.
    dropout : float
        Share of the weights that training drops.
    refinement : Refinement, optional
        Applied to the weights before dropout.

    Raises
    ------
    ValueError
        If there is no head, or ``hidden_size`` is not divisible by their number.
    """

    def __init__(
        self,
        hidden_size: int,
        n_absolute: int,
        n_relative: int,
        dropout: float,
        refinement: Refinement | None = None,
    ) -> None:
        super().__init__(dropout, refinement)
        n_heads = n_absolute + n_relative
        if n_heads == 0:
            raise ValueError("absolute_kernels, relative_kernels: both empty; name at least one")
        if hidden_size % n_heads:
            raise ValueError(
                f"hidden_size: {hidden_size}; must be divisible by the number of kernels, {n_heads} (one head each)"
            )
        self.n_absolute = n_absolute
        self.n_heads = n_heads
        head_size = hidden_size // n_heads
        self.scale = head_size**-0.5
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

        def projections(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(hidden_size, head_size) for _ in range(count))

        self.absolute_query = projections(n_absolute)
        self.absolute_key = projections(n_absolute)
        self.relative_key = projections(n_relative)
        self.relative_bias = nn.Parameter(torch.zeros(n_relative, head_size))

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, H, L, dh]

    def score(self, hidden: Tensor, context: MixContext) -> Tensor:
        """Scores of all heads."""
        sizes = [self.n_absolute, self.n_heads - self.n_absolute]
        # Scaling the queries costs L x dh where scaling the scores costs L x L.
        query, relative_query = (self._split(self.query(hidden)) * self.scale).split(sizes, 1)
        key, relative_key = self._split(self.key(hidden)).split(sizes, 1)
        scores = []
        if self.n_absolute:
            embedded = context.absolute
            on_query = [p(e) for p, (e, _) in zip(self.absolute_query, embedded, strict=True)]
            on_key = [p(e) for p, (_, e) in zip(self.absolute_key, embedded, strict=True)]
            query = query + torch.stack(on_query, 1) * self.scale
            key = key + torch.stack(on_key, 1)
            scores.append(query @ key.transpose(2, 3))
        if context.relative:
            on_pair = []
            biased = relative_query + self.relative_bias.unsqueeze(1) * self.scale
            for head, (projection, scorer) in enumerate(zip(self.relative_key, context.relative, strict=True)):
                projected = biased[:, head] @ projection.weight  # [B, L, d]
                constant = (biased[:, head] * projection.bias).sum(-1, keepdim=True)  # [B, L, 1]
                on_pair.append(scorer(projected, constant))
            scores.append(relative_query @ relative_key.transpose(2, 3) + torch.stack(on_pair, 1))
        return torch.cat(scores, 1)

    def aggregate(self, weights: Tensor, hidden: Tensor, context: MixContext) -> Tensor:
        """Weighted sums of the values, joined over the heads and projected."""
        return self.output((weights @ self._split(self.value(hidden))).transpose(1, 2).flatten(2))


class AttentionWeights(NamedTuple):
    """Weights of one layer, Float[B, H, L, L], before and after refinement."""

    plain: Tensor
    refined: Tensor


@contextmanager
def captured_weights(module: nn.Module) -> Iterator[list[AttentionWeights]]:
    """Collect the weights of every attention inside ``module`` while the context lasts.

    Yields
    ------
    list of AttentionWeights
        One entry for each attention that runs, in the order of running; tensors are detached.
    """
    collected: list[AttentionWeights] = []

    def collect(_: nn.Module, inputs: tuple[Tensor, ...], refined: Tensor) -> None:
        collected.append(AttentionWeights(inputs[0].detach(), refined.detach()))

    attentions = [part for part in module.modules() if isinstance(part, Attention)]
    handles = [part.refinement.register_forward_hook(collect) for part in attentions]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
