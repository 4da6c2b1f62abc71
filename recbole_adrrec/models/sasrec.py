"""SASRec's components, as RecBole has them: a backbone of AWRSR. The model by this name is RecBole's own.

Reference: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
"""

from __future__ import annotations

from recbole_adrrec.layers.attention import Attention, DotProductAttention
from recbole_adrrec.models.block import block_components
from recbole_adrrec.models.components import DataStats, ModelComponents, NoKernels, Refine, unrefined
from recbole_adrrec.options.schema import BlockOptions


def sasrec_components(options: BlockOptions, stats: DataStats, refine: Refine = unrefined) -> ModelComponents:
    """Dot-product attention in a block of options, whose defaults are those of RecBole's SASRec."""

    def attention(layer: int) -> Attention:
        refinement = refine(layer, options.heads)
        return DotProductAttention(options.hidden_size, options.heads, options.attn_dropout_prob, refinement)

    return block_components(options, stats, attention, NoKernels(), knows_time=False)
