"""From items to the encoder's input.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size, ``V`` rows of the item table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.gaussian_points import gaussian_points, positive
from recbole_adrrec.layers.moments import Moments


class ItemEmbedding(nn.Embedding):
    """Item table with dropout; item 0 is padding.

    Parameters
    ----------
    n_rows : int
        Rows ``V`` of the table, padding and special tokens included.
    hidden_size : int
        Width ``d``.
    dropout : float
        Share of the elements that training drops.
    scale : float
        What embeddings are multiplied with on their way in, though not as targets.
    """

    def __init__(self, n_rows: int, hidden_size: int, dropout: float, scale: float = 1.0) -> None:
        super().__init__(n_rows, hidden_size, padding_idx=0)
        self.scale = scale
        self.dropout = Dropout(dropout)

    @property
    def table(self) -> Tensor:
        """What the head compares states with, a row for each item."""
        return self.weight

    def forward(self, items: Tensor, moments: Moments) -> Tensor:  # type: ignore[override]
        """Embed items, Int64[B, L], at their moments: Float[B, L, d]."""
        embedded = super().forward(items)
        return self.dropout(embedded if self.scale == 1.0 else embedded * self.scale)


class PositionedItemEmbedding(ItemEmbedding):
    """``dropout(LayerNorm(item + position))``, as in RecBole's SASRec.

    Parameters
    ----------
    n_rows, hidden_size, dropout
        As for ``ItemEmbedding``.
    max_seq_length : int
        Rows of the position table.
    layer_norm_eps : float
        Added to the variance in the layer norm.
    """

    def __init__(
        self, n_rows: int, hidden_size: int, dropout: float, max_seq_length: int, layer_norm_eps: float
    ) -> None:
        super().__init__(n_rows, hidden_size, dropout)
        self.position = nn.Embedding(max_seq_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, items: Tensor, moments: Moments) -> Tensor:  # type: ignore[override]
        """Embed items, Int64[B, L], at their moments: Float[B, L, d]."""
        return self.dropout(self.norm(nn.Embedding.forward(self, items) + self.position(moments.position)))


class GaussianItemEmbedding(PositionedItemEmbedding):
    """Items as Gaussians (STOSA, section 3.1): a row of the table holds a mean, then a raw covariance.

    The encoder's input is ``ELU(x)`` of the means and ``ELU(x) + 1`` of the covariances, each normed and with its
    position added, as in STOSA's public code.

    Parameters
    ----------
    n_rows, hidden_size, dropout, max_seq_length, layer_norm_eps
        As for ``PositionedItemEmbedding``; the tables are ``2 d`` wide, the norm ``d``, shared by both parts.
    """

    def __init__(
        self, n_rows: int, hidden_size: int, dropout: float, max_seq_length: int, layer_norm_eps: float
    ) -> None:
        super().__init__(n_rows, 2 * hidden_size, dropout, max_seq_length, layer_norm_eps)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    @property
    def table(self) -> Tensor:
        """Points ``[mean, sqrt(covariance)]``, Float[V, 2 d]; their distances are the items'."""
        mean, raw = self.weight.chunk(2, -1)
        return gaussian_points(mean, positive(raw))

    def forward(self, items: Tensor, moments: Moments) -> Tensor:  # type: ignore[override]
        """Embed items, Int64[B, L], at their moments: Float[B, L, 2, d], means first."""
        embedded = nn.Embedding.forward(self, items) + self.position(moments.position)
        embedded = F.elu(self.dropout(self.norm(embedded.unflatten(-1, (2, -1)))))
        return embedded + torch.tensor([[0.0], [1.0]], dtype=embedded.dtype, device=embedded.device)
