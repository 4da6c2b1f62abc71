"""Mix attention written out: every pair's features are kept, ``phi[B, L, L, d]``.

The equations are those of :class:`recbole_adrrec.layers.attention.MixAttention` and its kernels, taken literally as
public code of the field does. It is what time and memory of ours are held against, and serves nothing else.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places, ``d`` hidden size, ``dh = d / H``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.attention import MixAttention, join_heads
from recbole_adrrec.layers.kernels import MixKernels
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
    """What all layers share: embeddings of absolute heads, features of relative ones, Float[B, L, L, d] each."""

    absolute: list[tuple[Tensor, Tensor]]
    phi: list[Tensor]


class WrittenOutKernels(nn.Module):
    """The kernels of a model with all features of all pairs.

    Parameters
    ----------
    kernels : MixKernels
        Ours; absolute kernels and the rates of relative ones are shared.
    relative : list of str
        Names of the relative kernels, out of ``FEATURES`` and ``distance``.
    """

    def __init__(self, kernels: MixKernels, relative: list[str]) -> None:
        super().__init__()
        self.kernels = kernels
        self.names = relative

    def forward(self, moments: Moments, dtype: torch.dtype) -> WrittenOutContext:
        """Make the features of a batch."""
        absolute = []
        for kernel in self.kernels.absolute:
            query, key = kernel(moments)
            same = query is key
            query = self.kernels.dropout(query)
            absolute.append((query, query if same else self.kernels.dropout(key)))
        pairs = zip(self.names, self.kernels.relative, strict=True)
        return WrittenOutContext(absolute, [self._phi(name, kernel, moments, dtype) for name, kernel in pairs])

    @staticmethod
    def _phi(name: str, kernel: Any, moments: Moments, dtype: torch.dtype) -> Tensor:
        if name == "distance":
            rows, length = moments.position.shape
            place = torch.arange(length, device=moments.position.device)
            distance = (place.unsqueeze(1) - place).clamp(-kernel.max_distance, kernel.max_distance)
            return kernel.embedding(distance + kernel.max_distance).expand(rows, -1, -1, -1)
        gap = (moments.query_time.unsqueeze(2) - moments.key_time.unsqueeze(1)).double() / kernel.time_unit
        # Row by row, so that the float64 angles of all rows are no part of the reference's memory.
        out = torch.empty(*gap.shape, kernel.hidden_size, dtype=dtype, device=gap.device)
        for row, of_row in enumerate(gap):
            out[row] = FEATURES[name](of_row.unsqueeze(-1), kernel.hidden_size, kernel.kernel_freq, dtype)
        return out


def score(attention: MixAttention, query: Tensor, hidden: Tensor, context: WrittenOutContext) -> Tensor:
    """Scores of all heads, Float[B, H, L, L], by their definition; the heads one after another."""
    scale = attention.scale
    queries = attention.query(query).unflatten(-1, (attention.n_heads, -1)).unbind(2)
    keys = attention.key(hidden).unflatten(-1, (attention.n_heads, -1)).unbind(2)
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


def weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the allowed keys, zeros for a query without any."""
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~mask, lowest), -1) * mask.any(-1, keepdim=True)


class WrittenOutAttention(nn.Module):
    """Does what a mix attention without refinement does, with its parameters.

    Parameters
    ----------
    attention : MixAttention
        Ours.
    """

    def __init__(self, attention: MixAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden: Tensor, mask: Tensor, context: WrittenOutContext, query: Tensor | None = None) -> Tensor:
        """Attend; arguments as for ``Attention.forward``."""
        ours = self.attention
        found = weights(score(ours, hidden if query is None else query, hidden, context), mask)
        values = ours.value(hidden).unflatten(-1, (ours.n_heads, -1)).transpose(1, 2)
        return ours.output(join_heads(ours.dropout(found) @ values))


def write_out(model: Any, relative: list[str]) -> None:
    """Let a model of ours with mix attention work the written-out way from now on, with its own parameters.

    Parameters
    ----------
    model : MixAttentionRecommender
        For example ADRRec.
    relative : list of str
        The names that it was made with, ``relative_kernels``.
    """
    model.kernels = WrittenOutKernels(model.kernels, relative)
    for layer in model.encoder.layers:
        layer.attention = WrittenOutAttention(layer.attention)
