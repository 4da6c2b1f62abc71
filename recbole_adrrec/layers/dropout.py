"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 1 << 16


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` that, on a CPU, draws 16 random bits for each element instead of a float.

    The bits are numpy's (SFC64), from a seed that is drawn from torch's global random state, which alone decides what
    is dropped. The share that is dropped is rounded to a multiple of 1 / 65536, and what is kept is scaled by that
    share exactly. Other devices, and compiled code, use torch's own dropout, which takes about four times as long on a
    CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements while training; any shape, any floating dtype."""
        threshold = round(self.p * STEPS)
        if not self.training or threshold in (0, STEPS) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        draws = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw((input.numel() + 3) // 4)
        bits = torch.from_numpy(draws.view(np.int16))[: input.numel()].view(input.shape)
        kept = bits.ge_(threshold - STEPS // 2).to(input.dtype)
        return input * kept.mul_(STEPS / (STEPS - threshold))
