"""Popularity: items by how often they were met, over all of training or shortly before the query.

Nothing is learned: a baseline for models that know times, much of whose gain can be recency of popularity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_adrrec.models.inputs import SequenceInputs, last_place
from recbole_adrrec.options.schema import PopularityOptions
from recbole_adrrec.times import SECONDS_A_DAY


class Popularity(SequenceInputs):
    """Number of training events of each item, those before the query's moment within a window of days if there is one.

    The moment is the target's time with ``use_query_time``, and events count that are earlier; else it is the time of
    the last event, and events of that time count too. Equal counts are ordered by those of all training events.

    Options are in ``properties/model/Popularity.yaml``; the ``shown_events`` of the training data are counted.
    """

    options: PopularityOptions
    options_class = PopularityOptions
    event_time: Tensor
    event_item: Tensor
    overall: Tensor
    weighs_targets = True
    """Of several processes, none has a loss to weigh."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        items, times = dataset.shown_events(True, self.ITEM_ID, self.TIME)
        times, order = times.sort(stable=True)
        self.register_buffer("event_time", times.clone())
        self.register_buffer("event_item", items.long()[order])
        counts = torch.bincount(self.event_item, minlength=self.n_items).double()
        # Below one count, so that it orders equal counts alone.
        self.register_buffer("overall", counts / (1 + counts.sum()))
        # RecBole's trainer wants something to optimise.
        self.unused = nn.Parameter(torch.zeros(()))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Zero, Float[]: there is nothing to learn."""
        return 0.0 * self.unused

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, Float64[B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items for each row, Float64[B, n_items]: whole counts, and the share of all events."""
        _, times, length = self._inference_inputs(interaction)
        if self.options.window_days is None:
            return (self.overall * (1 + len(self.event_item))).repeat(len(length), 1)
        moment = times.query_time.gather(1, last_place(length)).squeeze(1)
        moments, row = moment.unique(return_inverse=True)
        begin = moments - self.options.window_days * SECONDS_A_DAY
        start = torch.searchsorted(self.event_time, begin.to(self.event_time.dtype))
        stop = torch.searchsorted(self.event_time, moments.to(self.event_time.dtype), right=not self.use_query_time)
        counts = [
            torch.bincount(self.event_item[first:last], minlength=self.n_items)
            for first, last in zip(start.tolist(), stop.tolist(), strict=True)
        ]
        return (torch.stack(counts) + self.overall)[row]
