"""Pointwise attention: buckets of gaps, masked keys, and what a model sees of the time of the next event."""

import math

import helpers
import pytest
import torch

from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.layers.pointwise import LAST_BUCKET, PointwiseAttention, gap_buckets
from recbole_adrrec.models.base import NoContext
from recbole_adrrec.models.hstu import HSTU


def test_buckets_of_gaps():
    gaps = torch.tensor([0, 1, -1, 2, 60, 3600, -3600, 86_400, 10**9])
    expected = [math.floor(math.log(max(abs(gap), 1)) / 0.301) for gap in gaps.tolist()]
    assert gap_buckets(gaps).tolist() == expected
    assert gap_buckets(gaps.double() + 0.5)[0] == 0
    assert gap_buckets(torch.tensor([1e300], dtype=torch.float64)).tolist() == [LAST_BUCKET]


@pytest.mark.parametrize("bucket", [45, 60, 70])
def test_whole_seconds_stay_on_their_side_of_an_edge(bucket):
    edge = math.exp(0.301 * bucket)
    around = torch.tensor([math.floor(edge), math.ceil(edge)])
    assert gap_buckets(around).tolist() == [bucket - 1, bucket]


def attention(**changes):
    given = {
        **{"hidden_size": 4, "n_heads": 2, "query_size": 2, "value_size": 3, "max_seq_length": 6},
        **{"dropout": 0.0, "gated_dropout": 0.0, "layer_norm_eps": 1e-6, "position_bias": True, "time_bias": False},
    }
    torch.manual_seed(0)
    return PointwiseAttention(**{**given, **changes})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keys_that_are_masked_have_no_weight_and_no_gradient(dtype):
    part, seen = attention().to(dtype), []
    part.refinement.register_forward_hook(lambda _, given, weights: seen.append(weights))
    valid = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    states = (3 * torch.randn(3, 3, 4)).to(dtype).requires_grad_()
    layout = Layout.padded(valid, causal=True)
    part(states, layout, NoContext())[valid].sum().backward()
    (weights,) = seen
    masked = ~layout.groups[0].mask.expand_as(weights)
    assert (weights[masked] == 0).all()
    assert (weights[~masked] != 0).all()
    assert states.grad.isfinite().all()
    assert (states.grad[~valid] == 0).all()


def test_sums_grow_with_the_number_of_events():
    """The divisor is the most places of a row, not the events that there are."""
    model = helpers.build(HSTU, position_bias=False, time_bias=False, MAX_ITEM_LIST_LENGTH=7)
    wider = helpers.build(HSTU, position_bias=False, time_bias=False, MAX_ITEM_LIST_LENGTH=14)
    wider.load_state_dict(
        {name: part for name, part in model.state_dict().items() if "position" not in name}, strict=False
    )
    wider.item_embedding.position.weight.data[:7] = model.item_embedding.position.weight.data
    row = helpers.rows([5])
    first, second = (each.explain(row).plain[0] for each in (model, wider))
    torch.testing.assert_close(first, 2 * second)


@pytest.mark.parametrize("told", [False, True])
def test_the_time_of_the_next_event_is_seen_by_those_who_are_told(told):
    model = helpers.build(HSTU, use_query_time=told)
    row, window = helpers.rows([5, 3]), helpers.rows([5, 3], targets="causal")
    later = {
        name: {**batch, "timestamp": batch["timestamp"] + 400 * 86_400}
        for name, batch in (("row", row), ("window", window))
    }
    assert torch.equal(model.full_sort_predict(row), model.full_sort_predict(later["row"])) != told
    assert torch.equal(model.calculate_loss(window), model.calculate_loss(later["window"])) != told


def test_dropout_falls_on_sums_and_on_gated_sums():
    states, layout = torch.randn(2, 3, 4), Layout.padded(torch.ones(2, 3, dtype=torch.bool), causal=True)
    plain = attention()(states, layout, NoContext())
    for name in ("dropout", "gated_dropout"):
        part = attention(**{name: 0.5})
        assert not torch.allclose(part.train()(states, layout, NoContext()), plain)
        torch.testing.assert_close(part.eval()(states, layout, NoContext()), plain)
