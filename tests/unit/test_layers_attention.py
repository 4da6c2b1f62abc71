"""Masks, mix attention and the encoder against plain forms."""

import helpers
import pytest
import torch
from torch.nn import LayerNorm
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_adrrec.layers.attention import (
    AdaptiveMixAttention,
    Attention,
    DotProductAttention,
    MixAttention,
    Projected,
    captured_weights,
)
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.layers.layout import Layout, SequenceTimes, attention_mask
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.relative_kernels import Clock, KernelSettings
from recbole_adrrec.layers.softmax import masked_softmax
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer

UNIT, FREQ, FARTHEST = 86400.0, 10000.0, 2


def settings(width):
    first_day = helpers.FIRST_TIME // 86400
    days = torch.arange(first_day, first_day + 40)
    return KernelSettings(width, 99, lambda: days, lambda: Clock(UNIT, FREQ), max_distance=FARTHEST)


def times_of(rows, length):
    times = helpers.FIRST_TIME + torch.randint(0, 86400, (rows, length + 1)).cumsum(1)
    valid = torch.ones(rows, length, dtype=torch.bool)
    valid[0, length // 2 :] = False
    return SequenceTimes(torch.arange(length).expand(rows, -1), times[:, 1:], times[:, :-1], valid)


def features_of_pairs(name, kernel, at, width):
    """Features of a relative kernel by its definition, [B, L, L, F]."""
    rows, length = at.position.shape
    if name == "distance":
        place = torch.arange(length)
        index = (place.unsqueeze(1) - place).clamp(-FARTHEST, FARTHEST) + FARTHEST
        return kernel.embedding(index).expand(rows, -1, -1, -1)
    if kernel.is_bias:
        return one_hot(kernel.buckets(at), kernel.width).double().expand(rows, -1, -1, -1)
    return helpers.written_out_features(name, at.query_time, at.key_time, width, UNIT, FREQ)


def plain_mix_attention(attention, kernels, names, hidden, at, mask):
    """Section 3 of MEANTIME word by word, with ``L x L x d`` features, head by head."""
    rows, length, width = hidden.shape
    size = width // attention.n_heads
    query, key, value = (
        part(hidden).view(rows, length, attention.n_heads, size)
        for part in (attention.query, attention.key, attention.value)
    )
    outputs, all_weights = [], []
    for head, name in enumerate(names):
        q, k, v = query[:, :, head], key[:, :, head], value[:, :, head]
        if head < attention.n_absolute:
            on_query, on_key = kernels.absolute[head](at)
            q = q + attention.absolute_query[head](on_query)
            k = k + attention.absolute_key[head](on_key)
            scores = torch.einsum("bid,bjd->bij", q, k)
        else:
            relative = head - attention.n_absolute
            features = features_of_pairs(name, kernels.relative[relative], at, width)
            pairs = attention.relative_key[relative](features)  # [B, L, L, dh]
            biased = q + attention.relative_bias[relative]
            scores = torch.einsum("bid,bjd->bij", q, k) + torch.einsum("bid,bijd->bij", biased, pairs)
        scores = (scores / size**0.5).masked_fill(~mask[:, 0], -torch.inf)
        weights = torch.nan_to_num(scores.softmax(-1))
        all_weights.append(weights)
        outputs.append(weights @ v)
    return attention.output(torch.cat(outputs, -1)), torch.stack(all_weights, 1)


def mix(width, absolute, relative, n_heads=None):
    """Kernels and an attention over them: a head for each kernel, or so many heads with all of them."""
    torch.manual_seed(0)
    kernels = MixKernels(absolute, relative, settings(width), 0.0, spread=n_heads is not None).double()
    if n_heads is None:
        attention = MixAttention(width, len(absolute), len(relative), 0.0).double()
        torch.nn.init.normal_(attention.relative_bias)
        return kernels, attention
    widths, biases = kernels.relative_widths, kernels.relative_is_bias
    attention = AdaptiveMixAttention(width, n_heads, len(absolute), widths, biases, 0.0).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return kernels, attention


MIXES = [
    (["position", "day"], ["sinusoid", "distance"]),
    (["weekday"], ["log1p", "exponential"]),
    ([], ["sinusoid"]),
    (["constant", "hour", "month"], []),
]


def plain_adaptive_attention(attention, kernels, names, hidden, at, mask):
    """The sum of gated terms, head by head and kernel by kernel, with ``L x L x F`` features."""
    rows, length, width = hidden.shape
    n_heads, size, n_absolute = attention.n_heads, width // attention.n_heads, attention.n_absolute
    query, key, value = (part(hidden) for part in (attention.query, attention.key, attention.value))
    gates = attention.gates(hidden).view(rows, length, len(names), n_heads)
    outputs, all_weights = [], []
    for head in range(n_heads):
        own = slice(head * size, (head + 1) * size)
        q, k, v = query[..., own], key[..., own], value[..., own]
        content = torch.einsum("bid,bjd->bij", q, k)
        scores, keyed, biased = content / size**0.5, 0, 0
        for number, name in enumerate(names):
            if number < n_absolute:
                on_query, on_key = kernels.absolute[number](at)
                moved = q + attention.absolute_query[number](on_query)[..., own]
                both = torch.einsum("bid,bjd->bij", moved, k + attention.absolute_key[number](on_key)[..., own])
                term = (both - content) / size**0.5
            else:
                kernel = kernels.relative[number - n_absolute]
                features = features_of_pairs(name, kernel, at, width)
                if kernel.is_bias:
                    term, biased = features @ attention.bias_tables[biased][head], biased + 1
                else:
                    pairs = attention.relative_key[keyed](features)[..., own]
                    term = torch.einsum("bid,bijd->bij", q + attention.relative_bias[keyed, head], pairs) / size**0.5
                    keyed += 1
            scores = scores + gates[:, :, number, head].unsqueeze(2) * term
        weights = torch.nan_to_num(scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1))
        all_weights.append(weights)
        outputs.append(weights @ v)
    return attention.output(torch.cat(outputs, -1)), torch.stack(all_weights, 1)


ADAPTIVE = [*MIXES, (["hour"], ["gap_bias", "sinusoid", "distance_bias", "log1p"]), ([], ["distance_bias"])]


@pytest.mark.parametrize(
    ("absolute", "relative", "n_heads"),
    [*((*names, None) for names in MIXES), *((*names, heads) for names in ADAPTIVE for heads in (1, 3))],
)
@pytest.mark.parametrize("causal", [True, False])
def test_mix_attention_equals_the_plain_form(absolute, relative, n_heads, causal):
    kernels, attention = mix(12, absolute, relative, n_heads)
    plain_attention = plain_mix_attention if n_heads is None else plain_adaptive_attention
    at = times_of(2, 6)
    hidden = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(at.valid, causal)
    plain, plain_weights = plain_attention(attention, kernels, absolute + relative, hidden, at, layout.groups[0].mask)
    at_once = attention(hidden, layout, kernels(at, layout, hidden.dtype))
    with captured_weights(attention) as weights:
        in_steps = attention(hidden, layout, kernels(at, layout, hidden.dtype))
    torch.testing.assert_close(weights[0].plain, plain_weights.detach(), rtol=0, atol=1e-10)
    inputs = [hidden, *(p for p in (*attention.parameters(), *kernels.parameters()) if p.numel())]
    for fast in (at_once, in_steps):
        helpers.assert_same(fast, plain, inputs, atol=1e-11)


def test_gates_start_closed_before_kernels_and_open_before_tables_of_zeros():
    attention = AdaptiveMixAttention(12, 3, 1, [12, 5], [False, True], 0.0)
    expected = torch.tensor([[0.0] * 3, [0.0] * 3, [1.0] * 3]).expand(4, -1, -1)
    assert torch.equal(attention.gate(torch.randn(4, 12)), expected)
    assert not attention.bias_tables[0].any()


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


def largest_tensor(run):
    with LargestTensor() as record:
        run().sum().backward()
    return record.largest


def test_no_features_of_pairs_are_built_for_sinusoid_and_distance():
    length, width = 48, 64
    names = ["sinusoid", "distance"]
    kernels, attention = mix(width, ["position", "day"], names)
    at = times_of(1, length)
    hidden = torch.randn(1, length, width, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(at.valid, True)
    pairs_of_features = length * length * width * 8
    fast = largest_tensor(lambda: attention(hidden, layout, kernels(at, layout, hidden.dtype)))
    # Room for the scores of all heads and little else.
    assert fast <= 4 * length * length * 8
    assert fast < pairs_of_features / 10
    kinds = ["position", "day", *names]
    mask = layout.groups[0].mask
    plain = largest_tensor(lambda: plain_mix_attention(attention, kernels, kinds, hidden, at, mask)[0])
    assert plain >= pairs_of_features


def test_smooth_kernels_keep_no_features_for_the_backward_pass():
    kernels, attention = mix(64, [], ["log1p", "exponential"])
    at = times_of(1, 48)
    hidden = torch.randn(1, 48, 64, dtype=torch.float64, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layout = Layout.padded(at.valid, True)
        attention(hidden, layout, kernels(at, layout, hidden.dtype))
    assert max(kept) <= 2 * 48 * 48


def test_mask_and_softmax():
    valid = torch.tensor([[True, True, False], [False, False, False]])
    causal = attention_mask(valid, True)
    assert causal.tolist()[0] == [[[True, False, False], [True, True, False], [True, True, False]]]
    assert not causal[1].any()
    assert torch.equal(attention_mask(valid, False)[0, 0], valid[0].expand(3, -1))
    scores = torch.randn(2, 4, 3, 3, requires_grad=True)
    weights = masked_softmax(scores, causal)
    assert torch.equal(weights[1], torch.zeros(4, 3, 3))
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(4, 3))
    assert torch.equal(weights[0][:, ~causal[0, 0]], torch.zeros(4, 4))
    weights.pow(2).sum().backward()
    assert scores.grad.isfinite().all()
    assert torch.equal(scores.grad[1], torch.zeros(4, 3, 3))


@pytest.mark.parametrize("extreme", [torch.finfo(torch.float32).min, torch.inf, torch.nan])
def test_masked_scores_change_nothing(extreme):
    mask = torch.tensor([[[[True, False]]]])
    weights = masked_softmax(torch.tensor([[[[0.0, extreme]]]]), mask)
    assert weights.tolist() == [[[[1.0, 0.0]]]]


class Halved(Refinement):
    def forward(self, weights, mask):
        return weights / 2


def test_a_refinement_works_on_the_weights_before_dropout():
    class Probe(Attention):
        def project(self, query, hidden, context):
            return Projected(hidden, hidden, hidden)

        def score_parts(self, projected, context, group):
            return [context]

        def aggregate(self, weights, projected, context, group):
            return weights

        def merge(self, summed):
            return summed.transpose(1, 2)

    scores, layout = torch.randn(1, 2, 3, 3), Layout.padded(torch.ones(1, 3, dtype=torch.bool), causal=False)
    hidden = torch.zeros(1, 3, 2, 1)
    attention = Probe(0.5, Halved())
    with captured_weights(attention) as weights:
        dropped = attention(hidden, layout, scores)
    torch.testing.assert_close(weights[0].plain, scores.softmax(-1))
    torch.testing.assert_close(weights[0].refined, scores.softmax(-1) / 2)
    # What dropout keeps it doubles.
    assert ((dropped == 0) | torch.isclose(dropped, weights[0].plain)).all()
    attention(hidden, layout, scores)
    assert len(weights) == 1


def encoder(layers=2, dropout=0.0, eps=1e-5):
    torch.manual_seed(0)
    stack = (
        TransformerLayer(
            MixAttention(8, 1, 1, 0.0), FeedForward(8, 16, dropout), LayerNorm(8, eps), LayerNorm(8, eps), dropout
        )
        for _ in range(layers)
    )
    return TransformerEncoder(stack)


def run(stack, perturb=None):
    torch.manual_seed(1)
    kernels = MixKernels(["position"], ["log1p"], settings(8), 0.0)
    at = times_of(2, 4)
    layout = Layout.padded(at.valid, True)
    return stack(torch.randn(2, 4, 8), layout, kernels(at, layout, torch.float32), perturb)


def test_the_encoder_gives_each_layers_output_and_disturbs_inputs():
    plain = run(encoder())
    assert len(plain) == 2
    seen = []

    def second_only(layer, hidden):
        seen.append((layer, hidden))
        return hidden + (layer == 2)

    disturbed = run(encoder(), second_only)
    assert [layer for layer, _ in seen] == [1, 2]
    assert torch.equal(seen[1][1], plain[0])
    assert torch.equal(disturbed[0], plain[0])
    assert not torch.allclose(disturbed[1], plain[1])


def test_layer_norm_eps_and_dropout_reach_the_layers():
    assert not torch.allclose(run(encoder(eps=1e-5))[1], run(encoder(eps=1.0))[1])
    assert not torch.allclose(run(encoder(dropout=0.0))[1], run(encoder(dropout=0.5))[1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_dot_products_in_one_call_equal_those_in_steps(causal, training, monkeypatch):
    torch.manual_seed(0)
    attention = DotProductAttention(8, 2, dropout=0.0 if training else 0.5).double().train(training)
    hidden = torch.randn(3, 5, 8).double().requires_grad_()
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    layout = Layout.padded(valid, causal)
    inputs = [hidden, *attention.parameters()]
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    at_once = attention(hidden, layout, None)
    assert calls == [1]
    with captured_weights(attention) as weights:
        by_steps = attention(hidden, layout, None)
    assert calls == [1]
    assert weights[0].plain.shape == (3, 2, 5, 5)
    helpers.assert_same(at_once, by_steps, inputs, atol=1e-13)


def test_dot_products_are_taken_in_steps_where_weights_matter(monkeypatch):
    """Refined or dropped weights: the one call would leave out the first and be slower with the second."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    layout = Layout.padded(torch.ones(1, 3, dtype=torch.bool), True)
    hidden = torch.randn(1, 3, 4)
    for attention in (DotProductAttention(4, 2, 0.0, Halved()), DotProductAttention(4, 2, 0.1).train()):
        assert attention(hidden, layout, None).shape == hidden.shape
