"""Packed rows give what padded rows give, in values and gradients, and the adaptive mixture begins as SASRec."""

import pytest
import torch
from helpers import build, dataset, rows

from recbole_adrrec.layers.layout import Group, Layout, SequenceTimes
from recbole_adrrec.layers.softmax import block_mask, flex_attend
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.awrsr import AWRSR
from recbole_adrrec.models.hstu import HSTU
from recbole_adrrec.models.meantime import MEANTIME
from recbole_adrrec.models.stosa import STOSA
from recbole_adrrec.models.tisasrec import TiSASRec

LENGTHS = [7, 1, 3, 3, 5, 2, 7, 4, 6, 1]

KERNELS = {
    "absolute_kernels": ["position", "day", "weekday"],
    "relative_kernels": ["sinusoid", "log1p", "exponential", "distance", "gap_bias", "distance_bias"],
}

VARIANTS = {
    "adaptive": (ADRRec, KERNELS),
    "adaptive, query time": (ADRRec, {**KERNELS, "use_query_time": True, "day_spacing": 7}),
    "adaptive, noise": (ADRRec, {**KERNELS, "lni_weight": 0.5}),
    "noise, predictions": (ADRRec, {"lni_weight": 0.5, "lni_form": "predictions"}),
    "noise, one pass": (ADRRec, {"lni_weight": 0.5, "lni_form": "noisy"}),
    "trend": (ADRRec, {"trend_rank": 3, "use_query_time": True}),
    "by place": (AWRSR, {"refinement": "additive", "refinement_maps": "place"}),
    "grid": (ADRRec, {**KERNELS, "grid_points": 4}),
    "heads": (ADRRec, {"mixture": "heads", "n_heads": None, "norm_order": "pre", "drop_residual": True}),
    "cloze": (ADRRec, {**KERNELS, "objective": "cloze"}),
    "recompute": (ADRRec, {**KERNELS, "recompute": True}),
    "HSTU": (HSTU, {}),
    "HSTU, query time": (HSTU, {"use_query_time": True, "query_size": 3, "value_size": 5, "trend_rank": 3}),
    "HSTU, recompute": (HSTU, {"recompute": True}),
    "HSTU, no bias": (HSTU, {"time_bias": False, "position_bias": False}),
    "MEANTIME": (MEANTIME, {"relative_kernels": ["sinusoid", "log1p"]}),
    "SASRec": (AWRSR, {"refinement": "none"}),
    "simple": (AWRSR, {"refinement": "simple"}),
    "additive on mix": (AWRSR, {"refinement": "additive", "backbone": "mix", **KERNELS}),
    "stochastic on stosa": (AWRSR, {"refinement": "stochastic", "backbone": "stosa"}),
    "TiSASRec": (TiSASRec, {}),
    "STOSA": (STOSA, {"loss_type": "BPR"}),
}


def loss_and_gradients(model, layout, batch):
    model.event_layout = layout
    model.zero_grad()
    torch.manual_seed(3)
    if hasattr(model, "noise"):
        # Noise is drawn in the order of the layout: another layout draws other noise.
        model.noise.step.zero_()
        model.noise._draw = lambda events, generator: events.sign()
    loss = model.calculate_loss(batch)
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


def test_rows_are_taken_apart_where_much_is_padding():
    model = build(ADRRec)
    nearly_full, half_empty = torch.ones(4, 8, dtype=torch.bool), torch.ones(4, 8, dtype=torch.bool)
    nearly_full[0, 4:] = False
    half_empty[:3, 3:] = False
    assert not model._layout(nearly_full).packed
    assert model._layout(half_empty).packed


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_rows_train_as_padded_ones(name):
    kind, options = VARIANTS[name]
    model = build(kind, **options).train()
    batch = rows(LENGTHS, targets=model.objective)
    batch["neg_item_id"] = batch["neg_item_id"].clamp(min=1)
    padded, by_padded = loss_and_gradients(model, "padded", batch)
    packed, by_packed = loss_and_gradients(model, "grouped", batch)
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)
    assert by_packed.keys() == by_padded.keys()
    for part, gradient in by_padded.items():
        torch.testing.assert_close(by_packed[part], gradient, rtol=1e-8, atol=1e-10, msg=part)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_rows_score_as_padded_ones(name):
    kind, options = VARIANTS[name]
    model = build(kind, **options)
    batch = rows(LENGTHS)
    scores = []
    for layout in ("padded", "grouped"):
        model.event_layout = layout
        scores.append(model.full_sort_predict(batch))
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-10, atol=1e-12)


def test_packed_states_are_those_of_events_alone():
    model = build(ADRRec)
    batch = rows(LENGTHS)
    seen = []
    model.encoder.layers[0].feed_forward.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    model.full_sort_predict(batch)
    assert seen == [(sum(LENGTHS), 16)]


def test_rows_of_a_group_are_of_similar_length():
    length = torch.randint(1, 51, (300,), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(50) < length.unsqueeze(1)
    layout = Layout.grouped(valid, causal=True)
    assert sorted(row for group in layout.groups for row in group.rows.tolist()) == list(range(300))
    for group in layout.groups:
        own = length[group.rows]
        assert own.max() == group.mask.size(-1)
        assert own.max() <= max(4, 1.5 * own.min())
    pairs = sum(group.mask.numel() for group in layout.groups)
    assert pairs < 1.7 * int(length.square().sum())
    assert layout.order.unique().numel() == int(length.sum())


def test_layouts_hand_back_what_they_were_given():
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor([4, 1, 9, 2, 9])
    valid = torch.arange(9) < length.unsqueeze(1)
    batch = torch.randn(5, 9, 3, generator=generator, dtype=torch.float64) * valid.unsqueeze(-1)
    layout = Layout.grouped(valid, causal=True)
    states = layout.pack(batch).requires_grad_()
    assert torch.equal(layout.unpack(states), batch)
    assert torch.equal(states[layout.at(length - 1)], batch[torch.arange(5), length - 1])
    for group in layout.groups:
        own = group.pad(states)
        assert torch.equal(own * valid[group.rows, : own.size(1), None], batch[group.rows, : own.size(1)])
        assert torch.equal(group.unpad(own), states[group.places])
    assert torch.autograd.gradcheck(lambda x: torch.cat([g.unpad(g.pad(x).sin()) for g in layout.groups]), states)


def test_groups_are_cut_where_pairs_are_limited():
    valid = torch.ones(10, 8, dtype=torch.bool)
    sizes = [len(group.mask) for group in Layout.grouped(valid, True, max_pairs=200).groups]
    assert sizes == [3, 3, 3, 1]
    assert len(Layout.padded(valid, True, max_pairs=200).groups) == 4


def same_start(**options):
    """ADRRec with gates closed, and SASRec with its weights."""
    mixed = build(ADRRec, **{**KERNELS, **options})
    for module in mixed.modules():
        if hasattr(module, "start_weights"):
            module.start_weights()
    plain = build(AWRSR, seed=1, refinement="none", **options)
    shared = {name: value for name, value in mixed.state_dict().items() if name in plain.state_dict()}
    assert shared.keys() == plain.state_dict().keys()
    plain.load_state_dict(shared)
    return mixed.train(), plain.train()


def test_adaptive_mixture_begins_as_sasrec():
    mixed, plain = same_start(item_head="plain")
    batch = rows(LENGTHS, targets="causal")
    torch.testing.assert_close(mixed.calculate_loss(batch), plain.calculate_loss(batch), rtol=1e-12, atol=0)
    for model in (mixed, plain):
        model.calculate_loss(batch).backward()
    gradients = {name: part.grad for name, part in mixed.named_parameters()}
    for name, part in plain.named_parameters():
        torch.testing.assert_close(gradients[name], part.grad, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(mixed.full_sort_predict(rows(LENGTHS)), plain.full_sort_predict(rows(LENGTHS)))


def test_every_gate_kernel_and_table_moves_within_twenty_steps():
    mixed, _ = same_start(initializer_range=0.02)
    before = {name: part.detach().clone() for name, part in mixed.named_parameters()}
    optimizer = torch.optim.Adam(mixed.parameters(), lr=1e-3)
    for step in range(20):
        optimizer.zero_grad()
        mixed.calculate_loss(rows(LENGTHS, targets="causal", seed=step)).backward()
        optimizer.step()
    moved = {name: (part - before[name]).abs().max().item() for name, part in mixed.named_parameters()}
    added = [name for name in moved if name.startswith("kernels") or "gates" in name or "absolute" in name]
    added += [name for name in moved if "relative" in name or "bias_tables" in name]
    assert len(added) > 20
    assert all(moved[name] > 1e-4 for name in added), {name: moved[name] for name in added if moved[name] <= 1e-4}


def test_clock_is_that_of_the_data_or_of_the_options_and_stays_with_the_weights():
    free = build(ADRRec, relative_kernels=["log1p", "gap_bias"], time_unit=None, kernel_freq=None)
    log1p, bias = free.kernels.relative
    assert log1p.clock.tolist() == bias.clock.tolist() == [86400.0, 118.0]
    later = build(ADRRec, relative_kernels=["log1p", "gap_bias"], time_unit=3600.0, kernel_freq=118.0)
    assert later.kernels.relative[0].clock.tolist() == [3600.0, 118.0]
    later.load_state_dict(free.state_dict())
    assert later.kernels.relative[0].clock.tolist() == [86400.0, 118.0]
    assert build(ADRRec, dtype=torch.float16).kernels.relative[0].clock.dtype == torch.float64
    batch = rows(LENGTHS)
    torch.testing.assert_close(later.full_sort_predict(batch), free.full_sort_predict(batch), rtol=0, atol=0)


def test_smooth_days_interpolate_between_knots_and_stop_at_the_trained_range():
    days = torch.arange(0, 61) + 15_000
    model = build(ADRRec, data=dataset(days=days), absolute_kernels=["day"], day_spacing=30)
    kernel = model.kernels.absolute[0]
    table = kernel.embedding.weight
    assert len(table) == 4

    def at(day):
        time = torch.tensor([[int(day * 86400)]])
        key, _ = kernel(SequenceTimes(torch.zeros_like(time), time, time, time > 0))
        return key[0, 0]

    torch.testing.assert_close(at(15_000 - 400), table[0])
    torch.testing.assert_close(at(15_015), (table[0] + table[1]) / 2)
    torch.testing.assert_close(at(15_037.5), 0.75 * table[1] + 0.25 * table[2])
    torch.testing.assert_close(at(15_060 + 400), table[2])


def test_group_of_padded_states_is_a_slice():
    mask = torch.ones(3, 1, 2, 2, dtype=torch.bool)
    group = Group(slice(1, 3), mask[1:])
    states = torch.arange(12.0).view(3, 2, 2)
    assert torch.equal(group.pad(states), states[1:])
    assert torch.equal(group.unpad(states[1:]), states[1:])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AWRSR, {"refinement": "none"}),
        (ADRRec, {"relative_kernels": [], "use_query_time": True}),
        (ADRRec, {"absolute_kernels": [], "relative_kernels": [], "objective": "cloze"}),
    ],
)
def test_jagged_rows_train_and_score_as_padded_ones(kind, options):
    model = build(kind, **options).train()
    batch = rows(LENGTHS, targets=model.objective)
    padded, by_padded = loss_and_gradients(model, "padded", batch)
    jagged, by_jagged = loss_and_gradients(model, "jagged", batch)
    torch.testing.assert_close(jagged, padded, rtol=1e-10, atol=1e-12)
    for part, gradient in by_padded.items():
        torch.testing.assert_close(by_jagged[part], gradient, rtol=1e-8, atol=1e-10, msg=part)
    batch = rows(LENGTHS)
    scores = []
    for layout in ("padded", "jagged"):
        model.event_layout = layout
        scores.append(model.eval().full_sort_predict(batch))
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-10, atol=1e-12)


def test_plain_form_of_jagged_attention_is_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    valid = torch.arange(40) < torch.tensor([[40], [3], [17], [1]])
    group = Layout.jagged(valid, causal=True).groups[0]
    count = int(valid.sum())
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, count, 16, generator=generator) for _ in range(3))
    theirs = flex_attention(query, key, value, block_mask=block_mask(group), scale=1.0)
    torch.testing.assert_close(flex_attend(query, key, value, group), theirs, rtol=1e-5, atol=1e-5)
