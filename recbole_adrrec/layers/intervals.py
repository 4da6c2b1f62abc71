"""Attention that knows the time between two events (TiSASRec, Li, Wang, McAuley, WSDM 2020).

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``d`` hidden size, ``dh = d / H``, ``S = time_span + 1``
rows of the interval tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.attention import ProjectedAttention, join_heads
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.moments import Moments
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.transformer import Perturbation, TransformerEncoder


@dataclass(frozen=True)
class IntervalContext:
    """What all layers share of a batch.

    Attributes
    ----------
    position_key, position_value : Float[B, L, d]
        ``PK`` and ``PV`` at each place.
    interval_key, interval_value : Float[S, d]
        ``RK`` and ``RV``.
    index : Int64[B, L, L]
        Interval ``r_ij`` of each pair of places.
    events : Bool[B, L, 1], optional
        True at events; set where padded keys take part, as zeros.
    """

    position_key: Tensor
    position_value: Tensor
    interval_key: Tensor
    interval_value: Tensor
    index: Tensor
    events: Tensor | None = None


class TimeIntervals(nn.Module):
    """Personalised intervals ``r_ij = min(floor(|t_i - t_j| / m_u), time_span)`` and the tables they look up.

    Parameters
    ----------
    hidden_size : int
        Width ``d`` of the tables.
    max_seq_length : int
        Rows of the position tables.
    time_span : int
        Longest interval that is told apart, in units of the user's ``m_u``.
    smallest_gaps : Int64[n_users]
        ``m_u`` in seconds for each user id: the smallest positive gap of the user's training events, 1 where there
        is none. A constant of the data, kept with the weights: read off the window it would change with later events.
    dropout : float
        Share of the position tables' elements that training drops.
    left_padded : bool
        Lay rows out as TiSASRec's public code does, with padding before the events, to all ``max_seq_length`` places.

    Raises
    ------
    ValueError
        If ``time_span`` is below 1, or a gap is.
    """

    smallest_gaps: Tensor

    def __init__(
        self,
        hidden_size: int,
        max_seq_length: int,
        time_span: int,
        smallest_gaps: Tensor,
        dropout: float,
        left_padded: bool = False,
    ) -> None:
        super().__init__()
        if time_span < 1:
            raise ValueError(f"time_span: {time_span}; must be a whole number of at least 1")
        if bool((smallest_gaps < 1).any()):
            raise ValueError("smallest_gaps: must be at least 1 second for every user")
        self.time_span = time_span
        self.max_seq_length = max_seq_length
        self.left_padded = left_padded
        self.position_key = nn.Embedding(max_seq_length, hidden_size)
        self.position_value = nn.Embedding(max_seq_length, hidden_size)
        self.interval_key = nn.Embedding(time_span + 1, hidden_size)
        self.interval_value = nn.Embedding(time_span + 1, hidden_size)
        self.dropout = Dropout(dropout)
        self.register_buffer("smallest_gaps", smallest_gaps.long().clone())

    def units(self, moments: Moments) -> Tensor:
        """``m_u`` of each row, Int64[B, 1], in seconds; 1 for users that are unknown."""
        user = moments.user
        if user is None:
            return torch.ones_like(moments.position[:, :1])
        known = user < len(self.smallest_gaps)
        return torch.where(known, self.smallest_gaps[user * known], 1).unsqueeze(1)

    def intervals(self, time: Tensor, unit: Tensor) -> Tensor:
        """``r_ij``, Int64[B, L, L], of times, [B, L], subtracted as they are, and units, Int64[B, 1]."""
        gap = (time.unsqueeze(2) - time.unsqueeze(1)).abs()
        return torch.div(gap, unit.unsqueeze(2), rounding_mode="floor").clamp(max=self.time_span).long()

    def forward(self, moments: Moments, dtype: torch.dtype) -> IntervalContext:
        """Do once per batch what all layers share. Queries know their event's time, not when they are asked."""
        time, unit, position, events = moments.key_time, self.units(moments), moments.position, None
        if self.left_padded:
            # The public code counts a user's times from 1 and gives padding the time 0: one unit before the first.
            before_all = time[:, :1] - unit
            left = left_places(moments.valid, self.max_seq_length)
            events = (left >= 0).unsqueeze(-1)
            time = torch.where(left >= 0, time.gather(1, left.clamp(min=0)), before_all)
            position = torch.arange(self.max_seq_length, device=time.device).expand_as(left)
        return IntervalContext(
            self.dropout(self.position_key(position)),
            self.dropout(self.position_value(position)),
            self.interval_key.weight,
            self.interval_value.weight,
            self.intervals(time, unit),
            events,
        )


class IntervalAttention(ProjectedAttention):
    """``q_i . (k_j + PK_j + RK_r) / sqrt(dh)``; output ``sum_j A_ij (v_j + PV_j + RV_r)``, ``r = r_ij``.

    Intervals take few values, so scores look up ``Q RK^T`` (``L x S``) and outputs add weights up by interval first:
    no ``L x L x d`` tensor. There is no output projection.

    Parameters
    ----------
    hidden_size, n_heads, dropout, refinement
        As for ``ProjectedAttention``.
    """

    sums_values_alone = False

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, refinement: Refinement | None = None) -> None:
        super().__init__(hidden_size, n_heads, dropout, refinement, project_output=False)

    def _table(self, table: Tensor) -> Tensor:
        return table.unflatten(-1, (self.n_heads, -1)).transpose(0, 1)  # [H, S, dh]

    def _index(self, context: IntervalContext) -> Tensor:
        return context.index.unsqueeze(1).expand(-1, self.n_heads, -1, -1)

    def score(self, query: Tensor, hidden: Tensor, context: IntervalContext) -> Tensor:
        """Scores of all heads."""
        query = self._scaled_query(query)
        key = self._split(self.key(self._seen(hidden, context)) + context.position_key)
        by_interval = query @ self._table(context.interval_key).transpose(1, 2)  # [B, H, L, S]
        return query @ key.transpose(2, 3) + by_interval.gather(3, self._index(context))

    def aggregate(self, weights: Tensor, hidden: Tensor, context: IntervalContext) -> Tensor:
        """Weighted sums of values, joined over the heads."""
        value = self._split(self.value(self._seen(hidden, context)) + context.position_value)
        shape = (*weights.shape[:3], len(context.interval_value))
        by_interval = weights.new_zeros(shape).scatter_add(3, self._index(context), weights)  # [B, H, L, S]
        return join_heads(weights @ value + by_interval @ self._table(context.interval_value))

    @staticmethod
    def _seen(hidden: Tensor, context: IntervalContext) -> Tensor:
        return hidden if context.events is None else hidden * context.events


def left_places(valid: Tensor, width: int) -> Tensor:
    """Where each place of a left-padded row comes from in the right-padded one, Int64[B, width]; below 0: padding."""
    empty = width - valid.sum(1, keepdim=True)
    return torch.arange(width, device=valid.device) - empty


class LeftPaddedEncoder(TransformerEncoder):
    """Encoder whose rows are padded before their events, with padding among the keys (TiSASRec's public code).

    States thus depend on how much padding there is; it serves to reproduce what was published.

    Parameters
    ----------
    layers, norm
        As for ``TransformerEncoder``.
    width : int
        Places of every row.
    """

    def __init__(self, layers: list[nn.Module], norm: nn.Module, width: int) -> None:
        super().__init__(layers, norm)
        self.width = width

    def forward(
        self, hidden: Tensor, mask: Tensor, context: IntervalContext, perturb: Perturbation | None = None
    ) -> list[Tensor]:
        """Encode right-padded states, Float[B, L, d]; what comes back is right-padded too."""
        valid = mask[:, 0, -1]
        left = left_places(valid, self.width)
        shifted = self._move(hidden, left.clamp(min=0))
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=mask.device).tril()
        states = super().forward(shifted, causal.expand(len(hidden), 1, -1, -1), context, perturb)
        right = torch.arange(hidden.size(1), device=mask.device) - left[:, :1]
        return [self._move(state, right.clamp(max=self.width - 1)) for state in states]

    @staticmethod
    def _move(hidden: Tensor, place: Tensor) -> Tensor:
        return hidden.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden.size(-1)))
