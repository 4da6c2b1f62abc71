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
from recbole_adrrec.models.base import Facts, Parts, Refine, SequenceRecommender, unrefined


def tisasrec_parts(config: Any, facts: Facts, refine: Refine = unrefined) -> Parts:
    """Parts of TiSASRec.

    Reads the options of ``properties/model/TiSASRec.yaml``; arguments as for every ``PartsBuilder``.
    """
    size, n_heads, eps = config["hidden_size"], config["n_heads"], config["layer_norm_eps"]
    width, dropout, left_padded = (
        facts.max_seq_length,
        config["hidden_dropout_prob"],
        config["published_padding_attention"],
    )

    def layer(number: int) -> nn.Module:
        attention = IntervalAttention(size, n_heads, config["attn_dropout_prob"], refine(number, n_heads))
        norms = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        return TransformerLayer(attention, FeedForward(size, size, dropout, "relu"), *norms, dropout, order="query")

    layers, norm = [layer(number + 1) for number in range(config["n_layers"])], nn.LayerNorm(size, eps)
    gaps = facts.smallest_gaps()
    return Parts(
        ItemEmbedding(facts.n_rows, size, dropout, scale=size**0.5),
        TimeIntervals(size, width, config["time_span"], gaps, dropout, left_padded),
        LeftPaddedEncoder(layers, norm, width) if left_padded else TransformerEncoder(layers, norm),
        ItemHead(facts.n_items, config["temperature"]),
        packs_rows=not left_padded,
    )


class TiSASRec(SequenceRecommender):
    """Causal self-attention with learned keys and values for places and for time intervals.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/TiSASRec.yaml``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.join(tisasrec_parts(config, self.facts))
