"""SASRec's parts, as RecBole has them: a backbone of AWRSR. The model by this name is RecBole's own.

Reference: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
"""

from __future__ import annotations

from typing import Any

from recbole_adrrec.layers.attention import Attention, DotProductAttention
from recbole_adrrec.models.base import Facts, NoKernels, Parts, Refine, unrefined
from recbole_adrrec.models.block import Block, block_parts


def sasrec_parts(config: Any, facts: Facts, refine: Refine = unrefined) -> Parts:
    """Parts of SASRec: dot-product attention in a block of options, whose defaults are those of RecBole's SASRec.

    Arguments as for every ``PartsBuilder``.
    """
    n_heads = config["n_heads"]

    def attention(layer: int) -> Attention:
        return DotProductAttention(config["hidden_size"], n_heads, config["attn_dropout_prob"], refine(layer, n_heads))

    return block_parts(config, facts, Block.of(config), attention, NoKernels(), knows_time=False)
