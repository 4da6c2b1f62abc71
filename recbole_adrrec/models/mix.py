"""Mix attention over kernels of place and time: what ADRRec, MEANTIME and AWRSR's ``mix`` are made of."""

from __future__ import annotations

from functools import cache

from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, MixAttention
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.sequence_times import Clock, KernelSettings
from recbole_adrrec.models.block import block_components
from recbole_adrrec.models.components import DataStats, ModelComponents, Refine, unrefined
from recbole_adrrec.options.kinds import TIMELESS_KERNELS
from recbole_adrrec.options.schema import MixOptions


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
