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
from torch.nn import functional as F

from recbole_adrrec.layers.attend import attend, can_attend
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.kernels import MixContext
from recbole_adrrec.layers.masks import masked_softmax
from recbole_adrrec.layers.refinement import Refinement

__all__ = [
    "Attention",
    "AttentionWeights",
    "DotProductAttention",
    "MixAttention",
    "ProjectedAttention",
    "Refinement",
    "captured_weights",
]


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
        self.dropout = Dropout(dropout)

    def score(self, query: Tensor, hidden: Tensor, context: Any) -> Tensor:
        """Scores, Float[B, H, L, L], of the states that ask and those asked, and what the layers share."""
        raise NotImplementedError

    def aggregate(self, weights: Tensor, hidden: Tensor, context: Any) -> Tensor:
        """Output, shaped like the states, of weights, Float[B, H, L, L]."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, mask: Tensor, context: Any, query: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        hidden : Float[B, L, d]
            States for keys and values. (An attention over Gaussians takes Float[B, L, 2, d].)
        mask : Bool[B, 1, L, L]
            True where query ``i`` may attend to key ``j``.
        context : object
            What the layers share of a batch; its kind depends on the attention.
        query : Float[B, L, d], optional
            States for the queries; ``hidden`` by default.
        """
        weights = masked_softmax(self.score(hidden if query is None else query, hidden, context), mask)
        weights = self.refinement(weights, mask)
        return self.aggregate(self.dropout(weights), hidden, context)


def head_size(hidden_size: int, n_heads: int) -> int:
    """Width of each head.

    Raises
    ------
    ValueError
        If the heads can't share the width equally.
    """
    if n_heads < 1 or hidden_size % n_heads:
        raise ValueError(f"hidden_size: {hidden_size}; must be divisible by n_heads, {n_heads}")
    return hidden_size // n_heads


def split_heads(projected: Tensor, n_heads: int) -> Tensor:
    """``[B, L, d]`` as ``[B, H, L, dh]``."""
    return projected.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(heads: Tensor) -> Tensor:
    """``[B, H, L, dh]`` as ``[B, L, d]``."""
    return heads.transpose(1, 2).flatten(2)


class ProjectedAttention(Attention):
    """Attention between linear maps of the states, cut into heads.

    Parameters
    ----------
    hidden_size : int
        Width ``d``, divisible by ``n_heads``.
    n_heads : int
        Heads ``H``.
    dropout : float
        Share of the weights that training drops.
    refinement : Refinement, optional
        Applied to the weights before dropout.
    project_output : bool
        Whether a linear map follows the joined heads.
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        dropout: float,
        refinement: Refinement | None = None,
        project_output: bool = True,
    ) -> None:
        super().__init__(dropout, refinement)
        self.n_heads = n_heads
        self.scale = head_size(hidden_size, n_heads) ** -0.5
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size) if project_output else nn.Identity()

    def _split(self, projected: Tensor) -> Tensor:
        return split_heads(projected, self.n_heads)

    def _scaled_query(self, query: Tensor) -> Tensor:
        # Scaling the queries costs L x dh where scaling the scores costs L x L.
        return self._split(self.query(query)) * self.scale

    def score_parts(self, query: Tensor, hidden: Tensor, context: Any) -> list[Tensor]:
        """``score`` by groups of heads, Float[B, h, L, L] each."""
        raise NotImplementedError

    def score(self, query: Tensor, hidden: Tensor, context: Any) -> Tensor:
        """Scores of all heads."""
        parts = self.score_parts(query, hidden, context)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def aggregate(self, weights: Tensor, hidden: Tensor, context: Any) -> Tensor:
        """Weighted sums of the values, joined over the heads and projected."""
        return self.output(join_heads(weights @ self._split(self.value(hidden))))

    sums_values_alone = True
    """Whether ``aggregate`` is the one above."""

    @property
    def weights_are_seen(self) -> bool:
        """Whether somebody looks at the weights between softmax and values: a refinement, or a hook."""
        hooks = [part._forward_hooks or part._forward_pre_hooks for part in (self.refinement, self.dropout)]
        return type(self.refinement) is not Refinement or any(hooks)

    def forward(self, hidden: Tensor, mask: Tensor, context: Any, query: Tensor | None = None) -> Tensor:
        """Attend, in one go where nobody looks at the weights; see ``Attention.forward``."""
        if self.weights_are_seen or not self.sums_values_alone or not can_attend(hidden):
            return super().forward(hidden, mask, context, query)
        scores = self.score_parts(hidden if query is None else query, hidden, context)
        values = self._split(self.value(hidden))
        return self.output(join_heads(attend(scores, mask, values, self.dropout.p if self.training else 0.0)))


class DotProductAttention(ProjectedAttention):
    """``q_i . k_j / sqrt(dh)`` (Vaswani et al., NeurIPS 2017; SASRec, ICDM 2018).

    Where nobody looks at the weights (no refinement, no hook on it) torch's ``scaled_dot_product_attention`` does all
    in one: half the time without dropout on a CPU, and no ``L x L`` weights. With dropout it is slower there than the
    steps, and isn't taken.
    """

    def forward(self, hidden: Tensor, mask: Tensor, context: Any, query: Tensor | None = None) -> Tensor:
        """Attend; see ``Attention.forward``."""
        dropout = self.dropout.p if self.training else 0.0
        if self.weights_are_seen or (dropout > 0 and not hidden.is_cuda):
            return super().forward(hidden, mask, context, query)
        asked = self._split(self.query(hidden if query is None else query))
        key, value = self._split(self.key(hidden)), self._split(self.value(hidden))
        summed = F.scaled_dot_product_attention(asked, key, value, attn_mask=mask, dropout_p=dropout)
        return self.output(join_heads(summed))

    def score_parts(self, query: Tensor, hidden: Tensor, context: Any) -> list[Tensor]:
        """Scores of all heads."""
        return [self._scaled_query(query) @ self._split(self.key(hidden)).transpose(2, 3)]


class MixAttention(ProjectedAttention):
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
        n_heads = n_absolute + n_relative
        if n_heads == 0:
            raise ValueError("absolute_kernels, relative_kernels: both empty; name at least one")
        if hidden_size % n_heads:
            raise ValueError(
                f"hidden_size: {hidden_size}; must be divisible by the number of kernels, {n_heads} (one head each)"
            )
        super().__init__(hidden_size, n_heads, dropout, refinement)
        self.n_absolute = n_absolute
        head_size = hidden_size // n_heads

        def projections(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(hidden_size, head_size) for _ in range(count))

        self.absolute_query = projections(n_absolute)
        self.absolute_key = projections(n_absolute)
        self.relative_key = projections(n_relative)
        self.relative_bias = nn.Parameter(torch.zeros(n_relative, head_size))

    def score_parts(self, query: Tensor, hidden: Tensor, context: MixContext) -> list[Tensor]:
        """Scores of the absolute heads, and of each relative one."""
        sizes = [self.n_absolute, self.n_heads - self.n_absolute]
        query, relative_query = self._scaled_query(query).split(sizes, 1)
        key, relative_key = self._split(self.key(hidden)).split(sizes, 1)
        scores = []
        if self.n_absolute:
            embedded = context.absolute
            on_query = [p(e) for p, (e, _) in zip(self.absolute_query, embedded, strict=True)]
            on_key = [p(e) for p, (_, e) in zip(self.absolute_key, embedded, strict=True)]
            query = query + torch.stack(on_query, 1) * self.scale
            key = key + torch.stack(on_key, 1)
            scores.append(query @ key.transpose(2, 3))
        biased = relative_query + self.relative_bias.unsqueeze(1) * self.scale
        for head, (projection, scorer) in enumerate(zip(self.relative_key, context.relative, strict=True)):
            projected = biased[:, head] @ projection.weight  # [B, L, d]
            constant = (biased[:, head] * projection.bias).sum(-1, keepdim=True)  # [B, L, 1]
            on_pair = scorer(projected, constant)
            own = relative_query[:, head], relative_key[:, head].transpose(1, 2)
            # In place spares a pass over all pairs; autocast knows the other form alone.
            mixed = torch.is_autocast_enabled(on_pair.device.type)
            both = torch.baddbmm(on_pair, *own) if mixed else on_pair.baddbmm_(*own)
            scores.append(both.unsqueeze(1))
        return scores


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
