"""Losses against plain forms, one position and one negative at a time."""

import math

import helpers
import pytest
import torch
from test_layers_attention import largest_tensor
from torch.nn import functional as F

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


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_sampled_softmax_is_cross_entropy_among_candidates(smoothing):
    positive, negative = (part.requires_grad_() for part in scores())
    first = torch.zeros(N, dtype=torch.long)
    plain = F.cross_entropy(torch.cat([positive, negative], 1), first, label_smoothing=smoothing)
    found = losses.sampled_loss("sampled_softmax", positive, negative, ITEMS, T, smoothing)
    helpers.assert_same(found, plain, [positive, negative], rtol=1e-8)


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
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_by_blocks(monkeypatch, with_bias, block, spread, smoothing):
    monkeypatch.setitem(losses.BLOCK_SCORES, "cpu", block)
    torch.manual_seed(0)
    inputs = [torch.randn(N, 6) * spread, torch.randn(ITEMS, 6), torch.randn(ITEMS) if with_bias else None]
    inputs = [None if part is None else part.double().requires_grad_() for part in inputs]
    targets = torch.randint(ITEMS, (N,))
    states, weight, bias = inputs
    plain = F.cross_entropy(F.linear(states, weight, bias), targets, label_smoothing=smoothing)
    found = losses.item_cross_entropy(states, weight, bias, targets, smoothing)
    helpers.assert_same(found, plain, [part for part in inputs if part is not None], rtol=1e-8, atol=1e-8)


def test_cross_entropy_never_holds_all_scores():
    """Every tensor that is made is smaller than the scores of all rows."""
    states, weight = torch.randn(4096, 8, requires_grad=True), torch.randn(8192, 8, requires_grad=True)
    targets = torch.zeros(4096, dtype=torch.long)
    largest = largest_tensor(lambda: losses.item_cross_entropy(states, weight, None, targets)) / 4
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


def shared_written_out(states, candidates, bias, targets, negatives, smoothing):
    """Each position's cross entropy among its target and the negatives that aren't it."""
    scores = states @ candidates.T if bias is None else states @ candidates.T + bias
    rows = []
    for row, target in enumerate(targets.tolist()):
        others = [len(targets) + place for place, item in enumerate(negatives.tolist()) if item != target]
        among = scores[row, [row, *others]].unsqueeze(0)
        rows.append(F.cross_entropy(among, torch.tensor([0]), label_smoothing=smoothing))
    return torch.stack(rows).mean()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("block", [1, 4 * 3, 1 << 20])
@pytest.mark.parametrize("spread", [1.0, 200.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_shared_negatives_by_blocks(monkeypatch, with_bias, block, spread, smoothing):
    """In values and gradients, with negatives that occur twice, that are targets, and a position with no other."""
    monkeypatch.setitem(losses.BLOCK_SCORES, "cpu", block)
    torch.manual_seed(0)
    table = torch.randn(ITEMS, 6).double().requires_grad_()
    states = (torch.randn(N, 6) * spread).double().requires_grad_()
    offsets = torch.randn(ITEMS).double().requires_grad_() if with_bias else None
    targets = torch.tensor([3, 7, 7, 1, 39])
    given = [part for part in (states, table, offsets) if part is not None]
    for negatives in (torch.tensor([7, 2, 7, 39]), torch.tensor([7, 7, 7, 7])):
        items = torch.cat([targets, negatives])
        found, plain = (
            loss(states, table[items], None if offsets is None else offsets[items], targets, negatives, smoothing)
            for loss in (losses.shared_softmax, shared_written_out)
        )
        helpers.assert_same(found, plain, given, rtol=1e-7)


def test_shared_negatives_never_hold_all_scores():
    states, candidates = torch.randn(8192, 8, requires_grad=True), torch.randn(8192 + 512, 8, requires_grad=True)
    given = states, candidates, None, torch.arange(8192), torch.arange(512), 0.1
    assert largest_tensor(lambda: losses.shared_softmax(*given)) / 4 <= losses.BLOCK_SCORES["cpu"]


def test_shared_negatives_without_targets_and_in_half_precision():
    table, negatives = torch.randn(30, 16, requires_grad=True), torch.randint(1, 30, (12,))
    none = torch.zeros(0, 16, requires_grad=True), torch.zeros(0, dtype=torch.long)
    loss = losses.shared_softmax(none[0], table[negatives], None, none[1], negatives, 0.1)
    loss.backward()
    assert loss == 0
    assert none[0].grad is not None
    states, targets = torch.randn(64, 16), torch.randint(1, 30, (64,))
    candidates = table[torch.cat([targets, negatives])]
    plain = losses.shared_softmax(states, candidates, None, targets, negatives)
    with torch.autocast("cpu"):
        low = losses.shared_softmax(states.bfloat16(), candidates, None, targets, negatives)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=0.02, atol=0)
