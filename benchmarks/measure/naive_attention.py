"""Mix attention written out: every pair's features are kept, ``phi[B, L, L, F]``.

The equations are those of :class:`recbole_adrrec.layers.attention.MixAttention`,
:class:`recbole_adrrec.layers.attention.AdaptiveMixAttention` and their kernels, taken literally as public code of the
field does. It is what time and memory of ours are held against, and serves nothing else.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``d`` hidden size, ``dh = d / H``, ``F`` features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.attention import AdaptiveMixAttention, MixAttention
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.layers.moments import Moments

Feature = Callable[[Tensor, int, float, torch.dtype], Tensor]
"""From gaps in units, Float64[..., 1], width, base of the rates and dtype to features, [..., d]."""


def _rates(width: int, step: int, freq: float, like: Tensor) -> Tensor:
    return freq ** (-torch.arange(0, width, step, dtype=torch.float64, device=like.device) / width)


def sinusoid(gap: Tensor, width: int, freq: float, dtype: torch.dtype) -> Tensor:
    """``[sin(gap w_f), cos(gap w_f)]``, ``w_f = freq ** (-2 f / d)``; the angle alone needs float64."""
    angle = (gap * _rates(width, 2, freq, gap)).remainder(2 * math.pi).to(dtype)
    return torch.cat([angle.sin(), angle.cos()], -1)


def exponential(gap: Tensor, width: int, freq: float, dtype: torch.dtype) -> Tensor:
    """``exp(-|gap| w_f)``, ``w_f = freq ** (-f / d)``."""
    return torch.exp(-gap.abs().to(dtype) * _rates(width, 1, freq, gap).to(dtype))


def log1p(gap: Tensor, width: int, freq: float, dtype: torch.dtype) -> Tensor:
    """``log(1 + |gap| w_f)``, ``w_f = freq ** (-f / d)``."""
    return torch.log1p(gap.abs().to(dtype) * _rates(width, 1, freq, gap).to(dtype))


FEATURES: dict[str, Feature] = {"sinusoid": sinusoid, "exponential": exponential, "log1p": log1p}


@dataclass(frozen=True)
class WrittenOutContext:
    """What all layers share: embeddings of absolute kernels, features of relative ones, Float[B, L, L, F] each."""

    absolute: list[tuple[Tensor, Tensor]]
    phi: list[Tensor]


class WrittenOutKernels(nn.Module):
    """The kernels of a model with all features of all pairs.

    Parameters
    ----------
    kernels : MixKernels
        Ours; absolute kernels, tables and clocks of relative ones are shared.
    """

    def __init__(self, kernels: MixKernels) -> None:
        super().__init__()
        self.kernels = kernels

    def forward(self, moments: Moments, layout: Layout, dtype: torch.dtype) -> WrittenOutContext:
        """Make the features of a batch."""
        absolute = []
        for kernel in self.kernels.absolute:
            query, key = kernel(moments)
            same = query is key
            query = self.kernels.dropout(query)
            absolute.append((query, query if same else self.kernels.dropout(key)))
        pairs = zip(self.kernels.relative_names, self.kernels.relative, strict=True)
        return WrittenOutContext(absolute, [self._phi(name, kernel, moments, dtype) for name, kernel in pairs])

    @staticmethod
    def _phi(name: str, kernel: Any, moments: Moments, dtype: torch.dtype) -> Tensor:
        rows, length = moments.position.shape
        if kernel.is_bias:
            return F.one_hot(kernel.buckets(moments), kernel.width).to(dtype).expand(rows, -1, -1, -1)
        if name == "distance":
            place = torch.arange(length, device=moments.position.device)
            distance = (place.unsqueeze(1) - place).clamp(-kernel.max_distance, kernel.max_distance)
            return kernel.embedding(distance + kernel.max_distance).expand(rows, -1, -1, -1)
        unit, freq = kernel.clock.tolist()
        gap = (moments.query_time.unsqueeze(2) - moments.key_time.unsqueeze(1)).double() / unit
        # Row by row, so that the float64 angles of all rows are no part of the reference's memory.
        out = torch.empty(*gap.shape, kernel.width, dtype=dtype, device=gap.device)
        for row, of_row in enumerate(gap):
            out[row] = FEATURES[name](of_row.unsqueeze(-1), kernel.width, freq, dtype)
        return out


def score_heads(attention: MixAttention, query: Tensor, hidden: Tensor, context: WrittenOutContext) -> Tensor:
    """Scores of all heads, Float[B, H, L, L], by the definition of ``MixAttention``; the heads one after another."""
    scale = attention.scale
    queries = attention.split(attention.query(query)).unbind(2)
    keys = attention.split(attention.key(hidden)).unbind(2)
    scores = []
    for head, (on_query, on_key) in enumerate(context.absolute):
        asks = queries[head] + attention.absolute_query[head](on_query)
        asked = keys[head] + attention.absolute_key[head](on_key)
        scores.append(asks @ asked.transpose(1, 2) * scale)
    for number, phi in enumerate(context.phi):
        head = attention.n_absolute + number
        pair = attention.relative_key[number](phi)  # [B, L, L, dh]
        biased = queries[head] + attention.relative_bias[number]
        on_pair = (biased.unsqueeze(2) * pair).sum(-1)
        scores.append((queries[head] @ keys[head].transpose(1, 2) + on_pair) * scale)
    return torch.stack(scores, 1)


def score_adaptive(
    attention: AdaptiveMixAttention, query: Tensor, hidden: Tensor, context: WrittenOutContext
) -> Tensor:
    """Scores of all heads, Float[B, H, L, L], by the definition of ``AdaptiveMixAttention``; one kernel after another.

    ``q_i . k_j / sqrt(dh) + sum_m g_m(x_i) s_m(i, j)``.
    """

    def by_head(states: Tensor) -> Tensor:
        return attention.split(states).transpose(1, 2)  # [B, H, L, dh]

    queries, keys = by_head(attention.query(query)), by_head(attention.key(hidden))
    content = queries @ keys.transpose(2, 3)
    gates = attention.gate(query).permute(2, 0, 3, 1).unsqueeze(-1)  # [M, B, H, L, 1]
    scores = content * attention.scale
    for number, (on_query, on_key) in enumerate(context.absolute):
        asks = queries + by_head(attention.absolute_query[number](on_query))
        asked = keys + by_head(attention.absolute_key[number](on_key))
        scores = scores + gates[number] * (asks @ asked.transpose(2, 3) - content) * attention.scale
    tables = iter(attention.bias_tables)
    keyed = iter(zip(attention.relative_key, attention.relative_bias, strict=True))
    for gate, is_bias, phi in zip(gates[attention.n_absolute :], attention.is_bias, context.phi, strict=True):
        if is_bias:
            on_pair = (phi @ next(tables).T).permute(0, 3, 1, 2)
        else:
            projection, bias = next(keyed)
            pair = attention.split(projection(phi)).permute(0, 3, 1, 2, 4)  # [B, H, L, L, dh]
            on_pair = ((queries + bias.unsqueeze(1)).unsqueeze(3) * pair).sum(-1) * attention.scale
        scores = scores + gate * on_pair
    return scores


def weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the allowed keys, zeros for a query without any."""
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~mask, lowest), -1) * mask.any(-1, keepdim=True)


class WrittenOutAttention(nn.Module):
    """Does what a mix attention without refinement does, with its parameters.

    Parameters
    ----------
    attention : MixAttention or AdaptiveMixAttention
        Ours.
    """

    def __init__(self, attention: MixAttention | AdaptiveMixAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, hidden: Tensor, layout: Layout, context: WrittenOutContext, query: Tensor | None = None
    ) -> Tensor:
        """Attend; arguments as for ``Attention.forward``, states padded."""
        ours = self.attention
        query = hidden if query is None else query
        if isinstance(ours, MixAttention):
            scores = score_heads(ours, query, hidden, context)
        else:
            scores = score_adaptive(ours, query, hidden, context)
        found = weights(scores, layout.groups[0].mask)
        values = ours.split(ours.value(hidden)).transpose(1, 2)
        return ours.merge((ours.dropout(found) @ values).transpose(1, 2))


def write_out(model: Any) -> None:
    """Let a model of ours with mix attention work the written-out way from now on, with its own parameters.

    Parameters
    ----------
    model : MixAttentionRecommender
        For example ADRRec.
    """
    model.event_layout = "padded"
    model.kernels = WrittenOutKernels(model.kernels)
    for layer in model.encoder.layers:
        layer.attention = WrittenOutAttention(layer.attention)
