"""Random draws of training that repeat: masked events, negatives that a batch shares, and orders of tied events.

Letters: ``B`` rows of a batch, ``L`` places of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def draw_cloze_mask(maskable: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """Draw the events that a cloze model has to predict, Bool[B, L].

    Each ``maskable`` event, Bool[B, L], is masked with probability ``ratio``. Of a row with two or more ``valid``
    events, Bool[B, L], at least one stays known and, if any may be masked, at least one is. Draws from torch's global
    random state.
    """
    draw = torch.rand(valid.shape, device=valid.device)
    lowest = draw.masked_fill(~maskable, 2.0)
    masked = lowest < ratio
    first = torch.zeros_like(valid).scatter(1, lowest.argmin(1, keepdim=True), True)
    masked |= first & maskable & ~masked.any(1, keepdim=True)
    highest = draw.masked_fill(~valid, -1.0)
    spared = torch.zeros_like(valid).scatter(1, highest.argmax(1, keepdim=True), True)
    none_known = (masked | ~valid).all(1, keepdim=True)
    return masked & ~(spared & none_known)


class SharedNegatives(nn.Module):
    """Draws of ``count`` items for a batch, uniformly and with repetition, from all but padding.

    The draw depends on the seed and on the number of draws before it, which is saved with the weights: continued
    training goes on with the same draws, and processes that train together draw the same items. Torch's global random
    state is left alone. ``n_items`` counts padding.
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


class TieOrder(nn.Module):
    """Orders of rows' events in which those of equal time change places, each order as likely.

    An order is a hash of the seed, of the number of batches before, which is saved with the weights, of the row's
    number and of the place: continued training goes on with the same orders, and a row gets the same one in whatever
    batch and process it comes. Torch's global random state is left alone.
    """

    step: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, time: Tensor, valid: Tensor, row: Tensor) -> Tensor:
        """Indices of places, Int64[B, L].

        ``time``, Tensor[B, L], are the ascending times of the events; ``valid``, Bool[B, L], is true at events, which
        are the first places; ``row``, Int64[B], is a number for each row.
        """
        moves_on = torch.ones_like(valid)
        moves_on[:, 1:] = (time[:, 1:] != time[:, :-1]) | ~valid[:, 1:]
        places = torch.arange(time.size(1), device=row.device)
        keys = _mixed(_mixed(_mixed(self.step + (self.seed << 32)) + row).unsqueeze(1) + places)
        self.step += 1
        # The moment's number above forty random bits.
        return ((moves_on.cumsum(1) << 40) + (keys & ((1 << 40) - 1))).argsort(1)


def _mixed(number: Tensor) -> Tensor:
    """Scatter Int64 numbers over all 64 bits (the finaliser of SplitMix64; Steele et al., OOPSLA 2014)."""
    number = number + _signed(0x9E3779B97F4A7C15)
    number = (number ^ _shifted(number, 30)) * _signed(0xBF58476D1CE4E5B9)
    number = (number ^ _shifted(number, 27)) * _signed(0x94D049BB133111EB)
    return number ^ _shifted(number, 31)


def _signed(number: int) -> int:
    return number - (1 << 64)


def _shifted(number: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)
