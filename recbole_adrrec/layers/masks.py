"""Masks of the keys that a query may attend to, and the softmax under them.

Letters: ``B`` rows of a batch, ``H`` heads, ``L`` places of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attention_mask(valid: Tensor, causal: bool) -> Tensor:
    """Bool[B, 1, L, L], true where query ``i`` may attend to key ``j``.

    Parameters
    ----------
    valid : Bool[B, L]
        True at events, false at padding.
    causal : bool
        Whether query ``i`` is kept from keys ``j > i``.
    """
    length = valid.size(1)
    mask = valid[:, None, None, :].expand(-1, 1, length, -1)
    return mask.tril() if causal else mask


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the allowed keys; a query without any gets zeros, in values and gradients.

    Parameters
    ----------
    scores : Float[B, H, L, L]
        Attention scores, query by key.
    mask : Bool[B, 1, L, L]
        True where a key may be attended to.

    Returns
    -------
    Float[B, H, L, L]
        Weights: rows sum to one, or to zero where no key is allowed.
    """
    weights: Tensor = _MaskedSoftmax.apply(scores, mask)
    keyless = ~mask.any(-1, keepdim=True)
    # On a CPU a look at the few flags is cheaper than a pass over all weights; elsewhere it would wait for the device.
    if keyless.device.type == "cpu" and not torch.compiler.is_compiling() and not keyless.any():
        return weights
    return weights.masked_fill(keyless, 0.0)


def masked_softmax_(scores: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Values of ``masked_softmax`` alone, without gradients, into ``out``; overwrites the scores."""
    torch.softmax(scores.masked_fill_(~mask, torch.finfo(scores.dtype).min), -1, out=out)
    keyless = ~mask.any(-1, keepdim=True)
    return out.masked_fill_(keyless, 0.0) if keyless.any() else out


class _MaskedSoftmax(torch.autograd.Function):
    """Softmax of scores with those outside the mask set to the lowest number.

    A masked score has weight 0, and so its gradient is 0 already: the backward pass of ``masked_fill``, one more pass
    over all weights, is left out.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        ctx.save_for_backward(weights)
        ctx.dtype = scores.dtype
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        grad = torch.ops.aten._softmax_backward_data(grads[0], weights, -1, weights.dtype)
        return grad.to(ctx.dtype), None
