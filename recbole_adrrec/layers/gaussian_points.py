"""Diagonal Gaussians as points, so that their distance is an ordinary one.

The squared 2-Wasserstein distance of ``N(m1, diag c1)`` and ``N(m2, diag c2)`` is
``|m1 - m2|^2 + |sqrt(c1) - sqrt(c2)|^2``: the squared Euclidean distance of the points ``[m, sqrt(c)]``.

Letters: ``d`` width of mean and of covariance, ``D`` width of a point.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_COVARIANCE = 1e-24
"""Below it the square root has no usable gradient (STOSA's public code)."""


def elu_plus_one(raw: Tensor) -> Tensor:
    """``ELU(x) + 1``: covariances out of any numbers (STOSA, section 3.2)."""
    return F.elu(raw) + 1


def gaussian_points(mean: Tensor, covariance: Tensor) -> Tensor:
    """Points ``[mean, sqrt(covariance)]``, Float[..., 2 d], of Gaussians, Float[..., d] each."""
    # Half precision has no number as small.
    smallest = max(SMALLEST_COVARIANCE, torch.finfo(covariance.dtype).tiny)
    return torch.cat([mean, covariance.clamp(min=smallest).sqrt()], -1)


def negative_squared_distance(left: Tensor, right: Tensor) -> Tensor:
    """``-|l - r|^2`` of all pairs, Float[..., N, M], of points, Float[..., N, D] and Float[..., M, D].

    ``2 l . r - |l|^2 - |r|^2`` by one matrix product: the squares are two more columns, since added afterwards they
    would take two more passes over all pairs. At most zero, but for rounding.
    """
    left_size = left.square().sum(-1, keepdim=True)
    right_size = right.square().sum(-1, keepdim=True)
    lengthened = torch.cat([left, left_size, torch.ones_like(left_size)], -1)
    other = torch.cat([2 * right, -torch.ones_like(right_size), -right_size], -1)
    return lengthened @ other.transpose(-1, -2)
