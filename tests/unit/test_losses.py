"""Losses against plain forms, one position and one negative at a time."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("block", [1, 40 * 3, 1 << 20])
@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_cross_entropy_by_blocks(monkeypatch, with_bias, block, spread):
    monkeypatch.setitem(losses.BLOCK_SCORES, "cpu", block)
    torch.manual_seed(0)
    inputs = [torch.randn(N, 6) * spread, torch.randn(ITEMS, 6), torch.randn(ITEMS) if with_bias else None]
    inputs = [None if part is None else part.double().requires_grad_() for part in inputs]
    targets = torch.randint(ITEMS, (N,))
    states, weight, bias = inputs
    plain = F.cross_entropy(F.linear(states, weight, bias), targets)
    found = losses.item_cross_entropy(states, weight, bias, targets)
    torch.testing.assert_close(found, plain)
    given = [part for part in inputs if part is not None]
    expected = torch.autograd.grad(3 * plain, given)
    torch.testing.assert_close(torch.autograd.grad(3 * found, given), expected)


def test_cross_entropy_never_holds_all_scores():
    """Every tensor that is made is smaller than the scores of all rows."""
    states, weight = torch.randn(4096, 8, requires_grad=True), torch.randn(8192, 8, requires_grad=True)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for part in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, part.numel() if isinstance(part, torch.Tensor) else 0)
            return result

    with Watch():
        losses.item_cross_entropy(states, weight, None, torch.zeros(4096, dtype=torch.long)).backward()
    assert states.numel() < largest <= losses.BLOCK_SCORES["cpu"]


def test_cross_entropy_without_gradients_and_in_half_precision():
    torch.manual_seed(0)
    states, weight, targets = torch.randn(64, 16), torch.randn(30, 16), torch.randint(30, (64,))
    plain = F.cross_entropy(states @ weight.T, targets)
    torch.testing.assert_close(losses.item_cross_entropy(states, weight, None, targets), plain)
    weight.requires_grad_()
    with torch.autocast("cpu"):
        low = losses.item_cross_entropy(states.bfloat16(), weight, None, targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.detach(), plain, rtol=0.02, atol=0)
    low.backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(states @ weight.T, targets), weight)
    torch.testing.assert_close(weight.grad, expected, rtol=0.02, atol=0.002)
