"""Losses over positions that have a target. Pure functions.

Letters: ``N`` positions with a target, ``V`` items (padding included), ``k`` sampled negatives of each position,
``s+`` score of the item to find, ``s-`` of a sampled one. All are means over the ``N`` positions, and zero, though
connected to the scores, where nothing is asked.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLED_LOSSES = ("BPR", "BCE", "sampled_softmax", "gBCE")
"""Values of ``loss_type`` that compare with sampled items; ``CE`` compares with all."""

LOSSES = ("CE", *SAMPLED_LOSSES)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """``-log softmax(scores)[target]`` over all items (RecBole's ``CE``).

    Parameters
    ----------
    scores : Float[N, V]
        Scores of all items.
    targets : Int64[N]
        The item to find.
    """
    return F.cross_entropy(scores, targets, reduction="sum") / max(1, len(targets))


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
