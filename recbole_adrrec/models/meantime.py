"""MEANTIME: mixture of attention mechanisms with multi-temporal embeddings.

Reference: Cho, Park, Yoo, "MEANTIME", RecSys 2020, arXiv 2008.08273.
"""

from __future__ import annotations

from typing import Any

from recbole_adrrec.models.block import Block
from recbole_adrrec.models.mix import MixAttentionRecommender


def published_block(config: Any) -> Block:
    """The block of MEANTIME's public code: pre-norm, dropout on the residual stream too, a projected head."""
    return Block(
        norm_order="pre",
        drop_residual=True,
        input_position=False,
        input_norm=False,
        input_scale=False,
        final_norm=False,
        activation="gelu_tanh",
        inner_dropout_prob=config["hidden_dropout_prob"],
        item_head="projected",
    )


class MEANTIME(MixAttentionRecommender):
    """Mix-attention over kernels of position and time, trained to fill masked events.

    Arguments as for ``SequenceRecommender``; options in ``properties/model/MEANTIME.yaml``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, published_block(config), "heads")
