"""Vectors that are learned at knots in time, and read at other knots when a model starts from a trained one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def knot_vectors(table: Tensor, trained: Tensor, spacing: float, days: Tensor) -> Tensor:
    """Vectors between knots, for days inside and outside of those that training showed.

    The knot behind the last trained day counts as known, since it takes part in that day's vector: knots at the same
    days keep their vectors. Later days take the vector of the last trained day, earlier ones that of the first.

    Parameters
    ----------
    table : Float[n, d]
        Vectors of the knots, ``spacing`` days apart from the first trained day on.
    trained : Int64[2]
        First and last trained day, since 1970.
    spacing : float
        Days between two knots.
    days : Int64[m] or Float64[m]
        Days since 1970.

    Returns
    -------
    Float[m, d]
        Their vectors.
    """
    first, last = trained.tolist()
    end = (last - first) / spacing
    place = ((days - first).double() / spacing).clamp(min=0)
    place = place.masked_fill(place > math.ceil(end), end)
    before = place.long()
    after = (before + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[before], table[after], (place - before).to(table.dtype).unsqueeze(-1))
