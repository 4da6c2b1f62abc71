"""Softmax, dropout and the sum of values in one, against the steps one after another."""

import helpers
import pytest
import torch

from recbole_adrrec.layers import softmax as module
from recbole_adrrec.layers.attention import DotProductAttention, captured_weights
from recbole_adrrec.layers.layout import Layout, attention_mask
from recbole_adrrec.layers.softmax import fused_cpu_attention, masked_softmax

ROWS, LENGTH, WIDTH = 5, 7, 3
HEADS = (2, 1, 1)


@pytest.fixture(params=[1, 500, 1 << 19], ids=["row by row", "two rows", "at once"])
def block(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_WEIGHTS", request.param)


def inputs(causal=True, dtype=torch.float64):
    """Scores of three groups of heads, a mask with rows of padding alone, and values."""
    torch.manual_seed(0)
    scores = [torch.randn(ROWS, heads, LENGTH, LENGTH, dtype=dtype, requires_grad=True) for heads in HEADS]
    values = torch.randn(ROWS, sum(HEADS), LENGTH, WIDTH, dtype=dtype, requires_grad=True)
    length = torch.tensor([7, 3, 0, 5, 1])
    return scores, attention_mask(torch.arange(LENGTH) < length.unsqueeze(1), causal), values


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("causal", [True, False])
def test_values_and_gradients_are_those_of_the_steps(causal):
    scores, mask, values = inputs(causal)
    before = [score.detach().clone() for score in scores]
    made = fused_cpu_attention(scores, mask, values, 0.0)
    plain = masked_softmax(torch.cat(scores, 1), mask) @ values
    helpers.assert_same(made, plain, [*scores, values], atol=1e-14)
    assert all(torch.equal(score, was) for score, was in zip(scores, before, strict=True))
    assert not made[2].any()


def dropped(dropout, seed=3):
    """Weights after dropout: the sums of unit vectors are the weights themselves."""
    scores, mask, _ = inputs()
    values = torch.eye(LENGTH, dtype=torch.float64).expand(ROWS, sum(HEADS), -1, -1).contiguous().requires_grad_()
    torch.manual_seed(seed)
    made = fused_cpu_attention(scores, mask, values, dropout)
    return scores, mask, values, made, masked_softmax(torch.cat(scores, 1), mask)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dropout", [0.3, 0.5])
def test_gradients_see_what_was_dropped(dropout):
    """The backward pass draws again; it must draw the same."""
    scores, _, values, made, weights = dropped(dropout)
    allowed = weights > 0
    factor = torch.where(allowed, made.detach() / weights.detach().where(allowed, torch.ones(())), 0.0)
    share = 1 - round(dropout * 65536) / 65536
    assert set(factor[allowed].mul(share).round(decimals=9).tolist()) == {0.0, 1.0}
    plain = (weights * factor) @ values
    helpers.assert_same(made, plain, [*scores, values], atol=1e-14)


@pytest.mark.usefixtures("block")
def test_torch_decides_what_is_dropped():
    assert torch.equal(dropped(0.5)[3], dropped(0.5)[3])
    assert not torch.equal(dropped(0.5)[3], dropped(0.5, seed=4)[3])
    assert not dropped(1.0)[3].any()


def test_the_share_that_is_dropped():
    torch.manual_seed(0)
    scores, length = torch.zeros(40, 2, 50, 50), 50
    values = torch.eye(length).expand(40, 2, -1, -1)
    kept = fused_cpu_attention([scores], torch.ones(40, 1, length, length, dtype=torch.bool), values, 0.2) > 0
    error = (0.2 * 0.8 / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - 0.8) < 4 * error


@pytest.mark.usefixtures("block")
def test_without_gradients_it_is_the_same():
    scores, mask, values = inputs()
    made = fused_cpu_attention(scores, mask, values, 0.0)
    with torch.no_grad():
        assert torch.equal(fused_cpu_attention(scores, mask, values, 0.0), made)


def test_what_it_keeps():
    """Weights once, however many heads and whatever is dropped; the steps keep them three times."""
    scores, mask, values = inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part.numel()) or part, lambda part: part):
        fused_cpu_attention(scores, mask, values, 0.5)
    assert sum(kept) == ROWS * sum(HEADS) * LENGTH**2 + values.numel()


@pytest.mark.parametrize("hooked", ["refinement", "dropout"])
def test_steps_are_taken_where_somebody_looks(hooked):
    torch.manual_seed(0)
    attention = DotProductAttention(6, 2, 0.0).train()
    hidden, layout = torch.randn(2, 4, 6), Layout.padded(torch.ones(2, 4, dtype=torch.bool), True)
    attention.dropout.p = 1e-9  # rounds to nothing, but is no zero
    at_once = attention(hidden, layout, None)
    with captured_weights(attention) as weights:
        torch.testing.assert_close(attention(hidden, layout, None), at_once)
    assert len(weights) == 1
    seen = []
    getattr(attention, hooked).register_forward_pre_hook(lambda part, given: seen.append(given[0].shape))
    attention(hidden, layout, None)
    assert seen == [(2, 2, 4, 4)]
