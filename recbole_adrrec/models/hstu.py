"""HSTU: pointwise attention with gated sums, which knows distances in places and in time.

Reference: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", ICML 2024, arXiv 2402.17152: its encoder of one user's events, without ratings or actions. Details
follow public code; ``docs/models.md`` says where ours departs from it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead
from recbole_adrrec.layers.pointwise import GapBuckets, PointwiseAttention, PointwiseLayer
from recbole_adrrec.layers.transformer import TransformerEncoder
from recbole_adrrec.models.base import DataStats, ModelComponents, NoKernels, SequenceRecommender, build_trend
from recbole_adrrec.options.schema import HSTUOptions


def hstu_components(options: HSTUOptions, stats: DataStats) -> ModelComponents:
    """Components of HSTU."""
    size, dropout, eps = options.hidden_size, options.hidden_dropout_prob, options.layer_norm_eps

    def layer() -> nn.Module:
        attention = PointwiseAttention(
            hidden_size=size,
            n_heads=options.heads,
            query_size=options.query_size or size // options.heads,
            value_size=options.value_size or size // options.heads,
            max_seq_length=stats.max_seq_length,
            dropout=options.attn_dropout_prob,
            gated_dropout=dropout,
            layer_norm_eps=eps,
            position_bias=options.position_bias,
            time_bias=options.time_bias,
        )
        return PointwiseLayer(attention, nn.LayerNorm(size, eps))

    return ModelComponents(
        ItemEmbedding(stats.n_rows, size, dropout, scale=size**0.5, n_positions=stats.max_seq_length),
        GapBuckets() if options.time_bias else NoKernels(),
        TransformerEncoder(layer() for _ in range(options.n_layers)),
        ItemHead(stats.n_items, options.temperature),
        knows_time=options.time_bias,
    )


class HSTU(SequenceRecommender):
    """Causal pointwise attention with biases of places and of gaps in time.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/HSTU.yaml``.
    """

    options: HSTUOptions
    options_class = HSTUOptions

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        stats = self.data_stats(dataset)
        self.set_components(hstu_components(self.options, stats), build_trend(self.options, stats))
