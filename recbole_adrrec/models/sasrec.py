"""SASRec's parts, as RecBole has them: a backbone of AWRSR. The model by this name is RecBole's own.

Reference: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from recbole_adrrec.layers.attention import DotProductAttention
from recbole_adrrec.layers.embeddings import PositionedItemEmbedding
from recbole_adrrec.layers.heads import ItemHead
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.base import Facts, NoKernels, Parts, Refine, unrefined


def sasrec_parts(config: Any, facts: Facts, refine: Refine = unrefined) -> Parts:
    """Parts of SASRec: learned positions, dot-product attention, norms after each part.

    Reads the options of RecBole's SASRec; arguments as for every ``PartsBuilder``.
    """
    size, n_heads, eps = config["hidden_size"], config["n_heads"], config["layer_norm_eps"]
    dropout, attn_dropout = config["hidden_dropout_prob"], config["attn_dropout_prob"]
    layers = [
        TransformerLayer(
            DotProductAttention(size, n_heads, attn_dropout, refine(number, n_heads)),
            FeedForward(size, config["inner_size"], dropout=0.0, activation="gelu"),
            attention_norm=nn.LayerNorm(size, eps),
            feed_forward_norm=nn.LayerNorm(size, eps),
            dropout=dropout,
            order="post",
        )
        for number in range(1, config["n_layers"] + 1)
    ]
    embedding = PositionedItemEmbedding(facts.n_rows, size, dropout, facts.max_seq_length, eps)
    head = ItemHead(facts.n_items, config["temperature"])
    return Parts(embedding, NoKernels(), TransformerEncoder(layers), head, knows_time=False)
