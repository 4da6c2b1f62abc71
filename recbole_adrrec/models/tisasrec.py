"""TiSASRec: self-attention that knows the time between two events, in units of each user's own pace.

Reference: Li, Wang, McAuley, "Time Interval Aware Self-Attention for Sequential Recommendation", WSDM 2020. Details
follow its public code; ``docs/models.md`` says where ours departs from it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead
from recbole_adrrec.layers.intervals import IntervalAttention, LeftPaddedEncoder, TimeIntervals
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.base import DataStats, ModelComponents, Refine, SequenceRecommender, unrefined
from recbole_adrrec.options.schema import TiSASRecOptions


def tisasrec_components(options: TiSASRecOptions, stats: DataStats, refine: Refine = unrefined) -> ModelComponents:
    """Components of TiSASRec."""
    size, heads, eps = options.hidden_size, options.heads, options.layer_norm_eps
    width, dropout = stats.max_seq_length, options.hidden_dropout_prob
    left_padded = options.published_padding_attention

    def layer(number: int) -> nn.Module:
        attention = IntervalAttention(size, heads, options.attn_dropout_prob, refine(number, heads))
        norms = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        return TransformerLayer(attention, FeedForward(size, size, dropout, "relu"), *norms, dropout, order="query")

    layers, norm = [layer(number + 1) for number in range(options.n_layers)], nn.LayerNorm(size, eps)
    return ModelComponents(
        ItemEmbedding(stats.n_rows, size, dropout, scale=size**0.5),
        TimeIntervals(size, width, options.time_span, stats.smallest_gaps(), dropout, left_padded),
        LeftPaddedEncoder(layers, norm, width) if left_padded else TransformerEncoder(layers, norm),
        ItemHead(stats.n_items, options.temperature),
        packs_rows=not left_padded,
    )


class TiSASRec(SequenceRecommender):
    """Causal self-attention with learned keys and values for places and for time intervals.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/TiSASRec.yaml``.
    """

    options: TiSASRecOptions
    options_class = TiSASRecOptions

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.set_components(tisasrec_components(self.options, self.data_stats(dataset)))
