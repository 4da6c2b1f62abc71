"""Losses over positions that have a target. Pure functions.

Letters: ``N`` positions with a target, ``V`` items.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log softmax(scores)[target]`` (RecBole's ``CE``); zero where nothing is asked.

    Parameters
    ----------
    scores : Float[N, V]
        Scores of all items.
    targets : Int64[N]
        The item to find.

    Returns
    -------
    Float[]
        Loss; connected to the scores also where ``N`` is 0.
    """
    return F.cross_entropy(scores, targets, reduction="sum") / max(1, len(targets))


def bayesian_personalized_ranking(positive: Tensor, negative: Tensor, gamma: float = 1e-10) -> Tensor:
    """Mean of ``-log(gamma + sigmoid(positive - negative))`` (Rendle et al., UAI 2009).

    ``gamma`` keeps the logarithm finite, as in RecBole's ``BPRLoss``. Zero where nothing is asked.

    Parameters
    ----------
    positive, negative : Float[N]
        Scores of the item to find and of a sampled one.
    gamma : float
        Added to the probability.
    """
    loss = -torch.log(gamma + torch.sigmoid(positive - negative))
    return loss.sum() / max(1, len(positive))
