"""Mix attention over kernels of place and time: what ADRRec, MEANTIME and AWRSR's ``mix`` are made of."""

from __future__ import annotations

from typing import Any

from torch import nn

from recbole_adrrec.layers.attention import MixAttention
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ProjectedItemHead
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.moments import KernelSettings
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.base import Facts, Parts, Refine, SequenceRecommender, trend_of, unrefined


def mix_parts(config: Any, facts: Facts, max_distance: int | None = None, refine: Refine = unrefined) -> Parts:
    """Parts of a model with one kernel for each attention head.

    Reads the options of ``properties/model/MEANTIME.yaml``; ``max_distance`` is the farthest distance that the distance
    kernel tells apart. Other arguments as for every ``PartsBuilder``.
    """
    absolute, relative = config["absolute_kernels"] or [], config["relative_kernels"] or []
    size, inner_size, dropout = config["hidden_size"], config["inner_size"], config["hidden_dropout_prob"]
    eps, n_heads = config["layer_norm_eps"], len(absolute) + len(relative)
    settings = KernelSettings(
        hidden_size=size,
        max_seq_length=facts.max_seq_length,
        trained_days=facts.trained_days,
        time_unit=config["time_unit"],
        kernel_freq=config["kernel_freq"],
        max_distance=max_distance,
        grid_points=config["grid_points"],
    )

    def layer(number: int) -> TransformerLayer:
        refinement = refine(number, n_heads)
        return TransformerLayer(
            MixAttention(size, len(absolute), len(relative), config["attn_dropout_prob"], refinement),
            FeedForward(size, inner_size, dropout),
            nn.LayerNorm(size, eps),
            nn.LayerNorm(size, eps),
            dropout,
        )

    return Parts(
        ItemEmbedding(facts.n_rows, size, dropout),
        MixKernels(absolute, relative, settings, dropout),
        TransformerEncoder(layer(number) for number in range(1, config["n_layers"] + 1)),
        ProjectedItemHead(size, facts.n_items, eps, config["temperature"]),
    )


class MixAttentionRecommender(SequenceRecommender):
    """Sequential recommender with one kernel for each attention head.

    Arguments as for ``SequenceRecommender`` and ``mix_parts``; ``with_trend``: whether its options describe a trend.
    """

    def __init__(self, config: Any, dataset: Any, max_distance: int | None = None, with_trend: bool = False) -> None:
        super().__init__(config, dataset, config["objective"], config["use_query_time"])
        trend = trend_of(config, self.facts) if with_trend else None
        self.join(mix_parts(config, self.facts, max_distance), trend)
