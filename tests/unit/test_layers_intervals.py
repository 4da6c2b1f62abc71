"""Interval attention and Wasserstein attention against plain forms, with their pairs written out."""

import helpers
import pytest
import torch
from test_layers_attention import largest_tensor

from recbole_adrrec.layers.attention import DotProductAttention, captured_weights
from recbole_adrrec.layers.gaussian import GaussianOutput, WassersteinAttention
from recbole_adrrec.layers.gaussian_points import gaussian_points, negative_squared_distance
from recbole_adrrec.layers.intervals import IntervalAttention, TimeIntervals
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.times import smallest_gaps

SPAN = 5
GAPS = torch.tensor([1, 3600, 60])


def times_of(rows=2, length=6, user=(1, 2)):
    torch.manual_seed(0)
    times = 1_300_000_000 + torch.randint(0, 9000, (rows, length)).cumsum(1)
    valid = torch.ones(rows, length, dtype=torch.bool)
    valid[0, length // 2 :] = False
    user = None if user is None else torch.tensor(user)[:rows]
    return SequenceTimes(torch.arange(length).expand(rows, -1), times, times, valid, user)


def intervals(width=8, length=6, span=SPAN, **changes):
    torch.manual_seed(1)
    return TimeIntervals(width, length, span, GAPS, 0.0, **changes).double()


def plain_interval_attention(attention, kernels, hidden, at, mask):
    """TiSASRec's section 3.4 pair by pair, with ``L x L x d`` keys and values."""
    width, size = hidden.size(-1), hidden.size(-1) // attention.n_heads
    unit = GAPS[at.user]
    gap = (at.key_time.unsqueeze(2) - at.key_time.unsqueeze(1)).abs()
    index = torch.tensor(
        [[[min(int(g) // int(u), SPAN) for g in row] for row in rows] for rows, u in zip(gap, unit, strict=True)]
    )
    place = at.position
    key = attention.key(hidden) + kernels.position_key(place)
    value = attention.value(hidden) + kernels.position_value(place)
    keys = key.unsqueeze(1) + kernels.interval_key(index)  # [B, L, L, d]
    values = value.unsqueeze(1) + kernels.interval_value(index)
    query = attention.query(hidden)
    outputs, all_weights = [], []
    for head in range(attention.n_heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bid,bijd->bij", query[..., part], keys[..., part]) / size**0.5
        weights = torch.nan_to_num(scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1))
        all_weights.append(weights)
        outputs.append(torch.einsum("bij,bijd->bid", weights, values[..., part]))
    assert width == size * attention.n_heads
    return torch.cat(outputs, -1), torch.stack(all_weights, 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_interval_attention_equals_the_plain_form(heads, causal):
    kernels, at = intervals(), times_of()
    attention = IntervalAttention(8, heads, 0.0).double()
    hidden = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(at.valid, causal)
    with captured_weights(attention) as weights:
        fast = attention(hidden, layout, kernels(at, layout, hidden.dtype))
    plain, plain_weights = plain_interval_attention(attention, kernels, hidden, at, layout.groups[0].mask)
    torch.testing.assert_close(weights[0].plain, plain_weights.detach(), rtol=0, atol=1e-10)
    helpers.assert_same(fast, plain, [hidden, *attention.parameters(), *kernels.parameters()], atol=1e-11)


def test_no_keys_or_values_of_pairs_are_built():
    length, width = 48, 64
    kernels, at = intervals(width, length, span=40), times_of(1, length)
    attention = IntervalAttention(width, 2, 0.0).double()
    hidden = torch.randn(1, length, width, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(at.valid, True)
    fast = largest_tensor(lambda: attention(hidden, layout, kernels(at, layout, hidden.dtype)))
    assert fast <= 2 * 2 * length * length * 8
    assert fast < length * length * width * 8 / 10


def test_intervals_are_counted_in_the_users_smallest_gap():
    kernels = intervals()
    start = 2_000_000_000  # beyond the exact range of float32, and of int32 soon
    time = torch.tensor([[start, start + 59, start + 60, start + 3600]])
    for user, expected in ((1, [0, 0, 0, 1]), (2, [0, 0, 1, SPAN]), (0, [0, SPAN, SPAN, SPAN]), (9, [0] + [SPAN] * 3)):
        at = SequenceTimes(torch.arange(4)[None], time, time, torch.ones(1, 4, dtype=torch.bool), torch.tensor([user]))
        (index,) = kernels(at, Layout.padded(at.valid, True), torch.float64).index
        assert index[0, 0].tolist() == expected
    unknown = SequenceTimes(torch.arange(4)[None], time, time, torch.ones(1, 4, dtype=torch.bool))
    assert kernels.units(unknown).tolist() == [[1]]
    assert "smallest_gaps" in kernels.state_dict()


def test_intervals_do_not_depend_on_query_times():
    kernels, at = intervals(), times_of()
    later = SequenceTimes(at.position, at.query_time + 10**6, at.key_time, at.valid, at.user)
    layout = Layout.grouped(at.valid, True)
    now, then = (kernels(each, layout, torch.float64).index for each in (at, later))
    assert len(now) == len(layout.groups) == 2
    assert all(torch.equal(index, other) for index, other in zip(now, then, strict=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_smallest_gaps(dtype):
    user = torch.tensor([1, 2, 1, 1, 2, 4, 4, 1, 5])
    time = torch.tensor([100, 7, 40, 40, 7, 0, 10**9, 47, 3], dtype=dtype)
    assert smallest_gaps(user, time, 7).tolist() == [1, 7, 1, 1, 10**9, 1, 1]
    assert smallest_gaps(user[:0], time[:0], 2).tolist() == [1, 1]


def test_wasserstein_attention_equals_the_plain_form():
    torch.manual_seed(0)
    attention = WassersteinAttention(8, 2, 0.0).double()
    hidden = torch.randn(2, 5, 2, 8, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), True)
    mask = layout.groups[0].mask
    fast = attention(hidden, layout, None)

    def elu1(x):
        return torch.where(x > 0, x + 1, x.exp())

    mean, cov = hidden[:, :, 0], hidden[:, :, 1]
    names = ("query", "key", "value")
    means = {name: getattr(attention, name).mean(mean) for name in names}
    covs = {name: elu1(getattr(attention, name).covariance(cov)) for name in names}
    out_mean, out_cov = [], []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        distance = (means["query"][:, :, None, part] - means["key"][:, None, :, part]).square().sum(-1)
        roots = covs["query"][:, :, None, part].sqrt() - covs["key"][:, None, :, part].sqrt()
        scores = -(distance + roots.square().sum(-1)) / 2
        weights = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1)
        out_mean.append(weights @ means["value"][..., part])
        out_cov.append(weights.square() @ covs["value"][..., part])
    plain = torch.stack(
        [attention.output.mean(torch.cat(out_mean, -1)), attention.output.covariance(torch.cat(out_cov, -1))], 2
    )
    helpers.assert_same(fast, plain, [hidden, *attention.parameters()])


def test_distances_build_no_differences_of_pairs():
    length, width = 48, 64
    attention = WassersteinAttention(width, 2, 0.0).double()
    hidden = torch.randn(1, length, 2, width, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(torch.ones(1, length, dtype=torch.bool), True)
    assert largest_tensor(lambda: attention(hidden, layout, None)) <= 8 * 2 * max(length * length, length * 2 * width)


def test_distances_of_points_and_tiny_covariances():
    left, right = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(negative_squared_distance(left, right), -torch.cdist(left, right).square())
    zero = torch.zeros(2, requires_grad=True)
    gaussian_points(zero, zero).sum().backward()
    assert zero.grad.isfinite().all()


def test_the_bypass_hands_means_on_and_updates_covariances():
    before, after = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
    for bypass, source in ((True, before), (False, after)):
        output = GaussianOutput(bypass)(before, after)
        assert torch.equal(output[:, :, 0], source[:, :, 0])
        assert (output[:, :, 1] > 0).all()


@pytest.mark.parametrize("kind", ["interval", "wasserstein", "dot"])
def test_gradients_agree_with_finite_differences(kind):
    torch.manual_seed(0)
    at = times_of(2, 4)
    context, layout = None, Layout.padded(at.valid, True)
    if kind == "interval":
        attention, context = IntervalAttention(4, 2, 0.0).double(), intervals(4, 4)(at, layout, torch.float64)
    else:
        attention = (WassersteinAttention if kind == "wasserstein" else DotProductAttention)(4, 2, 0.0).double()
    names, parameters = zip(*attention.named_parameters(), strict=True)

    def attend(hidden, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(attention, given, (hidden, layout, context))

    shape = (2, 4, 2, 4) if kind == "wasserstein" else (2, 4, 4)
    hidden = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    values = [parameter.detach().requires_grad_() for parameter in parameters]
    assert torch.autograd.gradcheck(attend, (hidden, *values), fast_mode=True)
