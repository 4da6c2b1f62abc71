"""From items and their positions to the encoder's input.

Letters: ``d`` hidden size, ``V`` rows of the item table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.gaussian_points import elu_plus_one, gaussian_points


class ItemEmbedding(nn.Embedding):
    """``dropout(norm(scale * item + position))``; item 0 is padding.

    With positions and a norm it is the input of RecBole's SASRec, with neither that of MEANTIME.

    Parameters
    ----------
    n_rows, hidden_size : int
        Rows ``V`` of the table, padding and special tokens included, and its width ``d``.
    dropout, scale : float
        Share of the elements that training drops; factor of the embeddings on their way in, though not as targets.
    n_positions : int, optional
        Rows of a table of positions that are added; none by default.
    layer_norm_eps : float, optional
        Added to the variance in the layer norm; no norm by default.
    """

    def __init__(
        self,
        n_rows: int,
        hidden_size: int,
        dropout: float,
        scale: float = 1.0,
        n_positions: int | None = None,
        layer_norm_eps: float | None = None,
    ) -> None:
        super().__init__(n_rows, hidden_size, padding_idx=0)
        self.scale = scale
        self.dropout = Dropout(dropout)
        self.position = None if n_positions is None else nn.Embedding(n_positions, hidden_size)
        self.norm = None if layer_norm_eps is None else nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    @property
    def table(self) -> Tensor:
        """Rows that the head compares states with, one for each item."""
        return self.weight

    def sum(self, items: Tensor, position: Tensor) -> Tensor:
        """Scaled items, with their positions where these are added."""
        embedded = super().forward(items)
        embedded = embedded if self.scale == 1.0 else embedded * self.scale
        return embedded if self.position is None else embedded + self.position(position)

    def forward(self, items: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
        """Embeddings, Float[..., d], of items and their positions, Int64[...] each."""
        embedded = self.sum(items, position)
        return self.dropout(embedded if self.norm is None else self.norm(embedded))


class GaussianItemEmbedding(ItemEmbedding):
    """Items as Gaussians (STOSA, section 3.1): a row of the table holds a mean, then a raw covariance.

    The encoder's input is ``ELU(x)`` of the means and ``ELU(x) + 1`` of the covariances, each normed and with its
    position added, as in STOSA's public code. Arguments as for ``ItemEmbedding``; the tables are ``2 d`` wide, the norm
    ``d``, shared by both parts.
    """

    norm: nn.LayerNorm

    def __init__(self, n_rows: int, hidden_size: int, dropout: float, n_positions: int, layer_norm_eps: float) -> None:
        super().__init__(n_rows, 2 * hidden_size, dropout, n_positions=n_positions)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    @property
    def table(self) -> Tensor:
        """Points ``[mean, sqrt(covariance)]``, Float[V, 2 d]; their distances are the items'."""
        mean, raw = self.weight.chunk(2, -1)
        return gaussian_points(mean, elu_plus_one(raw))

    def forward(self, items: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
        """Embeddings, Float[..., 2, d], means first, of items and their positions, Int64[...] each."""
        embedded = F.elu(self.dropout(self.norm(self.sum(items, position).unflatten(-1, (2, -1)))))
        return embedded + torch.tensor([[0.0], [1.0]], dtype=embedded.dtype, device=embedded.device)
