"""The recommender that all models extend: components that a model joins, and what is done with them.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size, ``H`` heads, ``N`` positions with a target, ``k``
negatives of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recbole_adrrec.collectives import share_of
from recbole_adrrec.layers.attention import captured_weights
from recbole_adrrec.layers.draws import SharedNegatives
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead, Trend
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.layers.noise import Encode
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.transformer import TransformerEncoder
from recbole_adrrec.losses import item_cross_entropy, positive_versus_negative, sampled_loss, shared_softmax
from recbole_adrrec.models.inputs import SequenceInputs, TrainingBatch, last_place
from recbole_adrrec.options.schema import EncoderOptions

FULL_ROWS = 0.75
"""Share of events above which a batch stays padded: taking it apart cost a fifth of a step on ml-100k's windows."""


Refine = Callable[[int, int], Refinement | None]
"""Gives the refinement of a layer, by the layer's number from 1 and its number of heads."""


def unrefined(layer: int, n_heads: int) -> None:
    """Refine nothing."""


@dataclass(frozen=True)
class DataStats:
    """Statistics of the training data."""

    n_items: int
    """Items, padding included."""
    n_rows: int
    """Rows of the item table: items and, for a cloze model, the mask token."""
    max_seq_length: int
    """Most places of a row."""
    trained_days: Callable[[], Tensor]
    """Gives the sorted whole days since 1970 that training shows, Int64[n]."""
    smallest_gaps: Callable[[], Tensor]
    """Gives each user's smallest positive gap in training, Int64[n_users], in seconds."""
    clock: Callable[[], tuple[float, float]]
    """Gives resolution and span of the training times, in seconds."""


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
    """Modules that a model joins."""

    item_embedding: ItemEmbedding
    """From items and positions to the encoder's input."""
    kernels: nn.Module
    """From times, a layout and a dtype to what the layers share of a batch."""
    encoder: TransformerEncoder
    """From the input, a layout and what is shared to the states after each layer."""
    head: ItemHead
    """From states to scores."""
    knows_time: bool = True
    """True where any of these reads times."""
    pvn_weight: float = 0.0
    """Weight of STOSA's positive-versus-negative term beside BPR."""
    packs_rows: bool = True
    """True where a CPU may leave padding out of what is computed; not where padding takes part in attention."""


def build_trend(options: EncoderOptions, stats: DataStats) -> Trend | None:
    """Trend of the scores that the options describe; None with ``trend_rank`` 0."""
    if not options.trend_rank:
        return None
    days = stats.trained_days()
    return Trend(stats.n_items, options.trend_rank, days, options.trend_spacing, options.trend_decay)


class Explanation(NamedTuple):
    """Attention behind one user's recommendation; layers and heads in order, query by key.

    Weights of a query are a distribution over the events, but HSTU's: those are ``silu(score)`` over the most places of
    a row, of either sign, and their sum grows with the number of events.
    """

    items: Tensor
    """Int64[L]: the events' items, oldest first. A cloze model's mask token stands last, as item ``n_items``."""
    times: Tensor
    """Int64[L]: their times, in seconds since 1970 (UTC)."""
    plain: Tensor
    """Float[n_layers, H, L, L]: attention weights before refinement."""
    refined: Tensor
    """Float[n_layers, H, L, L]: weights after refinement, those that are used; equal to ``plain`` where nothing is
    refined."""


class Targets(NamedTuple):
    """The places of a batch that have a target, and what the loss compares there."""

    places: Tensor
    """Bool[...]: true at the ``N`` places, laid out as the states."""
    items: Tensor
    query_time: Tensor
    """Int64[N], Tensor[N]: targets, and their times or those of the events before them: see ``models.inputs``."""
    negatives: Tensor | None
    shared: Tensor | None
    """Int64[N, k] and Int64[k]: sampled items of each target, and those that all targets share."""
    share: Tensor | float
    """Float[] or 1.0: weighs a mean over this process's targets, see ``share_of``."""


class SequenceRecommender(SequenceInputs):
    """Sequential recommender over timed events. A subclass names its ``options_class`` and sets its components.

    Parameters
    ----------
    config : recbole.config.Config
        RecBole's options and the model's; ``properties/model`` describes them.
    dataset : SequenceDataset
        Training data. Its ``trained_days``, ``time_scale`` and ``smallest_training_gaps`` are called by components that
        need them.

    Raises
    ------
    OptionError
        If an option is out of range or contradicts another.
    """

    options: EncoderOptions
    item_embedding: ItemEmbedding
    kernels: nn.Module
    encoder: TransformerEncoder
    head: ItemHead
    weighs_targets = True
    """Of several processes, each weighs its loss by its number of targets: nobody else has to."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)

        # load parameters info
        self.initializer_range = self.options.initializer_range
        self.loss_type = self.options.loss_type
        self.compiled = self.options.compile
        self.event_layout: str = self.options.event_layout
        if self.use_query_time:
            self.logger.info(
                "use_query_time: true - the model knows the moment for which it recommends;"
                " compare its figures only with those of models that know it too."
            )

        # define layers and loss
        self.shared_negatives = None
        if self.options.negatives == "shared":
            self.shared_negatives = SharedNegatives(self.options.n_negatives, self.n_items, config["seed"])

    def data_stats(self, dataset: Any) -> DataStats:
        """Statistics of the training data, from which components are built."""
        # A cloze model sees each event, as a key or by its time; a causal one never the last.
        include_targets = self.use_query_time or self.objective == "cloze"
        return DataStats(
            n_items=self.n_items,
            n_rows=self.n_items + (self.objective == "cloze"),
            max_seq_length=self.max_seq_length,
            trained_days=partial(dataset.trained_days, include_targets),
            smallest_gaps=dataset.smallest_training_gaps,
            clock=partial(dataset.time_scale, include_targets),
        )

    def set_components(self, components: ModelComponents, trend: Trend | None = None) -> None:
        """Take over the components of the model, with the trend of its scores, and draw its first weights."""
        self.item_embedding = components.item_embedding
        self.kernels = components.kernels
        self.encoder = components.encoder
        self.head = components.head
        self.head.trend = trend
        self.pvn_weight = components.pvn_weight
        if self.event_layout == "auto" and not components.packs_rows:
            self.event_layout = "padded"
        if not components.knows_time and trend is None:
            self.logger.info(f"{type(self).__name__} orders events by time and ignores the times themselves.")

        self.encoder.recompute = self.options.recompute
        if self.compiled:
            # One graph for all lengths of a batch: each would take its minute.
            self.encoder.compile(dynamic=True)

        # parameters initialization
        self.apply(self._init_weights)
        self.item_embedding.weight.data[0].zero_()
        for module in self.modules():
            if hasattr(module, "start_weights"):
                module.start_weights()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()

    def forward(self, items: Tensor, times: SequenceTimes) -> Tensor:
        """States after the last layer, Float[B, L, d], of items, Int64[B, L], at their times."""
        layout, encode = self._encoder_of(items, times)
        return layout.unpack(encode(None)[-1])

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Training loss, Float[], of prefix rows or of sequence rows (a target per place).

        Of several processes each gives its targets' part of the mean over the targets of all.
        """
        batch = self._training_batch(interaction)
        layout, encode = self._encoder_of(batch.items, batch.times)
        loss = self._training_loss(encode, layout, self._targets_of(batch, layout))
        return loss if self.head.trend is None else loss + self.head.trend.penalty()

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, Float[B]."""
        hidden, query_time = self.state_of(*self._inference_inputs(interaction))
        table, items = self.item_embedding.table, interaction[self.ITEM_ID]
        (score,) = self.head.score_items(hidden, table, items, query_time=query_time)
        return score

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items for each row, Float[B, n_items]."""
        hidden, query_time = self.state_of(*self._inference_inputs(interaction))
        return self.head(hidden, self.item_embedding.table, query_time=query_time)

    @torch.no_grad()
    def explain(self, interaction: Any) -> Explanation:
        """Attention behind one user's recommendation, dropout off.

        ``interaction`` is one row, as for ``full_sort_predict``; ``ValueError`` if there are more, or it has no event.
        """
        rows = len(interaction[self.ITEM_SEQ_LEN])
        if rows != 1 or int(interaction[self.ITEM_SEQ_LEN]) == 0:
            raise ValueError(f"interaction: {rows} rows; explain takes one, with at least one event")
        items, times, length = self._inference_inputs(interaction)
        training = self.training
        self.eval()
        try:
            with captured_weights(self.encoder) as layers:
                self(items, times)
        finally:
            self.train(training)
        count = int(length)
        # Left-padded rows have their events last, others have them first and nothing else.
        plain, refined = (torch.cat(list(kind))[..., -count:, -count:] for kind in zip(*layers, strict=True))
        return Explanation(items[0], times.key_time[0], plain, refined)

    def _encoder_of(self, items: Tensor, times: SequenceTimes) -> tuple[Layout, Encode]:
        """Layout of a batch, and a function that runs the layers on it."""
        layout = self._layout(times.valid)
        hidden = self.item_embedding(layout.pack(items), layout.pack(times.position))
        context = self.kernels(times, layout, hidden.dtype)
        return layout, partial(self.encoder, hidden, layout, context)

    def _layout(self, valid: Tensor) -> Layout:
        causal = self.objective == "causal"
        layout = self.event_layout
        if layout == "auto":
            # A GPU's gradients of other layouts have not been compared yet.
            plain = valid.device.type != "cpu" or self.compiled
            layout = "padded" if plain or valid.double().mean() > FULL_ROWS else "grouped"
        if layout == "jagged":
            return Layout.jagged(valid, causal)
        if layout == "grouped":
            return Layout.grouped(valid, causal, self.encoder.max_pairs(valid.device))
        # A compiler sees to its own memory.
        return Layout.padded(valid, causal, None if self.compiled else self.encoder.max_pairs(valid.device))

    def state_of(self, items: Tensor, times: SequenceTimes, length: Tensor) -> tuple[Tensor, Tensor]:
        """State behind the last event, Float[B, d], and its query time, Tensor[B], of what ``shown`` gives."""
        layout, encode = self._encoder_of(items, times)
        place = last_place(length)
        return encode(None)[-1][layout.at(place.squeeze(1))], times.query_time.gather(1, place).squeeze(1)

    def _targets_of(self, batch: TrainingBatch, layout: Layout) -> Targets:
        items, query_time = layout.pack(batch.targets), layout.pack(batch.times.query_time)
        places = items > 0
        items = items[places]
        negatives = None if batch.negatives is None else layout.pack(batch.negatives)[places]
        shared = None if self.shared_negatives is None else self.shared_negatives()
        return Targets(places, items, query_time[places], negatives, shared, share_of(len(items), items.device))

    def _training_loss(self, encode: Encode, layout: Layout, targets: Targets) -> Tensor:
        """Loss of a batch whose layers ``encode`` runs; a subclass may add to it."""
        return self._loss_of(encode(None)[-1], targets)

    def _loss_of(self, states: Tensor, targets: Targets) -> Tensor:
        """This process's part of the mean loss over the targets of all, Float[], of the last layer's states."""
        return self._mean_loss(states[targets.places], targets) * targets.share

    def _mean_loss(self, hidden: Tensor, targets: Targets) -> Tensor:
        _, items, query_time, negatives, shared, _ = targets
        table, smoothing = self.item_embedding.table, self.options.label_smoothing
        if shared is not None:
            product = self.head.as_product(hidden, table, torch.cat([items, shared]), query_time=query_time)
            return shared_softmax(*product, items, shared, smoothing)
        if negatives is None:
            return item_cross_entropy(*self.head.as_product(hidden, table, query_time=query_time), items, smoothing)
        items = items.unsqueeze(1)
        positive, negative = self.head.score_items(hidden, table, items, negatives, query_time=query_time)
        loss = sampled_loss(self.loss_type, positive, negative, self.n_items - 1, self.options.gbce_t, smoothing)
        if self.pvn_weight > 0 and self.loss_type == "BPR":
            between = -self.head.compare(table[items], table[negatives])
            loss = loss + self.pvn_weight * positive_versus_negative(-positive, between)
        return loss
