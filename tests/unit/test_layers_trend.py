"""The trend against plain interpolation, and its part of the scores of a head."""

import copy

import numpy as np
import pytest
import torch

from recbole_adrrec.layers.heads import ItemHead, ProjectedItemHead, Trend

DAY = 86_400
DAYS = torch.tensor([15_000, 15_003, 15_010, 15_075])
RANK, ITEMS, WIDTH = 3, 10, 6


def trend(days=DAYS, spacing=28, decay=0.5):
    torch.manual_seed(0)
    made = Trend(ITEMS, RANK, days, spacing, decay).double()
    torch.nn.init.normal_(made.items)
    torch.nn.init.normal_(made.knots.weight)
    return made


@pytest.mark.parametrize("spacing", [28, 7.5, 1, 500])
@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_moments_are_interpolated_and_held_at_the_ends(spacing, kind):
    made = trend(spacing=spacing)
    first, last = 15_000 * DAY, 15_075 * DAY
    times = torch.tensor([0, first - 1, first, first + 1, first + 12 * DAY + 345, last - 1, last, last + 1, 2**33])
    knots = first + np.arange(made.knots.num_embeddings) * spacing * DAY
    assert knots[-1] >= last > (knots[-2] if len(knots) > 1 else 0)
    weight = made.knots.weight.detach().numpy()
    held = times.clamp(first, last).numpy()
    expected = np.stack([np.interp(held, knots, column) for column in weight.T], 1)
    np.testing.assert_allclose(made(times.to(kind)).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_seconds_are_told_apart_in_single_precision():
    made = trend(spacing=0.01).float()
    first = 15_000 * DAY
    near, far = made(torch.tensor([first + 100])), made(torch.tensor([first + 160]))
    assert not torch.allclose(near, far, atol=1e-3)


def test_one_day_of_training_is_one_knot():
    made = trend(days=torch.tensor([15_000]))
    assert made.knots.num_embeddings == 1
    assert torch.equal(made(torch.tensor([0, 2**33])), made.knots.weight.expand(2, -1))


def test_the_trained_range_travels_with_weights_and_copies():
    made, time = trend(), torch.tensor([15_020 * DAY])
    other = Trend(ITEMS, RANK, DAYS - 5, 28, 0.5).double()
    assert not torch.equal(other(time), made(time))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(time), made(time))
    assert torch.equal(copy.deepcopy(made)(time), made(time))


def test_the_penalty_is_half_the_squares_of_both_factors():
    made = trend(decay=0.2)
    squares = made.items.square().sum() + made.knots.weight.square().sum()
    torch.testing.assert_close(made.penalty(), 0.1 * squares)


def test_items_start_at_zero_with_a_gradient():
    torch.manual_seed(0)
    made = Trend(ITEMS, RANK, DAYS, 28, 0.0)
    assert not made.items.any()
    head = ItemHead(ITEMS)
    head.trend = made
    hidden, table, times = torch.randn(4, WIDTH), torch.randn(ITEMS, WIDTH), torch.arange(4) * DAY + 15_020 * DAY
    scores = head(hidden, table, query_time=times)
    torch.testing.assert_close(scores, hidden @ table.T)
    scores.square().sum().backward()
    assert made.items.grad.abs().min() > 0


@pytest.mark.parametrize("temperature", [None, 0.2])
@pytest.mark.parametrize("projected", [False, True])
def test_every_way_to_score_adds_the_trend(projected, temperature):
    torch.manual_seed(1)
    head = ProjectedItemHead(WIDTH, ITEMS, 1e-5, temperature) if projected else ItemHead(ITEMS, temperature)
    head = head.double()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    hidden, table = torch.randn(4, WIDTH).double(), torch.randn(ITEMS + 1, WIDTH).double()
    times = torch.arange(4) * 19 * DAY + 15_001 * DAY
    plain = head(hidden, table)
    head.trend = trend()
    expected = plain + head.trend(times) @ head.trend.items.T
    torch.testing.assert_close(head(hidden, table, query_time=times), expected)
    states, items, bias = head.as_product(hidden, table, query_time=times)
    assert states.shape == (4, WIDTH + RANK)
    torch.testing.assert_close(states @ items.T + (0 if bias is None else bias), expected)
    some = torch.tensor([9, 0, 9, 4])
    states, items, bias = head.as_product(hidden, table, some, times)
    torch.testing.assert_close(states @ items.T + (0 if bias is None else bias), expected[:, some])
    one, two = head.score_items(hidden, table, some, torch.stack([some, some.flip(0)], 1), query_time=times)
    torch.testing.assert_close(one, expected.gather(1, some[:, None])[:, 0])
    torch.testing.assert_close(two, expected.gather(1, torch.stack([some, some.flip(0)], 1)))
    with pytest.raises(ValueError, match="query_time: None"):
        head(hidden, table)


def test_a_trend_needs_days():
    with pytest.raises(ValueError, match="trained_days: 0 days"):
        trend(days=DAYS[:0])
