"""Losses over positions that have a target. Pure functions.

Letters: ``N`` positions with a target, ``D`` width of states and items, ``V`` items (padding included), ``k`` sampled
negatives of each position; ``s+``, ``positive``: scores of the target items, Float[N, 1]; ``s-``, ``negative``: scores
of the sampled ones, Float[N, k]. All are means over the ``N`` positions, and zero, though connected to the scores,
where there are none.

Label smoothing by ``e`` (Szegedy et al., CVPR 2016; as in ``torch.nn.functional.cross_entropy``) spreads a share of the
label over all ``C`` candidates. It is written as a term beside the cross entropy, ``e (s+ - mean of all candidates'
scores)``: the means are products with the mean candidate, so that it costs no pass over all scores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK_SCORES = {"cpu": 1 << 20}
"""Scores that ``item_cross_entropy`` holds at a time, by kind of device: on a CPU what stays in its cache."""

BLOCK_SCORES_ELSEWHERE = 1 << 26

SAMPLED_LOSSES = ("BPR", "BCE", "sampled_softmax", "gBCE")
"""Values of ``loss_type`` that compare with sampled items; ``CE`` compares with all."""

LOSSES = ("CE", *SAMPLED_LOSSES)

SMOOTHED_LOSSES = ("CE", "sampled_softmax")
"""Values of ``loss_type`` that are a softmax over candidates, so that labels can be smoothed."""


def item_cross_entropy(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float = 0.0
) -> Tensor:
    """``-log softmax(states @ weight.T + bias)[target]`` over all items (RecBole's ``CE``), in bounded memory.

    The scores ``[N, V]`` are never whole: some rows at a time are scored, and their part of the gradient is taken while
    they are at hand, so that nothing is computed twice. Exact; the softmax is taken in the type of ``weight`` (under
    autocast the products alone are in its type). The gradient can't be differentiated again.

    ``states``, Float[N, D], are the query states, ``targets``, Int64[N], their items; ``weight``, Float[V, D], has a
    row for each item, ``bias``, Float[V], what is added to its score, if anything; ``smoothing`` is the share of the
    label that is spread over all ``V``, in [0, 1).
    """
    product_dtype, kind = _product_dtype(weight), states.device.type
    with torch.autocast(kind, enabled=False):
        states = states.to(weight.dtype)
        total: Tensor = _ItemCrossEntropy.apply(states, weight, bias, targets, product_dtype)
        if smoothing:
            typical = F.embedding(targets, weight) - weight.mean(0)
            total = total + smoothing * (states * typical).sum()
            if bias is not None:
                total = total + smoothing * (bias[targets] - bias.mean()).sum()
    return total / max(1, len(targets))


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The type of matrix products: autocast's where it is on, else that of ``weight``."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _scores(states: Tensor, items: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    scores = (states @ items.T).to(dtype)
    return scores if bias is None else scores + bias


def _rows_of_block(states: Tensor, candidates: Tensor) -> int:
    """Rows that are scored at a time."""
    block = BLOCK_SCORES.get(states.device.type, BLOCK_SCORES_ELSEWHERE)
    return max(1, block // max(1, len(candidates)))


class _SumWithGradient(torch.autograd.Function):
    """A sum whose forward pass saves the gradients by its first inputs, so that nothing is kept or computed again."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ready = [None if part is None else part * grads[0] for part in ctx.saved_tensors]
        return *ready, *[None] * (len(ctx.needs_input_grad) - len(ready))


class _ItemCrossEntropy(_SumWithGradient):
    """The sum over the rows of ``item_cross_entropy``."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, product_dtype: torch.dtype
    ) -> Tensor:
        total = states.new_zeros(())
        by_state, by_weight = torch.zeros_like(states), torch.zeros_like(weight)
        by_bias = None if bias is None else torch.zeros_like(bias)
        states, items = states.to(product_dtype), weight.to(product_dtype)
        rows = _rows_of_block(states, weight)
        # On a CPU one piece of memory serves all blocks: it stays in the cache.
        reused = states.device.type == "cpu" and product_dtype == weight.dtype
        memory = states.new_empty(min(rows, len(states)), len(weight)) if reused else None
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            target = targets[part].unsqueeze(1)
            if memory is None:
                share = _scores(states[part], items, bias, weight.dtype).softmax(1)
            else:
                scores = torch.mm(states[part], items.T, out=memory[: len(target)])
                share = torch.softmax(scores if bias is None else scores.add_(bias), 1, out=scores)
            found = share.gather(1, target)
            lost = found < torch.finfo(found.dtype).tiny
            if lost.any():
                # Too small a share has no logarithm: these few are taken from their scores.
                row = lost.nonzero()[:, 0]
                again = _scores(states[part][row], items, bias, weight.dtype).log_softmax(1)
                total -= again.gather(1, target[row]).sum()
            total -= found[~lost].log().sum()
            share.scatter_add_(1, target, share.new_full((1, 1), -1.0).expand_as(target))
            if by_bias is not None:
                by_bias += share.sum(0)
            share = share.to(product_dtype)
            by_state[part] = share @ items
            if product_dtype == weight.dtype:
                by_weight.addmm_(share.T, states[part])
            else:
                by_weight += share.T @ states[part]
        ctx.save_for_backward(by_state, by_weight, by_bias)
        return total


def shared_softmax(
    states: Tensor, candidates: Tensor, bias: Tensor | None, targets: Tensor, negatives: Tensor, smoothing: float = 0.0
) -> Tensor:
    """``sampled_softmax`` with the same ``k`` negatives for all positions: one matrix product.

    A negative that is a position's own target is left out there. The scores ``[N, k]`` are never whole, as in
    ``item_cross_entropy``; under autocast the products alone are in its type. The gradient can't be differentiated
    again.

    Parameters
    ----------
    states, targets, negatives : Float[N, D], Int64[N], Int64[k]
        Query states, target items and sampled items.
    candidates, bias : Float[N + k, D], Float[N + k]
        A row for each target, then one for each negative, and what is added to their scores, if anything.
    smoothing : float
        Share of the label that is spread over the position's candidates, its target included, in [0, 1).
    """
    product_dtype, kind = _product_dtype(candidates), states.device.type
    counts = [len(targets), len(negatives)]
    with torch.autocast(kind, enabled=False):
        states = states.to(candidates.dtype)
        wanted, drawn = candidates.split(counts)
        found = (states * wanted).sum(1)
        drawn_bias = None
        if bias is not None:
            wanted_bias, drawn_bias = bias.split(counts)
            found = found + wanted_bias
        given = states, found, drawn, drawn_bias, targets, negatives, product_dtype
        total: Tensor = _SharedCrossEntropy.apply(*given)
        if smoothing:
            # A negative that is left out would have had the score of the target.
            out = (negatives.sort().values, targets)
            left_out = torch.searchsorted(*out, right=True) - torch.searchsorted(*out)
            others = states @ drawn.sum(0) + (0.0 if drawn_bias is None else drawn_bias.sum())
            mean = (others + (1 - left_out) * found) / (1 + len(negatives) - left_out)
            total = total + smoothing * (found - mean).sum()
    return total / max(1, len(targets))


class _SharedCrossEntropy(_SumWithGradient):
    """The sum over the rows of ``shared_softmax``, which scores each row's target beforehand (``found``, Float[N])."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        found: Tensor,
        drawn: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        negatives: Tensor,
        product_dtype: torch.dtype,
    ) -> Tensor:
        total = states.new_zeros(())
        by_state, by_found, by_drawn = torch.zeros_like(states), torch.zeros_like(found), torch.zeros_like(drawn)
        by_bias = None if bias is None else torch.zeros_like(bias)
        low_states, items = states.to(product_dtype), drawn.to(product_dtype)
        rows = _rows_of_block(states, drawn)
        # Half as wide numbers are compared twice as fast.
        targets, negatives = targets.int().unsqueeze(1), negatives.int()
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            scores = (low_states[part] @ items.T).to(drawn.dtype)
            if bias is not None:
                scores += bias
            scores.masked_fill_(targets[part] == negatives, -torch.inf)
            own = found[part].unsqueeze(1)
            largest = torch.maximum(scores.amax(1, keepdim=True), own)
            share = scores.sub_(largest).exp_()
            own_share = (own - largest).exp()
            normaliser = share.sum(1, keepdim=True) + own_share
            total += (normaliser.log() + (largest - own)).sum()
            share /= normaliser
            by_found[part] = (own_share / normaliser - 1).squeeze(1)
            if by_bias is not None:
                by_bias += share.sum(0)
            share = share.to(product_dtype)
            by_state[part] = share @ items
            by_drawn += share.T @ low_states[part]
        ctx.save_for_backward(by_state, by_found, by_drawn, by_bias)
        return total


def bayesian_personalized_ranking(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log sigmoid(s+ - s-)``, the mean over the negatives (Rendle et al., UAI 2009); also for Float[N] each.

    RecBole's ``BPRLoss`` adds 1e-10 to the sigmoid, so that its gradient vanishes where ``s-`` is above ``s+`` by more
    than 23, as it often is where scores are distances; here it stays.
    """
    loss = F.softplus(negative - positive)
    return loss.sum() / max(1, loss.numel())


def binary_cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log sigmoid(s+) - sum_k log(1 - sigmoid(s-))`` (SASRec, ICDM 2018; TiSASRec; with ``k = 1`` there)."""
    return (F.softplus(-positive).sum() + F.softplus(negative).sum()) / max(1, len(positive))


def sampled_softmax(positive: Tensor, negative: Tensor, smoothing: float = 0.0) -> Tensor:
    """``-log(exp(s+) / (exp(s+) + sum_k exp(s-)))``: cross entropy among the target and its negatives.

    Without a correction for how likely an item is to be drawn: for uniform negatives it would be the same for all.
    ``smoothing`` is the share of the label that is spread over the ``k + 1`` candidates, in [0, 1).
    """
    scores = torch.cat([positive, negative], 1)
    label = positive if not smoothing else (1 - smoothing) * positive + smoothing * scores.mean(1, keepdim=True)
    return (scores.logsumexp(1, keepdim=True) - label).sum() / max(1, len(positive))


def generalised_binary_cross_entropy(positive: Tensor, negative: Tensor, n_items: int, t: float) -> Tensor:
    """``-(beta log sigmoid(s+) + sum_k log(1 - sigmoid(s-))) / (k + 1)`` (gSASRec, Petrov, Macdonald, RecSys 2023).

    ``beta = alpha (t (1 - 1 / alpha) + 1 / alpha)`` with the sampling rate ``alpha = k / (n_items - 1)``; ``n_items``
    does not count padding. ``t = 0`` is BCE, ``t = 1`` undoes the overconfidence that few negatives bring about.
    """
    count = negative.size(1)
    rate = count / (n_items - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    loss = beta * F.softplus(-positive).sum() + F.softplus(negative).sum()
    return loss / (count + 1) / max(1, len(positive))


def positive_versus_negative(to_positive: Tensor, between: Tensor) -> Tensor:
    """``max(0, d(seq, pos) - d(pos, neg))``, the mean over the negatives (STOSA, WWW 2022, section 3.5).

    ``to_positive``, Float[N, 1], are distances of query states to target items, ``between``, Float[N, k], those of
    target items to sampled ones.
    """
    loss = (to_positive - between).clamp(min=0)
    return loss.sum() / max(1, loss.numel())


def sampled_loss(
    name: str, positive: Tensor, negative: Tensor, n_items: int, gbce_t: float, smoothing: float = 0.0
) -> Tensor:
    """One of ``SAMPLED_LOSSES`` by its name; see there for the arguments."""
    if name == "gBCE":
        return generalised_binary_cross_entropy(positive, negative, n_items, gbce_t)
    if name == "sampled_softmax":
        return sampled_softmax(positive, negative, smoothing)
    plain = {"BPR": bayesian_personalized_ranking, "BCE": binary_cross_entropy}
    return plain[name](positive, negative)
