"""The kernels of a model, and their results for a batch.

Letters: ``B`` rows of a batch, ``L`` places, ``N`` events, ``d`` hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.absolute_kernels import ABSOLUTE_KERNELS
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.layers.relative_kernels import RELATIVE_KERNELS, PairBias
from recbole_adrrec.layers.sequence_times import KernelSettings, SequenceTimes

__all__ = ["ABSOLUTE_KERNELS", "RELATIVE_KERNELS", "MixContext", "MixKernels"]


@dataclass(frozen=True)
class MixContext:
    """Results of the kernels for a batch, which all layers share.

    Attributes
    ----------
    absolute : list of (Tensor, Tensor)
        For each absolute kernel the embeddings of the query and of the key side, ``[B, L, d]`` or ``[N, d]``.
    relative : list of list of callable
        For each group of rows the ``PairBias`` of each relative kernel.
    """

    absolute: list[tuple[Tensor, Tensor]]
    relative: list[list[PairBias]]

    def single(self, number: int, places: slice) -> MixContext:
        """The part of one group of rows, whose places in the states are given."""
        absolute = [
            (query[places], query[places]) if query is key else (query[places], key[places])
            for query, key in self.absolute
        ]
        return MixContext(absolute, [self.relative[number]])


class MixKernels(nn.Module):
    """The kernels of a model, by their names in ``ABSOLUTE_KERNELS`` and ``RELATIVE_KERNELS``.

    Dropout falls on the embeddings of the absolute ones. With ``spread`` the tables start as N(0, 1), for kernels
    behind a gate that starts at zero: their terms then grow as fast as the gate does, where small tables behind small
    projections would keep them near zero.

    Attributes
    ----------
    relative_widths : list of int
        Features of each relative kernel.
    relative_is_bias : list of bool
        Which of them are bias kernels.
    """

    def __init__(
        self, absolute: list[str], relative: list[str], settings: KernelSettings, dropout: float, spread: bool = False
    ) -> None:
        super().__init__()
        self.spread = spread
        self.absolute_names, self.relative_names = list(absolute), list(relative)
        self.absolute = nn.ModuleList(ABSOLUTE_KERNELS[name](settings) for name in absolute)
        pairs = [RELATIVE_KERNELS[name](settings) for name in relative]
        self.relative = nn.ModuleList(pairs)
        self.relative_widths = [kernel.width for kernel in pairs]
        self.relative_is_bias = [kernel.is_bias for kernel in pairs]
        self.dropout = Dropout(dropout)

    def forward(self, times: SequenceTimes, layout: Layout, dtype: torch.dtype) -> MixContext:
        """Results for a batch, ``[B, L]``, computed once for all layers."""
        laid_out = layout.pack_times(times)
        absolute = []
        for kernel in self.absolute:
            query, key = kernel(laid_out)
            same = query is key
            query = self.dropout(query)
            absolute.append((query, query if same else self.dropout(key)))
        relative: list[list[PairBias]] = []
        for group in layout.groups:
            of_group = group.times(times) if self.relative else times
            relative.append([kernel(of_group, dtype) for kernel in self.relative])
        return MixContext(absolute, relative)

    def start_weights(self) -> None:
        """Draw the tables anew where they are to be spread."""
        for module in self.modules():
            if self.spread and isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
