"""Properties of every causal model and every refinement on any batch."""

import copy
import itertools
import logging

import helpers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recbole_adrrec.layers.draws import SharedNegatives
from recbole_adrrec.layers.kernels import ABSOLUTE_KERNELS, RELATIVE_KERNELS
from recbole_adrrec.layers.refinement import REFINEMENTS, Refinement
from recbole_adrrec.losses import LOSSES
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.awrsr import AWRSR, BACKBONES
from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.models.block import sasrec_components
from recbole_adrrec.models.hstu import HSTU
from recbole_adrrec.models.meantime import MEANTIME
from recbole_adrrec.models.stosa import STOSA
from recbole_adrrec.models.tisasrec import TiSASRec
from recbole_adrrec.options.schema import AWRSROptions

WIDTH = 7
CAUSAL = {
    "TiSASRec": (TiSASRec, {}),
    "HSTU": (HSTU, {}),
    "HSTU, query time": (HSTU, {"use_query_time": True, "query_size": 3, "value_size": 5}),
    "STOSA": (STOSA, {"initializer_range": 0.1}),
    "STOSA, bypass": (STOSA, {"published_mean_bypass": True, "initializer_range": 0.1}),
    **{
        f"AWRSR, {refinement}, {backbone}": (
            AWRSR,
            {"refinement": refinement, "backbone": backbone, "initializer_range": 0.1 if backbone == "stosa" else 0.5},
        )
        for refinement, backbone in itertools.product(REFINEMENTS, BACKBONES)
    },
}
ALL_KERNELS = {"absolute_kernels": list(ABSOLUTE_KERNELS), "relative_kernels": list(RELATIVE_KERNELS)}
ADRREC = {
    f"ADRRec, {objective}, {'query time' if timed else 'history'}": (
        ADRRec,
        {
            **{"objective": objective, "use_query_time": timed, "hidden_size": 20, **ALL_KERNELS},
            **{"lni_weight": 0.5, "lni_noise": "in_manifold"},
        },
    )
    for objective, timed in itertools.product(("causal", "cloze"), (False, True))
}
MODELS = {**CAUSAL, **ADRREC}
FEW = settings(max_examples=12, deadline=None)

CAUSAL_NAMES = [name for name in MODELS if "cloze" not in name]
lengths = st.lists(st.integers(1, WIDTH), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)


def build(name, **changes):
    model_class, own = MODELS[name]
    return helpers.build(model_class, **{**own, **changes})


def loss_of(model, batch, seed=0):
    """Training loss under a seed, in training mode."""
    torch.manual_seed(seed)
    return model.train().calculate_loss(batch)


def states(model, batch):
    items, moments, _ = model._inference_inputs(batch)
    return model.eval()(items, moments).detach()


@pytest.mark.parametrize("name", CAUSAL_NAMES)
@settings(max_examples=3, deadline=None)
@given(seeds, st.integers(0, WIDTH - 1))
def test_a_state_depends_on_no_later_event(name, seed, changed):
    model = build(name)
    batch = helpers.rows([WIDTH], seed=seed)
    before = states(model, batch)
    items = dict(batch, item_id_list=batch["item_id_list"].clone())
    items["item_id_list"][0, changed] = batch["item_id_list"][0, changed] % (helpers.N_ITEMS - 1) + 1
    after = states(model, items)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])
    times = dict(batch, timestamp_list=batch["timestamp_list"].clone())
    times["timestamp_list"][0, changed] += 10 * 86400
    after = states(model, times)
    # A place's query time is that of the event after it.
    first = max(0, changed - 1) if model.use_query_time else changed
    assert torch.equal(before[:, :first], after[:, :first])
    if name in ADRREC:  # The first place sees but itself, whatever the kernels say.
        assert not torch.equal(before[:, max(1, first)], after[:, max(1, first)])


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
@pytest.mark.parametrize("name", MODELS)
def test_padding_content_changes_nothing(name, loss_type):
    model = build(name, loss_type=loss_type)
    twin = copy.deepcopy(model)
    for kind in ("row", model.objective):
        batch = helpers.rows([WIDTH, 3, 1], targets=kind)
        padding = torch.arange(WIDTH) >= batch["item_length"].unsqueeze(1)
        filled = dict(batch)
        fills = {"item_id_list": 3, "timestamp_list": -(2**40), "timestamp": 2**40, "neg_item_id": 2, "item_id": 5}
        for field, value in fills.items():
            if filled[field].dim() == 2:
                filled[field] = filled[field].masked_fill(padding, value)
        assert torch.equal(loss_of(model, batch), loss_of(twin, filled))
        if kind == "row":
            assert torch.equal(model.eval().full_sort_predict(batch), twin.eval().full_sort_predict(filled))


@FEW
@given(st.sampled_from(list(MODELS)), lengths, seeds)
def test_scores_do_not_depend_on_the_rest_of_the_batch(name, counts, seed):
    model = build(name)
    batch = helpers.rows(counts, seed=seed)
    together = model.full_sort_predict(batch)
    assert together.shape == (len(counts), helpers.N_ITEMS)
    alone = model.predict(batch)
    torch.testing.assert_close(alone, together.gather(1, batch["item_id"][:, None])[:, 0], rtol=0, atol=1e-9)
    for row in range(len(counts)):
        single = {field: value[row : row + 1] for field, value in batch.items()}
        torch.testing.assert_close(model.full_sort_predict(single)[0], together[row], rtol=0, atol=1e-9)


def test_published_padding_depends_on_the_padding():
    batch = helpers.rows([3])
    ours, published = (build("TiSASRec", published_padding_attention=flag) for flag in (False, True))
    assert not torch.allclose(ours.full_sort_predict(batch), published.full_sort_predict(batch), atol=1e-3)
    wider = build("TiSASRec", published_padding_attention=True, MAX_ITEM_LIST_LENGTH=9)
    state = {name: value for name, value in published.state_dict().items() if "position" not in name}
    wider.load_state_dict(state, strict=False)
    for side in ("key", "value"):  # the newest events keep their rows
        table = getattr(wider.kernels, f"position_{side}").weight
        table.data[-WIDTH:] = getattr(published.kernels, f"position_{side}").weight.data
    assert not torch.allclose(wider.full_sort_predict(batch), published.full_sort_predict(batch), atol=1e-3)


@pytest.mark.parametrize("name", CAUSAL_NAMES)
@settings(max_examples=3, deadline=None)
@given(st.integers(1, WIDTH), seeds, st.sampled_from(["CE", "BPR", "sampled_softmax"]))
def test_a_window_trains_what_its_prefixes_train(name, length, seed, loss_type):
    """A window's loss and gradients are the mean of those of its prefixes."""
    model = build(name, loss_type=loss_type, **({"lni_weight": 0.0} if name in ADRREC else {}))
    window = helpers.rows([length], seed=seed, targets="causal")
    prefix_length = torch.arange(1, length + 1)
    inside = torch.arange(WIDTH) < prefix_length.unsqueeze(1)
    prefixes = {
        "user_id": window["user_id"].expand(length),
        "item_id_list": window["item_id_list"] * inside,
        "timestamp_list": window["timestamp_list"] * inside,
        "item_length": prefix_length,
        **{field: window[field][0, :length] for field in ("item_id", "timestamp", "neg_item_id")},
    }
    helpers.assert_same(loss_of(model, window), loss_of(model, prefixes), model.parameters(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_history_gives_finite_scores_and_gradients(name):
    model = build(name)
    batch = helpers.rows([0, 3])
    assert model.full_sort_predict(batch).isfinite().all()
    model.full_sort_predict(batch).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


LEARNERS = {
    "AWRSR": (AWRSR, {}),
    "ADRRec": (ADRRec, {"lni_weight": 0.01}),
    "ADRRec, cloze": (ADRRec, {"lni_weight": 0.01, "objective": "cloze"}),
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("kind", ["row", "window"])
def test_every_loss_goes_down(name, loss_type, kind):
    model_class, own = LEARNERS[name]
    own = {**own, "loss_type": loss_type, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}
    model = helpers.build(model_class, dtype=torch.float32, initializer_range=0.02, **own)
    batch = helpers.rows([7, 5, 6, 2], targets="row" if kind == "row" else model.objective)
    if kind == "row":
        batch = {field: value.repeat(3, *[1] * (value.dim() - 1)) for field, value in batch.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    first = loss_of(model, batch).item()
    for _ in range(12):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert loss_of(model, batch) < 0.85 * first


@pytest.mark.parametrize("loss_type", ["BPR", "BCE", "sampled_softmax", "gBCE"])
@pytest.mark.parametrize("model_class", [TiSASRec, ADRRec])
def test_prefix_rows_that_recbole_repeats_for_each_negative_are_trained_once(loss_type, model_class):
    """RecBole repeats the whole batch for each further negative; windows get them side by side."""
    model = helpers.build(model_class, loss_type=loss_type, train_neg_sample_args={"sample_num": 2})
    row = helpers.rows([4, 4])
    negatives = torch.tensor([[3, 5], [7, 9]])  # row by negative
    repeated = {field: torch.cat([value, value]) for field, value in row.items()}
    repeated["neg_item_id"] = negatives.T.flatten()
    window = dict(row)
    last = torch.tensor([[3], [3]])
    for field in ("item_id", "timestamp"):
        window[field] = torch.zeros(2, WIDTH, dtype=torch.int64).scatter(1, last, row[field].unsqueeze(1))
    window["neg_item_id"] = torch.zeros(2, WIDTH, 2, dtype=torch.int64)
    window["neg_item_id"][:, 3] = negatives
    torch.testing.assert_close(loss_of(model, repeated), loss_of(model, window), rtol=0, atol=1e-12)


SCORED = {
    "temperature": {"temperature": 0.3},
    "trend": {"trend_rank": 3},
    "trend, query time": {"trend_rank": 3, "use_query_time": True, "temperature": 0.5},
    "smoothed": {"label_smoothing": 0.2},
    "shared": {"loss_type": "sampled_softmax", "negatives": "shared", "n_negatives": 30},
    "all": {
        **{"loss_type": "sampled_softmax", "negatives": "shared", "n_negatives": 30, "label_smoothing": 0.1},
        **{"temperature": 0.3, "trend_rank": 3},
    },
}
WITH_TREND = {
    "ADRRec": (ADRRec, {}),
    "ADRRec, cloze": (ADRRec, {"objective": "cloze"}),
    "HSTU": (HSTU, {"time_bias": False}),
    **{f"AWRSR, {name}": (AWRSR, {"backbone": name, "refinement": "none"}) for name in ("sasrec", "tisasrec", "mix")},
}
WITHOUT = {
    "TiSASRec": (TiSASRec, {}),
    "MEANTIME": (MEANTIME, {"relative_kernels": ["sinusoid", "log1p"]}),
    "STOSA": (STOSA, {"initializer_range": 0.1}),
    "AWRSR, stosa": (AWRSR, {"backbone": "stosa", "initializer_range": 0.1}),
}
SCORINGS = [
    *itertools.product(WITH_TREND, SCORED),
    *((name, scoring) for name in ("TiSASRec", "MEANTIME") for scoring in ("temperature", "smoothed", "shared")),
    *((name, scoring) for name in ("STOSA", "AWRSR, stosa") for scoring in ("smoothed", "shared")),
]


def scored(name, scoring, **changes):
    """A model with some of the options of scores and losses; a trend gets weights that can be seen."""
    model_class, own = {**WITH_TREND, **WITHOUT}[name]
    model = helpers.build(model_class, **{**own, **SCORED[scoring], **changes})
    if model.head.trend is not None:
        torch.nn.init.normal_(model.head.trend.items)
    return model


@pytest.mark.parametrize(("name", "scoring"), SCORINGS)
def test_every_way_to_score_agrees(name, scoring):
    model, batch = scored(name, scoring), helpers.rows([WIDTH, 3, 1, 5])
    together = model.full_sort_predict(batch)
    torch.testing.assert_close(model.predict(batch), together.gather(1, batch["item_id"][:, None])[:, 0])
    if "temperature" in SCORED[scoring] and model.head.trend is None:
        assert together.abs().max() <= 1 / SCORED[scoring]["temperature"] + 1e-9


@pytest.mark.parametrize("name", [*WITH_TREND, "TiSASRec", "MEANTIME"])
def test_items_are_ranked_by_the_scores_of_training(name):
    model, batch = scored(name, "temperature"), helpers.rows([WIDTH, 3, 1, 5])
    ranked = model.eval().full_sort_predict(batch)
    torch.testing.assert_close(model.train().full_sort_predict(batch), ranked)


@pytest.mark.parametrize("use_query_time", [False, True])
@pytest.mark.parametrize("name", WITH_TREND)
def test_a_trend_adds_a_product_with_the_moment(name, use_query_time):
    model, batch = scored(name, "trend", use_query_time=use_query_time), helpers.rows([WIDTH, 3, 1, 5])
    trend, last = model.head.trend, batch["item_length"] - 1
    moment = batch["timestamp"] if use_query_time else batch["timestamp_list"][torch.arange(4), last]
    with_trend, model.head.trend = model.full_sort_predict(batch), None
    added = with_trend - model.full_sort_predict(batch)
    torch.testing.assert_close(added, trend(moment) @ trend.items.T)


@pytest.mark.parametrize(("name", "scoring"), SCORINGS)
@pytest.mark.parametrize("kind", ["row", "window"])
def test_the_loss_is_that_of_the_scores(name, scoring, kind):
    """Written out of all items' scores at each target."""
    model = scored(name, scoring)
    rows = helpers.rows([5, 3, 4], targets="row" if kind == "row" else model.objective)
    loss = loss_of(model, rows)
    torch.manual_seed(0)  # a cloze model draws its masks again
    shown = model._training_batch(rows)
    mask = shown.targets > 0
    hidden, times, targets = model(shown.items, shown.times)[mask], shown.times.query_time[mask], shown.targets
    scores, targets = model.head(hidden, model.item_embedding.table, query_time=times), targets[mask]
    if model.shared_negatives is not None:
        drawn = copy.deepcopy(model.shared_negatives)
        drawn.step -= 1
        drawn = drawn()
        scores = [row[torch.cat([own[None], drawn[drawn != own]])] for row, own in zip(scores, targets, strict=True)]
        targets = torch.zeros_like(targets)
    smoothing = SCORED[scoring].get("label_smoothing", 0.0)
    expected = torch.stack(
        [F.cross_entropy(row, target, label_smoothing=smoothing) for row, target in zip(scores, targets, strict=True)]
    ).mean()
    if model.head.trend is not None:
        expected = expected + model.head.trend.penalty()
    helpers.assert_same(loss, expected, model.parameters(), rtol=1e-7, atol=1e-8)


def test_shared_negatives_are_drawn_anew_for_each_batch_and_go_on_where_they_were():
    made = SharedNegatives(30, helpers.N_ITEMS, seed=1)
    state = torch.get_rng_state()
    first, second = made(), made()
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (30,)
    assert not torch.equal(first, second)
    assert not torch.equal(first, SharedNegatives(30, helpers.N_ITEMS, seed=2)())
    counts = torch.cat([made() for _ in range(100)]).bincount(minlength=helpers.N_ITEMS)
    assert counts[0] == 0
    assert counts[1:].float().std() < 0.15 * counts[1:].float().mean()
    other = SharedNegatives(30, helpers.N_ITEMS, seed=1)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(), made())


def test_a_model_without_these_options_has_the_weights_it_had():
    names = helpers.build(ADRRec).state_dict()
    assert not [name for name in names if "trend" in name or "shared" in name]


OWN = {
    "stosa": (STOSA, {}),
    "tisasrec": (TiSASRec, {}),
    "mix": (ADRRec, {"lni_weight": 0.0, "item_head": "plain", "day_spacing": None}),
}


@pytest.mark.parametrize("backbone", OWN)
@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_without_refinement_awrsr_is_its_backbone(backbone, loss_type):
    """To the last bit, with dropout, in scores, loss and gradients."""
    model_class, own = OWN[backbone]
    changes = {"loss_type": loss_type, "hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3, "initializer_range": 0.1}
    changes["reorder_ties"] = "never"
    theirs = helpers.build(model_class, dtype=torch.float32, **changes, **own)
    ours = helpers.build(AWRSR, seed=1, dtype=torch.float32, **changes, refinement="none", backbone=backbone)
    state = theirs.state_dict()
    state.pop("noise.step", None)
    ours.load_state_dict(state)
    assert_equal_models(ours, theirs)


def test_without_refinement_awrsr_on_sasrec_is_its_parts():
    class Plain(SequenceRecommender):
        options_class = AWRSROptions

        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.set_components(sasrec_components(self.options, self.data_stats(dataset)))

    theirs = helpers.build(Plain, dtype=torch.float32)
    ours = helpers.build(AWRSR, seed=1, dtype=torch.float32, refinement="none")
    ours.load_state_dict(theirs.state_dict())
    assert_equal_models(ours, theirs)


@pytest.mark.parametrize("block", [{}, {"norm_order": "pre", "item_head": "projected", "n_heads": 4}])
def test_an_adaptive_mixture_without_kernels_is_sasrec(block):
    """To the last bit, with dropout: AWRSR's backbone sasrec without refinement."""
    changes = {"hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3, "reorder_ties": "never", **block}
    theirs = helpers.build(AWRSR, dtype=torch.float32, refinement="none", **changes)
    kernels = {"absolute_kernels": [], "relative_kernels": []}
    ours = helpers.build(ADRRec, seed=1, dtype=torch.float32, **kernels, **changes)
    lacking = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not lacking.unexpected_keys
    assert not [name for name in lacking.missing_keys if ours.state_dict()[name].numel() and name != "noise.step"]
    assert_equal_models(ours, theirs)


def assert_equal_models(ours, theirs):
    row, window = helpers.rows([7, 3, 1]), helpers.rows([7, 3, 1], targets="causal")
    assert torch.equal(ours.full_sort_predict(row), theirs.full_sort_predict(row))
    for batch in (row, window):
        losses = loss_of(ours, batch), loss_of(theirs, batch)
        assert torch.equal(*losses)
        gradients = [
            torch.autograd.grad(loss, [part for part in model.parameters() if part.numel()], allow_unused=True)
            for loss, model in zip(losses, (ours, theirs), strict=True)
        ]
        for gradient, other in zip(*gradients, strict=True):
            assert (gradient is None) == (other is None)
            assert gradient is None or torch.equal(gradient, other)


def test_refinement_reaches_the_chosen_layers_alone():
    model = helpers.build(AWRSR, refinement="additive", refinement_layers=[2])
    kinds = [type(layer.attention.refinement) for layer in model.encoder.layers]
    assert kinds == [Refinement, REFINEMENTS["additive"]]


@pytest.mark.parametrize(("backbone", "ignores"), [("sasrec", 1), ("stosa", 1), ("tisasrec", 0), ("mix", 0)])
def test_the_log_says_which_backbones_ignore_time(caplog, backbone, ignores):
    with caplog.at_level(logging.INFO):
        if backbone != "stosa":
            helpers.build(AWRSR, backbone=backbone, trend_rank=2)
            assert "ignores the times" not in caplog.text
        model = helpers.build(AWRSR, backbone=backbone)
    assert caplog.text.count("ignores the times") == ignores
    batch = helpers.rows([7, 5])
    later = dict(batch, timestamp_list=batch["timestamp_list"] * 2)
    same = torch.equal(model.full_sort_predict(batch), model.full_sort_predict(later))
    assert same == bool(ignores)


EXPLAINED = {
    "ADRRec": (ADRRec, {}, 2),
    "ADRRec, heads": (ADRRec, {"mixture": "heads"}, 4),
    "ADRRec, cloze": (ADRRec, {"objective": "cloze"}, 2),
    "TiSASRec": (TiSASRec, {}, 2),
    "TiSASRec, published": (TiSASRec, {"published_padding_attention": True}, 2),
    "STOSA": (STOSA, {}, 2),
    **{name: (*made, 2) for name, made in MODELS.items() if "AWRSR" in name},
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_shows_what_is_attended_to(name):
    model_class, changes, heads = EXPLAINED[name]
    model = helpers.build(model_class, **changes).train()
    batch = helpers.rows([5])
    shown = model.explain(batch)
    assert model.training
    cloze = model.objective == "cloze"
    length = 5 + cloze
    assert shown.items[:5].tolist() == batch["item_id_list"][0, :5].tolist()
    assert shown.items[5:].tolist() == [model.n_items] * cloze
    assert shown.times[:5].tolist() == batch["timestamp_list"][0, :5].tolist()
    for weights in (shown.plain, shown.refined):
        assert weights.shape == (2, heads, length, length)
        assert not weights.requires_grad
        total = weights.sum(-1)
        if "published" in name:
            assert (total < 1).any()
        else:
            torch.testing.assert_close(total, torch.ones_like(total))
        if not cloze:
            assert torch.equal(weights, weights.tril())
    assert torch.equal(shown.plain, shown.refined) == (model_class is not AWRSR)


def test_explain_takes_one_user_with_a_history():
    model = helpers.build(AWRSR)
    for counts in ([3, 2], [0]):
        with pytest.raises(ValueError, match="takes one"):
            model.explain(helpers.rows(counts))
