"""Pointwise attention: weights without a softmax, gated sums, biases of place and time (HSTU).

Reference: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", ICML 2024, arXiv 2402.17152.

Letters: ``B`` rows of a batch, ``L`` places, ``N`` events, ``b`` rows of a group, ``W`` its places, ``H`` heads, ``d``
hidden size, ``dq`` width of a head's queries and keys, ``dv`` of its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.attention import Attention, Projected
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.layout import Group, Layout, SequenceTimes

BUCKET_WIDTH = 0.301
"""Width of a bucket of gaps, in natural logarithms of seconds: a factor of 1.35."""

LAST_BUCKET = 128


def gap_buckets(gap: Tensor) -> Tensor:
    """``floor(log(max(|gap|, 1)) / 0.301)``, at most ``LAST_BUCKET``, Int64[...], of gaps in seconds.

    Gaps of 0 and 1 s share bucket 0. Logarithms are taken in float64: float32 would move whole seconds over a bucket's
    edge where gaps are long.
    """
    return gap.abs().clamp(min=1).double().log_().div_(BUCKET_WIDTH).long().clamp_(max=LAST_BUCKET)


@dataclass(frozen=True)
class GapContext:
    """Buckets of the gaps of a batch, Int64[b, W, W] for each group of rows, which all layers share."""

    buckets: list[Tensor]

    def single(self, number: int, places: slice) -> GapContext:
        """The part of one group of rows."""
        return GapContext([self.buckets[number]])


class GapBuckets(nn.Module):
    """From times to the buckets of the gaps between the times of queries and those of keys."""

    def forward(self, times: SequenceTimes, layout: Layout, dtype: torch.dtype) -> GapContext:
        """Buckets of a batch, computed once for all layers; times are subtracted as they are."""
        own = [group.times(times) for group in layout.groups]
        return GapContext([gap_buckets(each.query_time.unsqueeze(2) - each.key_time.unsqueeze(1)) for each in own])


class PointwiseAttention(Attention):
    """``W_o drop(u * norm(drop(A v)))`` with ``A_ij = silu(q_i . k_j + bias_ij) / max_seq_length``.

    ``u, v, q, k = silu(W x)``, cut in this order, ``u`` and ``v`` into ``H dv``, ``q`` and ``k`` into ``H dq`` numbers;
    ``W`` has no bias. Weights of a query neither sum to one nor are all positive (SiLU goes down to -0.28); a key that
    it may not attend to has weight 0. The divisor is the same for all rows, so that sums grow with the number of
    events.

    ``bias_ij = distance_bias[i - j] + gap_bias[bucket(t_i - t_j)]``, numbers of the layer for all heads; either can be
    left out.

    Parameters
    ----------
    hidden_size, n_heads, query_size, value_size : int
        ``d``, ``H``, ``dq`` and ``dv``.
    max_seq_length : int
        Most places of a row: distances that there can be, and the divisor.
    dropout, gated_dropout : float
        Shares of the elements of the sums, before the norm, and of the gated sums that training drops.
    layer_norm_eps : float
        Added to the variance of the sums.
    position_bias, time_bias : bool
        Whether there is a bias of the distance, and of the gap; the latter takes a ``GapContext``.
    """

    weights_sum_to_one = False

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        query_size: int,
        value_size: int,
        max_seq_length: int,
        dropout: float,
        gated_dropout: float,
        layer_norm_eps: float,
        position_bias: bool,
        time_bias: bool,
    ) -> None:
        super().__init__(dropout)
        self.n_heads = n_heads
        self.max_seq_length = max_seq_length
        self.sizes = [n_heads * size for size in (value_size, value_size, query_size, query_size)]
        self.input = nn.Linear(hidden_size, sum(self.sizes), bias=False)
        self.distance_bias = nn.Embedding(max_seq_length, 1) if position_bias else None
        self.gap_bias = nn.Embedding(LAST_BUCKET + 1, 1) if time_bias else None
        self.norm = nn.LayerNorm(n_heads * value_size, layer_norm_eps)
        self.gated_dropout = Dropout(gated_dropout)
        self.output = nn.Linear(n_heads * value_size, hidden_size)

    def forward(self, hidden: Tensor, layout: Layout, context: Any, query: Tensor | None = None) -> Tensor:
        """Attend; arguments as for ``Attention.forward``, without states of their own for queries."""
        gate, value, asked, key = F.silu(self.input(hidden)).split(self.sizes, -1)
        projected = Projected(*(part.unflatten(-1, (self.n_heads, -1)) for part in (asked, key, value)))
        summed = self.dropout(self.sum_groups(projected, layout, context).flatten(-2))
        merged: Tensor = self.output(self.gated_dropout(gate * self.norm(summed)))
        return merged

    def pair_bias(self, group: Group, context: Any, number: int) -> Tensor | None:
        """Bias of each pair of places of a group, Float[b or 1, W, W]; None without biases."""
        by_distance = by_gap = None
        if self.distance_bias is not None:
            place = torch.arange(group.mask.size(-1), device=group.mask.device)
            distance = (place.unsqueeze(1) - place).clamp(min=0).unsqueeze(0)
            by_distance = looked_up(self.distance_bias, distance)
        if self.gap_bias is not None:
            by_gap = looked_up(self.gap_bias, context.buckets[number])
        if by_distance is None or by_gap is None:
            return by_gap if by_distance is None else by_distance
        return by_distance + by_gap

    def _attend(self, projected: Projected, group: Group, context: Any, number: int) -> Tensor:
        scores = projected.query @ projected.key.transpose(2, 3)
        bias = self.pair_bias(group, context, number)
        bias = scores.new_zeros(1, 1, 1, 1) if bias is None else bias.unsqueeze(1)
        # SiLU of so low a number is 0, and so is its gradient: one mask for all heads, and no further pass over them.
        bias = bias.masked_fill(~group.mask, torch.finfo(scores.dtype).min / 2)
        weights = F.silu(scores.add_(bias)).div_(self.max_seq_length)
        refined: Tensor = self.refinement(weights, group.mask)
        return refined @ projected.value


def looked_up(table: nn.Embedding, index: Tensor) -> Tensor:
    """Entries of a table of one column, Float[...], by their numbers, Int64[...]."""
    # The gradient of an embedding takes twenty times as long on a CPU where rows are one number.
    return table.weight.squeeze(1).index_select(0, index.flatten()).view(index.shape)


class PointwiseLayer(nn.Module):
    """``x + attention(norm(x))``: attention and gate in one, without a feed-forward part."""

    def __init__(self, attention: PointwiseAttention, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention

    def forward(self, hidden: Tensor, layout: Layout, context: Any) -> Tensor:
        """The layer's output, shaped like its input; see ``Attention.forward`` for the arguments."""
        added: Tensor = self.attention(self.norm(hidden), layout, context)
        return hidden + added
