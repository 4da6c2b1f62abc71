"""Softmax under a mask; and softmax, dropout and the sum of values in one, on a CPU and on a GPU.

On a CPU the latter three cost little arithmetic and many passes over ``[B, H, L, L]`` weights, each through memory.
``fused_cpu_attention`` takes one block of rows through all of them while it is in the cache, and keeps only the weights
for the backward pass: what dropout draws is drawn again there.

Letters: ``B`` rows of a batch, ``N`` events, ``H`` heads, ``L`` places, ``dh`` width of a head, ``F`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_adrrec.layers.dropout import DropoutBits, drop_threshold
from recbole_adrrec.layers.layout import JaggedGroup

BLOCK_WEIGHTS = 1 << 19
"""Attention weights that are worked on at a time: what fits a CPU's cache."""


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Weights, Float[B, H, L, L]: softmax of the scores, Float[B, H, L, L], over the keys that a query may attend to.

    ``mask``, Bool[B, 1, L, L], is true at these. A query without any gets zeros, in values and gradients.
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


def fused_cpu_attention(scores: list[Tensor], mask: Tensor, values: Tensor, dropout: float) -> Tensor:
    """``dropout(softmax(scores)) @ values``, Float[B, H, L, dh], which can be differentiated once.

    Parameters
    ----------
    scores : list of Float[B, h, L, L]
        Attention scores, query by key, of some heads each; ``H`` together.
    mask : Bool[B, 1, L, L]
        True where a key may be attended to; a query without any gets zeros.
    values : Float[B, H, L, dh]
        Values that are summed.
    dropout : float
        Share of the weights that is dropped, in steps of ``dropout.STEPS``; 0 outside of training.
    """
    threshold = drop_threshold(dropout)
    seed = DropoutBits.draw_seed() if threshold else 0
    summed: Tensor = _FusedAttention.apply(mask, values, threshold, seed, *scores)
    return summed


def _blocks(rows: int, weights_per_row: int) -> Iterator[slice]:
    size = max(1, BLOCK_WEIGHTS // max(1, weights_per_row))
    return (slice(start, start + size) for start in range(0, rows, size))


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mask: Tensor, values: Tensor, threshold: int, seed: int, *scores: Tensor) -> Tensor:
        rows, heads, _, _ = values.shape
        pairs = scores[0].shape[2:]
        weights = values.new_empty(rows, heads, *pairs) if any(ctx.needs_input_grad) else None
        summed = values.new_empty(rows, heads, pairs[0], values.size(3))
        bits = DropoutBits(seed, threshold)
        for block in _blocks(rows, heads * pairs.numel()):
            part = torch.cat([score[block] for score in scores], 1)
            own = masked_softmax_(part, mask[block], torch.empty_like(part) if weights is None else weights[block])
            torch.matmul(bits.drop(own), values[block], out=summed[block])
        ctx.save_for_backward(weights, values)
        ctx.threshold, ctx.seed, ctx.heads = threshold, seed, [score.size(1) for score in scores]
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weights, values = ctx.saved_tensors
        rows = len(weights)
        on_values = torch.empty_like(values)
        on_scores = [weights.new_empty(rows, heads, *weights.shape[2:]) for heads in ctx.heads]
        bits = DropoutBits(ctx.seed, ctx.threshold)
        for block in _blocks(rows, weights[:1].numel()):
            own, factors = weights[block], bits.factors(weights[block])
            dropped = own if factors is None else own * factors
            torch.matmul(dropped.transpose(2, 3), grad[block], out=on_values[block])
            on_weights = grad[block] @ values[block].transpose(2, 3)
            if factors is not None:
                on_weights.mul_(factors)
            on_block = torch.ops.aten._softmax_backward_data(on_weights, own, -1, own.dtype)
            for target, part in zip(on_scores, on_block.split(ctx.heads, 1), strict=True):
                target[block] = part
        return None, on_values, None, None, *on_scores


@cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(group: JaggedGroup) -> Any:
    """torch's ``BlockMask`` of the pairs that may attend."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return group.may_attend(query, key)

    count = len(group.row)
    return create_block_mask(may_attend, None, None, count, count, device=str(group.row.device))


def flex_attend(query: Tensor, key: Tensor, value: Tensor, group: JaggedGroup) -> Tensor:
    """``softmax(query @ key) @ value`` within each row, Float[1, H, N, dh].

    On a GPU by torch's ``flex_attention``, which skips blocks of pairs of different rows; on a CPU, which has no
    gradient of it, in its plain form with all ``N x N`` pairs: for tests alone. Queries and keys are Float[1, H, N, F],
    values Float[1, H, N, dh].
    """
    if query.is_cuda:
        return _compiled()(query, key, value, block_mask=block_mask(group), scale=1.0)
    place = torch.arange(query.size(2), device=query.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=group.may_attend(place.unsqueeze(1), place), scale=1.0
    )
