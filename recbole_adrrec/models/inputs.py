"""From RecBole's batches to a model's inputs: items, times, and the targets of training.

Here ``timestamps`` become ``key_time``, the time of each event, and ``query_time``, the time at which a place predicts:
that of its target, or of its event where the model does not know the moment of the query.

Rows are padded on the right. Letters: ``B`` rows of a batch, ``L`` places, ``k`` negatives of each target.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_adrrec.layers.draws import TieOrder, draw_cloze_mask
from recbole_adrrec.layers.layout import SequenceTimes
from recbole_adrrec.options.schema import ModelOptions


def valid_places(length: Tensor, width: int) -> Tensor:
    """True at the first ``length`` places, Bool[B, width], for Int64[B]."""
    return torch.arange(width, device=length.device) < length.unsqueeze(1)


def last_place(length: Tensor) -> Tensor:
    """Index of each row's last event, Int64[B, 1]; 0 for an empty row."""
    return (length - 1).clamp(min=0).unsqueeze(1)


def append_event(sequence: Tensor, length: Tensor, value: Tensor, max_length: int) -> Tensor:
    """Rows with one more event behind the last, Tensor[B, min(L + 1, max_length)]; a full row loses its oldest.

    ``sequence``, Tensor[B, L], holds items or times of rows of ``length``, Int64[B], events; ``value``, Tensor[B], the
    new event's.
    """
    extended = torch.cat([sequence, torch.zeros_like(sequence[:, :1])], 1)
    extended = extended.scatter(1, length.unsqueeze(1), value.to(sequence.dtype).unsqueeze(1))
    place = torch.arange(min(extended.size(1), max_length), device=sequence.device)
    return extended.gather(1, place + (length >= max_length).long().unsqueeze(1))


def next_times(key_time: Tensor, length: Tensor, query_time: Tensor) -> Tensor:
    """Query times of a causal model, Tensor[B, L]: the time of the event after each place, of the last ``query_time``.

    ``key_time``, Tensor[B, L], are the times of rows of ``length``, Int64[B], events; ``query_time``, Tensor[B].
    """
    return key_time.roll(-1, 1).scatter(1, last_place(length), query_time.to(key_time.dtype).unsqueeze(1))


def known_times(key_time: Tensor, known: Tensor) -> Tensor:
    """Times, Tensor[B, L], that give nothing away of masked events; ``known``, Bool[B, L], are all others.

    Each place gets the time of the last known event up to it or, where there is none, of the first known one.
    """
    place = torch.arange(key_time.size(1), device=key_time.device).expand_as(key_time)
    latest = place.masked_fill(~known, -1).cummax(1).values
    first = known.long().argmax(1, keepdim=True)
    return key_time.gather(1, torch.where(latest < 0, first, latest))


class TrainingRows(NamedTuple):
    """Rows as the data layer gives them: targets and query times are [B] or [B, L], negatives [B, k] or [B, L, k]."""

    items: Tensor
    key_time: Tensor
    length: Tensor
    user: Tensor | None
    targets: Tensor
    query_time: Tensor
    negatives: Tensor | None


class TrainingBatch(NamedTuple):
    """Items shown, Int64[B, L]; their times; target items there, 0 for none; negatives, Int64[B, L, k]."""

    items: Tensor
    times: SequenceTimes
    targets: Tensor
    negatives: Tensor | None


class SequenceInputs(SequentialRecommender):
    """Sequential recommender that reads its options, and its inputs off RecBole's batches."""

    options: ModelOptions
    options_class: ClassVar[type[ModelOptions]]

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.options = self.options_class.read(config)
        self.TIME = config["TIME_FIELD"]
        self.TIME_SEQ = self.TIME + config["LIST_SUFFIX"]
        self.objective = self.options.objective
        self.use_query_time = self.options.use_query_time
        self.mask_token = self.n_items
        self.given_negatives = self.options.loss_type != "CE" and self.options.negatives == "own"
        sampling = config["train_neg_sample_args"] or {}
        self.negatives_a_row = 1 if sampling.get("sample_num") in (None, "none") else int(sampling["sample_num"])
        # What orders tied events anew, where the options let it, and whether it does.
        reorder, has_windows = self.options.reorder_ties, self.options.train_rows == "sequence"
        self.tie_order = TieOrder(config["seed"]) if has_windows and reorder != "never" else None
        orderly = reorder == "auto" and getattr(dataset, "ties_are_orderly", False)
        self.reorders_ties = self.tie_order is not None and not orderly

    def _inference_inputs(self, interaction: Any) -> tuple[Tensor, SequenceTimes, Tensor]:
        """Items, times and lengths of rows whose next event is to be predicted."""
        return self.shown(*self._history(interaction), interaction[self.TIME])

    def shown(
        self, items: Tensor, key_time: Tensor, length: Tensor, user: Tensor | None, query_time: Tensor
    ) -> tuple[Tensor, SequenceTimes, Tensor]:
        """Items, times and lengths that the encoder sees of rows whose next event is to be predicted.

        Histories are ``items``, Int64[B, L], oldest first, padded behind, and ``key_time``, Tensor[B, L], in seconds
        since 1970 (UTC), of ``length``, Int64[B], events; ``user``, Int64[B], where known; ``query_time``, Tensor[B].
        """
        if self.objective == "causal":
            return items, self._causal_times(key_time, length, query_time, user), length
        if not self.use_query_time:
            query_time = key_time.gather(1, last_place(length)).squeeze(1)
        mask_token = torch.full_like(length, self.mask_token)
        items = append_event(items, length, mask_token, self.max_seq_length)
        key_time = append_event(key_time, length, query_time, self.max_seq_length)
        length = (length + 1).clamp(max=self.max_seq_length)
        return items, self._sequence_times(key_time, key_time, length, user), length

    def _training_batch(self, interaction: Any) -> TrainingBatch:
        rows = TrainingRows(*self._history(interaction), interaction[self.ITEM_ID], interaction[self.TIME], None)
        if self.given_negatives:
            rows = self._with_negatives(rows, interaction[self.NEG_ITEM_ID])
        if self.tie_order is not None and self.reorders_ties and rows.targets.dim() == 2:
            rows = self._with_other_order(rows, self.tie_order)
        return self._cloze_batch(rows) if self.objective == "cloze" else self._causal_batch(rows)

    def _history(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Items and times, [B, L] each, cut to the longest row of the batch; lengths and users, [B]."""
        length = interaction[self.ITEM_SEQ_LEN]
        width = max(1, int(length.max()))
        key_time = interaction[self.TIME_SEQ][:, :width]
        # Inexact times are floats; float64 loses nothing more of them.
        key_time = key_time.double() if key_time.is_floating_point() else key_time
        has_user = self.USER_ID in interaction
        return interaction[self.ITEM_SEQ][:, :width], key_time, length, interaction[self.USER_ID] if has_user else None

    def _with_negatives(self, rows: TrainingRows, negatives: Tensor) -> TrainingRows:
        """Give each row its ``k`` negatives; RecBole repeats the batch of prefix rows for each further one."""
        if rows.targets.dim() == 2:
            return rows._replace(negatives=negatives if negatives.dim() == 3 else negatives.unsqueeze(2))
        count = len(negatives) // self.negatives_a_row
        once = {name: value[:count] for name, value in rows._asdict().items() if value is not None}
        return rows._replace(**once, negatives=negatives.view(self.negatives_a_row, count).T)

    def _with_other_order(self, rows: TrainingRows, draw: TieOrder) -> TrainingRows:
        """The windows with events that tie in another order; times and places that have a target stay."""
        items, key_time, length, user, targets, query_time, _ = rows
        width = items.size(1)
        row = key_time[:, 0].long() + (items[:, 0] if user is None else user) * 2**40
        if self.objective == "cloze":
            order = draw(key_time, valid_places(length, width), row)
            return rows._replace(items=items.gather(1, order), targets=targets.gather(1, order))
        # The window's events, and behind them the one that its last place predicts.
        targets, last = targets[:, :width], last_place(length)
        following = targets.gather(1, last).squeeze(1)
        items = append_event(items, length, following, width + 1)
        key_time = append_event(key_time, length, query_time.gather(1, last).squeeze(1), width + 1)
        order = draw(key_time, valid_places(length + (following > 0), width + 1), row)
        items = items.gather(1, order)
        return rows._replace(items=items[:, :width] * valid_places(length, width), targets=items[:, 1:] * (targets > 0))

    def _causal_batch(self, rows: TrainingRows) -> TrainingBatch:
        items, key_time, length, user, targets, query_time, negatives = rows
        last = last_place(length)
        if targets.dim() == 1:

            def at_last(value: Tensor) -> Tensor:
                place = last.view(-1, 1, *[1] * (value.dim() - 1)).expand(-1, 1, *value.shape[1:])
                return value.new_zeros(*items.shape, *value.shape[1:]).scatter(1, place, value.unsqueeze(1))

            targets = at_last(targets)
            negatives = None if negatives is None else at_last(negatives)
        else:
            width = items.size(1)
            targets = targets[:, :width] * valid_places(length, width)
            negatives = None if negatives is None else negatives[:, :width]
            # The query time of a last place without a target is undefined.
            own = key_time.gather(1, last)
            has_target = targets.gather(1, last) > 0
            query_time = torch.where(has_target, query_time.gather(1, last).to(own.dtype), own).squeeze(1)
        return TrainingBatch(items, self._causal_times(key_time, length, query_time, user), targets, negatives)

    def _cloze_batch(self, rows: TrainingRows) -> TrainingBatch:
        items, key_time, length, user, targets, query_time, negatives = rows
        if targets.dim() == 1:
            items = append_event(items, length, targets, self.max_seq_length)
            key_time = append_event(key_time, length, query_time, self.max_seq_length)
            length = (length + 1).clamp(max=self.max_seq_length)
            valid = maskable = valid_places(length, items.size(1))
            negatives = None if negatives is None else negatives.unsqueeze(1).expand(-1, items.size(1), -1)
        else:
            valid = valid_places(length, items.size(1))
            maskable = valid & (targets[:, : items.size(1)] > 0)
            negatives = None if negatives is None else negatives[:, : items.size(1)]
        masked = draw_cloze_mask(maskable, valid, self.options.mask_ratio)
        if not self.use_query_time:
            key_time = known_times(key_time, valid & ~masked)
        shown = items.masked_fill(masked, self.mask_token)
        return TrainingBatch(shown, self._sequence_times(key_time, key_time, length, user), items * masked, negatives)

    def _causal_times(
        self, key_time: Tensor, length: Tensor, query_time: Tensor, user: Tensor | None = None
    ) -> SequenceTimes:
        """SequenceTimes of a causal model; ``query_time``, Tensor[B], is that of each row's last place."""
        of_places = next_times(key_time, length, query_time) if self.use_query_time else key_time
        return self._sequence_times(of_places, key_time, length, user)

    def _sequence_times(
        self, query_time: Tensor, key_time: Tensor, length: Tensor, user: Tensor | None = None
    ) -> SequenceTimes:
        """Join places and times, Tensor[B, L]; padding gets the time of the row's first event."""
        width = key_time.size(1)
        valid = valid_places(length, width)
        position = torch.arange(width, device=length.device).expand_as(key_time)
        if self.objective == "cloze" and self.options.backbone == "mix":
            # As in MEANTIME, the newest event has the last place; in BERT4Rec, as in SASRec, the oldest has the first.
            position = position + (self.max_seq_length - length).unsqueeze(1)
            position = position.clamp(max=self.max_seq_length - 1)
        key = torch.where(valid, key_time, key_time[:, :1])
        query = key if query_time is key_time else torch.where(valid, query_time, key_time[:, :1])
        return SequenceTimes(position, query, key, valid, user)
