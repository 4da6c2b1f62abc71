"""Forms of layer-wise noise in ADRRec's training: losses, log, and that they act."""

import itertools
import logging
import re

import helpers
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_adrrec.layers import noise as noise_module
from recbole_adrrec.layers.transformer import TransformerEncoder
from recbole_adrrec.models import adrrec
from recbole_adrrec.models.adrrec import ADRRec

FORMS = ("states", "predictions", "noisy")
LOSSES = [("CE", {}), ("sampled_softmax", {}), ("BPR", {})]


def model_of(form, **changes):
    return helpers.build(ADRRec, **{"lni_form": form, "lni_weight": 0.5, **changes}).train()


def loss_of(model, batch, seed=0):
    torch.manual_seed(seed)
    return model.calculate_loss(batch)


def batch_of(objective="causal", seed=0):
    return helpers.rows([7, 4, 6, 1], seed=seed, targets=objective)


def test_choices_are_those_that_exist():
    assert noise_module.NOISE_FORMS == FORMS


@pytest.mark.parametrize(
    ("form", "weight", "passes"), [("states", 0.5, 2), ("predictions", 0.5, 2), ("noisy", 0.5, 1), ("states", 0.0, 1)]
)
def test_how_many_passes_each_form_takes(form, weight, passes, monkeypatch):
    counted = []
    forward = TransformerEncoder.forward
    monkeypatch.setattr(TransformerEncoder, "forward", lambda *given: counted.append(1) or forward(*given))
    loss_of(model_of(form, lni_weight=weight), batch_of())
    assert len(counted) == passes


def plain_predictions(model, batch, weight):
    """Loss and penalty with whole score matrices, from the model's own two passes."""
    shown = model._training_batch(batch)
    torch.manual_seed(0)
    layout, encode = model._encoder_of(shown.items, shown.times)
    passes = model.noise(encode, None if layout.packed else layout.valid)
    has_target = shown.targets > 0
    scores = []
    for states in (passes.clean, passes.noisy):
        hidden = layout.unpack(states[-1])[has_target]
        all_scores = model.head(hidden, model.item_embedding.table)
        if model.loss_type != "CE":
            negatives = shown.negatives[has_target]
            all_scores = all_scores.gather(1, torch.cat([shown.targets[has_target].unsqueeze(1), negatives], 1))
        scores.append(all_scores.log_softmax(1))
    clean, noisy = scores
    both = [
        torch.nn.functional.kl_div(*pair, log_target=True, reduction="batchmean")
        for pair in itertools.permutations((clean, noisy))
    ]
    return model._loss_of(passes.clean[-1], model._targets_of(shown, layout)) + weight * sum(both) / 2


@pytest.mark.parametrize(("loss_type", "changes"), LOSSES)
@pytest.mark.parametrize("objective", ["causal", "cloze"])
def test_predictions_are_compared_as_written_out(loss_type, changes, objective, monkeypatch):
    monkeypatch.setitem(adrrec.BLOCK_SCORES, "cpu", 3 * helpers.N_ITEMS)
    changes = {"loss_type": loss_type, "objective": objective, "hidden_dropout_prob": 0.3, **changes}
    twins = [model_of("predictions", **changes) for _ in range(2)]
    batch = batch_of(objective)
    if objective == "cloze":  # the masks are drawn first
        shown = twins[0]._training_batch(batch)
        for twin in twins:
            twin._training_batch = lambda interaction: shown
    fast, plain = loss_of(twins[0], batch), plain_predictions(twins[1], batch, 0.5)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=0)
    gradients = [
        torch.autograd.grad(loss, list(twin.parameters()), allow_unused=True)
        for loss, twin in zip((fast, plain), twins, strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_all_scores_are_never_whole(monkeypatch):
    monkeypatch.setitem(adrrec.BLOCK_SCORES, "cpu", 2 * helpers.N_ITEMS)
    seen = []
    plain = adrrec.divergence

    def watched(clean, noisy, count, rows, stop):
        def of(part):
            seen.append(clean(part).numel())
            return clean(part)

        return plain(of, noisy, count, rows, stop)

    monkeypatch.setattr(adrrec, "divergence", watched)
    loss_of(model_of("predictions"), batch_of()).backward()
    assert max(seen) == 2 * helpers.N_ITEMS
    assert len(seen) > 2


def test_the_noisy_form_is_the_loss_on_noisy_states_whatever_its_weight():
    batch = batch_of()
    losses = {weight: loss_of(model_of("noisy", lni_weight=weight), batch) for weight in (0.0, 1e-3, 2.0)}
    assert losses[1e-3] == losses[2.0] != losses[0.0]
    model = model_of("noisy")
    shown = model._training_batch(batch)
    layout, encode = model._encoder_of(shown.items, shown.times)
    states, _ = model.noise.inject(encode, None if layout.packed else layout.valid)
    torch.testing.assert_close(losses[2.0], model._loss_of(states[-1], model._targets_of(shown, layout)))
    tiny = loss_of(model_of("noisy", lni_sigma=1e-9), batch)
    torch.testing.assert_close(tiny, losses[0.0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_without_training_there_is_no_noise(form):
    model = model_of(form).eval()
    assert loss_of(model, batch_of()) == loss_of(model_of(form, lni_weight=0.0), batch_of())
    assert model.noise.step == 0


@pytest.mark.parametrize("form", ["states", "predictions"])
def test_stopping_the_gradient_changes_it(form):
    found = []
    for stop in (False, True):
        model = model_of(form, lni_stop_gradient=stop)
        loss = loss_of(model, batch_of())
        found.append((loss.item(), torch.autograd.grad(loss, model.encoder.layers[0].attention.query.weight)[0]))
    assert found[0][0] == found[1][0]
    assert not torch.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize(("form", "weight"), [*((form, 0.5) for form in FORMS), ("states", 0.0)])
@pytest.mark.parametrize("objective", ["causal", "cloze"])
def test_a_batch_without_targets_trains_nothing_and_breaks_nothing(form, weight, objective):
    model = model_of(form, lni_weight=weight, objective=objective)
    batch = batch_of(objective)
    batch["item_id"].zero_()
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert weight or loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", ["states", "predictions"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_log_compares_gradients_once_an_epoch_at_level_debug(form, recompute, caplog):
    model = model_of(form, recompute=recompute)
    with caplog.at_level(logging.INFO):
        loss_of(model, batch_of())
    assert not caplog.records
    with caplog.at_level(logging.DEBUG):
        for epoch in (1, 2):
            model.train()
            loss_of(model, batch_of())
            loss_of(model, batch_of())
            assert len(caplog.records) == epoch
            model.eval()
    assert re.search(rf"lni_form {form}: gradient on the encoder, .*: \d", caplog.text)


@pytest.mark.parametrize("form", ["states", "predictions"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_log_changes_no_gradient(form, recompute, caplog):
    found = []
    for level in (logging.INFO, logging.DEBUG):
        model = model_of(form, recompute=recompute, hidden_dropout_prob=0.3)
        with caplog.at_level(level):
            loss = loss_of(model, batch_of())
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
    for one, other in zip(*found, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize(("form", "weight"), [("noisy", 0.5), ("states", 0.0)])
def test_the_log_is_silent_where_nothing_is_added(form, weight, caplog):
    with caplog.at_level(logging.DEBUG):
        loss_of(model_of(form, lni_weight=weight), batch_of())
    assert not caplog.records


@pytest.fixture(scope="module")
def ml_100k(tmp_path_factory):
    """Training batches of ml-100k and their configuration, small."""
    given = {"hidden_size": 32, "inner_size": 64, "MAX_ITEM_LIST_LENGTH": 20, "train_batch_size": 256, "seed": 1}
    given |= {"show_progress": False, "checkpoint_dir": str(tmp_path_factory.mktemp("saved"))}
    config = Config(model="ADRRec", dataset="ml-100k", config_dict=given)
    train, _, _ = data_preparation(config, create_dataset(config))
    return config, train


@pytest.mark.parametrize(("form", "weight"), [("states", 0.01), ("predictions", 10.0)])
def test_the_noise_still_acts_after_200_steps(form, weight, ml_100k, caplog):
    """Its gradient on the encoder has more than 1 % of the loss's norm; divided by the output's energy it had .03 %."""
    config, train = ml_100k
    config["lni_form"], config["lni_weight"] = form, weight
    torch.manual_seed(0)
    model = ADRRec(config, train._dataset).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = itertools.islice(itertools.chain.from_iterable(itertools.repeat(train)), 200)
    for batch in batches:
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    ratios = []
    for batch in itertools.islice(train, 3):
        with caplog.at_level(logging.DEBUG):
            model.train().calculate_loss(batch)
        ratios.append(float(re.search(r"norm: ([\d.e+-]+) %", caplog.messages[-1])[1]))
    assert min(ratios) > 1
