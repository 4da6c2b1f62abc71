"""Properties of ADRRec and MEANTIME on any batch."""

import logging

import helpers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_adrrec.layers.attention import AdaptiveMixAttention, MixAttention, captured_weights
from recbole_adrrec.layers.kernels import ABSOLUTE_KERNELS, RELATIVE_KERNELS, MixKernels
from recbole_adrrec.layers.layout import Layout, SequenceTimes
from recbole_adrrec.layers.relative_kernels import Clock, KernelSettings
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.meantime import MEANTIME

FEW = settings(max_examples=12, deadline=None)
WIDTH = 7
ALL_KERNELS = {
    "hidden_size": 20,
    "absolute_kernels": list(ABSOLUTE_KERNELS),
    "relative_kernels": list(RELATIVE_KERNELS),
}

lengths = st.lists(st.integers(1, WIDTH), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)
objectives = st.sampled_from(["causal", "cloze"])
mixtures = st.sampled_from(["adaptive", "heads"])


def mix_of(mixture, names, width, clock, max_distance):
    """Kernels, all their names or those that may have a head of their own, and an attention over them."""
    absolute, relative = names
    if mixture == "heads":
        relative = [name for name in relative if not RELATIVE_KERNELS[name].is_bias]
    settings_ = KernelSettings(width, 9, lambda: torch.arange(3), lambda: clock, max_distance=max_distance)
    kernels = MixKernels(absolute, relative, settings_, 0.0)
    if mixture == "heads":
        return kernels, MixAttention(width, len(absolute), len(relative), 0.0)
    attention = AdaptiveMixAttention(width, 2, len(absolute), kernels.relative_widths, kernels.relative_is_bias, 0.0)
    with torch.no_grad():
        for parameter in (attention.gates.weight, attention.gates.bias, *attention.bias_tables):
            parameter.normal_()
    return kernels, attention


def every_kernel(**changes):
    return helpers.build(ADRRec, **{**ALL_KERNELS, **changes})


def batch_for(model, counts, seed, kind="row"):
    return helpers.rows(counts, seed=seed, targets="row" if kind == "row" else model.objective)


def loss_of(model, batch, seed=0):
    """Training loss under a seed, in training mode."""
    torch.manual_seed(seed)
    return model.train().calculate_loss(batch)


@FEW
@given(lengths, seeds, objectives, st.booleans(), st.integers(-(10**9), 10**9))
def test_shifting_all_times_is_seen_by_kernels_of_absolute_time_alone(counts, seed, objective, use_query_time, shift):
    model = every_kernel(
        objective=objective,
        use_query_time=use_query_time,
        absolute_kernels=["position"],
    )
    batch = batch_for(model, counts, seed)
    shifted = dict(batch, timestamp=batch["timestamp"] + shift, timestamp_list=batch["timestamp_list"] + shift)
    torch.testing.assert_close(model.full_sort_predict(batch), model.full_sort_predict(shifted), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "seconds"), [("hour", 3600), ("day", 86400), ("weekday", 86400), ("month", 86400 * 40)]
)
def test_kernels_of_absolute_time_see_a_shift(name, seconds):
    model = every_kernel(absolute_kernels=[name])
    batch = batch_for(model, [5], 0)
    shifted = dict(batch, timestamp=batch["timestamp"] + seconds, timestamp_list=batch["timestamp_list"] + seconds)
    assert not torch.allclose(model.full_sort_predict(batch), model.full_sort_predict(shifted))


@FEW
@given(st.integers(1, 5), seeds, st.booleans(), mixtures)
def test_rows_without_keys_get_zero_weights_and_finite_gradients(length, seed, causal, mixture):
    torch.manual_seed(seed)
    names = list(ABSOLUTE_KERNELS), list(RELATIVE_KERNELS)
    kernels, attention = mix_of(mixture, names, 20, Clock(60.0, 10000.0), 2)
    times = torch.randint(0, 10**6, (2, length))
    valid = torch.tensor([[True], [False]]).expand(2, length)
    at = SequenceTimes(torch.arange(length).expand(2, -1), times, times, valid)
    hidden = torch.randn(2, length, 20, requires_grad=True)
    layout = Layout.padded(valid, causal)
    with captured_weights(attention) as weights:
        output = attention(hidden, layout, kernels(at, layout, hidden.dtype))
    assert torch.equal(weights[0].refined[1], torch.zeros_like(weights[0].refined[1]))
    torch.testing.assert_close(output[1], attention.output.bias.expand(length, -1))
    output.sum().backward()
    assert hidden.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters() if p.grad is not None)


@settings(max_examples=4, deadline=None)
@given(seeds, objectives, st.sampled_from(["gaussian", "uniform", "in_manifold"]))
def test_the_same_seed_gives_the_same_training(seed, objective, lni_noise):
    def train():
        model = every_kernel(
            objective=objective,
            hidden_dropout_prob=0.3,
            attn_dropout_prob=0.3,
            lni_weight=0.5,
            lni_noise=lni_noise,
        ).train()
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            loss = model.calculate_loss(batch_for(model, [7, 2, 5], step, "sequence"))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict()

    losses, state = train()
    again, other = train()
    assert losses == again
    assert all(torch.equal(state[name], other[name]) for name in state)


@settings(max_examples=5, deadline=None)
@given(
    seeds,
    st.booleans(),
    mixtures,
    st.sampled_from([(["position"], ["sinusoid"]), (["hour"], ["log1p", "distance", "gap_bias", "distance_bias"])]),
)
def test_gradients_of_mix_attention_agree_with_finite_differences(seed, causal, mixture, names):
    torch.manual_seed(seed)
    kernels, attention = (part.double() for part in mix_of(mixture, names, 12, Clock(3600.0, 100.0), 1))
    times = torch.randint(0, 86400, (2, 4)).cumsum(1)
    valid = torch.tensor([[True] * 3, [True, True, False]])
    at = SequenceTimes(torch.arange(3).expand(2, -1), times[:, 1:], times[:, :-1], valid)
    layout = Layout.padded(valid, causal)
    names_, parameters = zip(*attention.named_parameters(), strict=True)

    def attend(hidden, *values):
        given_ = dict(zip(names_, values, strict=True))
        context = kernels(at, layout, hidden.dtype)
        return torch.func.functional_call(attention, given_, (hidden, layout, context))

    hidden = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    values = [parameter.detach().requires_grad_() for parameter in parameters]
    assert torch.autograd.gradcheck(attend, (hidden, *values), fast_mode=True)


@FEW
@given(st.integers(2, WIDTH), seeds)
def test_a_masked_event_shows_its_time_only_with_query_time(length, seed):
    model = every_kernel(objective="cloze", use_query_time=False)
    batch = batch_for(model, [length], seed, "sequence")
    torch.manual_seed(seed)
    shown = model._training_batch(batch)
    masked = shown.targets > 0
    assert torch.equal(shown.items == model.mask_token, masked)
    assert torch.equal(shown.targets[masked], batch["item_id"][:, :length][masked])
    moved = dict(batch, timestamp_list=batch["timestamp_list"].clone())
    moved["timestamp_list"][:, :length][masked] += 12_345
    assert torch.equal(loss_of(model, batch, seed), loss_of(model, moved, seed))
    aware = every_kernel(objective="cloze", use_query_time=True)
    assert not torch.equal(loss_of(aware, batch, seed), loss_of(aware, moved, seed))


@pytest.mark.parametrize("objective", ["causal", "cloze"])
@pytest.mark.parametrize("use_query_time", [False, True])
def test_the_time_of_the_target_is_seen_only_with_query_time(objective, use_query_time):
    model = every_kernel(objective=objective, use_query_time=use_query_time)
    batch = batch_for(model, [7, 3], 0)
    later = dict(batch, timestamp=batch["timestamp"] + 50_000)
    same = torch.equal(model.full_sort_predict(batch), model.full_sort_predict(later))
    assert same != use_query_time


@pytest.mark.parametrize("use_query_time", [False, True])
def test_an_undefined_target_time_is_not_used(use_query_time):
    """A place without a target has no target time; its place in the history still has its own."""
    model = every_kernel(use_query_time=use_query_time)
    batch = batch_for(model, [7, 4], 0, "sequence")
    batch["item_id"][0, 2] = batch["item_id"][1, 3] = 0
    undefined = dict(batch, timestamp=batch["timestamp"].masked_fill(batch["item_id"] == 0, 2**40))
    assert torch.equal(loss_of(model, batch), loss_of(model, undefined))


@pytest.mark.parametrize(("length", "kept"), [(WIDTH, 6), (3, 3)])
def test_the_mask_token_stays_inside_the_places(length, kept):
    """With a full history the oldest event falls off, and the mask token is at the last place."""
    model = every_kernel(objective="cloze")
    batch = batch_for(model, [length], 0)
    seen = {}
    model.item_embedding.register_forward_pre_hook(lambda _, inputs: seen.update(items=inputs[0]))
    model.kernels.register_forward_pre_hook(lambda _, inputs: seen.update(moments=inputs[0]))
    model.full_sort_predict(batch)
    expected = [*batch["item_id_list"][0, length - kept : length].tolist(), model.mask_token]
    assert seen["items"].flatten().tolist() == expected
    assert seen["moments"].position[0].tolist() == list(range(WIDTH - len(expected), WIDTH))
    oldest = dict(batch, item_id_list=batch["item_id_list"].clone())
    oldest["item_id_list"][0, 0] = oldest["item_id_list"][0, 0] % (helpers.N_ITEMS - 1) + 1
    same = torch.equal(model.full_sort_predict(batch), model.full_sort_predict(oldest))
    assert same == (length == WIDTH)


def test_prefix_rows_may_mask_the_target():
    model = every_kernel(objective="cloze", mask_ratio=0.999999)
    batch = batch_for(model, [3] * 50, 0)
    torch.manual_seed(0)
    shown = model._training_batch(batch)
    events = torch.cat([batch["item_id_list"][:, :3], batch["item_id"][:, None]], 1)
    masked = shown.targets > 0
    assert torch.equal(torch.where(masked, shown.targets, shown.items), events)
    assert masked.sum(1).tolist() == [3] * 50
    assert masked.any(0).all()


def test_noise_adds_to_the_loss_and_keeps_dropout():
    batch = helpers.rows([5, 2])
    plain = loss_of(every_kernel(hidden_dropout_prob=0.3), batch)
    tiny = loss_of(every_kernel(hidden_dropout_prob=0.3, lni_weight=1e-12), batch)
    noisy = loss_of(every_kernel(hidden_dropout_prob=0.3, lni_weight=0.5), batch)
    torch.testing.assert_close(tiny, plain, rtol=0, atol=1e-8)
    assert noisy > plain


PUBLISHED_BLOCK = {
    "mixture": "heads",
    "day_spacing": None,
    "norm_order": "pre",
    "drop_residual": True,
    "input_position": False,
    "input_norm": False,
    "activation": "gelu_tanh",
    "item_head": "projected",
}


def test_meantime_is_adrrec_with_two_parts_off():
    changes = {"relative_kernels": ["sinusoid", "log1p"], "use_query_time": True}
    off = {"lni_weight": 0.0, "reorder_ties": "never"}
    ours = helpers.build(ADRRec, objective="cloze", **off, **PUBLISHED_BLOCK, **changes)
    meantime = helpers.build(MEANTIME, lni_weight=0.5, **changes)
    state = ours.state_dict()
    state.pop("noise.step")
    meantime.load_state_dict(state)
    batch = batch_for(ours, [7, 3], 0)
    assert torch.equal(ours.full_sort_predict(batch), meantime.full_sort_predict(batch))
    sequence = batch_for(ours, [7, 3], 0, "sequence")
    assert torch.equal(loss_of(ours, sequence), loss_of(meantime, sequence))


def test_inexact_times_work_too():
    """``exact_time: false`` gives float32 seconds, as RecBole does."""
    model = every_kernel()
    batch = batch_for(model, [7, 3], 0)
    rounded = dict(batch, timestamp_list=batch["timestamp_list"].float(), timestamp=batch["timestamp"].float())
    whole = dict(batch, timestamp_list=rounded["timestamp_list"].long(), timestamp=rounded["timestamp"].long())
    assert torch.equal(model.full_sort_predict(rounded), model.full_sort_predict(whole))


def test_the_log_says_when_the_query_time_is_known(caplog):
    with caplog.at_level(logging.INFO):
        every_kernel(use_query_time=False)
        assert "use_query_time" not in caplog.text
        every_kernel(use_query_time=True)
    assert caplog.text.count("use_query_time: true") == 1
