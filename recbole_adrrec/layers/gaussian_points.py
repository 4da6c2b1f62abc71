"""Diagonal Gaussians as points, so that their distance is an ordinary one.

The squared 2-Wasserstein distance of ``N(m1, diag c1)`` and ``N(m2, diag c2)`` is
``|m1 - m2|^2 + |sqrt(c1) - sqrt(c2)|^2``: the squared Euclidean distance of the points ``[m, sqrt(c)]``.

Letters: ``d`` width of mean and of covariance.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_COVARIANCE = 1e-24
"""Below it the square root has no usable gradient (STOSA's public code)."""


def positive(raw: Tensor) -> Tensor:
    """``ELU(x) + 1``: covariances out of any numbers (STOSA, section 3.2)."""
    return F.elu(raw) + 1


def gaussian_points(mean: Tensor, covariance: Tensor) -> Tensor:
    """Points ``[mean, sqrt(covariance)]``, Float[..., 2 d], of Gaussians, Float[..., d] each."""
    # Half precision has no number as small.
    smallest = max(SMALLEST_COVARIANCE, torch.finfo(covariance.dtype).tiny)
    return torch.cat([mean, covariance.clamp(min=smallest).sqrt()], -1)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs by one matrix product.

    Parameters
    ----------
    left : Float[..., N, D]
        Points.
    right : Float[..., M, D]
        Other points.

    Returns
    -------
    Float[..., N, M]
        Distances; rounding may put those of equal points a little beside zero.
    """
    left_size = left.square().sum(-1, keepdim=True)
    right_size = right.square().sum(-1).unsqueeze(-2)
    return left_size + right_size - 2 * (left @ right.transpose(-1, -2))
