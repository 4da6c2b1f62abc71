"""Relative kernels: what an attention head knows of two events' gap, ``phi(i, j)``.

A relative kernel adds ``(P phi(i, j)) . (q_i + b)`` to a score (MEANTIME, Cho et al., RecSys 2020,
section 3.3; the distance kernel after Shaw et al., NAACL 2018). It never keeps the ``L x L x d``
features: it gets the projected query ``u_i = P^T (q_i + b)`` and gives ``u_i . phi(i, j)``. To add
one: write its class, and put its name into ``RELATIVE_KERNELS`` at the end.

Letters: ``B`` rows of a batch, ``L`` places of a row, ``d`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recbole_adrrec.layers.moments import KernelSettings, Moments

# Features that a smooth kernel holds at a time, in elements: small enough for a CPU's cache.
BLOCK_ELEMENTS = 1 << 19

RelativeScorer = Callable[[Tensor, Tensor], Tensor]


class RelativeKernel(nn.Module):
    """Describes pairs of events."""

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
            Takes the projected query ``u``, Float[B, L, d], and a constant per query,
            Float[B, L, 1]; gives ``u_i . phi(i, j) + constant_i``, Float[B, L, L].
        """
        raise NotImplementedError


class GapKernel(RelativeKernel):
    """A kernel of the gap ``(query_time_i - key_time_j) / time_unit``.

    Parameters
    ----------
    hidden_size : int
        Number of features.
    time_unit : float
        Seconds per unit.
    kernel_freq : float
        Base of the geometric row of rates.

    Raises
    ------
    ValueError
        If ``time_unit`` or ``kernel_freq`` is out of range.
    """

    def __init__(self, hidden_size: int, time_unit: float, kernel_freq: float) -> None:
        super().__init__()
        if not time_unit > 0:
            raise ValueError(f"time_unit: {time_unit}; seconds per unit must be above 0")
        if not kernel_freq > 1:
            raise ValueError(f"kernel_freq: {kernel_freq}; must be above 1")
        self.hidden_size = hidden_size
        self.time_unit = time_unit
        self.kernel_freq = kernel_freq

    @classmethod
    def build(cls, settings: KernelSettings) -> GapKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size, settings.time_unit, settings.kernel_freq)

    def rates(self, step: int, device: torch.device) -> Tensor:
        """Rates ``kernel_freq ** (-f / d)`` for ``f = 0, step, 2 step, ... < d``, in float64."""
        power = torch.arange(0, self.hidden_size, step, dtype=torch.float64, device=device)
        return self.kernel_freq ** (-power / self.hidden_size)


class SinusoidKernel(GapKernel):
    """``phi = [sin(gap w_f), cos(gap w_f)]``, ``w_f = kernel_freq ** (-2 f / d)``.

    Scores come from products of the sines and cosines of the two times (the identities of a
    difference of angles). Angles are taken in float64 from times counted from the row's first
    event: Unix seconds would lose the gap.
    """

    def __init__(self, hidden_size: int, time_unit: float, kernel_freq: float) -> None:
        super().__init__(hidden_size, time_unit, kernel_freq)
        if hidden_size % 2:
            raise ValueError(
                f"hidden_size: {hidden_size}; the sinusoid kernel pairs sines with cosines and needs an even one"
            )

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Take the sines and cosines of both sides' times."""
        first = moments.key_time.gather(1, moments.valid.long().argmax(1, keepdim=True))
        rates = self.rates(2, first.device) / self.time_unit

        def angles(time: Tensor) -> tuple[Tensor, Tensor]:
            angle = (time - first).double().unsqueeze(-1) * rates  # [B, L, d / 2]
            return angle.sin().to(dtype), angle.cos().to(dtype)

        key_sin, key_cos = angles(moments.key_time)
        same = moments.query_time is moments.key_time
        query_sin, query_cos = (key_sin, key_cos) if same else angles(moments.query_time)
        key = torch.cat([key_cos, key_sin], -1).transpose(1, 2)  # [B, d, L]
        return partial(self._scores, query_sin=query_sin, query_cos=query_cos, key=key)

    @staticmethod
    def _scores(projected: Tensor, constant: Tensor, query_sin: Tensor, query_cos: Tensor, key: Tensor) -> Tensor:
        on_sin, on_cos = projected.chunk(2, -1)
        query = torch.cat([on_sin * query_sin + on_cos * query_cos, on_cos * query_sin - on_sin * query_cos], -1)
        return torch.baddbmm(constant, query, key)


class SmoothKernel(GapKernel):
    r"""A kernel whose features are smooth functions of ``|gap| w_f``, ``f = 0 .. d - 1``.

    By default scores are exact: features are made by blocks, once more in the backward pass, and never kept. With
    ``grid_points`` they are taken at the gaps ``exp(k / grid_points) - 1``, ``k = 0, 1, ...``, and between these scores
    are interpolated linearly in ``log(1 + gap)``: one product with a small table and two look-ups instead of ``L x L
    x d`` logarithms or exponentials. The places of the grid don't depend on the batch, and equal times stay exact.

    Parameters
    ----------
    hidden_size, time_unit, kernel_freq
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

    def __init__(self, hidden_size: int, time_unit: float, kernel_freq: float, grid_points: int | None = None) -> None:
        super().__init__(hidden_size, time_unit, kernel_freq)
        if grid_points is not None and grid_points < 1:
            raise ValueError(f"grid_points: {grid_points}; must be a whole number of at least 1, or unset")
        self.grid_points = grid_points

    @classmethod
    def build(cls, settings: KernelSettings) -> SmoothKernel:
        """Make the kernel from the settings shared by all."""
        return cls(settings.hidden_size, settings.time_unit, settings.kernel_freq, settings.grid_points)

    @staticmethod
    def feature(scaled: Tensor) -> Tensor:
        """Feature of ``|gap| w_f``; may work in place."""
        raise NotImplementedError

    def forward(self, moments: Moments, dtype: torch.dtype) -> RelativeScorer:
        """Take all gaps; times are subtracted as they are, only the difference is rounded."""
        rows, length = moments.key_time.shape
        rates = self.rates(1, moments.key_time.device)
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

    def _scores(self, projected: Tensor, constant: Tensor, gap: Tensor, rates: Tensor) -> Tensor:
        scores = _SmoothScores.apply(projected.to(gap.dtype).flatten(0, 1), gap.flatten(0, 1), rates, self.feature)
        return scores.view_as(gap) + constant

    @staticmethod
    def _between(projected: Tensor, constant: Tensor, features: Tensor, index: Tensor, fraction: Tensor) -> Tensor:
        table = projected.to(features.dtype) @ features.T + constant  # [B, L, points]
        return _Interpolation.apply(table, index, fraction)


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
    """``sum_f u[n, f] feature(gap[n, j] w_f)``, some rows at a time.

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
        scores = torch.empty_like(gap)
        blocks = _SmoothScores._blocks(gap, rates)
        for start in blocks:
            block = slice(start, start + blocks.step)
            features = feature(gap[block].unsqueeze(-1) * rates)  # [rows, L, d]
            scores[block] = (features @ projected[block].unsqueeze(-1)).squeeze(-1)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        gap, rates = ctx.saved_tensors
        grad_projected = torch.empty(len(gap), len(rates), dtype=gap.dtype, device=gap.device)
        blocks = _SmoothScores._blocks(gap, rates)
        for start in blocks:
            block = slice(start, start + blocks.step)
            features = ctx.feature(gap[block].unsqueeze(-1) * rates)
            grad_projected[block] = (grad[block].unsqueeze(1) @ features).squeeze(1)
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
        rows, length = moments.position.shape
        place = torch.arange(length, device=moments.position.device)
        distance = (place.unsqueeze(1) - place).clamp(-self.max_distance, self.max_distance)
        index = (distance + self.max_distance).expand(rows, -1, -1)
        return partial(self._scores, index=index)

    def _scores(self, projected: Tensor, constant: Tensor, index: Tensor) -> Tensor:
        return (projected @ self.embedding.weight.T + constant).gather(2, index)


RELATIVE_KERNELS: dict[str, type[RelativeKernel]] = {
    "sinusoid": SinusoidKernel,
    "exponential": ExponentialKernel,
    "log1p": Log1pKernel,
    "distance": DistanceKernel,
}
