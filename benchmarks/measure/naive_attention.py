"""Adaptive mix attention that keeps every pair's features, ``phi[B, L, L, F]``.

The equations of :class:`recbole_adrrec.layers.attention.AdaptiveMixAttention` with kernels of gaps in time, taken
literally as public code of the field does: the form that time and memory of ours are held against.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``d`` hidden size, ``dh = d / H``, ``F`` features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.attention import AdaptiveMixAttention
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.layout import Layout, SequenceTimes


def features(name: str, gap: Tensor, width: int, freq: float, dtype: torch.dtype) -> Tensor:
    """Features of gaps in units of time, Float64[..., 1] to Float[..., F]; only angles need float64.

    ``sinusoid``: ``[sin(gap w_f), cos(gap w_f)]``, ``w_f = freq ** (-2 f / F)``; ``exponential``: ``exp(-|gap| w_f)``
    and ``log1p``: ``log(1 + |gap| w_f)``, ``w_f = freq ** (-f / F)``.
    """
    step = 2 if name == "sinusoid" else 1
    rates = freq ** (-torch.arange(0, width, step, dtype=torch.float64, device=gap.device) / width)
    if name == "sinusoid":
        angle = (gap * rates).remainder(2 * math.pi).to(dtype)
        return torch.cat([angle.sin(), angle.cos()], -1)
    scaled = gap.abs().to(dtype) * rates.to(dtype)
    return {"exponential": lambda: torch.exp(-scaled), "log1p": lambda: torch.log1p(scaled)}[name]()


@dataclass(frozen=True)
class NaiveContext:
    """Embeddings of absolute kernels, Float[B, L, d] pairs, and features of relative ones, Float[B, L, L, F] each."""

    absolute: list[tuple[Tensor, Tensor]]
    phi: list[Tensor]


class NaiveKernels(nn.Module):
    """The kernels of a model with all features of all pairs.

    Parameters
    ----------
    kernels : MixKernels
        Ours; absolute kernels and clocks of relative ones are shared.
    """

    def __init__(self, kernels: MixKernels) -> None:
        super().__init__()
        self.kernels = kernels

    def forward(self, moments: SequenceTimes, layout: Layout, dtype: torch.dtype) -> NaiveContext:
        """Make the embeddings and features of a batch."""
        absolute = []
        for kernel in self.kernels.absolute:
            query, key = kernel(moments)
            same = query is key
            query = self.kernels.dropout(query)
            absolute.append((query, query if same else self.kernels.dropout(key)))
        pairs = zip(self.kernels.relative_names, self.kernels.relative, strict=True)
        return NaiveContext(absolute, [self._phi(name, kernel, moments, dtype) for name, kernel in pairs])

    @staticmethod
    def _phi(name: str, kernel: Any, moments: SequenceTimes, dtype: torch.dtype) -> Tensor:
        unit, freq = kernel.clock.tolist()
        gap = (moments.query_time.unsqueeze(2) - moments.key_time.unsqueeze(1)).double() / unit
        # Row by row, so that the float64 angles of all rows are no part of the memory that is compared.
        out = torch.empty(*gap.shape, kernel.width, dtype=dtype, device=gap.device)
        for row, of_row in enumerate(gap):
            out[row] = features(name, of_row.unsqueeze(-1), kernel.width, freq, dtype)
        return out


class NaiveAttention(nn.Module):
    """The attention of one layer, with the parameters of ours.

    Parameters
    ----------
    attention : AdaptiveMixAttention
        Ours, without refinement.
    """

    def __init__(self, attention: AdaptiveMixAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden: Tensor, layout: Layout, context: NaiveContext, query: Tensor | None = None) -> Tensor:
        """Attend; arguments as for ``Attention.forward``, states padded."""
        ours = self.attention
        scores = self.scores(hidden if query is None else query, hidden, context)
        mask = layout.groups[0].mask
        lowest = torch.finfo(scores.dtype).min
        weights = torch.softmax(scores.masked_fill(~mask, lowest), -1) * mask.any(-1, keepdim=True)
        values = ours.split(ours.value(hidden)).transpose(1, 2)
        return ours.merge((ours.dropout(weights) @ values).transpose(1, 2))

    def scores(self, query: Tensor, hidden: Tensor, context: NaiveContext) -> Tensor:
        """``q_i . k_j / sqrt(dh) + sum_m g_m(x_i) s_m(i, j)`` of all heads, Float[B, H, L, L], kernel by kernel."""
        ours = self.attention

        def by_head(states: Tensor) -> Tensor:
            return ours.split(states).transpose(1, 2)  # [B, H, L, dh]

        queries, keys = by_head(ours.query(query)), by_head(ours.key(hidden))
        content = queries @ keys.transpose(2, 3)
        gates = ours.gate(query).permute(2, 0, 3, 1).unsqueeze(-1)  # [M, B, H, L, 1]
        scores = content * ours.scale
        for number, (on_query, on_key) in enumerate(context.absolute):
            moved_queries = queries + by_head(ours.absolute_query[number](on_query))
            moved_keys = keys + by_head(ours.absolute_key[number](on_key))
            scores = scores + gates[number] * (moved_queries @ moved_keys.transpose(2, 3) - content) * ours.scale
        relative = zip(gates[ours.n_absolute :], ours.relative_key, ours.relative_bias, context.phi, strict=True)
        for gate, projection, bias, phi in relative:
            pair = ours.split(projection(phi)).permute(0, 3, 1, 2, 4)  # [B, H, L, L, dh]
            scores = scores + gate * ((queries + bias.unsqueeze(1)).unsqueeze(3) * pair).sum(-1) * ours.scale
        return scores


def make_naive(model: Any) -> None:
    """Let a model with ``mixture: adaptive`` keep every pair's features from now on, with its own parameters."""
    model.event_layout = "padded"
    model.kernels = NaiveKernels(model.kernels)
    for layer in model.encoder.layers:
        layer.attention = NaiveAttention(layer.attention)
