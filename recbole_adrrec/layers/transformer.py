"""Transformer layers around any attention.

States are padded, ``[B, L, d]``, or packed, ``[N, d]`` (``layers.layout``).

Letters: ``B`` rows of a batch, ``L`` places, ``N`` events, ``d`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_adrrec.layers.attention import Attention
from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.layout import Layout

Perturbation = Callable[[int, Tensor], Tensor]

BLOCK_PAIRS = {"cpu": 1 << 18}
"""Pairs of places whose weights a recomputed layer makes at a time, by kind of device."""

BLOCK_PAIRS_ELSEWHERE = 1 << 24

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "elu": nn.ELU,
}


class SharedContext(Protocol):
    """Results of the kernels for a batch, which the layers share."""

    def single(self, number: int, places: slice) -> Any:
        """The part of one group of rows, whose places in the states are given."""


class FeedForward(nn.Sequential):
    """``d -> inner -> d`` with an activation, one of ``ACTIVATIONS``, and dropout between."""

    def __init__(self, hidden_size: int, inner_size: int, dropout: float, activation: str = "gelu_tanh") -> None:
        super().__init__(
            nn.Linear(hidden_size, inner_size),
            ACTIVATIONS[activation](),
            Dropout(dropout),
            nn.Linear(inner_size, hidden_size),
        )


class TransformerLayer(nn.Module):
    """Attention and feed-forward with residuals; where norms and dropout stand depends on ``order``.

    - ``pre``: ``x = x + drop(attention(norm(x)))``, then ``x + drop(feed_forward(norm(x)))``.
    - ``post`` (RecBole's SASRec; STOSA): ``x = norm(x + drop(attention(x)))``, then
      ``norm(x + drop(feed_forward(x)))``.
    - ``query`` (TiSASRec's public code): ``q = norm(x)`` are the queries to ``x``; ``x = norm(q + attention(q, x))``,
      then ``x + drop(feed_forward(x))``.

    With ``drop_residual`` dropout also falls on the layer's output, residual stream included (MEANTIME's public code).
    ``finish`` maps the layer's input and its result to the layer's output.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        dropout: float,
        order: str = "pre",
        drop_residual: bool = False,
        finish: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.order = order
        self.drop_residual = drop_residual
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)
        self.finish = finish

    def forward(self, hidden: Tensor, layout: Layout, context: Any) -> Tensor:
        """The layer's output, shaped like its input; see ``Attention.forward`` for the arguments."""
        before = hidden
        if self.order == "pre":
            hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), layout, context))
            hidden = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        elif self.order == "post":
            hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, layout, context)))
            hidden = self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
        else:
            query = self.attention_norm(hidden)
            hidden = self.feed_forward_norm(query + self.attention(hidden, layout, context, query))
            hidden = hidden + self.dropout(self.feed_forward(hidden))
        if self.drop_residual:
            hidden = self.dropout(hidden)
        return hidden if self.finish is None else self.finish(before, hidden)


class TransformerEncoder(nn.Module):
    """Stack of layers, each called with states, layout and context, and a norm of the last one's output.

    With ``recompute``, false at first, training keeps the layers' inputs alone and computes what the backward pass
    needs once more (Chen et al., arXiv 1604.06174), for one group of rows after another: memory of one layer's group
    instead of all layers, for up to twice the time.
    """

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.recompute = False
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, hidden: Tensor, layout: Layout, context: Any, perturb: Perturbation | None = None
    ) -> list[Tensor]:
        """Output of each layer, shaped like the embedded events ``hidden``, Float[B, L, d] or Float[N, d].

        ``context`` has the results of the kernels for the batch; ``perturb`` gives the input that a layer gets, from
        its number (from 1) and its input.
        """
        states = []
        for number, layer in enumerate(self.layers, 1):
            if perturb is not None:
                hidden = perturb(number, hidden)
            hidden = self._run(layer, hidden, layout, context)
            states.append(hidden)
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return states

    def max_pairs(self, device: torch.device) -> int | None:
        """Most pairs of places that a group of several rows may have now."""
        if not (self.recompute and torch.is_grad_enabled()):
            return None
        return BLOCK_PAIRS.get(device.type, BLOCK_PAIRS_ELSEWHERE)

    def _run(self, layer: nn.Module, hidden: Tensor, layout: Layout, context: Any) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return layer(hidden, layout, context)
        parts = []
        for number, group in enumerate(layout.groups):
            own = context.single(number, group.places)
            parts.append(checkpoint(layer, hidden[group.places], layout.single(number), own, use_reentrant=False))
        return torch.cat(parts)
