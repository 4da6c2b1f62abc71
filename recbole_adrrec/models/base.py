"""What ADRRec and MEANTIME share: a mix-attention encoder over timed events.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size, ``N`` positions with a target.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_adrrec.layers.attention import MixAttention
from recbole_adrrec.layers.heads import ItemHead
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.masks import attention_mask
from recbole_adrrec.layers.moments import KernelSettings, Moments, whole_days
from recbole_adrrec.layers.noise import Encode
from recbole_adrrec.layers.objectives import (
    append_event,
    draw_cloze_mask,
    known_times,
    last_place,
    next_times,
    valid_places,
)
from recbole_adrrec.layers.transformer import TransformerEncoder, TransformerLayer
from recbole_adrrec.losses import bayesian_personalized_ranking, cross_entropy


class TrainingRows(NamedTuple):
    """Rows as the data layer gives them: targets, their times and negatives are [B] or [B, L]."""

    items: Tensor
    time: Tensor
    length: Tensor
    targets: Tensor
    target_time: Tensor
    negatives: Tensor | None


class TrainingBatch(NamedTuple):
    """Items shown, Int64[B, L]; their moments; items to find there and negatives, 0 for none."""

    items: Tensor
    moments: Moments
    targets: Tensor
    negatives: Tensor | None


class MixAttentionRecommender(SequentialRecommender):
    """Sequential recommender with one kernel for each attention head.

    Parameters
    ----------
    config : recbole.config.Config
        RecBole's options and the model's; ``properties/model`` describes them.
    dataset : recbole.data.dataset.SequentialDataset
        Training data. ``trained_days(include_targets)`` is asked for the days of the day kernel;
        without it, they are read off the interactions.
    objective : str
        ``causal``: position ``i`` predicts event ``i + 1``; ``cloze``: masked events are predicted
        from both sides, and a mask token is appended to ask for the next.
    max_distance : int, optional
        Farthest distance that the distance kernel tells apart.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(self, config: Any, dataset: Any, objective: str, max_distance: int | None = None) -> None:
        super().__init__(config, dataset)
        self.TIME = config["TIME_FIELD"]
        self.TIME_SEQ = self.TIME + config["LIST_SUFFIX"]

        # load parameters info
        self.objective = objective
        self.use_query_time = config["use_query_time"]
        self.hidden_size = config["hidden_size"]
        self.initializer_range = config["initializer_range"]
        self.loss_type = config["loss_type"]
        absolute, relative = config["absolute_kernels"] or [], config["relative_kernels"] or []
        hidden_dropout_prob = config["hidden_dropout_prob"]
        layer_norm_eps = config["layer_norm_eps"]
        if objective not in ("causal", "cloze"):
            raise ValueError(f"objective: {objective}; must be causal or cloze")
        if self.loss_type not in ("CE", "BPR"):
            raise ValueError(f"loss_type: {self.loss_type}; must be CE or BPR")
        if objective == "cloze":
            self.mask_ratio = config["mask_ratio"]
            if not 0 < self.mask_ratio < 1:
                raise ValueError(f"mask_ratio: {self.mask_ratio}; must be between 0 and 1")
        if self.use_query_time:
            self.logger.info(
                "use_query_time: true - the model is told the moment for which it recommends;"
                " compare its figures only with those of models that know it too."
            )

        # define layers and loss
        self.mask_token = self.n_items
        self.item_embedding = nn.Embedding(self.n_items + (objective == "cloze"), self.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(hidden_dropout_prob)
        settings = KernelSettings(
            hidden_size=self.hidden_size,
            max_seq_length=self.max_seq_length,
            trained_days=partial(self._trained_days, dataset),
            time_unit=config["time_unit"],
            kernel_freq=config["kernel_freq"],
            max_distance=max_distance,
        )
        self.kernels = MixKernels(absolute, relative, settings, hidden_dropout_prob)
        self.encoder = TransformerEncoder(
            TransformerLayer(
                MixAttention(self.hidden_size, len(absolute), len(relative), config["attn_dropout_prob"]),
                self.hidden_size,
                config["inner_size"],
                hidden_dropout_prob,
                layer_norm_eps,
            )
            for _ in range(config["n_layers"])
        )
        self.head = ItemHead(self.hidden_size, self.n_items, layer_norm_eps)

        # parameters initialization
        self.apply(self._init_weights)
        self.item_embedding.weight.data[0].zero_()

    def _trained_days(self, dataset: Any) -> Tensor:
        if hasattr(dataset, "trained_days"):
            # A cloze model sees each event, as a key or by its time; a causal one never the last.
            return dataset.trained_days(self.use_query_time or self.objective == "cloze")
        return whole_days(dataset.inter_feat[self.TIME]).unique()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.initializer_range)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()

    def forward(self, items: Tensor, moments: Moments) -> Tensor:
        """States after the last layer, Float[B, L, d], of items, Int64[B, L], at their moments."""
        return self._encode(self._encoder_of(items, moments), moments)[0][-1]

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Training loss, Float[], of prefix rows or of sequence rows (a target per place)."""
        batch = self._training_batch(interaction)
        states, penalty = self._encode(self._encoder_of(batch.items, batch.moments), batch.moments)
        asked = batch.targets > 0
        hidden, targets = states[-1][asked], batch.targets[asked]  # [N, d], [N]
        table = self.item_embedding.weight
        if batch.negatives is None:
            return cross_entropy(self.head(hidden, table), targets) + penalty
        positive, negative = self.head.score_items(hidden, table, targets, batch.negatives[asked])
        return bayesian_personalized_ranking(positive, negative) + penalty

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, Float[B]."""
        hidden = self._last_state(interaction)
        (score,) = self.head.score_items(hidden, self.item_embedding.weight, interaction[self.ITEM_ID])
        return score

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items for each row, Float[B, n_items]."""
        return self.head(self._last_state(interaction), self.item_embedding.weight)

    def _encoder_of(self, items: Tensor, moments: Moments) -> Encode:
        """Embed a batch; what comes back runs the layers on it."""
        hidden = self.dropout(self.item_embedding(items))
        mask = attention_mask(moments.valid, causal=self.objective == "causal")
        return partial(self.encoder, hidden, mask, self.kernels(moments, hidden.dtype))

    def _encode(self, encode: Encode, moments: Moments) -> tuple[list[Tensor], Tensor | float]:
        """Run the layers: the state after each, and what training adds to the loss."""
        return encode(None), 0.0

    def _last_state(self, interaction: Any) -> Tensor:
        length = interaction[self.ITEM_SEQ_LEN]
        items, time = self._history(interaction)
        asked_at = interaction[self.TIME]
        if self.objective == "cloze":
            if not self.use_query_time:
                asked_at = time.gather(1, last_place(length)).squeeze(1)
            mask_token = torch.full_like(length, self.mask_token)
            items = append_event(items, length, mask_token, self.max_seq_length)
            time = append_event(time, length, asked_at, self.max_seq_length)
            length = (length + 1).clamp(max=self.max_seq_length)
            moments = self._moments(time, time, length)
        else:
            moments = self._causal_moments(time, length, asked_at)
        return self.gather_indexes(self.forward(items, moments), last_place(length))

    def _history(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Items and times, [B, L] each, cut to the longest row of the batch."""
        width = max(1, int(interaction[self.ITEM_SEQ_LEN].max()))
        time = interaction[self.TIME_SEQ][:, :width]
        # Inexact times are floats; float64 loses nothing more of them.
        return interaction[self.ITEM_SEQ][:, :width], self._as_time(time)

    @staticmethod
    def _as_time(time: Tensor) -> Tensor:
        return time.double() if time.is_floating_point() else time

    def _training_batch(self, interaction: Any) -> TrainingBatch:
        items, time = self._history(interaction)
        negatives = interaction[self.NEG_ITEM_ID] if self.loss_type == "BPR" else None
        length, targets = interaction[self.ITEM_SEQ_LEN], interaction[self.ITEM_ID]
        rows = TrainingRows(items, time, length, targets, interaction[self.TIME], negatives)
        return self._cloze_batch(rows) if self.objective == "cloze" else self._causal_batch(rows)

    def _causal_batch(self, rows: TrainingRows) -> TrainingBatch:
        items, time, length, targets, target_time, negatives = rows
        last = last_place(length)
        if targets.dim() == 1:

            def at_last(value: Tensor) -> Tensor:
                return torch.zeros_like(items).scatter(1, last, value.unsqueeze(1))

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
        return TrainingBatch(items, self._causal_moments(time, length, target_time), targets, negatives)

    def _cloze_batch(self, rows: TrainingRows) -> TrainingBatch:
        items, time, length, targets, target_time, negatives = rows
        if targets.dim() == 1:
            items = append_event(items, length, targets, self.max_seq_length)
            time = append_event(time, length, target_time, self.max_seq_length)
            length = (length + 1).clamp(max=self.max_seq_length)
            valid = maskable = valid_places(length, items.size(1))
            negatives = None if negatives is None else negatives.unsqueeze(1).expand_as(items)
        else:
            valid = valid_places(length, items.size(1))
            maskable = valid & (targets[:, : items.size(1)] > 0)
            negatives = None if negatives is None else negatives[:, : items.size(1)]
        masked = draw_cloze_mask(maskable, valid, self.mask_ratio)
        if not self.use_query_time:
            time = known_times(time, valid & ~masked)
        return TrainingBatch(
            items.masked_fill(masked, self.mask_token),
            self._moments(time, time, length),
            items * masked,
            negatives,
        )

    def _causal_moments(self, time: Tensor, length: Tensor, asked_at: Tensor) -> Moments:
        query_time = next_times(time, length, asked_at) if self.use_query_time else time
        return self._moments(query_time, time, length)

    def _moments(self, query_time: Tensor, key_time: Tensor, length: Tensor) -> Moments:
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
        return Moments(position, query, key, valid)
