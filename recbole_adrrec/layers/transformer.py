"""Pre-norm transformer layers around any attention.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from recbole_adrrec.layers.attention import Attention

Perturbation = Callable[[int, Tensor], Tensor]


class FeedForward(nn.Sequential):
    """``d -> inner -> d`` with GELU (tanh form) and dropout between."""

    def __init__(self, hidden_size: int, inner_size: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(hidden_size, inner_size),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(inner_size, hidden_size),
        )


class TransformerLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Dropout stands where MEANTIME's public code has it: after either part, inside the feed-forward,
    and on the layer's output.

    Parameters
    ----------
    attention : Attention
        Any attention over ``d``-wide states.
    hidden_size, inner_size : int
        Widths ``d`` and of the feed-forward's middle.
    dropout : float
        Share of the elements that training drops.
    layer_norm_eps : float
        Added to the variance in layer norms.
    """

    def __init__(
        self,
        attention: Attention,
        hidden_size: int,
        inner_size: int,
        dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.feed_forward = FeedForward(hidden_size, inner_size, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """Give the layer's output, Float[B, L, d]; see ``Attention.forward`` for the arguments."""
        attended = self.attention(self.attention_norm(hidden), mask, context)
        hidden = hidden + self.dropout(attended)
        hidden = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return self.dropout(hidden)


class TransformerEncoder(nn.Module):
    """A stack of layers, without a norm at its end."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, mask: Tensor, context: Any, perturb: Perturbation | None = None) -> list[Tensor]:
        """Encode.

        Parameters
        ----------
        hidden : Float[B, L, d]
            Embedded events.
        mask : Bool[B, 1, L, L]
            True where query ``i`` may attend to key ``j``.
        context : object
            What the layers share of a batch.
        perturb : callable, optional
            Takes a layer's number (from 1) and its input; what it gives goes into the layer.

        Returns
        -------
        list of Float[B, L, d]
            Output of each layer.
        """
        states = []
        for number, layer in enumerate(self.layers, 1):
            if perturb is not None:
                hidden = perturb(number, hidden)
            hidden = layer(hidden, mask, context)
            states.append(hidden)
        return states
