"""The Transformer block that SASRec, ADRRec and MEANTIME share, with every choice between them an option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from recbole_adrrec.layers.attention import Attention
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead, ProjectedItemHead
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.base import Facts, Parts


@dataclass(frozen=True)
class Block:
    """Where norms, dropout and positions stand; named and explained in ``properties/model/ADRRec.yaml``."""

    norm_order: str
    drop_residual: bool
    input_position: bool
    input_norm: bool
    input_scale: bool
    final_norm: bool
    activation: str
    inner_dropout_prob: float
    item_head: str

    @classmethod
    def of(cls, config: Any) -> Block:
        """The block that the options describe."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


def block_parts(
    config: Any, facts: Facts, block: Block, attention: Callable[[int], Attention], kernels: nn.Module, knows_time: bool
) -> Parts:
    """Parts of a model with this block.

    Parameters
    ----------
    config : recbole.config.Config
        Options; widths, depth, dropout and epsilon are read.
    facts : Facts
        Facts of the data.
    block : Block
        Where norms, dropout and positions stand.
    attention : callable
        Makes the attention of a layer, by its number from 1.
    kernels : Module
        See ``Parts``.
    knows_time : bool
        Whether the kernels read times.
    """
    size, dropout, eps = config["hidden_size"], config["hidden_dropout_prob"], config["layer_norm_eps"]
    layers = [
        TransformerLayer(
            attention(number),
            FeedForward(size, config["inner_size"], block.inner_dropout_prob, block.activation),
            attention_norm=nn.LayerNorm(size, eps),
            feed_forward_norm=nn.LayerNorm(size, eps),
            dropout=dropout,
            order=block.norm_order,
            drop_residual=block.drop_residual,
        )
        for number in range(1, config["n_layers"] + 1)
    ]
    embedding = ItemEmbedding(
        facts.n_rows,
        size,
        dropout,
        scale=size**0.5 if block.input_scale else 1.0,
        n_positions=facts.max_seq_length if block.input_position else None,
        layer_norm_eps=eps if block.input_norm else None,
    )
    projected = block.item_head == "projected"
    return Parts(
        embedding,
        kernels,
        TransformerEncoder(layers, nn.LayerNorm(size, eps) if block.final_norm else None),
        ProjectedItemHead(size, facts.n_items, eps, config["temperature"])
        if projected
        else ItemHead(facts.n_items, config["temperature"]),
        knows_time=knows_time,
    )
