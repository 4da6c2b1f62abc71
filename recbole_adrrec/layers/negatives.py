"""Negatives that all targets of a batch share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SharedNegatives(nn.Module):
    """Draw ``count`` items once for a batch, uniformly and with repetition, from all but padding.

    The draw depends on the seed and on the number of draws before it, which is saved with the weights: continued
    training goes on with the same draws, and processes that train together draw the same items.

    Parameters
    ----------
    count : int
        Items to draw.
    n_items : int
        Items, padding included.
    seed : int
        Seed of the draws, which take nothing from torch's global random state.
    """

    step: Tensor

    def __init__(self, count: int, n_items: int, seed: int) -> None:
        super().__init__()
        self.count = count
        self.n_items = n_items
        self.seed = seed
        # A count rather than a generator: it is copied and saved with the weights.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        """Items from 1, Int64[count]."""
        # Another multiplier than the layer-wise noise has, whose draws stand at the same steps.
        generator = torch.Generator().manual_seed((self.seed * 998_244_353 + int(self.step)) % 2**63)
        self.step += 1
        return torch.randint(1, self.n_items, (self.count,), generator=generator).to(self.step.device)
