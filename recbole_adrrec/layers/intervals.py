"""Attention that knows the time between two events (TiSASRec, Li, Wang, McAuley, WSDM 2020).

Letters: ``B`` rows of a batch, ``L`` places, ``b`` rows of a group, ``W`` its places, ``H`` heads, ``d`` hidden size,
``dh = d / H``, ``S = time_span + 1`` rows of the interval tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.attention import Projected, ProjectedAttention
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.transformer import Perturbation, TransformerEncoder


@dataclass(frozen=True)
class IntervalContext:
    """Tables and intervals of a batch, which all layers share."""

    position_key: Tensor
    position_value: Tensor
    """Float[..., d]: ``PK`` and ``PV`` at each place."""
    interval_key: Tensor
    interval_value: Tensor
    """Float[S, d]: ``RK`` and ``RV``."""
    index: list[Tensor]
    """list of Int64[b, W, W]: for each group of rows the interval ``r_ij`` of each pair of places."""
    events: Tensor | None = None
    """Bool[B, L, 1]: true at events; set where padded keys take part, as zeros."""

    def single(self, number: int, places: slice) -> IntervalContext:
        """The part of one group of rows, whose places in the states are given."""
        return replace(
            self,
            position_key=self.position_key[places],
            position_value=self.position_value[places],
            index=[self.index[number]],
            events=None if self.events is None else self.events[places],
        )


class TimeIntervals(nn.Module):
    """Personalised intervals ``r_ij = min(floor(|t_i - t_j| / m_u), time_span)`` and the tables they look up.

    Parameters
    ----------
    hidden_size, max_seq_length : int
        Width ``d`` of the tables, and rows of those of positions.
    time_span : int
        Longest interval of its own, in units of the user's ``m_u``, at least 1.
    smallest_gaps : Int64[n_users]
        ``m_u`` in seconds for each user id: the smallest positive gap of the user's training events, 1 where there
        is none. A constant of the data, kept with the weights: read off the window it would change with later events.
    dropout : float
        Share of the position tables' elements that training drops.
    left_padded : bool
        Lay rows out as TiSASRec's public code does, with padding before the events, to all ``max_seq_length`` places.
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
        self.time_span = time_span
        self.max_seq_length = max_seq_length
        self.left_padded = left_padded
        self.position_key = nn.Embedding(max_seq_length, hidden_size)
        self.position_value = nn.Embedding(max_seq_length, hidden_size)
        self.interval_key = nn.Embedding(time_span + 1, hidden_size)
        self.interval_value = nn.Embedding(time_span + 1, hidden_size)
        self.dropout = Dropout(dropout)
        self.register_buffer("smallest_gaps", smallest_gaps.long().clone())

    def units(self, times: SequenceTimes) -> Tensor:
        """``m_u`` of each row, Int64[B, 1], in seconds; 1 for users that are unknown."""
        if times.unit is not None:
            return times.unit.unsqueeze(1)
        user = times.user
        if user is None:
            return torch.ones_like(times.position[:, :1])
        known = user < self.smallest_gaps.size(0)
        return torch.where(known, self.smallest_gaps[user * known], 1).unsqueeze(1)

    def intervals(self, key_time: Tensor, unit: Tensor) -> Tensor:
        """``r_ij``, Int64[B, L, L], of times, [B, L], subtracted as they are, and units, Int64[B, 1]."""
        gap = (key_time.unsqueeze(2) - key_time.unsqueeze(1)).abs()
        return (gap // unit.unsqueeze(2)).clamp(max=self.time_span).long()

    def forward(self, times: SequenceTimes, layout: Layout, dtype: torch.dtype) -> IntervalContext:
        """Tables and intervals of a batch, computed once for all layers. Query times are not read, only key times."""
        events = None
        if self.left_padded:
            position, indexes, events = self._left_padded(times)
        else:
            position = layout.pack_times(times).position
            own = [group.times(times) for group in layout.groups]
            indexes = [self.intervals(each.key_time, self.units(each)) for each in own]
        return IntervalContext(
            self.dropout(self.position_key(position)),
            self.dropout(self.position_value(position)),
            self.interval_key.weight,
            self.interval_value.weight,
            indexes,
            events,
        )

    def _left_padded(self, times: SequenceTimes) -> tuple[Tensor, list[Tensor], Tensor]:
        """Positions, intervals and events of rows that are padded before their events, to all places."""
        key_time, unit = times.key_time, self.units(times)
        left = left_places(times.valid, self.max_seq_length)
        # The public code counts a user's times from 1 and gives padding the time 0: one unit before the first.
        key_time = torch.where(left >= 0, key_time.gather(1, left.clamp(min=0)), key_time[:, :1] - unit)
        position = torch.arange(self.max_seq_length, device=key_time.device).expand_as(left)
        return position, [self.intervals(key_time, unit)], (left >= 0).unsqueeze(-1)


class IntervalAttention(ProjectedAttention):
    """``q_i . (k_j + PK_j + RK_r) / sqrt(dh)``; output ``sum_j A_ij (v_j + PV_j + RV_r)``, ``r = r_ij``.

    Intervals take few values, so scores look up ``Q RK^T`` (``W x S``) and outputs add weights up by interval first:
    no ``W x W x d`` tensor. There is no output projection. Arguments as for ``ProjectedAttention``.
    """

    sums_are_products = False

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, refinement: Refinement | None = None) -> None:
        super().__init__(hidden_size, n_heads, dropout, refinement, project_output=False)

    def table(self, table: Tensor) -> Tensor:
        """Rows of a table by heads, Float[H, S, dh]."""
        return table.unflatten(-1, (self.n_heads, -1)).transpose(0, 1)

    def project(self, query: Tensor, hidden: Tensor, context: IntervalContext) -> Projected:
        """Queries, and keys and values with their positions."""
        seen = hidden if context.events is None else hidden * context.events
        return Projected(
            self.scaled_query(query),
            self.split(self.key(seen) + context.position_key),
            self.split(self.value(seen) + context.position_value),
        )

    def _index(self, context: IntervalContext, group: int) -> Tensor:
        return context.index[group].unsqueeze(1).expand(-1, self.n_heads, -1, -1)

    def score_parts(self, projected: Projected, context: IntervalContext, group: int) -> list[Tensor]:
        """Scores of all heads."""
        by_interval = projected.query @ self.table(context.interval_key).transpose(1, 2)  # [b, H, W, S]
        plain = projected.query @ projected.key.transpose(2, 3)
        return [plain + by_interval.gather(3, self._index(context, group))]

    def aggregate(self, weights: Tensor, projected: Projected, context: IntervalContext, group: int) -> Tensor:
        """Weighted sums of values and of intervals' values."""
        shape = (*weights.shape[:3], len(context.interval_value))
        index = self._index(context, group)
        by_interval = weights.new_zeros(shape).scatter_add(3, index, weights)  # [b, H, W, S]
        return weights @ projected.value + by_interval @ self.table(context.interval_value)


def left_places(valid: Tensor, width: int) -> Tensor:
    """Place in the right-padded row of each place of the left-padded one, Int64[B, width]; below 0: padding."""
    empty = width - valid.sum(1, keepdim=True)
    return torch.arange(width, device=valid.device) - empty


class LeftPaddedEncoder(TransformerEncoder):
    """Encoder whose rows are padded before their events, with padding among the keys (TiSASRec's public code).

    States thus depend on how much padding there is; it serves to reproduce what was published. ``width`` is the number
    of places of every row; other arguments as for ``TransformerEncoder``.
    """

    def __init__(self, layers: list[nn.Module], norm: nn.Module, width: int) -> None:
        super().__init__(layers, norm)
        self.width = width

    def forward(
        self, hidden: Tensor, layout: Layout, context: IntervalContext, perturb: Perturbation | None = None
    ) -> list[Tensor]:
        """Output of each layer for right-padded states, Float[B, L, d], right-padded too."""
        left = left_places(layout.valid, self.width)
        shifted = self._move(hidden, left.clamp(min=0))
        everywhere = Layout.padded(torch.ones_like(left, dtype=torch.bool), causal=True)
        states = super().forward(shifted, everywhere, context, perturb)
        right = torch.arange(hidden.size(1), device=hidden.device) - left[:, :1]
        return [self._move(state, right.clamp(max=self.width - 1)) for state in states]

    @staticmethod
    def _move(hidden: Tensor, place: Tensor) -> Tensor:
        return hidden.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden.size(-1)))
