"""Losses against plain forms, one position and one negative at a time."""

import math

import pytest
import torch

from recbole_adrrec import losses

N, K, ITEMS, T = 5, 3, 40, 0.6


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def written_out(name, positive, negatives):
    """Loss of one position: floats in, float out."""
    if name == "BPR":
        return sum(-math.log(sigmoid(positive - s)) for s in negatives) / len(negatives)
    if name == "BCE":
        return -math.log(sigmoid(positive)) - sum(math.log(1 - sigmoid(s)) for s in negatives)
    if name == "sampled_softmax":
        return -math.log(math.exp(positive) / (math.exp(positive) + sum(map(math.exp, negatives))))
    alpha = len(negatives) / (ITEMS - 1)
    beta = alpha * (T * (1 - 1 / alpha) + 1 / alpha)
    terms = math.log(sigmoid(positive) ** beta) + sum(math.log(1 - sigmoid(s)) for s in negatives)
    return -terms / (len(negatives) + 1)


def scores():
    torch.manual_seed(0)
    return torch.randn(N, 1, dtype=torch.float64) * 2, torch.randn(N, K, dtype=torch.float64) * 2


@pytest.mark.parametrize("name", losses.SAMPLED_LOSSES)
def test_sampled_losses(name):
    positive, negative = scores()
    expected = sum(written_out(name, p, s) for p, s in zip(positive[:, 0].tolist(), negative.tolist(), strict=True))
    found = losses.sampled_loss(name, positive, negative, ITEMS, T)
    assert found.item() == pytest.approx(expected / N, abs=1e-12)


@pytest.mark.parametrize("name", losses.SAMPLED_LOSSES)
def test_far_scores_keep_finite_gradients(name):
    positive = torch.tensor([[-900.0]], requires_grad=True)
    loss = losses.sampled_loss(name, positive, torch.tensor([[900.0, 3.0]]), ITEMS, T)
    loss.backward()
    assert loss.isfinite()
    assert positive.grad.item() < 0


@pytest.mark.parametrize("name", losses.SAMPLED_LOSSES)
def test_nothing_asked_is_no_loss(name):
    positive, negative = torch.zeros(0, 1, requires_grad=True), torch.zeros(0, K, requires_grad=True)
    loss = losses.sampled_loss(name, positive, negative, ITEMS, T)
    loss.backward()
    assert loss == 0
    assert positive.grad is not None


def test_cross_entropy():
    torch.manual_seed(0)
    scores_, targets = torch.randn(N, 7, dtype=torch.float64), torch.randint(0, 7, (N,))
    expected = 0.0
    for row, target in zip(scores_.tolist(), targets.tolist(), strict=True):
        expected -= math.log(math.exp(row[target]) / sum(map(math.exp, row)))
    assert losses.cross_entropy(scores_, targets).item() == pytest.approx(expected / N, abs=1e-12)


def test_gbce_runs_from_bce_to_calibrated():
    positive, negative = scores()
    plain = losses.binary_cross_entropy(positive, negative) / (K + 1)
    torch.testing.assert_close(losses.generalised_binary_cross_entropy(positive, negative, ITEMS, 0.0), plain)
    calibrated = losses.generalised_binary_cross_entropy(positive, negative, ITEMS, 1.0)
    rate = K / (ITEMS - 1)
    parts = [losses.binary_cross_entropy(p, n) for p, n in ((positive, negative[:, :0]), (positive, negative))]
    torch.testing.assert_close(calibrated, (rate * parts[0] + parts[1] - parts[0]) / (K + 1))


def test_positive_versus_negative():
    to_positive, between = torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0, 5.0], [0.5, 0.0]])
    assert losses.positive_versus_negative(to_positive, between) == pytest.approx((2 + 0 + 0.5 + 1) / 4)
