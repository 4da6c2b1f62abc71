"""Changes at test time: histories, silenced heads, noise, entropies and learned kernels."""

import json
import math

import numpy as np
import pytest
import report
import torch
from helpers import FIRST_TIME, build, rows
from recbole.data.interaction import Interaction
from study import heads, measurements, robustness, runs, study_file
from study.results import Results
from study.robustness import KINDS, changed_batch, changed_history, drop_row
from study.session import load_trained

from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.awrsr import AWRSR
from recbole_adrrec.models.meantime import MEANTIME
from recbole_adrrec.models.stosa import STOSA
from recbole_adrrec.models.tisasrec import TiSASRec

ITEMS = np.arange(1, 41)
TIMES = FIRST_TIME + np.cumsum(np.arange(40)) * 1000
NOW = float(TIMES[-1] + 500)


def change(kind, share, seed=(0, 1, 40), items=ITEMS, times=TIMES, now=NOW, n_items=100):
    return changed_history(items, times, now, kind, share, n_items, seed)


# Histories


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_replacing_changes_that_share_of_the_items_alone(share):
    order, items, times = change("replace", share)
    assert (items != ITEMS).sum() == 40 * share
    assert ((items >= 1) & (items < 100)).all()
    np.testing.assert_array_equal(order, np.arange(40))
    np.testing.assert_array_equal(times, TIMES)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_dropping_leaves_the_others_as_they_were(share):
    order, items, times = change("drop", share)
    assert len(order) == 40 * (1 - share)
    assert (np.diff(order) > 0).all()
    np.testing.assert_array_equal(items, ITEMS[order])
    np.testing.assert_array_equal(times, TIMES[order])


def test_dropping_leaves_one_event():
    assert len(change("drop", 1.0)[0]) == 1
    assert len(change("drop", 0.5, items=ITEMS[:1], times=TIMES[:1])[0]) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_jitter_moves_that_share_of_the_times_and_sorts_again(share):
    order, items, times = change("jitter", share)
    np.testing.assert_array_equal(items, ITEMS[order])
    assert sorted(order) == list(range(40))
    assert (np.diff(times) >= 0).all()
    moved = (times != TIMES[order]).sum()
    assert 0 < moved <= 40 * share
    assert times.max() <= NOW
    assert times.dtype == TIMES.dtype


def test_jitter_is_as_large_as_the_mean_gap():
    many = [change("jitter", 1.0, seed=(0, user, 40), now=math.inf) for user in range(400)]
    shift = np.concatenate([times - TIMES[order] for order, _, times in many])
    mean_gap = (TIMES[-1] - TIMES[0]) / 39
    early = np.concatenate([order < 30 for order, _, _ in many])  # the last events may not pass the last time
    assert np.std(shift[early]) == pytest.approx(mean_gap, rel=0.03)


def test_nothing_to_move_stays():
    same = np.full(5, FIRST_TIME)
    order, _, times = change("jitter", 1.0, items=ITEMS[:5], times=same)
    np.testing.assert_array_equal(times, same)
    np.testing.assert_array_equal(order, np.arange(5))


def test_short_histories_get_their_share_on_average():
    counts = [
        (change("replace", 0.1, (0, user, 3), ITEMS[:3], TIMES[:3])[1] != ITEMS[:3]).sum() for user in range(3000)
    ]
    assert np.mean(counts) == pytest.approx(0.3, abs=0.04)


def test_changes_are_nested_and_depend_on_the_seed_alone():
    few, many = (np.flatnonzero(change("replace", share)[1] != ITEMS) for share in (0.1, 0.5))
    assert set(few) < set(many)
    np.testing.assert_array_equal(change("replace", 0.5)[1], change("replace", 0.5)[1])
    for other in ((1, 1, 40), (0, 2, 40)):
        assert (change("replace", 0.5)[1] != change("replace", 0.5, other)[1]).any()


def test_replacement_is_even_and_never_the_same():
    drawn = np.concatenate(
        [change("replace", 1.0, (0, user, 2), np.array([1, 3]), TIMES[:2], n_items=5)[1] for user in range(3000)]
    ).reshape(-1, 2)
    for place, own in ((0, 1), (1, 3)):
        counts = np.bincount(drawn[:, place], minlength=5)
        assert counts[own] == counts[0] == 0
        assert (np.abs(counts[[i for i in range(1, 5) if i != own]] / 1000 - 1) < 0.15).all()


# Batches


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_changes_row_by_row(kind):
    model = build(ADRRec)
    batch = Interaction(rows([7, 3, 1]))
    changed = changed_batch(model, batch, kind, 0.5, seed=4)
    for row, n in enumerate((7, 3, 1)):
        order, items, times = changed_history(
            batch["item_id_list"][row, :n].numpy(),
            batch["timestamp_list"][row, :n].numpy(),
            float(batch["timestamp"][row]),
            kind,
            0.5,
            model.n_items,
            (4, row + 1, n),
        )
        m = len(order)
        assert int(changed["item_length"][row]) == m
        np.testing.assert_array_equal(changed["item_id_list"][row, :m], items)
        np.testing.assert_array_equal(changed["timestamp_list"][row, :m], times)
        assert not changed["item_id_list"][row, m:].any()
        assert not changed["timestamp_list"][row, m:].any()
    for name in ("item_id", "timestamp", "user_id"):
        assert changed[name] is batch[name]
    assert changed["timestamp_list"].dtype == torch.int64


def test_other_lists_follow_the_events():
    model = build(ADRRec)
    items = torch.tensor([[1, 2, 3, 4, 5, 6, 0], [11, 12, 13, 14, 0, 0, 0]])
    batch = Interaction({**rows([6, 4]), "item_id_list": items, "rating_list": items * 0.5})
    changed = changed_batch(model, batch, "drop", 0.5, seed=0)
    for row in range(2):
        m = int(changed["item_length"][row])
        assert m == (3, 2)[row]
        np.testing.assert_array_equal(changed["rating_list"][row], changed["item_id_list"][row] * 0.5)


def test_without_times_items_change_all_the_same():
    model = build(ADRRec)
    batch = rows([7, 5])
    del batch["timestamp_list"], batch["timestamp"]
    changed = changed_batch(model, Interaction(batch), "replace", 1.0, seed=0)
    assert (changed["item_id_list"] != batch["item_id_list"]).sum() == 12


def test_a_share_of_nothing_changes_no_score():
    model = build(TiSASRec)
    batch = Interaction(rows([7, 3, 1]))
    for kind in KINDS:
        changed = changed_batch(model, batch, kind, 0.0, seed=0)
        torch.testing.assert_close(model.full_sort_predict(changed), model.full_sort_predict(batch), rtol=0, atol=0)


def test_what_is_lost_is_a_share():
    clean, values = np.array([1.0, 0.0, 0.5, 0.5]), np.array([0.5, 0.0, 0.5, 0.0])
    row = drop_row(clean, values)
    assert row["drop"] == pytest.approx(0.5)
    assert row["low"] <= 0.5 <= row["high"]
    assert drop_row(np.zeros(3), values[:3]) == {"clean": 0.0, "value": 1 / 3, "drop": None, "low": None, "high": None}
    assert drop_row(np.ones(1), np.zeros(1)) == {"clean": 1.0, "value": 0.0, "drop": 1.0, "low": None, "high": None}


# Heads


HEADS = {"mixture": "heads", "n_heads": None}
MODELS = [
    (ADRRec, {"hidden_size": 16}),
    (ADRRec, HEADS),
    (MEANTIME, {"relative_kernels": ["sinusoid", "log1p"]}),
    (STOSA, {"loss_type": "BPR"}),
    (TiSASRec, {}),
    (AWRSR, {}),
    (AWRSR, {"backbone": "mix", "refinement": "value"}),
]


@pytest.mark.parametrize(("model_class", "changes"), MODELS)
def test_a_silenced_head_gives_nothing(model_class, changes):
    model = build(model_class, **changes)
    batch = rows([7, 4, 2])
    before = model.full_sort_predict(batch)
    layers = heads.attentions(model)
    assert len(layers) == 2
    seen = []

    def watch(_, inputs):
        seen.append(inputs[0])

    handle = layers[1].dropout.register_forward_pre_hook(watch)
    with heads.silenced(model, {2: [1]}):
        silent = model.full_sort_predict(batch)
    handle.remove()
    assert not seen[0][:, 0].any()
    assert seen[0][:, 1].any()
    assert (silent - before).abs().max() > 1e-6
    torch.testing.assert_close(model.full_sort_predict(batch), before, rtol=0, atol=0)


def test_silencing_is_zeroing_the_heads_share_of_the_output_map():
    model = build(ADRRec, **HEADS)
    batch = rows([7, 4, 2])
    with heads.silenced(model, {1: [2, 3]}):
        silent = model.full_sort_predict(batch)
    width = 16 // 4
    with torch.no_grad():
        heads.attentions(model)[0].output.weight[:, width : 3 * width] = 0
    torch.testing.assert_close(model.full_sort_predict(batch), silent)


def test_a_closed_kernel_is_one_that_is_not_there():
    names = ["sinusoid", "gap_bias"]
    model = build(ADRRec, relative_kernels=names)
    for layer in model.encoder.layers:
        layer.attention.bias_tables[0].data.normal_()
    batch = rows([7, 4, 2])
    before = model.full_sort_predict(batch)
    with heads.closed(model, {1: [2, 4], 2: [1]}):
        quiet = model.full_sort_predict(batch)
    first, second = heads.attentions(model)
    for attention, places in ((first, (1, 3)), (second, (0,))):
        for place in places:
            attention.gates.weight.data.view(4, 2, -1)[place] = 0
            attention.gates.bias.data.view(4, 2)[place] = 0
    assert (quiet - before).abs().max() > 1e-6
    torch.testing.assert_close(model.full_sort_predict(batch), quiet)


def test_heads_that_are_not_there_are_refused():
    model = build(ADRRec, **HEADS)
    with pytest.raises(ValueError, match="layer: 3; must be from 1 to 2"), heads.silenced(model, {3: [1]}):
        pass
    with pytest.raises(ValueError, match=r"heads: \[5\]; must be from 1 to 4"), heads.silenced(model, {1: [5]}):
        model.full_sort_predict(rows([3]))
    model.full_sort_predict(rows([3]))


def test_heads_are_named_by_their_kernels():
    kernels = {"absolute_kernels": ["constant", "day", "constant"], "relative_kernels": ["distance"]}
    model = build(ADRRec, **kernels, day_spacing=7, **HEADS)
    assert heads.head_names(build(ADRRec, **kernels), 2) == [("head 1", "plain"), ("head 2", "plain")]
    assert heads.head_names(model, 4) == [
        ("constant (head 1)", "absolute"),
        ("day", "absolute"),
        ("constant (head 3)", "absolute"),
        ("distance", "relative"),
    ]
    assert heads.head_names(build(TiSASRec), 2) == [("head 1", "plain"), ("head 2", "plain")]


def test_entropy_against_its_definition():
    model = build(ADRRec, **HEADS)
    batch = rows([7, 4, 1])
    with heads.entropies(model) as gathered:
        model.full_sort_predict(batch)
    told = [model.explain({name: value[row : row + 1] for name, value in batch.items()}) for row in range(3)]
    for layer in range(2):
        for head in range(4):
            values = []
            for each in told:
                weights = each.refined[layer, head]
                for place in range(1, len(each.items)):
                    row = weights[place, : place + 1]
                    values.append(float(-(row * row.log()).sum() / math.log(place + 1)))
            assert gathered[layer].mean[head] == pytest.approx(np.mean(values), rel=1e-9)


def test_entropy_is_one_for_even_weights_and_zero_for_one_event():
    entropy = heads.Entropy()
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    even = mask.double() / mask.sum(-1, keepdim=True)
    entropy(None, (even, mask), torch.cat([even, torch.eye(4).double().expand(1, 1, 4, 4)], 1))
    assert entropy.mean == pytest.approx([1.0, 0.0])
    assert heads.Entropy().mean == []


@pytest.mark.parametrize(("model_class", "changes"), MODELS)
def test_noise_in_the_layers_changes_scores_by_its_size(model_class, changes):
    model = build(model_class, **changes)
    batch = rows([7, 4, 2])
    before = model.full_sort_predict(batch)
    moved = []
    for size in (1e-6, 0.1):
        with robustness.disturbed(model, size):
            moved.append(float((model.full_sort_predict(batch) - before).detach().abs().max()))
    assert 0 < moved[0] < moved[1]
    torch.testing.assert_close(model.full_sort_predict(batch), before, rtol=0, atol=0)


def test_noise_is_as_large_as_it_says():
    model = build(ADRRec)
    seen = []
    first = model.encoder.layers[0]
    batch = rows([7, 7, 7, 7])
    for size in (0.0, 0.5):
        with robustness.disturbed(model, size):
            # Hooks run in the order of their coming: this one sees what the noise has left.
            handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            for _ in range(60):
                model.full_sort_predict(batch)
            handle.remove()
    clean, noisy = torch.stack(seen[:60]), torch.stack(seen[60:])
    size = (noisy - clean).pow(2).mean(-1).sqrt() / clean.pow(2).mean(-1).sqrt()
    assert float(size.pow(2).mean().sqrt()) == pytest.approx(0.5, rel=0.03)


# A trained model


@pytest.mark.parametrize("protocol", ["leave_one_out-full-all", "temporal-full-unseen"])
def test_a_saved_model_gives_its_run_again_and_is_measured(small_data, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    plan = study_file.load(
        None,
        {
            "models": ["ADRRec"],
            "datasets": ["small"],
            "data_path": str(small_data),
            "seeds": 1,
            "protocols": [protocol],
            "metrics": ["NDCG"],
            "topk": [10],
            "keep_models": True,
            "results": str(tmp_path / "results"),
            "options": {
                "epochs": 2,
                "hidden_size": 16,
                "inner_size": 16,
                "MAX_ITEM_LIST_LENGTH": 12,
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "initializer_range": 0.3,
                "absolute_kernels": ["position", "day"],
                "relative_kernels": ["sinusoid", "distance"],
            },
        },
    )
    (spec,) = plan.specs()
    runs.run_one(spec, plan.results)
    with np.load(plan.results / "runs" / f"{spec.id}.npz") as kept:
        session, again = load_trained(spec, plan.results / "models" / f"{spec.id}.pth")
        np.testing.assert_array_equal(again["users"], kept["users"])
        np.testing.assert_allclose(again["ndcg@10"], kept["ndcg@10"], rtol=0, atol=1e-12)

    stated = {"study": {"metrics": ["NDCG"], "topk": [10], "temporal": plan.temporal}}
    (plan.results / "study.json").write_text(json.dumps(stated))
    monkeypatch.setattr(robustness, "SHARES", (0.5,))
    assert report.main([str(plan.results), "--measure", "robustness,heads", "--data_path", str(small_data)]) == 0
    path = plan.results / "measurements" / f"{spec.id}.json"
    told = json.loads(path.read_text())
    assert told["command"].startswith("python benchmarks/report.py")
    measurements.measure(spec, plan.results, "python a.py", shares=[0.5])
    again_told = json.loads(path.read_text())
    assert all(told[kind] == again_told[kind] for kind in measurements.KINDS)
    assert measurements.measured_kinds(plan.results, spec.id) == {"robustness", "heads"}
    assert {row["kind"]: row["clean"] for row in told["robustness"]} == dict.fromkeys(
        (*KINDS, "noise"), again["ndcg@10"].mean()
    )
    (found,) = measurements.read_measurements(Results.read(plan.results))
    entropies = [row["entropy"] for row in found.heads if row["kind"] == "plain"]
    assert len(entropies) == 4
    assert all(0 < entropy < 1 for entropy in entropies)
    kernels = {f"{name} kernel" for name in ("position", "day", "sinusoid", "distance")}
    by_layer = {layer: {row["head"] for row in found.heads if row["layer"] == layer} for layer in (1, 2, "all")}
    assert by_layer[1] == by_layer[2] == kernels | {"head 1", "head 2"}
    assert by_layer["all"] == kernels | {"all absolute kernels", "all relative kernels"}
    assert not session.model.__dict__.get("full_sort_predict")
