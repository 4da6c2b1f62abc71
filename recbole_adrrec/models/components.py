"""Components that a model joins, and the statistics of the data that they are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead, Trend
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.transformer import TransformerEncoder
from recbole_adrrec.options.schema import EncoderOptions
from recbole_adrrec.times import smallest_gaps, time_scale, whole_days

Refine = Callable[[int, int], Refinement | None]
"""Gives the refinement of a layer, by the layer's number from 1 and its number of heads."""


def unrefined(layer: int, n_heads: int) -> None:
    """Refine nothing."""


@dataclass(frozen=True)
class DataStats:
    """Statistics of the training data.

    Attributes
    ----------
    n_items : int
        Items, padding included.
    n_rows : int
        Rows of the item table: items and, for a cloze model, the mask token.
    max_seq_length : int
        Most places of a row.
    trained_days : callable
        Gives the sorted whole days since 1970 that training shows, Int64[n].
    smallest_gaps : callable
        Gives each user's smallest positive gap in training, Int64[n_users], in seconds.
    clock : callable
        Gives resolution and span of the training times, in seconds.
    """

    n_items: int
    n_rows: int
    max_seq_length: int
    trained_days: Callable[[], Tensor]
    smallest_gaps: Callable[[], Tensor]
    clock: Callable[[], tuple[float, float]]


class InteractionTimes:
    """Statistics of times of a data set that, as RecBole's own, keeps none: read off all its interactions."""

    def __init__(self, dataset: Any, user_field: str, time_field: str) -> None:
        self.dataset, self.user_field, self.time_field = dataset, user_field, time_field

    def trained_days(self, include_targets: bool) -> Tensor:
        """Sorted whole days since 1970, Int64[n]."""
        return whole_days(self.dataset.inter_feat[self.time_field]).unique()

    def smallest_training_gaps(self) -> Tensor:
        """Each user's smallest positive gap, Int64[n_users], in seconds."""
        events, n_users = self.dataset.inter_feat, self.dataset.num(self.user_field)
        return smallest_gaps(events[self.user_field], events[self.time_field], n_users)

    def time_scale(self, include_targets: bool) -> tuple[float, float]:
        """Resolution and span, in seconds."""
        events = self.dataset.inter_feat
        return time_scale(events[self.user_field], events[self.time_field])


class NoContext:
    """Shared context of layers that share nothing."""

    def single(self, number: int, places: slice) -> NoContext:
        """The part of one group of rows."""
        return self


class NoKernels(nn.Module):
    """Stands where kernels of place and time would, in a model whose layers share nothing."""

    def forward(self, times: SequenceTimes, layout: Layout, dtype: torch.dtype) -> NoContext:
        """Give nothing."""
        return NoContext()


@dataclass(frozen=True)
class ModelComponents:
    """Modules that a model joins.

    Attributes
    ----------
    item_embedding : ItemEmbedding
        From items and times to the encoder's input.
    kernels : Module
        From times, a layout and a dtype to what the layers share of a batch.
    encoder : TransformerEncoder
        From the input, a layout and what is shared to the states after each layer.
    head : ItemHead
        From states to scores.
    knows_time : bool
        Whether any of these reads times.
    pvn_weight : float
        Weight of STOSA's positive-versus-negative term beside BPR.
    packs_rows : bool
        Whether a CPU may leave padding out of what is computed; not where padding takes part in attention.
    """

    item_embedding: ItemEmbedding
    kernels: nn.Module
    encoder: TransformerEncoder
    head: ItemHead
    knows_time: bool = True
    pvn_weight: float = 0.0
    packs_rows: bool = True


def build_trend(options: EncoderOptions, stats: DataStats) -> Trend | None:
    """Trend of the scores that the options describe; None with ``trend_rank`` 0."""
    if not options.trend_rank:
        return None
    days = stats.trained_days()
    return Trend(stats.n_items, options.trend_rank, days, options.trend_spacing, options.trend_decay)
