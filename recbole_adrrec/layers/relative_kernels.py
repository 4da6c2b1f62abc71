"""Relative kernels: what an attention head knows of two events' gap, ``phi(i, j)``.

A relative kernel adds ``(P phi(i, j)) . (q_i + b)`` to a score (MEANTIME, Cho et al., RecSys 2020,
section 3.3; the distance kernel after Shaw et al., NAACL 2018). It never keeps the ``L x L x d``
features: it gets the projected query ``u_i = P^T (q_i + b)`` and gives ``u_i . phi(i, j)``. A bias
kernel (``gap_bias``, ``distance_bias``) has ``phi`` one-hot over buckets, and ``u_i`` is a learned
bias for each of them, whatever the query. To add a kernel: write its class, and put its name into
``RELATIVE_KERNELS`` at the end.

Letters: ``B`` rows of a batch, ``h`` heads, ``L`` places of a row, ``d`` hidden size, ``F`` features of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recbole_adrrec.layers.moments import Clock, KernelSettings, Moments

# Features that a smooth kernel holds at a time, in elements: small enough for a CPU's cache.
BLOCK_ELEMENTS = 1 << 19

RelativeScorer = Callable[[Tensor, Tensor | None], Tensor]


def _plus(scores: Tensor, constant: Tensor | None) -> Tensor:
    return scores if constant is None else scores + constant


class RelativeKernel(nn.Module):
    """Describes pairs of events.

    Attributes
    ----------
    width : int
        Features ``F``.
    is_bias : bool
        Whether ``u_i`` is a learned bias for each feature, which the query does not change.
    """

    width: int
    is_bias = False

    @classmethod
    def build(cls, settings: KernelSettings) -> RelativeKernel:
        """Make the kernel from the settings shared by all."""
        raise NotImplementedError

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Do once per batch what doesn't depend on the layer.

        Parameters
        ----------
        moments : Moments
            Places and times of the batch.
        dtype : torch.dtype
            Type of the scores.

        Returns
        -------
        callable
            Takes the projected query ``u``, Float[B, h, L, F], and a constant per query, Float[B, h, L, 1], or None for
            zero; gives ``u_i . phi(i, j) + constant_i``, Float[B, h, L, L], a new tensor.
        """
        raise NotImplementedError


class ClockedKernel(RelativeKernel):
    """A kernel of the gap in time, counted in the units of a clock.

    Parameters
    ----------
    clock : Clock
        Seconds per unit, and the base of the geometric row of rates. Kept with the weights.
    """

    clock: Tensor

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.register_buffer("clock", torch.tensor([clock.time_unit, clock.kernel_freq], dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClockedKernel:
        # A model that is cast to another type keeps the units as they are.
        clock = self.clock
        super()._apply(fn, recurse)
        self.clock = clock.to(self.clock.device)
        return self


class GapKernel(ClockedKernel):
    """A kernel of the gap ``(query_time_i - key_time_j) / time_unit``.

    Parameters
    ----------
    hidden_size : int
        Number of features.
    clock : Clock
        As for ``ClockedKernel``.
    """

    def __init__(self, hidden_size: int, clock: Clock) -> None:
        super().__init__(clock)
        self.width = hidden_size

    @classmethod
    def build(cls, settings: KernelSettings) -> GapKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size, settings.clock())

    @property
    def time_unit(self) -> Tensor:
        """Seconds per unit, Float64[]."""
        return self.clock[0]

    def rates(self, step: int) -> Tensor:
        """Rates ``kernel_freq ** (-f / F)`` for ``f = 0, step, 2 step, ... < F``, in float64."""
        power = torch.arange(0, self.width, step, dtype=torch.float64, device=self.clock.device)
        return self.clock[1] ** (-power / self.width)


class SinusoidKernel(GapKernel):
    """``phi = [sin(gap w_f), cos(gap w_f)]``, ``w_f = kernel_freq ** (-2 f / d)``.

    Scores come from products of the sines and cosines of the two times (the identities of a
    difference of angles). Angles are taken in float64 from times counted from the row's first
    event: Unix seconds would lose the gap.
    """

    def __init__(self, hidden_size: int, clock: Clock) -> None:
        super().__init__(hidden_size, clock)
        if hidden_size % 2:
            raise ValueError(
                f"hidden_size: {hidden_size}; the sinusoid kernel pairs sines with cosines and needs an even one"
            )

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Take the sines and cosines of both sides' times."""
        first = moments.key_time.gather(1, moments.valid.long().argmax(1, keepdim=True))
        rates = self.rates(2) / self.time_unit

        def angles(time: Tensor) -> tuple[Tensor, Tensor]:
            angle = (time - first).double().unsqueeze(-1) * rates  # [B, L, d / 2]
            return angle.sin().to(dtype), angle.cos().to(dtype)

        key_sin, key_cos = angles(moments.key_time)
        same = moments.query_time is moments.key_time
        query_sin, query_cos = (key_sin, key_cos) if same else angles(moments.query_time)
        key = torch.cat([key_cos, key_sin], -1).transpose(1, 2)  # [B, d, L]
        return partial(self._scores, query_sin=query_sin, query_cos=query_cos, key=key)

    @staticmethod
    def _scores(
        projected: Tensor, constant: Tensor | None, query_sin: Tensor, query_cos: Tensor, key: Tensor
    ) -> Tensor:
        on_sin, on_cos = projected.chunk(2, -1)
        query_sin, query_cos = query_sin.unsqueeze(1), query_cos.unsqueeze(1)
        query = torch.cat([on_sin * query_sin + on_cos * query_cos, on_cos * query_sin - on_sin * query_cos], -1)
        # All heads share the keys: one product of h L rows.
        query = query.flatten(1, 2)
        scores = query @ key if constant is None else torch.baddbmm(constant.flatten(1, 2), query, key)
        return scores.unflatten(1, projected.shape[1:3])


class SmoothKernel(GapKernel):
    r"""A kernel whose features are smooth functions of ``|gap| w_f``, ``f = 0 .. d - 1``.

    By default scores are exact: features are made by blocks, once more in the backward pass, and never kept. With
    ``grid_points`` they are taken at the gaps ``exp(k / grid_points) - 1``, ``k = 0, 1, ...``, and between these scores
    are interpolated linearly in ``log(1 + gap)``: one product with a small table and two look-ups instead of ``L x L
    x d`` logarithms or exponentials. The places of the grid don't depend on the batch, and equal times stay exact.

    Parameters
    ----------
    hidden_size, clock
        As for ``GapKernel``.
    grid_points : int, optional
        Points for each factor ``e`` of the gap.

    Raises
    ------
    ValueError
        If ``grid_points`` is below 1.

    Notes
    -----
    A linear interpolation over a step ``h = 1 / grid_points`` is off by at most ``h^2 / 8`` times the second derivative
    in ``x = log(1 + gap)``, which ``curvature`` bounds for each feature: a score is off by at most
    ``curvature * sum_f |u_f| / (8 grid_points^2)``. Gradients are exact for the interpolated scores.
    """

    curvature: float

    def __init__(self, hidden_size: int, clock: Clock, grid_points: int | None = None) -> None:
        super().__init__(hidden_size, clock)
        if grid_points is not None and grid_points < 1:
            raise ValueError(f"grid_points: {grid_points}; must be a whole number of at least 1, or unset")
        self.grid_points = grid_points

    @classmethod
    def build(cls, settings: KernelSettings) -> SmoothKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size, settings.clock(), settings.grid_points)

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """Feature of ``|gap| w_f``; may work in place."""
        raise NotImplementedError

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Take all gaps; times are subtracted as they are, only the difference is rounded."""
        rows, length = moments.key_time.shape
        rates = self.rates(1)
        if self.grid_points is None:
            gap = torch.empty(rows, length, length, dtype=dtype, device=rates.device)
            for block, part in self._gaps(moments, torch.float64):
                gap[block] = part
            return partial(self._scores, gap=gap, rates=rates.to(dtype))
        index = torch.empty(rows, length, length, dtype=torch.int64, device=rates.device)
        fraction = torch.empty(rows, length, length, dtype=dtype, device=rates.device)
        # Logarithms in float64 take three times as long; in float32 a place is off by some 1e-5 of a grid's step.
        for block, part in self._gaps(moments, torch.promote_types(dtype, torch.float32)):
            index[block] = place = part.log1p_().mul_(self.grid_points)
            fraction[block] = place.frac_()
        last = int(index.max()) if index.numel() else 0
        grid = (torch.arange(last + 2, dtype=torch.float64, device=rates.device) / self.grid_points).expm1()
        features = self.feature(grid.unsqueeze(-1) * rates).to(dtype)  # [points, d]
        return partial(self._between, features=features, index=index, fraction=fraction)

    def _gaps(self, moments: Moments, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """``|gap|`` in units, Float[rows, L, L] of a type, some rows at a time, which stay in a CPU's cache."""
        rows, length = moments.key_time.shape
        step = max(1, BLOCK_ELEMENTS // 4 // max(1, length**2)) if moments.key_time.device.type == "cpu" else rows
        for start in range(0, rows, max(1, step)):
            block = slice(start, start + step)
            gap = moments.query_time[block].unsqueeze(2) - moments.key_time[block].unsqueeze(1)
            yield block, gap.abs_().to(dtype).div_(self.time_unit)

    def _scores(self, projected: Tensor, constant: Tensor | None, gap: Tensor, rates: Tensor) -> Tensor:
        rows, heads, length, _ = projected.shape
        # All heads share the features of a query's row of gaps.
        by_query = projected.to(gap.dtype).transpose(1, 2).flatten(0, 1)  # [B L, h, F]
        scores = _SmoothScores.apply(by_query, gap.flatten(0, 1), rates, self.feature)
        return _plus(scores.view(rows, length, heads, length).transpose(1, 2), constant)

    @staticmethod
    def _between(
        projected: Tensor, constant: Tensor | None, features: Tensor, index: Tensor, fraction: Tensor
    ) -> Tensor:
        table = _plus(projected.to(features.dtype) @ features.T, constant)  # [B, h, L, points]
        shape = (-1, projected.size(1), -1, -1)
        return _Interpolation.apply(table, index.unsqueeze(1).expand(shape), fraction.unsqueeze(1).expand(shape))


class _Interpolation(torch.autograd.Function):
    """``(1 - t) table[k] + t table[k + 1]`` along the last dimension, keeping neither of the two."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, fraction: Tensor) -> Tensor:
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
    """``sum_f u[n, h, f] feature(gap[n, j] w_f)``, Float[n, h, L], some rows at a time.

    Features are made again in the backward pass, so that none are kept.
    """

    @staticmethod
    def _blocks(gap: Tensor, rates: Tensor) -> range:
        rows = max(1, BLOCK_ELEMENTS // max(1, gap.size(1) * len(rates)))
        return range(0, max(1, gap.size(0)), rows)

    @staticmethod
    def forward(ctx: Any, projected: Tensor, gap: Tensor, rates: Tensor, feature: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gap, rates)
        ctx.feature = feature
        scores = gap.new_empty(*projected.shape[:2], gap.size(1))
        blocks = _SmoothScores._blocks(gap, rates)
        for start in blocks:
            block = slice(start, start + blocks.step)
            features = feature(gap[block].unsqueeze(-1) * rates)  # [rows, L, F]
            torch.matmul(projected[block], features.transpose(1, 2), out=scores[block])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        gap, rates = ctx.saved_tensors
        grad_projected = gap.new_empty(*grad.shape[:2], len(rates))
        blocks = _SmoothScores._blocks(gap, rates)
        for start in blocks:
            block = slice(start, start + blocks.step)
            features = ctx.feature(gap[block].unsqueeze(-1) * rates)
            torch.matmul(grad[block], features, out=grad_projected[block])
        return grad_projected, None, None, None


class ExponentialKernel(SmoothKernel):
    """``phi = exp(-|gap| w_f)``, ``w_f = kernel_freq ** (-f / d)``."""

    curvature = 0.85  # (a^2 - a) e^(1 - a) at a = (3 + sqrt 5) / 2, for w_f = 1

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """Take ``exp(-x)`` in place."""
        return scaled.neg_().exp_()


class Log1pKernel(SmoothKernel):
    """``phi = log(1 + |gap| w_f)``, ``w_f = kernel_freq ** (-f / d)``."""

    curvature = 0.25  # y (1 - y) of a logistic function

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """Take ``log(1 + x)`` in place."""
        return scaled.log1p_()


class DistanceKernel(RelativeKernel):
    """Learned table over the distance of two places, ``clip(i - j, -k, k)``.

    Parameters
    ----------
    hidden_size : int
        Width of the table.
    max_distance : int
        ``k``: farther places share the outermost rows.

    Raises
    ------
    ValueError
        If ``max_distance`` is below 1.
    """

    def __init__(self, hidden_size: int, max_distance: int) -> None:
        super().__init__()
        if max_distance < 1:
            raise ValueError(f"max_distance: {max_distance}; must be a whole number of at least 1")
        self.width = hidden_size
        self.max_distance = max_distance
        self.embedding = nn.Embedding(2 * max_distance + 1, hidden_size)

    @classmethod
    def build(cls, settings: KernelSettings) -> DistanceKernel:
        """Make the kernel from the settings shared by all."""
        if settings.max_distance is None:
            raise ValueError("max_distance: not set; the distance kernel needs it")
        return cls(settings.hidden_size, settings.max_distance)

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Take the distances of all pairs of places."""
        index = distances(moments).clamp(-self.max_distance, self.max_distance) + self.max_distance
        return partial(self._scores, index=index.expand(len(moments.position), 1, -1, -1))

    def _scores(self, projected: Tensor, constant: Tensor | None, index: Tensor) -> Tensor:
        table = _plus(projected @ self.embedding.weight.T, constant)  # [B, h, L, 2 k + 1]
        return table.gather(3, index.expand(-1, projected.size(1), -1, -1))


def distances(moments: Moments) -> Tensor:
    """Distances in places, ``i - j``, Int64[L, L]."""
    place = torch.arange(moments.position.size(1), device=moments.position.device)
    return place.unsqueeze(1) - place


class BiasKernel(RelativeKernel):
    """A learned bias for each bucket of pairs."""

    is_bias = True

    def buckets(self, moments: Moments) -> Tensor:
        """Bucket of each pair, Int64[B or 1, L, L], below ``width``."""
        raise NotImplementedError

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Find the buckets of all pairs."""
        index = self.buckets(moments).expand(len(moments.position), -1, -1).unsqueeze(1)
        return partial(self._scores, index=index)

    @staticmethod
    def _scores(projected: Tensor, constant: Tensor | None, index: Tensor) -> Tensor:
        return _plus(projected.gather(3, index.expand(-1, projected.size(1), -1, -1)), constant)


class GapBiasKernel(BiasKernel, ClockedKernel):
    """Log-buckets of the gap in time, about two for each factor of two, with a bucket of its own for gap zero.

    Bucket 0 is gap zero; a positive gap ``g`` (in units of the clock) is in bucket ``1 + floor(2 log2(1 + g))``, up to
    the last. After HSTU (Zhai et al., ICML 2024), whose public code buckets the logarithm of the gap in seconds with
    gaps of 0 and 1 s in one. Gaps count in either direction alike.

    Parameters
    ----------
    clock : Clock
        Seconds per unit; a gap of ``kernel_freq`` units is in the last bucket. Kept with the weights.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.width = 2 + math.floor(2 * math.log2(1 + clock.kernel_freq))

    @classmethod
    def build(cls, settings: KernelSettings) -> GapBiasKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.clock())

    def buckets(self, moments: Moments) -> Tensor:
        """Bucket of each pair; times are subtracted as they are, only the difference is rounded."""
        gap = (moments.query_time.unsqueeze(2) - moments.key_time.unsqueeze(1)).abs()
        bucket = 1 + (2 * torch.log2(1 + gap.double() / self.clock[0])).floor().long()
        return torch.where(gap == 0, 0, bucket.clamp(max=self.width - 1))


class DistanceBiasKernel(BiasKernel):
    """Buckets of the distance in places: exact below 16, then logarithmic up to 128 (T5, Raffel et al., JMLR 2020).

    Distances to later places, which causal models never see, have buckets of their own.
    """

    EXACT, FARTHEST = 16, 128

    def __init__(self) -> None:
        super().__init__()
        self.width = 4 * self.EXACT

    @classmethod
    def build(cls, settings: KernelSettings) -> DistanceBiasKernel:
        """Make the kernel from the settings shared by all."""
        return cls()

    def buckets(self, moments: Moments) -> Tensor:
        """Bucket of each pair."""
        distance = distances(moments)
        size = distance.abs()
        ratio = (size.clamp(min=1).double() / self.EXACT).log() / math.log(self.FARTHEST / self.EXACT)
        far = (self.EXACT * (1 + ratio)).floor().long().clamp(max=2 * self.EXACT - 1)
        bucket = torch.where(size < self.EXACT, size, far)
        return torch.where(distance < 0, bucket + 2 * self.EXACT, bucket).unsqueeze(0)


RELATIVE_KERNELS: dict[str, type[RelativeKernel]] = {
    "sinusoid": SinusoidKernel,
    "exponential": ExponentialKernel,
    "log1p": Log1pKernel,
    "distance": DistanceKernel,
    "gap_bias": GapBiasKernel,
    "distance_bias": DistanceBiasKernel,
}
