"""Components of SASRec, MEANTIME and ADRRec: one Transformer block with every choice between them an option.

SASRec (Kang, McAuley, ICDM 2018) is a backbone of AWRSR here; the model by this name is RecBole's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import nn

from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, DotProductAttention, MixAttention
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead, ProjectedItemHead
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.relative_kernels import Clock, KernelSettings
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.base import DataStats, ModelComponents, NoKernels, Refine, unrefined
from recbole_adrrec.options.kinds import TIMELESS_KERNELS
from recbole_adrrec.options.schema import BlockOptions, MixOptions


def block_components(
    options: BlockOptions,
    stats: DataStats,
    attention: Callable[[int], Attention],
    kernels: nn.Module,
    knows_time: bool,
) -> ModelComponents:
    """Components of a model with this block; ``attention`` makes that of a layer, by its number from 1."""
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


def sasrec_components(options: BlockOptions, stats: DataStats, refine: Refine = unrefined) -> ModelComponents:
    """Dot-product attention in a block of options, whose defaults are those of RecBole's SASRec."""

    def attention(layer: int) -> Attention:
        refinement = refine(layer, options.heads)
        return DotProductAttention(options.hidden_size, options.heads, options.attn_dropout_prob, refinement)

    return block_components(options, stats, attention, NoKernels(), knows_time=False)


def clock_of(options: MixOptions, stats: DataStats) -> Clock:
    """Unit and rates of the kernels of gaps: those of the options or, where unset, read off the training data."""
    unit, freq = options.time_unit, options.kernel_freq
    if unit is None or freq is None:
        resolution, span = stats.clock()
        unit = resolution if unit is None else unit
        freq = max(2.0, span / unit) if freq is None else freq
    return Clock(unit, freq)


def mix_components(options: MixOptions, stats: DataStats, refine: Refine = unrefined) -> ModelComponents:
    """Components of a model with kernels in its attention.

    With ``mixture`` ``heads`` each kernel has a head of its own; with ``adaptive`` all kernels are in each of
    ``n_heads`` heads, behind gates.
    """
    absolute: list[str] = list(options.absolute_kernels)
    relative: list[str] = list(options.relative_kernels)
    size, dropout = options.hidden_size, options.attn_dropout_prob
    adaptive = options.mixture == "adaptive"
    settings = KernelSettings(
        hidden_size=size,
        max_seq_length=stats.max_seq_length,
        trained_days=stats.trained_days,
        clock=cache(lambda: clock_of(options, stats)),
        day_spacing=options.day_spacing or 1,
        max_distance=options.max_distance,
        grid_points=options.grid_points,
    )
    kernels = MixKernels(absolute, relative, settings, options.hidden_dropout_prob, spread=adaptive)

    def attention(layer: int) -> Attention:
        refinement = refine(layer, options.heads)
        if not adaptive:
            return MixAttention(size, len(absolute), len(relative), dropout, refinement)
        widths, are_biases = kernels.relative_widths, kernels.relative_is_bias
        return AdaptiveMixAttention(size, options.heads, len(absolute), widths, are_biases, dropout, refinement)

    return block_components(
        options, stats, attention, kernels, knows_time=not TIMELESS_KERNELS.issuperset(options.kernels)
    )
