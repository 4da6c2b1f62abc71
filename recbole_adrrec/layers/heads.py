"""From states to scores of items.

Letters: ``N`` states, ``d`` hidden size, ``V`` items (padding included).
"""

from torch import Tensor, nn, zeros
from torch.nn import Parameter
from torch.nn import functional as F


class ItemHead(nn.Module):
    """``Linear -> GELU (tanh form) -> LayerNorm``, then the dot product with the item table.

    The table is the one that embeds the items (tied weights); each item has a bias.

    Parameters
    ----------
    hidden_size : int
        Width ``d``.
    n_items : int
        Items that get scores, padding included; rows of the table beyond them get none.
    layer_norm_eps : float
        Added to the variance in the layer norm.
    """

    def __init__(self, hidden_size: int, n_items: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.bias = Parameter(zeros(n_items))

    def _transform(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.linear(hidden), approximate="tanh"))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """Scores of all items, Float[N, V], from states, Float[N, d]."""
        return F.linear(self._transform(hidden), table[: len(self.bias)], self.bias)

    def score_items(self, hidden: Tensor, table: Tensor, *items: Tensor) -> list[Tensor]:
        """Scores of one item per state, Float[N], for each Int64[N] given."""
        transformed = self._transform(hidden)
        return [(transformed * F.embedding(item, table)).sum(-1) + self.bias[item] for item in items]
