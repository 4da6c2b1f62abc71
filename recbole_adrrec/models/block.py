"""The Transformer block that SASRec, ADRRec and MEANTIME share, with every choice between them an option."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from recbole_adrrec.layers.attention import Attention
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead, ProjectedItemHead
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.components import DataStats, ModelComponents
from recbole_adrrec.options.schema import BlockOptions


def block_components(
    options: BlockOptions,
    stats: DataStats,
    attention: Callable[[int], Attention],
    kernels: nn.Module,
    knows_time: bool,
) -> ModelComponents:
    """Components of a model with this block.

    Parameters
    ----------
    options : BlockOptions
        Widths, depth, dropout, and where norms, dropout and positions stand.
    stats : DataStats
        Statistics of the data.
    attention : callable
        Makes the attention of a layer, by its number from 1.
    kernels, knows_time
        See ``ModelComponents``.
    """
    size, dropout, eps = options.hidden_size, options.hidden_dropout_prob, options.layer_norm_eps
    layers = [
        TransformerLayer(
            attention(number),
            FeedForward(size, options.inner_size, options.inner_dropout_prob, options.activation),
            attention_norm=nn.LayerNorm(size, eps),
            feed_forward_norm=nn.LayerNorm(size, eps),
            dropout=dropout,
            order=options.norm_order,
            drop_residual=options.drop_residual,
        )
        for number in range(1, options.n_layers + 1)
    ]
    embedding = ItemEmbedding(
        stats.n_rows,
        size,
        dropout,
        scale=size**0.5 if options.input_scale else 1.0,
        n_positions=stats.max_seq_length if options.input_position else None,
        layer_norm_eps=eps if options.input_norm else None,
    )
    encoder = TransformerEncoder(layers, nn.LayerNorm(size, eps) if options.final_norm else None)
    if options.item_head == "projected":
        head: ItemHead = ProjectedItemHead(size, stats.n_items, eps, options.temperature, options.activation)
    else:
        head = ItemHead(stats.n_items, options.temperature)
    return ModelComponents(embedding, kernels, encoder, head, knows_time=knows_time)
