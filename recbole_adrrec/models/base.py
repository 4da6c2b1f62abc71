"""What all models share: from RecBole's batches to an encoder's states, a loss and scores.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size, ``H`` heads, ``N`` positions with a target, ``k``
negatives of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_adrrec.collectives import share_of
from recbole_adrrec.layers.attention import captured_weights
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead
from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.layers.noise import Encode
from recbole_adrrec.layers.objectives import (
    SharedNegatives,
    append_event,
    draw_cloze_mask,
    known_times,
    last_place,
    next_times,
    valid_places,
)
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.sequence_times import SequenceTimes, whole_days
from recbole_adrrec.layers.transformer import TransformerEncoder
from recbole_adrrec.layers.trend import Trend
from recbole_adrrec.losses import (
    LOSSES,
    SMOOTHED_LOSSES,
    item_cross_entropy,
    positive_versus_negative,
    sampled_loss,
    shared_softmax,
)
from recbole_adrrec.times import smallest_gaps, time_scale


@dataclass(frozen=True)
class Facts:
    """What parts need to know of the data.

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


def trend_of(config: Any, facts: Facts) -> Trend | None:
    """What ``trend_rank``, ``trend_spacing`` and ``trend_decay`` describe; None with rank 0."""
    if not config["trend_rank"]:
        return None
    days = facts.trained_days()
    return Trend(facts.n_items, config["trend_rank"], days, config["trend_spacing"], config["trend_decay"])


Refine = Callable[[int, int], Refinement | None]
"""Gives the refinement of a layer, by the layer's number from 1 and its number of heads."""


def unrefined(layer: int, n_heads: int) -> None:
    """Refine nothing."""


PartsBuilder = Callable[[Any, Facts, Refine], "Parts"]
"""Makes a model's parts from the options, facts of the data, and what gives each layer its refinement."""


class NoContext:
    """What layers share that share nothing."""

    def single(self, number: int, places: slice) -> NoContext:
        """The part of one group of rows."""
        return self


class NoKernels(nn.Module):
    """Stands where kernels of place and time would, in a model whose layers share nothing."""

    def forward(self, moments: SequenceTimes, layout: Layout, dtype: torch.dtype) -> NoContext:
        """Give nothing."""
        return NoContext()


@dataclass(frozen=True)
class Parts:
    """What a model joins.

    Attributes
    ----------
    item_embedding : ItemEmbedding
        From items and moments to the encoder's input.
    kernels : Module
        From moments, a layout and a dtype to what the layers share of a batch.
    encoder : TransformerEncoder
        From the input, a layout and what is shared to the states after each layer.
    head : ItemHead
        From states to scores.
    knows_time : bool
        Whether any of these parts reads times.
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


class Explanation(NamedTuple):
    """What one user's recommendation attends to; layers and heads in order, query by key.

    Attributes
    ----------
    items : Int64[L]
        The events' items, oldest first. A cloze model's mask token stands last, as item ``n_items``.
    times : Int64[L]
        Their times, in seconds since 1970 (UTC).
    plain : Float[n_layers, H, L, L]
        Attention weights before refinement.
    refined : Float[n_layers, H, L, L]
        Weights after refinement: those that are used. Equal to ``plain`` where nothing is refined.
    """

    items: Tensor
    times: Tensor
    plain: Tensor
    refined: Tensor


class TrainingRows(NamedTuple):
    """Rows as the data layer gives them: targets and times are [B] or [B, L], negatives [B, k] or [B, L, k]."""

    items: Tensor
    time: Tensor
    length: Tensor
    user: Tensor | None
    targets: Tensor
    target_time: Tensor
    negatives: Tensor | None


class TrainingBatch(NamedTuple):
    """Items shown, Int64[B, L]; their moments; items to find there, 0 for none; negatives, Int64[B, L, k]."""

    items: Tensor
    moments: SequenceTimes
    targets: Tensor
    negatives: Tensor | None


class Targets(NamedTuple):
    """The places of a batch that have a target, and what the loss compares there.

    Attributes
    ----------
    places : Bool[...]
        True at the ``N`` places, laid out as the states.
    items : Int64[N]
        Targets.
    time : Tensor[N]
        Query times.
    negatives : Int64[N, k], optional
        Sampled items of each target.
    shared : Int64[k], optional
        Sampled items that all targets share.
    share : Float[] or 1.0
        Weighs a mean over this process's targets, see ``share_of``.
    """

    places: Tensor
    items: Tensor
    time: Tensor
    negatives: Tensor | None
    shared: Tensor | None
    share: Tensor | float


class SequenceRecommender(SequentialRecommender):
    """Sequential recommender over timed events. A subclass calls ``join`` with its parts.

    Parameters
    ----------
    config : recbole.config.Config
        RecBole's options and the model's; ``properties/model`` describes them.
    dataset : recbole.data.dataset.SequentialDataset
        Training data. ``trained_days(include_targets)`` and ``smallest_training_gaps()`` are asked by parts that
        need them; without these methods, both are read off the interactions.
    objective : str
        ``causal``: position ``i`` predicts event ``i + 1``; ``cloze``: masked events are predicted
        from both sides, and a mask token is appended to ask for the next.
    use_query_time : bool
        Whether the model is told the time of the event that it is asked for.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    item_embedding: ItemEmbedding
    kernels: nn.Module
    encoder: TransformerEncoder
    head: ItemHead
    weighs_targets = True
    """Of several processes, each weighs its loss by its number of targets: nobody else has to."""

    def __init__(self, config: Any, dataset: Any, objective: str = "causal", use_query_time: bool = False) -> None:
        super().__init__(config, dataset)
        self.TIME = config["TIME_FIELD"]
        self.TIME_SEQ = self.TIME + config["LIST_SUFFIX"]

        # load parameters info
        self.objective = objective
        self.use_query_time = use_query_time
        self.initializer_range = config["initializer_range"]
        self.loss_type = config["loss_type"]
        self.gbce_t = config["gbce_t"]
        self.label_smoothing = config["label_smoothing"]
        self.recompute = config["recompute"]
        self.compiled = config["compile"]
        self.event_layout = config["event_layout"] or "auto"
        sampling = config["train_neg_sample_args"] or {}
        self.negatives_a_row = 1 if sampling.get("sample_num") in (None, "none") else int(sampling["sample_num"])
        if objective not in ("causal", "cloze"):
            raise ValueError(f"objective: {objective}; must be causal or cloze")
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type: {self.loss_type}; must be one of {', '.join(LOSSES)}")
        if self.label_smoothing and not (0 < self.label_smoothing < 1 and self.loss_type in SMOOTHED_LOSSES):
            raise ValueError(
                f"label_smoothing: {self.label_smoothing}; must be at least 0 and below 1, and 0 unless loss_type is "
                f"one of {', '.join(SMOOTHED_LOSSES)}"
            )
        self.shared_negatives = None
        if config["negatives"] == "shared":
            if self.loss_type != "sampled_softmax":
                raise ValueError(f"negatives: shared; means nothing with loss_type {self.loss_type}")
            self.shared_negatives = SharedNegatives(config["n_negatives"], self.n_items, config["seed"])
        if objective == "cloze":
            self.mask_ratio = config["mask_ratio"]
            if not 0 < self.mask_ratio < 1:
                raise ValueError(f"mask_ratio: {self.mask_ratio}; must be between 0 and 1")
        if self.use_query_time:
            self.logger.info(
                "use_query_time: true - the model is told the moment for which it recommends;"
                " compare its figures only with those of models that know it too."
            )
        self.mask_token = self.n_items
        self.facts = Facts(
            n_items=self.n_items,
            n_rows=self.n_items + (objective == "cloze"),
            max_seq_length=self.max_seq_length,
            trained_days=partial(self._trained_days, dataset),
            smallest_gaps=partial(self._smallest_gaps, dataset),
            clock=partial(self._clock, dataset),
        )

    def join(self, parts: Parts, trend: Trend | None = None) -> None:
        """Take over the parts of the model, with the trend of its scores, and draw its first weights."""
        self.item_embedding = parts.item_embedding
        self.kernels = parts.kernels
        self.encoder = parts.encoder
        self.head = parts.head
        self.head.trend = trend
        self.pvn_weight = parts.pvn_weight
        if self.event_layout == "auto" and not parts.packs_rows:
            self.event_layout = "padded"
        if not parts.knows_time and trend is None:
            self.logger.info(f"{type(self).__name__} orders events by time and ignores the times themselves.")

        self.encoder.recompute = self.recompute
        if self.compiled:
            # One graph for all lengths of a batch: each would take its minute.
            self.encoder.compile(dynamic=True)

        # parameters initialization
        self.apply(self._init_weights)
        self.item_embedding.weight.data[0].zero_()
        for module in self.modules():
            if hasattr(module, "start_weights"):
                module.start_weights()
        # The data set is asked once; kept, it would be copied and pickled with the model.
        del self.facts

    def _trained_days(self, dataset: Any) -> Tensor:
        if hasattr(dataset, "trained_days"):
            # A cloze model sees each event, as a key or by its time; a causal one never the last.
            return dataset.trained_days(self.use_query_time or self.objective == "cloze")
        return whole_days(dataset.inter_feat[self.TIME]).unique()

    def _smallest_gaps(self, dataset: Any) -> Tensor:
        if hasattr(dataset, "smallest_training_gaps"):
            return dataset.smallest_training_gaps()
        events = dataset.inter_feat
        return smallest_gaps(events[self.USER_ID], events[self.TIME], dataset.num(self.USER_ID))

    def _clock(self, dataset: Any) -> tuple[float, float]:
        if hasattr(dataset, "time_scale"):
            return dataset.time_scale(self.use_query_time or self.objective == "cloze")
        events = dataset.inter_feat
        return time_scale(events[self.USER_ID], events[self.TIME])

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()

    def forward(self, items: Tensor, moments: SequenceTimes) -> Tensor:
        """States after the last layer, Float[B, L, d], of items, Int64[B, L], at their moments."""
        layout, encode = self._encoder_of(items, moments)
        return layout.unpack(encode(None)[-1])

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Training loss, Float[], of prefix rows or of sequence rows (a target per place).

        Of several processes each gives its targets' part of the mean over the targets of all.
        """
        batch = self._training_batch(interaction)
        layout, encode = self._encoder_of(batch.items, batch.moments)
        loss = self._training_loss(encode, layout, self._targets_of(batch, layout))
        return loss if self.head.trend is None else loss + self.head.trend.penalty()

    def _targets_of(self, batch: TrainingBatch, layout: Layout) -> Targets:
        items, time = layout.pack(batch.targets), layout.pack(batch.moments.query_time)
        places = items > 0
        items = items[places]
        return Targets(
            places,
            items,
            time[places],
            None if batch.negatives is None else layout.pack(batch.negatives)[places],
            None if self.shared_negatives is None else self.shared_negatives(),
            share_of(len(items), items.device),
        )

    def _training_loss(self, encode: Encode, layout: Layout, targets: Targets) -> Tensor:
        """Loss of a batch whose layers ``encode`` runs; a subclass may add to it."""
        return self._loss_of(encode(None)[-1], targets)

    def _loss_of(self, states: Tensor, targets: Targets) -> Tensor:
        """This process's part of the mean loss over the targets of all, Float[], of the last layer's states."""
        return self._mean_loss(states[targets.places], targets) * targets.share

    def _mean_loss(self, hidden: Tensor, targets: Targets) -> Tensor:
        _, items, time, negatives, shared, _ = targets
        table = self.item_embedding.table
        if shared is not None:
            product = self.head.as_product(hidden, table, torch.cat([items, shared]), query_time=time)
            return shared_softmax(*product, items, shared, self.label_smoothing)
        if negatives is None:
            return item_cross_entropy(
                *self.head.as_product(hidden, table, query_time=time), items, self.label_smoothing
            )
        items = items.unsqueeze(1)
        positive, negative = self.head.score_items(hidden, table, items, negatives, query_time=time)
        loss = sampled_loss(self.loss_type, positive, negative, self.n_items - 1, self.gbce_t, self.label_smoothing)
        if self.pvn_weight > 0 and self.loss_type == "BPR":
            between = -self.head.compare(table[items], table[negatives])
            loss = loss + self.pvn_weight * positive_versus_negative(-positive, between)
        return loss

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, Float[B]."""
        hidden, tau = self._last_state(interaction)
        (score,) = self.head.score_items(hidden, self.item_embedding.table, interaction[self.ITEM_ID], query_time=tau)
        return score

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items for each row, Float[B, n_items]."""
        hidden, tau = self._last_state(interaction)
        return self.head(hidden, self.item_embedding.table, query_time=tau)

    @torch.no_grad()
    def explain(self, interaction: Any) -> Explanation:
        """Look at the attention behind one user's recommendation, dropout off.

        Parameters
        ----------
        interaction : recbole.data.interaction.Interaction
            One row, as for ``full_sort_predict``.

        Raises
        ------
        ValueError
            If there is not exactly one row, or its history is empty.
        """
        rows = len(interaction[self.ITEM_SEQ_LEN])
        if rows != 1 or int(interaction[self.ITEM_SEQ_LEN]) == 0:
            raise ValueError(f"interaction: {rows} rows; explain takes one, with at least one event")
        items, moments, length = self._asked(interaction)
        training = self.training
        self.eval()
        try:
            with captured_weights(self.encoder) as layers:
                self(items, moments)
        finally:
            self.train(training)
        count = int(length)
        # Left-padded rows have their events last, others have them first and nothing else.
        plain, refined = (torch.cat(list(kind))[..., -count:, -count:] for kind in zip(*layers, strict=True))
        return Explanation(items[0], moments.key_time[0], plain, refined)

    def _encoder_of(self, items: Tensor, moments: SequenceTimes) -> tuple[Layout, Encode]:
        """Lay out and embed a batch; what comes back runs the layers on it."""
        layout = self._layout(moments.valid)
        hidden = self.item_embedding(layout.pack(items), layout.pack_times(moments))
        context = self.kernels(moments, layout, hidden.dtype)
        return layout, partial(self.encoder, hidden, layout, context)

    def _layout(self, valid: Tensor) -> Layout:
        causal = self.objective == "causal"
        layout = self.event_layout
        if layout == "auto":
            # A GPU's gradients of other layouts have not been compared yet.
            layout = "grouped" if valid.device.type == "cpu" and not self.compiled else "padded"
        if layout == "jagged":
            return Layout.jagged(valid, causal)
        if layout == "grouped":
            return Layout.grouped(valid, causal, self.encoder.max_pairs(valid.device))
        # A compiler sees to its own memory.
        return Layout.padded(valid, causal, None if self.compiled else self.encoder.max_pairs(valid.device))

    def _last_state(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """What each row's next event is scored with: a state, Float[B, d], and its query time, Tensor[B]."""
        items, moments, length = self._asked(interaction)
        layout, encode = self._encoder_of(items, moments)
        place = last_place(length)
        states = encode(None)[-1]
        return states[layout.at(place.squeeze(1))], moments.query_time.gather(1, place).squeeze(1)

    def _asked(self, interaction: Any) -> tuple[Tensor, SequenceTimes, Tensor]:
        """Items, moments and lengths that ask each row for its next event."""
        length = interaction[self.ITEM_SEQ_LEN]
        user = self._user(interaction)
        items, time = self._history(interaction)
        asked_at = interaction[self.TIME]
        if self.objective == "causal":
            return items, self._causal_moments(time, length, asked_at, user), length
        if not self.use_query_time:
            asked_at = time.gather(1, last_place(length)).squeeze(1)
        mask_token = torch.full_like(length, self.mask_token)
        items = append_event(items, length, mask_token, self.max_seq_length)
        time = append_event(time, length, asked_at, self.max_seq_length)
        length = (length + 1).clamp(max=self.max_seq_length)
        return items, self._moments(time, time, length, user), length

    def _history(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Items and times, [B, L] each, cut to the longest row of the batch."""
        width = max(1, int(interaction[self.ITEM_SEQ_LEN].max()))
        time = interaction[self.TIME_SEQ][:, :width]
        # Inexact times are floats; float64 loses nothing more of them.
        return interaction[self.ITEM_SEQ][:, :width], self._as_time(time)

    def _user(self, interaction: Any) -> Tensor | None:
        if self.USER_ID not in interaction:
            return None
        return interaction[self.USER_ID]

    @staticmethod
    def _as_time(time: Tensor) -> Tensor:
        return time.double() if time.is_floating_point() else time

    def _training_batch(self, interaction: Any) -> TrainingBatch:
        items, time = self._history(interaction)
        given = self.loss_type != "CE" and self.shared_negatives is None
        negatives = interaction[self.NEG_ITEM_ID] if given else None
        length, targets = interaction[self.ITEM_SEQ_LEN], interaction[self.ITEM_ID]
        rows = TrainingRows(items, time, length, self._user(interaction), targets, interaction[self.TIME], None)
        if negatives is not None:
            rows = self._with_negatives(rows, negatives)
        return self._cloze_batch(rows) if self.objective == "cloze" else self._causal_batch(rows)

    def _with_negatives(self, rows: TrainingRows, negatives: Tensor) -> TrainingRows:
        """Give each row its ``k`` negatives; RecBole repeats the batch of prefix rows for each further one."""
        if rows.targets.dim() == 2:
            return rows._replace(negatives=negatives if negatives.dim() == 3 else negatives.unsqueeze(2))
        count = len(negatives) // self.negatives_a_row
        user = None if rows.user is None else rows.user[:count]
        items, time, length, targets, target_time = (
            value[:count] for value in (rows.items, rows.time, rows.length, rows.targets, rows.target_time)
        )
        by_row = negatives.view(self.negatives_a_row, count).T
        return TrainingRows(items, time, length, user, targets, target_time, by_row)

    def _causal_batch(self, rows: TrainingRows) -> TrainingBatch:
        items, time, length, user, targets, target_time, negatives = rows
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
            # Without a target at the last place nothing is asked there, and its time is undefined.
            own = time.gather(1, last)
            asked = targets.gather(1, last) > 0
            target_time = torch.where(asked, target_time.gather(1, last).to(own.dtype), own)
            target_time = target_time.squeeze(1)
        moments = self._causal_moments(time, length, target_time, user)
        return TrainingBatch(items, moments, targets, negatives)

    def _cloze_batch(self, rows: TrainingRows) -> TrainingBatch:
        items, time, length, user, targets, target_time, negatives = rows
        if targets.dim() == 1:
            items = append_event(items, length, targets, self.max_seq_length)
            time = append_event(time, length, target_time, self.max_seq_length)
            length = (length + 1).clamp(max=self.max_seq_length)
            valid = maskable = valid_places(length, items.size(1))
            negatives = None if negatives is None else negatives.unsqueeze(1).expand(-1, items.size(1), -1)
        else:
            valid = valid_places(length, items.size(1))
            maskable = valid & (targets[:, : items.size(1)] > 0)
            negatives = None if negatives is None else negatives[:, : items.size(1)]
        masked = draw_cloze_mask(maskable, valid, self.mask_ratio)
        if not self.use_query_time:
            time = known_times(time, valid & ~masked)
        return TrainingBatch(
            items.masked_fill(masked, self.mask_token),
            self._moments(time, time, length, user),
            items * masked,
            negatives,
        )

    def _causal_moments(
        self, time: Tensor, length: Tensor, asked_at: Tensor, user: Tensor | None = None
    ) -> SequenceTimes:
        query_time = next_times(time, length, asked_at) if self.use_query_time else time
        return self._moments(query_time, time, length, user)

    def _moments(
        self, query_time: Tensor, key_time: Tensor, length: Tensor, user: Tensor | None = None
    ) -> SequenceTimes:
        """Join places and times, Tensor[B, L]; padding gets the time of the row's first event."""
        width = key_time.size(1)
        valid = valid_places(length, width)
        position = torch.arange(width, device=length.device).expand_as(key_time)
        if self.objective == "cloze":
            position = position + (self.max_seq_length - length).unsqueeze(1)
            position = position.clamp(max=self.max_seq_length - 1)

        def padded(time: Tensor) -> Tensor:
            return torch.where(valid, time, key_time[:, :1])

        key = padded(key_time)
        query = key if query_time is key_time else padded(query_time)
        return SequenceTimes(position, query, key, valid, user)
