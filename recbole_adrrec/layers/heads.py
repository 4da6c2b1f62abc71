"""From states to scores of items.

Letters: ``N`` states, ``d`` hidden size, ``D`` width of the item table, ``V`` items (padding included), ``k`` items
asked for at each state.
"""

from __future__ import annotations

from torch import Tensor, nn, zeros
from torch.nn import Parameter
from torch.nn import functional as F

from recbole_adrrec.layers.gaussian_points import gaussian_points, nearness


class ItemHead(nn.Module):
    """Scores by the dot product with the item table: the one that embeds the items (tied weights).

    Parameters
    ----------
    n_items : int
        Items that get scores, padding included; rows of the table beyond them get none.
    """

    bias: Parameter | None

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.register_parameter("bias", None)

    def _transform(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, hidden: Tensor, table: Tensor, items: slice | None = None) -> Tensor:
        """Scores of all items, Float[N, V], or of a run of them, from states, Float[N, d]."""
        items = slice(self.n_items) if items is None else items
        return F.linear(self._transform(hidden), table[items], None if self.bias is None else self.bias[items])

    def as_product(self, hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, Float[N, D], items, Float[V, D], and bias, Float[V].

        ``states @ items.T + bias`` are the scores but for a constant of each state, to which a softmax is blind.
        """
        return self._transform(hidden), table[: self.n_items], self.bias

    def score_items(self, hidden: Tensor, table: Tensor, *items: Tensor) -> list[Tensor]:
        """Scores of some items for each state, shaped like the items: Int64[N] or Int64[N, k] each."""
        transformed = self._transform(hidden)
        scores = []
        for item in items:
            states = transformed if item.dim() == 1 else transformed.unsqueeze(1)
            score = self.compare(states, F.embedding(item, table))
            scores.append(score if self.bias is None else score + self.bias[item])
        return scores

    def compare(self, left: Tensor, right: Tensor) -> Tensor:
        """How alike rows of width ``D`` are, Float[...], without the items' bias."""
        return (left * right).sum(-1)


class ProjectedItemHead(ItemHead):
    """``Linear -> GELU (tanh form) -> LayerNorm`` before the dot product, and a bias for each item (MEANTIME).

    Parameters
    ----------
    hidden_size : int
        Width ``d``.
    n_items : int
        As for ``ItemHead``.
    layer_norm_eps : float
        Added to the variance in the layer norm.
    """

    def __init__(self, hidden_size: int, n_items: int, layer_norm_eps: float) -> None:
        super().__init__(n_items)
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.bias = Parameter(zeros(n_items))

    def _transform(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.linear(hidden), approximate="tanh"))


class GaussianItemHead(ItemHead):
    """``-W2`` between states that are Gaussians, Float[N, 2, d], and a table of points (STOSA, section 3.4)."""

    def _transform(self, hidden: Tensor) -> Tensor:
        return gaussian_points(hidden[..., 0, :], hidden[..., 1, :])

    def forward(self, hidden: Tensor, table: Tensor, items: slice | None = None) -> Tensor:
        """Scores of all items, Float[N, V], or of a run of them."""
        return nearness(self._transform(hidden), table[slice(self.n_items) if items is None else items])

    def as_product(self, hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See ``ItemHead.as_product``: ``-|s - t|^2 = 2 s.t - |t|^2 - |s|^2``, the last the same for all items."""
        items = table[: self.n_items]
        return self._transform(hidden), 2 * items, -items.square().sum(-1)

    def compare(self, left: Tensor, right: Tensor) -> Tensor:
        """Minus the squared distance of points."""
        return -(left - right).square().sum(-1)
