"""Losses over positions that have a target. Pure functions.

Letters: ``N`` positions with a target, ``V`` items (padding included), ``k`` sampled negatives of each position,
``s+`` score of the item to find, ``s-`` of a sampled one. All are means over the ``N`` positions, and zero, though
connected to the scores, where nothing is asked.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK_SCORES = {"cpu": 1 << 19}
"""Scores that ``item_cross_entropy`` holds at a time, by kind of device: on a CPU what stays in its cache."""

BLOCK_SCORES_ELSEWHERE = 1 << 26

SAMPLED_LOSSES = ("BPR", "BCE", "sampled_softmax", "gBCE")
"""Values of ``loss_type`` that compare with sampled items; ``CE`` compares with all."""

LOSSES = ("CE", *SAMPLED_LOSSES)


def item_cross_entropy(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """``-log softmax(states @ weight.T + bias)[target]`` over all items (RecBole's ``CE``), in bounded memory.

    The scores ``[N, V]`` are never whole: some rows at a time are scored, and their part of the gradient is taken while
    they are at hand, so that nothing is computed twice. Exact; the softmax is taken in the type of ``weight`` (under
    autocast the products alone are in its type). The gradient can't be differentiated again.

    Parameters
    ----------
    states : Float[N, D]
        What asks.
    weight : Float[V, D]
        A row for each item.
    bias : Float[V], optional
        Added to each item's score.
    targets : Int64[N]
        The item to find.

    Returns
    -------
    Float[]
        The mean over the ``N``.
    """
    kind = states.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        total: Tensor = _ItemCrossEntropy.apply(states.to(weight.dtype), weight, bias, targets, low)
    return total / max(1, len(targets))


class _ItemCrossEntropy(torch.autograd.Function):
    """The sum over the rows; the gradient for a sum is ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, low: torch.dtype
    ) -> Tensor:
        asked = any(ctx.needs_input_grad)
        total = states.new_zeros(())
        by_state, by_weight = (torch.zeros_like(states), torch.zeros_like(weight)) if asked else (None, None)
        by_bias = torch.zeros_like(bias) if asked and bias is not None else None
        states, items = states.to(low), weight.to(low)
        block = BLOCK_SCORES.get(states.device.type, BLOCK_SCORES_ELSEWHERE)
        rows = max(1, block // len(weight))
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            target = targets[part].unsqueeze(1)
            scores = (states[part] @ items.T).to(weight.dtype)
            if bias is not None:
                scores += bias
            largest, place = scores.max(1, keepdim=True)
            found = scores.gather(1, target)
            share = scores.softmax(1)
            # The largest share never vanishes, so its logarithm gives the normaliser safely.
            total += (largest - share.gather(1, place).log() - found).sum()
            if by_state is None or by_weight is None:
                continue
            share.scatter_add_(1, target, share.new_full((1, 1), -1.0).expand_as(target))
            if by_bias is not None:
                by_bias += share.sum(0)
            share = share.to(low)
            by_state[part] = share @ items
            if low == weight.dtype:
                by_weight.addmm_(share.T, states[part])
            else:
                by_weight += share.T @ states[part]
        ctx.save_for_backward(by_state, by_weight, by_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if part is None else part * grads[0] for part in ctx.saved_tensors), None, None


def bayesian_personalized_ranking(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log sigmoid(s+ - s-)``, the mean over the negatives (Rendle et al., UAI 2009).

    RecBole's ``BPRLoss`` adds 1e-10 to the sigmoid, so that its gradient vanishes where ``s-`` is above ``s+`` by more
    than 23, as it often is where scores are distances; here it stays.

    Parameters
    ----------
    positive : Float[N] or Float[N, 1]
        Scores of the item to find.
    negative : Float[N] or Float[N, k]
        Scores of sampled ones.
    """
    loss = F.softplus(negative - positive)
    return loss.sum() / max(1, loss.numel())


def binary_cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log sigmoid(s+) - sum_k log(1 - sigmoid(s-))`` (SASRec, ICDM 2018; TiSASRec; with ``k = 1`` there).

    Parameters
    ----------
    positive : Float[N, 1]
        Scores of the item to find.
    negative : Float[N, k]
        Scores of sampled ones.
    """
    return (F.softplus(-positive).sum() + F.softplus(negative).sum()) / max(1, len(positive))


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log(exp(s+) / (exp(s+) + sum_k exp(s-)))``: cross entropy among the target and its negatives.

    Without a correction for how likely an item is to be drawn: for uniform negatives it would be the same for all.

    Parameters
    ----------
    positive : Float[N, 1]
        Scores of the item to find.
    negative : Float[N, k]
        Scores of sampled ones.
    """
    total = torch.cat([positive, negative], 1).logsumexp(1)
    return (total - positive.squeeze(1)).sum() / max(1, len(positive))


def generalised_binary_cross_entropy(positive: Tensor, negative: Tensor, n_items: int, t: float) -> Tensor:
    r"""``-(beta log sigmoid(s+) + sum_k log(1 - sigmoid(s-))) / (k + 1)`` (gSASRec, Petrov, Macdonald, RecSys 2023).

    ``beta = alpha (t (1 - 1 / alpha) + 1 / alpha)`` with the sampling rate ``alpha = k / (n_items - 1)``: ``t = 0``
    is BCE, ``t = 1`` undoes the overconfidence that few negatives bring about.

    Parameters
    ----------
    positive : Float[N, 1]
        Scores of the item to find.
    negative : Float[N, k]
        Scores of sampled ones.
    n_items : int
        Items that can be found, padding not counted.
    t : float
        Calibration, from 0 to 1.
    """
    count = negative.size(1)
    rate = count / (n_items - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    loss = beta * F.softplus(-positive).sum() + F.softplus(negative).sum()
    return loss / (count + 1) / max(1, len(positive))


def positive_versus_negative(to_positive: Tensor, between: Tensor) -> Tensor:
    """``max(0, d(seq, pos) - d(pos, neg))``, the mean over the negatives (STOSA, WWW 2022, section 3.5).

    Parameters
    ----------
    to_positive : Float[N, 1]
        Distances of the state to the item to find.
    between : Float[N, k]
        Distances of that item to sampled ones.
    """
    loss = (to_positive - between).clamp(min=0)
    return loss.sum() / max(1, loss.numel())


def sampled_loss(name: str, positive: Tensor, negative: Tensor, n_items: int, gbce_t: float) -> Tensor:
    """One of ``SAMPLED_LOSSES`` by its name, for Float[N, 1] and Float[N, k]; see there for the rest."""
    if name == "gBCE":
        return generalised_binary_cross_entropy(positive, negative, n_items, gbce_t)
    plain = {
        "BPR": bayesian_personalized_ranking,
        "BCE": binary_cross_entropy,
        "sampled_softmax": sampled_softmax,
    }
    return plain[name](positive, negative)
