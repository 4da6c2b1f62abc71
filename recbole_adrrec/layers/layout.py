"""Times of a batch's events, and how the events are laid out: padded, or alone in groups of rows of similar length.

Norms, projections, feed-forward, head and loss work on single events and take states of any layout. Attention works on
groups of rows, ``[b, W]`` places each, which it gets from the states by ``Group.pad`` and hands back by
``Group.unpad``.

Letters: ``B`` rows of a batch, ``L`` places of a row, ``N`` events of the batch, ``b`` rows of a group, ``W`` places
of its longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

GROUP_GROWTH = 1.5
"""Rows of a group are at most so many times as long as its shortest, or ``SHORT`` places."""

SHORT = 4


@dataclass(frozen=True)
class SequenceTimes:
    """Places and times of the events of a batch."""

    position: Tensor
    """Int64[B, L]: row of the position table."""
    query_time: Tensor
    """Int64[B, L] or Float64[B, L]: time at which each place predicts, in seconds since 1970 (UTC)."""
    key_time: Tensor
    """Int64[B, L] or Float64[B, L]: time of each event, in the same unit. The same object as ``query_time`` where
    the two are equal, so that nothing is computed twice."""
    valid: Tensor
    """Bool[B, L]: true at events, false at padding."""
    user: Tensor | None = None
    """Int64[B]: user of each row, where known."""
    unit: Tensor | None = None
    """Int64[B]: seconds in one unit of the row's intervals (TiSASRec), where it is not that of the user."""

    def rows(self, index: slice | Tensor, width: int) -> SequenceTimes:
        """Some rows, cut to the first ``width`` places."""
        chosen = self.map(lambda part: part[index, :width])
        user, unit = (None if part is None else part[index] for part in (self.user, self.unit))
        return replace(chosen, user=user, unit=unit)

    def map(self, function: Callable[[Tensor], Tensor]) -> SequenceTimes:
        """Apply a function to each tensor but ``user`` and ``unit``, which are left out."""
        key = function(self.key_time)
        query = key if self.query_time is self.key_time else function(self.query_time)
        return SequenceTimes(function(self.position), query, key, function(self.valid))


def attention_mask(valid: Tensor, causal: bool) -> Tensor:
    """Bool[B, 1, L, L], true where query ``i`` may attend to key ``j``: an event and, if causal, none after it.

    ``valid``, Bool[B, L], is true at events.
    """
    length = valid.size(1)
    mask = valid[:, None, None, :].expand(-1, 1, length, -1)
    return mask.tril() if causal else mask


@dataclass(frozen=True)
class Group:
    """Rows that attention takes together."""

    places: slice
    """Their places in the states: rows of padded states, events of packed ones."""
    mask: Tensor
    """Bool[b, 1, W, W]: true where query ``i`` may attend to key ``j``."""
    rows: Tensor | None = None
    """Int64[b]: numbers of the batch's rows; those of ``places`` where the states are padded."""
    gather: Tensor | None = None
    """Int64[b * W], for packed states: the number of the group's event at each place; 0 at padding."""
    scatter: Tensor | None = None
    """Int64[n], for packed states: the place of each of the group's ``n`` events."""

    def pad(self, states: Tensor) -> Tensor:
        """States of all places, ``[B, L, ...]`` or ``[N, ...]``, as those of this group, ``[b, W, ...]``."""
        own = states[self.places]
        if self.gather is None or self.scatter is None:
            return own
        padded: Tensor = _Gather.apply(own, self.gather, self.scatter)
        return padded.unflatten(0, (len(self.mask), self.mask.size(-1)))

    def by_head(self, states: Tensor) -> Tensor:
        """Tensors of heads, ``[..., H, F]``, of all places as those of this group, ``[b, H, W, F]``."""
        return self.pad(states).transpose(1, 2)

    def unpad(self, states: Tensor) -> Tensor:
        """States of this group, ``[b, W, ...]``, as they stand among those of all places."""
        if self.gather is None or self.scatter is None:
            return states
        packed: Tensor = _Select.apply(states.flatten(0, 1), self.scatter)
        return packed

    def times(self, times: SequenceTimes) -> SequenceTimes:
        """Times of the group's rows, ``[b, W]``, out of those of the batch, ``[B, L]``."""
        return times.rows(self.places if self.rows is None else self.rows, self.mask.size(-1))


@dataclass(frozen=True)
class JaggedGroup(Group):
    """All rows of a batch, one behind another as a single long row, ``b`` = 1 and ``W`` = ``N``."""

    row: Tensor = field(kw_only=True)
    """Int64[N]: the row of each event."""
    causal: bool = field(kw_only=True)
    """True where events are kept from later ones of their row. The mask is empty."""

    def pad(self, states: Tensor) -> Tensor:
        """States of all events as those of one row."""
        return states[self.places].unsqueeze(0)

    def unpad(self, states: Tensor) -> Tensor:
        """States of the one row, ``[1, N, ...]``, as those of all events."""
        return states.squeeze(0)

    def may_attend(self, query: Tensor, key: Tensor) -> Tensor:
        """True where queries may attend to keys, Bool[...], by their numbers among the events, Int64[...]."""
        same = self.row[query] == self.row[key]
        return same & (query >= key) if self.causal else same


class _Gather(torch.autograd.Function):
    """Rows of a tensor by ``gather``; the gradient is taken at ``scatter`` alone, where each row stands once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        return states.index_select(0, gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scatter,) = ctx.saved_tensors
        return grads[0].index_select(0, scatter), None, None


class _Select(torch.autograd.Function):
    """Some rows of a tensor, each once; the others' gradient is zero."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        ctx.count = len(states)
        return states.index_select(0, scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (scatter,) = ctx.saved_tensors
        (grad,) = grads
        full = grad.new_zeros(ctx.count, *grad.shape[1:])
        return full.index_copy_(0, scatter, grad), None


@dataclass(frozen=True)
class Layout:
    """The layout of a batch.

    Its constructors take ``valid``, Bool[B, L], true at events, which are the first places of each row; ``causal``,
    whether query ``i`` is kept from keys ``j > i``; and ``max_pairs``, the most pairs of places of a group of several
    rows, unlimited if None.
    """

    valid: Tensor
    """Bool[B, L]: true at events."""
    groups: tuple[Group, ...]
    """In the order of the states."""
    order: Tensor | None = None
    """Int64[N], for packed states: places ``row * L + place`` of the batch, in the order of the states."""

    @classmethod
    def padded(cls, valid: Tensor, causal: bool, max_pairs: int | None = None) -> Layout:
        """States ``[B, L, ...]``, padding among them."""
        rows = valid.size(0)  # not len(), which would make it a constant of an exported graph
        pairs = rows * valid.size(1) ** 2
        n_groups = 1 if max_pairs is None else max(1, min(rows, -(-pairs // max_pairs)))
        mask = attention_mask(valid, causal)
        if n_groups == 1:
            return cls(valid, (Group(slice(0, rows), mask),))
        groups, start = [], 0
        for part in mask.tensor_split(n_groups):
            groups.append(Group(slice(start, start + len(part)), part))
            start += len(part)
        return cls(valid, tuple(groups))

    @classmethod
    def grouped(cls, valid: Tensor, causal: bool, max_pairs: int | None = None) -> Layout:
        """States ``[N, ...]`` of events alone, by groups of rows of similar length.

        An empty row counts as one event that attends to nothing.
        """
        length = valid.sum(1)
        rows = length.argsort(stable=True)
        counts = length[rows].clamp(min=1)
        width = valid.size(1)
        groups: list[Group] = []
        order = []
        start = 0
        for first, last in _cuts(counts.tolist(), max_pairs):
            own, count = rows[first:last], counts[first:last]
            longest = int(count[-1])
            slots = torch.arange(longest, device=valid.device)
            inside = slots < count.unsqueeze(1)  # [b, W]
            scatter = inside.flatten().nonzero().squeeze(1)
            n_events = len(scatter)
            gather = torch.zeros(inside.numel(), dtype=torch.int64, device=valid.device)
            gather[scatter] = torch.arange(n_events, device=valid.device)
            order.append((own.unsqueeze(1) * width + slots).flatten()[scatter])
            mask = attention_mask(valid[own, :longest], causal)
            groups.append(Group(slice(start, start + n_events), mask, own, gather, scatter))
            start += n_events
        return cls(valid, tuple(groups), torch.cat(order) if order else rows)

    @classmethod
    def jagged(cls, valid: Tensor, causal: bool) -> Layout:
        """States ``[N, ...]`` of events alone, row after row, in one group (for GPUs: ``softmax.flex_attend``).

        An empty row counts as one event.
        """
        counted = valid.clone()
        counted[:, 0] = True
        order = counted.flatten().nonzero().squeeze(1)
        row = order.div(valid.size(1), rounding_mode="floor")
        empty = torch.empty(0, dtype=torch.bool, device=valid.device)
        return cls(valid, (JaggedGroup(slice(0, len(order)), empty, row=row, causal=causal),), order)

    @property
    def packed(self) -> bool:
        """True where states are those of events alone."""
        return self.order is not None

    def pack(self, batch: Tensor) -> Tensor:
        """A tensor of the batch, ``[B, L, ...]``, laid out as the states are."""
        return batch if self.order is None else batch.flatten(0, 1)[self.order]

    def pack_times(self, times: SequenceTimes) -> SequenceTimes:
        """Times of the batch, laid out as the states are."""
        return times if self.order is None else times.map(self.pack)

    def unpack(self, states: Tensor) -> Tensor:
        """States as a tensor of the batch, ``[B, L, ...]``; packed states leave zeros at padding."""
        if self.order is None:
            return states
        full = states.new_zeros(self.valid.numel(), *states.shape[1:])
        return full.index_copy(0, self.order, states).unflatten(0, self.valid.shape)

    def at(self, place: Tensor) -> Any:
        """Index of one place of each row, Int64[B], among the states."""
        rows = torch.arange(place.size(0), device=place.device)
        if self.order is None:
            return rows, place
        position = torch.empty(self.valid.numel(), dtype=torch.int64, device=place.device)
        position[self.order] = torch.arange(len(self.order), device=place.device)
        return position[rows * self.valid.size(1) + place]

    def single(self, number: int) -> Layout:
        """A group by itself; states are then those of its places."""
        group = self.groups[number]
        count = group.places.stop - group.places.start
        return replace(self, groups=(replace(group, places=slice(0, count)),))


def _cuts(counts: list[int], max_pairs: int | None) -> Iterator[tuple[int, int]]:
    """First and last row of each group, of rows in rising order of length."""
    first = 0
    while first < len(counts):
        longest = max(SHORT, int(counts[first] * GROUP_GROWTH))
        last = first + 1
        while last < len(counts) and counts[last] <= longest:
            if max_pairs is not None and (last + 1 - first) * counts[last] ** 2 > max_pairs:
                break
            last += 1
        yield first, last
        first = last
