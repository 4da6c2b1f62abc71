"""Relative kernels: features ``phi(i, j)`` of the gap between two events, in time or in places.

A relative kernel adds ``(P phi(i, j)) . (q_i + b)`` to a score (MEANTIME, Cho et al., RecSys 2020, section 3.3; the
distance kernel after Shaw et al., NAACL 2018). It never keeps the ``L x L x F`` features: from the projected query
``u_i = P^T (q_i + b)`` it makes the bias ``u_i . phi(i, j)``. A bias kernel (``gap_bias``, ``distance_bias``) has
``phi`` one-hot over buckets, and ``u_i`` is a learned bias for each of them, whatever the query. To add a kernel: write
its class, put its name into ``RELATIVE_KERNELS`` at the end and into ``RelativeKernel`` of ``options/kinds.py``, which
says which kernels read no times, and its formula into the tests of kernels.

Letters: ``B`` rows of a batch, ``h`` heads, ``L`` places of a row, ``F`` features of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recbole_adrrec.layers.layout import SequenceTimes

# Features that a smooth kernel holds at a time, in elements: small enough for a CPU's cache.
BLOCK_ELEMENTS = 1 << 19

PairBias = Callable[[Tensor, Tensor | None], Tensor]
"""From the projected query ``u``, Float[B, h, L, F], and a constant of each query, Float[B, h, L, 1], or None for zero,
to the bias ``u_i . phi(i, j) + constant_i``, Float[B, h, L, L], a new tensor."""


def _plus(scores: Tensor, constant: Tensor | None) -> Tensor:
    return scores if constant is None else scores + constant


def _looked_up(table: Tensor, constant: Tensor | None, index: Tensor) -> Tensor:
    """Each pair's entry of its query's row of a table, ``table[b, h, i, index[b, i, j]]``, and the constant."""
    return _plus(table.gather(3, index.expand(-1, table.size(1), -1, -1)), constant)


@dataclass(frozen=True)
class Clock:
    """Unit of gaps in time, in seconds, above 0; the slowest rate of kernels is about ``1 / kernel_freq`` per unit."""

    time_unit: float
    kernel_freq: float


@dataclass(frozen=True)
class KernelSettings:
    """Everything that kernels are built from; each takes what it needs."""

    hidden_size: int
    max_seq_length: int
    """Rows of the position table."""
    trained_days: Callable[[], Tensor]
    """Gives the sorted whole days since 1970 (UTC) that training shows, Int64[n]; called only if needed."""
    clock: Callable[[], Clock]
    """Called only if needed."""
    day_spacing: int = 1
    """Days between two knots of the day kernel; 1 for a row of its own for each day."""
    max_distance: int | None = None
    """``k`` of the distance kernel."""
    grid_points: int | None = None
    """Points of the grid between which exponential and log1p are interpolated; exact by default."""


class RelativeKernel(nn.Module):
    """Features of pairs of events, ``width`` of them."""

    is_bias = False
    """True where ``u_i`` is a learned bias for each feature, which the query does not change."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, times: SequenceTimes, dtype: torch.dtype) -> PairBias:
        """Function that gives the bias of all pairs of a batch; each layer calls it with its own queries."""
        raise NotImplementedError


class ClockedKernel(RelativeKernel):
    """A kernel of the gap in time, in the units of a clock.

    ``clock``, Float64[2], seconds per unit and base of the geometric row of rates, is kept with the weights.
    """

    clock: Tensor

    def __init__(self, settings: KernelSettings, width: int) -> None:
        super().__init__(width)
        clock = settings.clock()
        self.register_buffer("clock", torch.tensor([clock.time_unit, clock.kernel_freq], dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClockedKernel:
        # A model that is cast to another type keeps the units as they are.
        clock = self.clock
        super()._apply(fn, recurse)
        self.clock = clock.to(self.clock.device)
        return self

    def rates(self, step: int) -> Tensor:
        """Rates ``kernel_freq ** (-f / F)`` for ``f = 0, step, 2 step, ... < F``, in float64."""
        power = torch.arange(0, self.width, step, dtype=torch.float64, device=self.clock.device)
        return self.clock[1] ** (-power / self.width)


class SinusoidKernel(ClockedKernel):
    """Sines and cosines of the gap, ``phi = [sin(gap w_f), cos(gap w_f)]``.

    ``w_f = kernel_freq ** (-2 f / d)``; the hidden size ``d`` is even.

    Scores come from products of the sines and cosines of the two times (the identities of a difference of angles).
    Angles are taken in float64 from times counted from the row's first event: Unix seconds would lose the gap.
    """

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings, settings.hidden_size)

    def forward(self, times: SequenceTimes, dtype: torch.dtype) -> PairBias:
        """See ``RelativeKernel.forward``."""
        first = times.key_time.gather(1, times.valid.long().argmax(1, keepdim=True))
        rates = self.rates(2) / self.clock[0]

        def angles(time: Tensor) -> tuple[Tensor, Tensor]:
            angle = (time - first).double().unsqueeze(-1) * rates  # [B, L, d / 2]
            # ONNX Runtime 1.23, the last for Python 3.10, has the sine of float64 but not the cosine.
            cosine = (angle + math.pi / 2).sin() if torch.compiler.is_exporting() else angle.cos()
            return angle.sin().to(dtype), cosine.to(dtype)

        key_sin, key_cos = angles(times.key_time)
        same = times.query_time is times.key_time
        query_sin, query_cos = (key_sin, key_cos) if same else angles(times.query_time)
        key = torch.cat([key_cos, key_sin], -1).transpose(1, 2)  # [B, d, L]
        return partial(self._bias, query_sin=query_sin.unsqueeze(1), query_cos=query_cos.unsqueeze(1), key=key)

    @staticmethod
    def _bias(projected: Tensor, constant: Tensor | None, query_sin: Tensor, query_cos: Tensor, key: Tensor) -> Tensor:
        on_sin, on_cos = projected.chunk(2, -1)
        query = torch.cat([on_sin * query_sin + on_cos * query_cos, on_cos * query_sin - on_sin * query_cos], -1)
        # All heads share the keys: one product of h L rows.
        query = query.flatten(1, 2)
        scores = query @ key if constant is None else torch.baddbmm(constant.flatten(1, 2), query, key)
        return scores.unflatten(1, projected.shape[1:3])


class SmoothKernel(ClockedKernel):
    """A kernel whose features are smooth functions of ``|gap| w_f``, ``w_f = kernel_freq ** (-f / d)``.

    By default scores are exact: features are made by blocks, once more in the backward pass, and never kept. With
    ``grid_points`` they are taken at the gaps ``exp(k / grid_points) - 1``, ``k = 0, 1, ...``, and between these scores
    are interpolated linearly in ``log(1 + gap)``: one product with a small table and two look-ups instead of ``L x L
    x d`` logarithms or exponentials. The places of the grid don't depend on the batch, and equal times stay exact.

    Notes
    -----
    A linear interpolation over a step ``h = 1 / grid_points`` is off by at most ``h^2 / 8`` times the second derivative
    in ``x = log(1 + gap)``, which ``curvature`` bounds for each feature: a score is off by at most
    ``curvature * sum_f |u_f| / (8 grid_points^2)``. Gradients are exact for the interpolated scores.
    """

    curvature: float

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings, settings.hidden_size)
        self.grid_points = settings.grid_points

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """Feature of ``|gap| w_f``, in place."""
        raise NotImplementedError

    def forward(self, times: SequenceTimes, dtype: torch.dtype) -> PairBias:
        """See ``RelativeKernel.forward``."""
        rows, length = times.key_time.shape
        rates = self.rates(1)
        if self.grid_points is None:
            gap = torch.empty(rows, length, length, dtype=dtype, device=rates.device)
            for block, part in self._gaps(times, torch.float64):
                gap[block] = part
            return partial(self._exact, gap=gap, rates=rates.to(dtype))
        index = torch.empty(rows, length, length, dtype=torch.int64, device=rates.device)
        fraction = torch.empty(rows, length, length, dtype=dtype, device=rates.device)
        # Logarithms in float64 take three times as long; in float32 a place is off by some 1e-5 of a grid's step.
        for block, part in self._gaps(times, torch.promote_types(dtype, torch.float32)):
            index[block] = place = part.log1p_().mul_(self.grid_points)
            fraction[block] = place.frac_()
        last = int(index.max()) if index.numel() else 0
        grid = (torch.arange(last + 2, dtype=torch.float64, device=rates.device) / self.grid_points).expm1()
        features = self.feature(grid.unsqueeze(-1) * rates).to(dtype)  # [points, d]
        return partial(self._interpolated, features=features, index=index, fraction=fraction)

    def _gaps(self, times: SequenceTimes, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """``|gap|`` in units, Float[rows, L, L] of a type, some rows at a time, which stay in a CPU's cache.

        Times are subtracted as they are; only the difference is rounded.
        """
        rows, length = times.key_time.shape
        if torch.compiler.is_exporting():
            gap = times.query_time.unsqueeze(2) - times.key_time.unsqueeze(1)
            yield slice(None), gap.abs().to(dtype) / self.clock[0]
            return
        step = max(1, BLOCK_ELEMENTS // 4 // max(1, length**2)) if times.key_time.device.type == "cpu" else rows
        for start in range(0, rows, max(1, step)):
            block = slice(start, start + step)
            gap = times.query_time[block].unsqueeze(2) - times.key_time[block].unsqueeze(1)
            yield block, gap.abs_().to(dtype).div_(self.clock[0])

    def _exact(self, projected: Tensor, constant: Tensor | None, gap: Tensor, rates: Tensor) -> Tensor:
        rows, heads, length, _ = projected.shape
        # All heads share the features of a query's row of gaps.
        by_query, gap = projected.to(gap.dtype).transpose(1, 2).flatten(0, 1), gap.flatten(0, 1)  # [B L, h, F]
        if torch.compiler.is_exporting():
            scores = by_query @ self.feature(gap.unsqueeze(-1) * rates).transpose(1, 2)
        else:
            scores = _SmoothScores.apply(by_query, gap, rates, self.feature)
        return _plus(scores.view(rows, length, heads, length).transpose(1, 2), constant)

    @staticmethod
    def _interpolated(
        projected: Tensor, constant: Tensor | None, features: Tensor, index: Tensor, fraction: Tensor
    ) -> Tensor:
        table = _plus(projected.to(features.dtype) @ features.T, constant)  # [B, h, L, points]
        shape = (-1, projected.size(1), -1, -1)
        return _Interpolation.apply(table, index.unsqueeze(1).expand(shape), fraction.unsqueeze(1).expand(shape))


class _Interpolation(torch.autograd.Function):
    """Linear interpolation of the last dimension, ``(1 - t) table[k] + t table[k + 1]``, keeping neither of the two."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, fraction: Tensor) -> Tensor:
        fraction = fraction.to(table.dtype)
        ctx.save_for_backward(index, fraction)
        ctx.points = table.size(-1)
        right = table[..., 1:].gather(-1, index)
        return table.gather(-1, index).lerp_(right, fraction)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        index, fraction = ctx.saved_tensors
        right = grad * fraction
        by_table = grad.new_zeros(*grad.shape[:-1], ctx.points)
        by_table[..., 1:].scatter_add_(-1, index, right)
        by_table.scatter_add_(-1, index, grad - right)
        return by_table, None, None


class _SmoothScores(torch.autograd.Function):
    """Scores of a smooth kernel, ``sum_f u[n, h, f] feature(gap[n, j] w_f)``, Float[n, h, L], some rows at a time.

    Features are made again in the backward pass, so that none are kept.
    """

    @staticmethod
    def _blocks(gap: Tensor, rates: Tensor) -> list[slice]:
        step = max(1, BLOCK_ELEMENTS // max(1, gap.size(1) * len(rates)))
        return [slice(start, start + step) for start in range(0, len(gap), step)]

    @staticmethod
    def forward(ctx: Any, projected: Tensor, gap: Tensor, rates: Tensor, feature: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gap, rates)
        ctx.feature = feature
        scores = gap.new_empty(*projected.shape[:2], gap.size(1))
        for block in _SmoothScores._blocks(gap, rates):
            features = feature(gap[block].unsqueeze(-1) * rates)  # [rows, L, F]
            torch.matmul(projected[block], features.transpose(1, 2), out=scores[block])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        gap, rates = ctx.saved_tensors
        grad_projected = gap.new_empty(*grad.shape[:2], len(rates))
        for block in _SmoothScores._blocks(gap, rates):
            features = ctx.feature(gap[block].unsqueeze(-1) * rates)
            torch.matmul(grad[block], features, out=grad_projected[block])
        return grad_projected, None, None, None


class ExponentialKernel(SmoothKernel):
    """Exponential decay with the gap, ``phi = exp(-|gap| w_f)``."""

    curvature = 0.85  # (a^2 - a) e^(1 - a) at a = (3 + sqrt 5) / 2, for w_f = 1

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """``exp(-x)``, in place."""
        return scaled.neg_().exp_()


class Log1pKernel(SmoothKernel):
    """Logarithmic growth with the gap, ``phi = log(1 + |gap| w_f)``."""

    curvature = 0.25  # y (1 - y) of a logistic function

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """``log(1 + x)``, in place."""
        return scaled.log1p_()


def distances(times: SequenceTimes) -> Tensor:
    """Distances in places, ``i - j``, Int64[L, L]."""
    place = torch.arange(times.position.size(1), device=times.position.device)
    return place.unsqueeze(1) - place


class DistanceKernel(RelativeKernel):
    """Learned table over the distance of two places, ``clip(i - j, -k, k)`` with ``k = max_distance``."""

    def __init__(self, settings: KernelSettings) -> None:
        if settings.max_distance is None:
            raise ValueError("max_distance: not set; the distance kernel needs it")
        super().__init__(settings.hidden_size)
        self.max_distance = settings.max_distance
        self.embedding = nn.Embedding(2 * settings.max_distance + 1, settings.hidden_size)

    def forward(self, times: SequenceTimes, dtype: torch.dtype) -> PairBias:
        """See ``RelativeKernel.forward``."""
        index = distances(times).clamp(-self.max_distance, self.max_distance) + self.max_distance
        return partial(self._bias, index=index.expand(times.position.size(0), 1, -1, -1))

    def _bias(self, projected: Tensor, constant: Tensor | None, index: Tensor) -> Tensor:
        return _looked_up(_plus(projected @ self.embedding.weight.T, constant), None, index)


class BiasKernel(RelativeKernel):
    """A learned bias for each bucket of pairs."""

    is_bias = True

    def buckets(self, times: SequenceTimes) -> Tensor:
        """Bucket of each pair, Int64[B or 1, L, L], below ``width``."""
        raise NotImplementedError

    def forward(self, times: SequenceTimes, dtype: torch.dtype) -> PairBias:
        """See ``RelativeKernel.forward``."""
        return partial(_looked_up, index=self.buckets(times).expand(times.position.size(0), -1, -1).unsqueeze(1))


class GapBiasKernel(BiasKernel, ClockedKernel):
    """Learned bias for each log-bucket of the gap in time; gap zero has a bucket of its own.

    There are about two buckets for each factor of two. Bucket 0 is gap zero; a positive gap ``g``, in clock units,
    is in bucket ``1 + floor(2 log2(1 + g))``, up to the last, that of ``kernel_freq`` units. After HSTU (Zhai et al.,
    ICML 2024), whose public code buckets the logarithm of the gap in seconds with gaps of 0 and 1 s in one. Gaps count
    in either direction alike.
    """

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings, 2 + math.floor(2 * math.log2(1 + settings.clock().kernel_freq)))

    def buckets(self, times: SequenceTimes) -> Tensor:
        """Bucket of each pair; whole gaps meet whole edges, so that no rounding moves a pair."""
        gap = (times.query_time.unsqueeze(2) - times.key_time.unsqueeze(1)).abs()
        half_octaves = torch.arange(self.width - 1, dtype=torch.float64, device=gap.device) / 2
        edges = (self.clock[0] * (torch.exp2(half_octaves) - 1)).ceil().long().clamp(min=1)
        return torch.bucketize(gap, edges, right=True)


class DistanceBiasKernel(BiasKernel):
    """Learned bias for each bucket of the distance in places (T5, Raffel et al., JMLR 2020).

    Buckets are exact below 16 and logarithmic from there to 128. Distances to later places, which
    causal models never see, have buckets of their own.
    """

    EXACT, FARTHEST = 16, 128

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(4 * self.EXACT)

    def buckets(self, times: SequenceTimes) -> Tensor:
        """Bucket of each pair."""
        distance = distances(times)
        size = distance.abs()
        ratio = (size.clamp(min=1).double() / self.EXACT).log() / math.log(self.FARTHEST / self.EXACT)
        far = (self.EXACT * (1 + ratio)).floor().long().clamp(max=2 * self.EXACT - 1)
        bucket = torch.where(size < self.EXACT, size, far)
        return torch.where(distance < 0, bucket + 2 * self.EXACT, bucket).unsqueeze(0)


RELATIVE_KERNELS: dict[str, Callable[[KernelSettings], RelativeKernel]] = {
    "sinusoid": SinusoidKernel,
    "exponential": ExponentialKernel,
    "log1p": Log1pKernel,
    "distance": DistanceKernel,
    "gap_bias": GapBiasKernel,
    "distance_bias": DistanceBiasKernel,
}
