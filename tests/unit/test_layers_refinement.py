"""Refinements against plain forms, and what must hold for each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_adrrec.layers.attention import DotProductAttention
from recbole_adrrec.layers.gaussian import WassersteinAttention
from recbole_adrrec.layers.masks import attention_mask, masked_softmax
from recbole_adrrec.layers.refinement import (
    REFINEMENTS,
    AdditiveRefinement,
    Refinement,
    SimpleRefinement,
    StochasticRefinement,
    ValueRefinement,
)

WIDTH, HEADS, RANK = 7, 2, 3
FEW = settings(max_examples=12, deadline=None)
KINDS = [*REFINEMENTS, "value with map"]


def refinement(kind, seed=0, **changes):
    torch.manual_seed(seed)
    extra = {"value_map": True} if kind == "value with map" else {}
    made = REFINEMENTS[kind.split()[0]](HEADS, WIDTH, RANK, **extra, **changes).double()
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
    first, second = made.first_map[:, :length], made.second_map[:, :length]
    refined = []
    for b in range(rows):
        for h in range(heads):
            a = weights[b, h]
            query, key = a @ first[h], a @ second[h]
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
                spread = made.value_map[h, :length, :length].masked_fill(~mask[b, 0], -1e30).softmax(-1)
                result = result @ (spread * mask[b, 0].any(-1, keepdim=True))
            if kind == "additive":
                share = made.gate[h].sigmoid()
                result = (1 - share) * a + share * result
            refined.append(result)
    return torch.stack(refined).unflatten(0, (rows, heads))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_plain_form(kind, causal):
    made = refinement(kind)
    weights, mask = plain_weights([5, 3, 0], causal=causal)
    weights.requires_grad_()
    fast, plain = made(weights, mask), written_out(made, kind, weights, mask)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    factors = torch.randn_like(fast)
    inputs = [weights, *made.parameters()]
    gradients = torch.autograd.grad((fast * factors).sum(), inputs)
    expected = torch.autograd.grad((plain * factors).sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-9)


@FEW
@given(
    st.sampled_from(KINDS), st.lists(st.integers(0, WIDTH), min_size=1, max_size=4), st.integers(0, 999), st.booleans()
)
def test_rows_sum_to_one_under_the_mask_and_empty_rows_are_zero(kind, counts, seed, causal):
    weights, mask = plain_weights(counts, seed, causal)
    refined = refinement(kind, seed)(weights, mask)
    assert (refined >= 0).all()
    assert torch.equal(refined.masked_fill(mask, 0.0), torch.zeros_like(refined))
    asked = mask.any(-1).expand(-1, HEADS, -1)
    torch.testing.assert_close(refined.sum(-1), asked.double(), rtol=0, atol=1e-12)


@FEW
@given(st.sampled_from(KINDS), st.integers(2, WIDTH), st.integers(0, 999), st.data())
def test_a_row_depends_on_no_later_row(kind, length, seed, data):
    place = data.draw(st.integers(1, length - 1))
    weights, mask = plain_weights([length], seed)
    others, _ = plain_weights([length], seed + 1)
    changed = torch.where(torch.arange(length)[:, None] < place, weights, others)
    made = refinement(kind, seed)
    before, after = made(weights, mask), made(changed, mask)
    assert torch.equal(before[:, :, :place], after[:, :, :place])
    assert not torch.equal(before[:, :, place:], after[:, :, place:])


@FEW
@given(st.sampled_from(KINDS), st.integers(1, WIDTH), st.integers(0, 999))
def test_padding_and_trimming_change_nothing(kind, count, seed):
    """Rows of the maps belong to places: a batch cut to its longest row gets the same weights."""
    made = refinement(kind, seed)
    weights, mask = plain_weights([count], seed)
    wide_mask = attention_mask((torch.arange(WIDTH) < count)[None], True)
    wide = torch.zeros(1, HEADS, WIDTH, WIDTH, dtype=torch.float64)
    wide[:, :, :count, :count] = weights
    noise, _ = plain_weights([count], seed + 1, length=WIDTH)
    wide[:, :, count:] = noise[:, :, count:]
    torch.testing.assert_close(made(wide, wide_mask)[:, :, :count, :count], made(weights, mask), rtol=0, atol=1e-12)


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 999))
def test_gradients_agree_with_finite_differences(kind, seed):
    made = refinement(kind, seed)
    weights, mask = plain_weights([3, 2, 0], seed)
    names, parameters = zip(*made.named_parameters(), strict=True)

    def refine(scores, *values):
        given_ = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given_, (masked_softmax(scores, mask), mask))

    scores = torch.randn_like(weights, requires_grad=True)
    values = [parameter.detach().requires_grad_() for parameter in parameters]
    assert torch.autograd.gradcheck(refine, (scores, *values), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_only_chosen_heads_are_refined(kind):
    made = refinement(kind, heads=[2])
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
    _, mask = plain_weights([5, 3])
    output = attention(hidden, mask, None)
    assert output.shape == hidden.shape
    attention.refinement = Refinement()
    assert not torch.allclose(output, attention(hidden, mask, None))


def test_nothing_is_refined_by_the_plain_one():
    weights, mask = plain_weights([5, 2])
    assert Refinement()(weights, mask) is weights


def test_the_value_map_starts_near_the_identity():
    made = ValueRefinement(1, WIDTH, value_map=True)
    mask = torch.ones(1, 1, WIDTH, WIDTH, dtype=torch.bool).tril()
    spread = masked_softmax(made.value_map.expand(1, -1, -1, -1), mask)
    assert (spread[0, 0].diagonal() >= 1 - 1 / (1 + WIDTH)).all()


def test_the_rank_is_the_length_by_default():
    assert SimpleRefinement(HEADS, WIDTH).first_map.shape == (HEADS, WIDTH, WIDTH)
    assert AdditiveRefinement(HEADS, WIDTH).gate.sigmoid().flatten().tolist() == [0.5] * HEADS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "refinement_rank: 0"),
        ({"heads": []}, "refinement_heads"),
        ({"heads": [3]}, "refinement_heads: .*1 to 2"),
        ({"heads": [1, 1]}, "refinement_heads"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StochasticRefinement(HEADS, WIDTH, **changes)
