"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 1 << 16


def drop_threshold(share: float) -> int:
    """Number of the ``STEPS`` values of 16 random bits that drop an element."""
    return round(share * STEPS)


class DropoutBits:
    """Draws of dropped elements, repeatable by their seed; ``threshold`` is as of ``drop_threshold``."""

    def __init__(self, seed: int, threshold: int) -> None:
        self.threshold = threshold
        self._generator = np.random.SFC64(seed) if 0 < threshold < STEPS else None

    @staticmethod
    def draw_seed() -> int:
        """A seed from torch's global random state."""
        return int(torch.randint(2**63 - 1, ()))

    def factors(self, like: Tensor) -> Tensor | None:
        """The factor of each element, 0 or what scales kept ones, shaped and typed as ``like``; None if all are 1."""
        if self._generator is None:
            return torch.zeros_like(like) if self.threshold else None
        draws = self._generator.random_raw((like.numel() + 3) // 4)
        bits = torch.from_numpy(draws.view(np.int16))[: like.numel()].view(like.shape)
        kept = bits.ge_(self.threshold - STEPS // 2).to(like.dtype)
        return kept.mul_(STEPS / (STEPS - self.threshold))

    def drop(self, values: Tensor) -> Tensor:
        """Values times their factors."""
        factors = self.factors(values)
        return values if factors is None else factors.mul_(values)


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` that, on a CPU, draws 16 random bits for each element instead of a float.

    The bits are numpy's (SFC64), from a seed that is drawn from torch's global random state, which alone decides what
    is dropped. The share that is dropped is rounded to a multiple of 1 / 65536, and what is kept is scaled by that
    share exactly. Other devices, and compiled code, use torch's own dropout, which takes about four times as long on a
    CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements while training; any shape, any floating dtype."""
        threshold = drop_threshold(self.p)
        if not self.training or threshold in (0, STEPS) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        factors = DropoutBits(DropoutBits.draw_seed(), threshold).factors(input)
        return input if factors is None else input * factors
