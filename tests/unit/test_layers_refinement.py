"""Refinements against plain forms, and what must hold for each."""

import helpers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layers_attention import largest_tensor

from recbole_adrrec.layers.attention import DotProductAttention
from recbole_adrrec.layers.gaussian import WassersteinAttention
from recbole_adrrec.layers.layout import Layout, attention_mask
from recbole_adrrec.layers.refinement import (
    DISTANCE_RANK,
    REFINEMENT_MAPS,
    REFINEMENTS,
    AdditiveRefinement,
    Refinement,
    RefinementSettings,
    SimpleRefinement,
    ValueRefinement,
    skewed,
)
from recbole_adrrec.layers.softmax import masked_softmax

WIDTH, HEADS, RANK = 7, 2, 3
FEW = settings(max_examples=12, deadline=None)
KINDS = [*REFINEMENTS, "value with map"]

kinds = st.sampled_from(KINDS)
maps_ = st.sampled_from(REFINEMENT_MAPS)


def made_at_first(kind, rank=RANK, **changes):
    """A refinement as training begins with it."""
    extra = {"value_map": True} if kind == "value with map" else {}
    return REFINEMENTS[kind.split()[0]](RefinementSettings(HEADS, WIDTH, rank, **extra, **changes)).double()


def refinement(kind, seed=0, **changes):
    torch.manual_seed(seed)
    made = made_at_first(kind, **changes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def plain_weights(counts, seed=0, causal=True, length=None):
    """Random weights under a mask, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    length = max([1, *counts]) if length is None else length
    mask = attention_mask(torch.arange(length) < torch.tensor(counts).unsqueeze(1), causal)
    scores = torch.randn(len(counts), HEADS, length, length, dtype=torch.float64, generator=generator) * 3
    return masked_softmax(scores, mask), mask


def written_out(made, kind, weights, mask):
    """Row by row and key by key."""
    rows, heads, length, _ = weights.shape

    def row_of(i, j):
        return i - j if made.by_distance else j

    def mapped(a, table):
        return torch.stack(
            [
                sum(a[i, j] * table[row_of(i, j)] for j in range(i + 1 if made.by_distance else length))
                for i in range(length)
            ]
        )

    refined = []
    for b in range(rows):
        for h in range(heads):
            a = weights[b, h]
            query, key = mapped(a, made.first_map[h]), mapped(a, made.second_map[h])
            attended = []
            for i in range(length):
                keys = [j for j in range(length) if mask[b, 0, i, j]]
                row = torch.zeros(length, dtype=a.dtype)
                if kind == "stochastic":
                    raw = torch.nn.functional.elu(key) + 1
                    score = [
                        -((query[i] - query[j]) ** 2).sum() - ((raw[i].sqrt() - raw[j].sqrt()) ** 2).sum() for j in keys
                    ]
                else:
                    score = [query[i] @ key[j] for j in keys]
                if keys:
                    row = row.index_put((torch.tensor(keys),), (torch.stack(score) / RANK**0.5).softmax(0))
                attended.append(row)
            result = torch.stack(attended)
            if kind.startswith("value"):
                result = result @ a
            if kind == "value with map":
                places = range(length)
                table = made.value_map[h]
                spread = torch.stack(
                    [
                        torch.stack([table[abs(j - k)] if made.by_distance else table[j, k] for k in places])
                        for j in places
                    ]
                )
                spread = spread.masked_fill(~mask[b, 0], -1e30).softmax(-1)
                result = result @ (spread * mask[b, 0].any(-1, keepdim=True))
            if kind == "additive":
                share = made.gate[h].sigmoid()
                result = (1 - share) * a + share * result
            refined.append(result)
    return torch.stack(refined).unflatten(0, (rows, heads))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("maps", "causal"), [("distance", True), ("place", True), ("place", False)])
def test_equals_the_plain_form(kind, maps, causal):
    made = refinement(kind, maps=maps)
    weights, mask = plain_weights([5, 3, 0], causal=causal)
    # Gradients count as they reach the scores: beyond the mask there are none, whatever a form gives the weights there.
    scores = weights.clamp_min(1e-9).log().requires_grad_()
    weights = masked_softmax(scores, mask)
    fast, plain = made(weights, mask), written_out(made, kind, weights, mask)
    helpers.assert_same(fast, plain, [scores, *made.parameters()])


@FEW
@given(
    kinds,
    maps_,
    st.lists(st.integers(0, WIDTH), min_size=1, max_size=4),
    st.integers(0, 999),
    st.booleans(),
)
def test_rows_sum_to_one_under_the_mask_and_empty_rows_are_zero(kind, maps, counts, seed, causal):
    weights, mask = plain_weights(counts, seed, causal or maps == "distance")
    refined = refinement(kind, seed, maps=maps)(weights, mask)
    assert (refined >= 0).all()
    assert torch.equal(refined.masked_fill(mask, 0.0), torch.zeros_like(refined))
    has_key = mask.any(-1).expand(-1, HEADS, -1)
    torch.testing.assert_close(refined.sum(-1), has_key.double(), rtol=0, atol=1e-12)


@FEW
@given(kinds, maps_, st.integers(2, WIDTH), st.integers(0, 999), st.data())
def test_a_row_depends_on_no_later_row(kind, maps, length, seed, data):
    place = data.draw(st.integers(1, length - 1))
    weights, mask = plain_weights([length], seed)
    others, _ = plain_weights([length], seed + 1)
    changed = torch.where(torch.arange(length)[:, None] < place, weights, others)
    made = refinement(kind, seed, maps=maps)
    before, after = made(weights, mask), made(changed, mask)
    assert torch.equal(before[:, :, :place], after[:, :, :place])
    assert not torch.equal(before[:, :, place:], after[:, :, place:])


@FEW
@given(kinds, maps_, st.lists(st.integers(0, WIDTH), min_size=1, max_size=3), st.integers(0, 999))
def test_padding_and_trimming_change_nothing(kind, maps, counts, seed):
    """A batch cut to its longest row, or to any group of alike rows, gets the same weights and gradients."""
    made = refinement(kind, seed, maps=maps)
    weights, mask = plain_weights(counts, seed)
    length = weights.size(-1)
    wide_mask = attention_mask(torch.arange(WIDTH) < torch.tensor(counts).unsqueeze(1), True)
    noise, _ = plain_weights(counts, seed + 1, length=WIDTH)
    wide = torch.zeros_like(noise)
    wide[..., :length, :length] = weights
    wide[..., length:, :] = noise[..., length:, :]
    refined = made(wide, wide_mask)[..., :length, :length], made(weights, mask)
    helpers.assert_same(*refined, made.parameters(), atol=1e-12)


@settings(max_examples=5, deadline=None)
@given(kinds, maps_, st.integers(0, 999))
def test_gradients_agree_with_finite_differences(kind, maps, seed):
    made = refinement(kind, seed, maps=maps)
    weights, mask = plain_weights([3, 2, 0], seed)
    names, parameters = zip(*made.named_parameters(), strict=True)

    def refine(scores, *values):
        given_ = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given_, (masked_softmax(scores, mask), mask))

    scores = torch.randn_like(weights, requires_grad=True)
    values = [parameter.detach().requires_grad_() for parameter in parameters]
    assert torch.autograd.gradcheck(refine, (scores, *values), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maps", REFINEMENT_MAPS)
def test_only_chosen_heads_are_refined(kind, maps):
    made = refinement(kind, heads=[2], maps=maps)
    assert len(made.first_map) == 1
    weights, mask = plain_weights([5, 2])
    refined = made(weights, mask)
    assert torch.equal(refined[:, 0], weights[:, 0])
    assert not torch.allclose(refined[:, 1], weights[:, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention_class", [DotProductAttention, WassersteinAttention])
def test_any_attention_takes_a_refinement(kind, attention_class):
    torch.manual_seed(0)
    attention = attention_class(8, HEADS, 0.0, refinement(kind)).double()
    shape = (2, 5, 8) if attention_class is DotProductAttention else (2, 5, 2, 8)
    hidden = torch.rand(shape, dtype=torch.float64)
    layout = Layout.padded(torch.arange(5) < torch.tensor([[5], [3]]), causal=True)
    output = attention(hidden, layout, None)
    assert output.shape == hidden.shape
    attention.refinement = Refinement()
    assert not torch.allclose(output, attention(hidden, layout, None))


def test_nothing_is_refined_by_the_plain_one():
    weights, mask = plain_weights([5, 2])
    assert Refinement()(weights, mask) is weights


@pytest.mark.parametrize("maps", REFINEMENT_MAPS)
def test_the_value_map_starts_near_the_identity(maps):
    made = ValueRefinement(RefinementSettings(1, WIDTH, maps=maps, value_map=True))
    mask = torch.ones(1, 1, WIDTH, WIDTH, dtype=torch.bool).tril()
    spread = masked_softmax(made._spread(WIDTH).expand(1, -1, -1, -1), mask)
    assert (spread[0, 0].diagonal() >= 1 - 1 / (1 + WIDTH)).all()


def test_the_rank_by_default():
    assert SimpleRefinement(RefinementSettings(HEADS, WIDTH)).first_map.shape == (HEADS, WIDTH, DISTANCE_RANK)
    assert SimpleRefinement(RefinementSettings(HEADS, WIDTH, maps="place")).first_map.shape == (HEADS, WIDTH, WIDTH)


@pytest.mark.parametrize(("start", "share"), [(None, 0.05), (0.5, 0.5), (0.9, 0.9)])
def test_additive_starts_with_a_share(start, share):
    gate = AdditiveRefinement(RefinementSettings(HEADS, WIDTH, start=start)).gate
    torch.testing.assert_close(gate.sigmoid(), torch.full((HEADS, 1, 1), share))


def test_maps_by_place_start_as_normal_numbers():
    torch.manual_seed(3)
    made = SimpleRefinement(RefinementSettings(HEADS, WIDTH, RANK, maps="place"))
    torch.manual_seed(3)
    for each in (made.first_map, made.second_map):
        assert torch.equal(each, torch.randn(HEADS, WIDTH, RANK))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, RANK, None])
def test_each_parameter_has_a_gradient_from_the_start(kind, rank):
    made = made_at_first(kind, rank=rank)
    weights, mask = plain_weights([WIDTH, 5, 2])
    (made(weights, mask) * torch.randn_like(weights)).sum().backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad != 0).all(), name


def test_maps_by_distance_start_smooth_and_of_size_one():
    made = SimpleRefinement(RefinementSettings(HEADS, 200))
    assert torch.equal(made.first_map, made.second_map)
    torch.testing.assert_close(made.first_map.square().mean(-1).sqrt().mean(), torch.tensor(1.0), rtol=0.15, atol=0)
    steps = made.first_map.diff(dim=1).norm(dim=-1)
    assert (steps[:, 20:] < 0.1 * steps[:, :1]).sum() > 0.5 * steps[:, 20:].numel()


def test_skewed_weights_stand_by_distance():
    weights, _ = plain_weights([WIDTH, 3])
    turned = skewed(weights)
    for i in range(WIDTH):
        for distance in range(WIDTH):
            wanted = weights[..., i, i - distance] if distance <= i else torch.zeros(2, HEADS, dtype=torch.float64)
            assert torch.equal(turned[..., i, WIDTH - 1 - distance], wanted)
    assert not turned[..., WIDTH].any()


def test_nothing_is_made_of_pairs_by_rank():
    length, rank = 40, 8
    weights, mask = plain_weights([length], length=length)
    made = SimpleRefinement(RefinementSettings(HEADS, length, rank)).double()

    largest = largest_tensor(lambda: made(weights, mask).square()) / 8
    assert largest <= HEADS * length * (length + 1)


def test_maps_by_distance_need_a_causal_mask():
    weights, mask = plain_weights([5, 3], causal=False)
    with pytest.raises(ValueError, match="refinement_maps: distance; needs a causal mask"):
        refinement("simple")(weights, mask)
