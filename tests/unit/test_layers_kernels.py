"""Kernels against their definitions, written out."""

import datetime
import math
from dataclasses import replace

import helpers
import pytest
import torch

from recbole_adrrec.layers import relative_kernels
from recbole_adrrec.layers.kernels import (
    ABSOLUTE_KERNELS,
    RELATIVE_KERNELS,
    DayKernel,
    HourKernel,
    MixKernels,
    MonthKernel,
    SmoothDayKernel,
    WeekdayKernel,
)
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.layers.relative_kernels import (
    Clock,
    DistanceBiasKernel,
    GapBiasKernel,
    KernelSettings,
    SinusoidKernel,
)

WIDTH, UNIT, FREQ, FARTHEST = 6, 3600.0, 10000.0, 2
CLOCK = Clock(UNIT, FREQ)
SETTINGS = KernelSettings(WIDTH, 9, lambda: torch.arange(15000, 15100), lambda: CLOCK, max_distance=FARTHEST)


def on_days(days):
    return replace(SETTINGS, trained_days=lambda: torch.tensor(days, dtype=torch.long))


def times_of(rows=3, length=5, own_query_time=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randint(0, 5 * 86400, (rows, length + 1), generator=generator)
    times = helpers.FIRST_TIME + gaps.cumsum(1)
    key = times[:, :-1]
    return SequenceTimes(
        torch.arange(length).expand(rows, -1),
        key if own_query_time else times[:, 1:],
        key,
        torch.ones(rows, length, dtype=torch.bool),
    )


def gap_bucket(gap):
    """Bucket of a gap in seconds."""
    return 0 if gap == 0 else 1 + min(math.floor(2 * math.log2(1 + gap / UNIT)), math.floor(2 * math.log2(1 + FREQ)))


def distance_bucket(distance):
    """Bucket of a distance in places, as T5 has them for both directions."""
    size = abs(distance)
    if size >= 16:
        size = min(31, 16 + math.floor(math.log(size / 16) / math.log(128 / 16) * 16))
    return size + 32 * (distance < 0)


def written_out_features(name, kernel, at):
    """Features of all pairs, [B or 1, L, L, F]."""
    place = torch.arange(at.position.size(1))
    distance = place.unsqueeze(1) - place
    if name == "distance":
        return kernel.embedding(distance.clamp(-FARTHEST, FARTHEST) + FARTHEST).unsqueeze(0)
    if name == "distance_bias":
        return one_hot(distance.unsqueeze(0), distance_bucket, kernel.width)
    if name == "gap_bias":
        gap = (at.query_time.unsqueeze(2) - at.key_time.unsqueeze(1)).abs()
        return one_hot(gap, gap_bucket, kernel.width)
    return helpers.written_out_features(name, at.query_time, at.key_time, WIDTH, UNIT, FREQ)


def one_hot(pairs, bucket, width):
    index = [[[bucket(pair) for pair in row] for row in rows] for rows in pairs.tolist()]
    return torch.nn.functional.one_hot(torch.tensor(index), width).double()


def written_out_scores(name, kernel, projected, constant, at):
    """Scores of all heads, [B, h, L, L], pair by pair."""
    features = written_out_features(name, kernel, at)
    scores = (projected.unsqueeze(3) * features.unsqueeze(1)).sum(-1)
    return scores if constant is None else scores + constant


@pytest.mark.parametrize("name", RELATIVE_KERNELS)
@pytest.mark.parametrize("own_query_time", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("with_constant", [True, False])
@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_scores_and_gradients_equal_the_definition(name, own_query_time, heads, with_constant, block, monkeypatch):
    monkeypatch.setattr(relative_kernels, "BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    kernel = RELATIVE_KERNELS[name](SETTINGS).double()
    at = times_of(own_query_time=own_query_time)
    projected = torch.randn(3, heads, 5, kernel.width, dtype=torch.float64, requires_grad=True)
    constant = torch.randn(3, heads, 5, 1, dtype=torch.float64, requires_grad=True) if with_constant else None
    inputs = [projected, *([constant] if with_constant else []), *kernel.parameters()]
    fast = kernel(at, torch.float64)(projected, constant)
    plain = written_out_scores(name, kernel, projected, constant, at)
    helpers.assert_same(fast, plain, inputs)


@pytest.mark.parametrize("points", [None, 4])
@pytest.mark.parametrize("name", ["exponential", "log1p"])
def test_smooth_kernels_pass_gradcheck(name, points):
    kernel = RELATIVE_KERNELS[name](replace(SETTINGS, grid_points=points))
    scorer = kernel(times_of(2, 3), torch.float64)
    projected = torch.randn(2, 2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    constant = torch.randn(2, 2, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scorer, (projected, constant))


def longest_gaps(seed=0):
    """Gaps from none to years, each scale alike."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.exp(torch.rand(2, 40, generator=generator) * 19).long()
    gaps[:, ::5] = 0
    times = helpers.FIRST_TIME + gaps.cumsum(1)
    return SequenceTimes(torch.arange(40).expand(2, -1), times, times, torch.ones(2, 40, dtype=torch.bool))


@pytest.mark.parametrize("unit", [1.0, 60.0, 86400.0])
@pytest.mark.parametrize("points", [1, 8, 32])
@pytest.mark.parametrize("name", ["exponential", "log1p"])
def test_interpolation_keeps_its_bound(name, points, unit):
    at, kernel = longest_gaps(), RELATIVE_KERNELS[name]
    clocked = replace(SETTINGS, clock=lambda: Clock(unit, FREQ))
    torch.manual_seed(0)
    projected, constant = torch.randn(2, 1, 40, WIDTH).double(), torch.randn(2, 1, 40, 1).double()
    # One feature at a time with the widest curvature, too: there the bound is nearly met.
    projected[0, 0, :WIDTH] = torch.eye(WIDTH)
    exact = kernel(clocked)(at, torch.float64)(projected, constant)
    near = kernel(replace(clocked, grid_points=points))(at, torch.float64)(projected, constant)
    bound = kernel.curvature * projected.abs().sum(-1, keepdim=True) / (8 * points**2)
    error = (near - exact).abs()
    assert (error <= bound + 1e-9).all()
    assert (error / bound).max() > 0.15
    same = (at.key_time.unsqueeze(1) == at.key_time.unsqueeze(2)).unsqueeze(1)
    torch.testing.assert_close(near[same], exact[same], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["exponential", "log1p"])
def test_the_grid_is_the_same_in_every_batch(name):
    kernel, at = RELATIVE_KERNELS[name](replace(SETTINGS, grid_points=4)), longest_gaps()
    projected = torch.randn(2, 1, 40, WIDTH).double()
    together = kernel(at, torch.float64)(projected, None)
    first = SequenceTimes(*(part[:1, :7] for part in (at.position, at.query_time, at.key_time, at.valid)))
    alone = kernel(first, torch.float64)(projected[:1, :, :7], None)
    torch.testing.assert_close(alone, together[:1, :, :7, :7], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sinusoid", "exponential", "log1p"])
def test_a_second_is_seen_in_float32_at_todays_times(name):
    """Unix seconds in float32 come in steps of 128; differences taken before rounding don't."""
    first = 1_750_000_000
    times = torch.tensor([[first, first + 1, first + 3]])
    at = SequenceTimes(torch.arange(3)[None], times, times, torch.ones(1, 3, dtype=torch.bool))
    kernel = RELATIVE_KERNELS[name](replace(SETTINGS, clock=lambda: Clock(1.0, FREQ)))
    projected = torch.randn(1, 1, 3, WIDTH)
    scores = kernel(at, torch.float32)(projected, None)
    features = helpers.written_out_features(name, times, times, WIDTH, 1.0, FREQ)
    expected = (projected.unsqueeze(3) * features.float().unsqueeze(1)).sum(-1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-6)


def test_float_times_are_taken_as_they_are():
    """RecBole's normalised times are fractions."""
    exact = times_of()
    half = exact.key_time.double() / 2
    halves = SequenceTimes(exact.position, half, half, exact.valid)
    projected = torch.randn(3, 1, 5, WIDTH, dtype=torch.float64)
    full_unit = SinusoidKernel(SETTINGS)(exact, torch.float64)(projected, None)
    half_unit = SinusoidKernel(replace(SETTINGS, clock=lambda: Clock(UNIT / 2, FREQ)))(halves, torch.float64)(
        projected, None
    )
    torch.testing.assert_close(full_unit, half_unit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ABSOLUTE_KERNELS)
def test_absolute_kernels_embed_both_sides(name):
    kernel = ABSOLUTE_KERNELS[name](SETTINGS)
    query, key = kernel(times_of())
    assert query is key
    assert query.shape == (3, 5, WIDTH)
    at = times_of(own_query_time=False)
    query, key = kernel(at)
    torch.testing.assert_close(key, kernel(times_of())[1])
    shifted = SequenceTimes(at.position, at.query_time, at.query_time, at.valid)
    torch.testing.assert_close(query, kernel(shifted)[1])


def test_a_constant_kernel_ignores_places_and_a_position_kernel_does_not():
    constant, position = (ABSOLUTE_KERNELS[name](SETTINGS) for name in ("constant", "position"))
    assert torch.equal(constant(times_of())[0], constant(times_of(seed=1))[0])
    assert constant(times_of())[0].flatten(0, 1).unique(dim=0).size(0) == 1
    assert torch.equal(position(times_of())[0][0], position.embedding.weight[:5])


def test_an_untrained_day_reads_the_nearest_trained_one():
    kernel = DayKernel(on_days([-3, 10, 20, 21]))
    days = torch.tensor([[-50, -3, 3, 4, 15, 16, 21, 99]])
    expected = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3]])
    for second in (0, 43200, 86399):
        assert torch.equal(kernel.index(days * 86400 + second), expected)


def test_trained_days_travel_with_the_weights():
    trained, other = (DayKernel(on_days(days)) for days in ([1, 2, 3], [4, 5, 6]))
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.trained_days, trained.trained_days)


@pytest.mark.parametrize(
    ("kernel", "days"), [(DayKernel, []), (DayKernel, [2, 1]), (DayKernel, [1, 1]), (SmoothDayKernel, [])]
)
def test_trained_days_must_rise(kernel, days):
    with pytest.raises(ValueError, match=f"trained_days: {len(days)} days"):
        kernel(on_days(days))


def test_calendar_kernels_agree_with_the_calendar():
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(-(10**10), 10**10, (1, 2000), generator=generator)
    edges = [
        datetime.datetime(year, month, day, tzinfo=datetime.timezone.utc) - epoch
        for year in (1600, 1900, 1968, 1969, 1970, 2000, 2024, 2100)
        for month, day in ((1, 1), (2, 28), (3, 1), (12, 31))
    ]
    seconds = torch.tensor([[int(edge.total_seconds()) + shift for edge in edges for shift in (-1, 0)]])
    times = torch.cat([times, seconds], 1)
    datetimes = [epoch + datetime.timedelta(seconds=second) for second in times[0].tolist()]
    for kernel, part in (
        (HourKernel, lambda time: time.hour),
        (WeekdayKernel, lambda time: time.weekday()),
        (MonthKernel, lambda time: time.month - 1),
    ):
        expected = torch.tensor([[part(time) for time in datetimes]])
        assert torch.equal(kernel(SETTINGS).index(times), expected)


def test_dropout_leaves_one_tensor_for_both_sides():
    mix = MixKernels(["position", "hour"], [], SETTINGS, 0.5).train()
    at = times_of(own_query_time=False)
    (position, same), (hour, other) = mix(at, Layout.padded(at.valid, True), torch.float32).absolute
    assert position is same
    assert hour is not other
    assert (position == 0).any()


def test_gaps_are_bucketed_by_half_octaves_with_zero_alone():
    kernel = GapBiasKernel(SETTINGS)
    assert kernel.width == gap_bucket(FREQ * UNIT) + 1
    gaps = [0, 1, UNIT - 1, UNIT, 2 * UNIT, 3 * UNIT, FREQ * UNIT, 10 * FREQ * UNIT]
    times = torch.tensor([[1_500_000_000 + int(gap) for gap in gaps]])
    at = SequenceTimes(torch.arange(len(gaps))[None], times, times, times > 0)
    buckets = kernel.buckets(at)
    assert buckets[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, kernel.width - 1, kernel.width - 1]
    assert torch.equal(buckets, buckets.transpose(1, 2))


def test_distances_are_exact_to_sixteen_then_logarithmic_and_know_their_side():
    kernel, length = DistanceBiasKernel(SETTINGS), 300
    at = SequenceTimes(*[torch.zeros(1, length, dtype=torch.int64)] * 4)
    buckets = kernel.buckets(at)[0]
    assert buckets[:, 0].tolist() == [distance_bucket(distance) for distance in range(length)]
    assert buckets[0].tolist() == [distance_bucket(-distance) for distance in range(length)]
    assert buckets[:17, 0].tolist() == list(range(17))
    assert buckets[128:, 0].unique().tolist() == [31]
    assert kernel.width == int(buckets.max()) + 1
