"""The kernels of a model, one per attention head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_adrrec.layers.absolute_kernels import ABSOLUTE_KERNELS
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.moments import KernelSettings, Moments
from recbole_adrrec.layers.relative_kernels import RELATIVE_KERNELS, RelativeScorer

__all__ = ["ABSOLUTE_KERNELS", "RELATIVE_KERNELS", "MixContext", "MixKernels"]


@dataclass(frozen=True)
class MixContext:
    """What all layers share of a batch: embeddings per absolute head, scorers per relative head."""

    absolute: list[tuple[Tensor, Tensor]]
    relative: list[RelativeScorer]


class MixKernels(nn.Module):
    """The kernels of a model, one per attention head.

    Parameters
    ----------
    absolute, relative : list of str
        Names out of ``ABSOLUTE_KERNELS`` and ``RELATIVE_KERNELS``.
    settings : KernelSettings
        What the kernels are built from.
    dropout : float
        Share of the absolute embeddings' elements that training drops.

    Raises
    ------
    ValueError
        If a name is unknown.
    """

    def __init__(self, absolute: list[str], relative: list[str], settings: KernelSettings, dropout: float) -> None:
        super().__init__()
        for option, names, known in (
            ("absolute_kernels", absolute, list(ABSOLUTE_KERNELS)),
            ("relative_kernels", relative, list(RELATIVE_KERNELS)),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{option}: {name}; must be one of {', '.join(known)}")
        self.absolute = nn.ModuleList(ABSOLUTE_KERNELS[name].build(settings) for name in absolute)
        self.relative = nn.ModuleList(RELATIVE_KERNELS[name].build(settings) for name in relative)
        self.dropout = Dropout(dropout)

    def forward(self, moments: Moments, dtype: torch.dtype) -> MixContext:
        """Do once per batch what all layers share."""
        absolute = []
        for kernel in self.absolute:
            query, key = kernel(moments)
            same = query is key
            query = self.dropout(query)
            absolute.append((query, query if same else self.dropout(key)))
        return MixContext(absolute, [kernel(moments, dtype) for kernel in self.relative])
