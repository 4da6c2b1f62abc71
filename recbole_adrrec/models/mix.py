"""Mix attention over kernels of place and time: what ADRRec, MEANTIME and AWRSR's ``mix`` are made of."""

from __future__ import annotations

from functools import cache
from typing import Any

from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, MixAttention
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.sequence_times import Clock, KernelSettings
from recbole_adrrec.models.base import Facts, Parts, Refine, SequenceRecommender, trend_of, unrefined
from recbole_adrrec.models.block import Block, block_parts

TIMELESS = frozenset({"position", "constant", "distance", "distance_bias"})
"""Kernels that read no times."""


def clock_of(config: Any, facts: Facts) -> Clock:
    """Unit and rates of the kernels of gaps: those of the options or, where unset, read off the training data."""
    unit, freq = config["time_unit"], config["kernel_freq"]
    if unit is None or freq is None:
        resolution, span = facts.clock()
        unit = resolution if unit is None else unit
        freq = max(2.0, span / unit) if freq is None else freq
    return Clock(unit, freq)


def mix_parts(
    config: Any, facts: Facts, block: Block, mixture: str, max_distance: int | None = None, refine: Refine = unrefined
) -> Parts:
    """Parts of a model with kernels in its attention.

    Parameters
    ----------
    config : recbole.config.Config
        Options, as of ``properties/model/MEANTIME.yaml``.
    facts, refine
        As for every ``PartsBuilder``.
    block : Block
        Where norms, dropout and positions stand.
    mixture : str
        ``heads``: one head for each kernel; ``adaptive``: all kernels in each of ``n_heads`` heads, behind gates.
    max_distance : int, optional
        Farthest distance that the distance kernel tells apart.
    """
    absolute, relative = config["absolute_kernels"] or [], config["relative_kernels"] or []
    size, dropout, attn_dropout = config["hidden_size"], config["hidden_dropout_prob"], config["attn_dropout_prob"]
    adaptive = mixture == "adaptive"
    settings = KernelSettings(
        hidden_size=size,
        max_seq_length=facts.max_seq_length,
        trained_days=facts.trained_days,
        clock=cache(lambda: clock_of(config, facts)),
        day_spacing=config["day_spacing"] or 1,
        max_distance=max_distance,
        grid_points=config["grid_points"],
    )
    kernels = MixKernels(absolute, relative, settings, dropout, spread=adaptive)

    def attention(layer: int) -> Attention:
        if not adaptive:
            refinement = refine(layer, len(absolute) + len(relative))
            return MixAttention(size, len(absolute), len(relative), attn_dropout, refinement)
        n_heads = config["n_heads"] or 2
        return AdaptiveMixAttention(
            size,
            n_heads,
            len(absolute),
            kernels.relative_widths,
            kernels.relative_is_bias,
            attn_dropout,
            refine(layer, n_heads),
        )

    knows_time = not TIMELESS.issuperset([*absolute, *relative])
    return block_parts(config, facts, block, attention, kernels, knows_time)


class MixAttentionRecommender(SequenceRecommender):
    """Sequential recommender with kernels in its attention.

    Parameters
    ----------
    config, dataset
        As for ``SequenceRecommender``.
    block, mixture, max_distance
        As for ``mix_parts``.
    with_trend : bool
        Whether the options describe a trend.
    """

    def __init__(
        self,
        config: Any,
        dataset: Any,
        block: Block,
        mixture: str,
        max_distance: int | None = None,
        with_trend: bool = False,
    ) -> None:
        super().__init__(config, dataset, config["objective"], config["use_query_time"])
        trend = trend_of(config, self.facts) if with_trend else None
        self.join(mix_parts(config, self.facts, block, mixture, max_distance), trend)
