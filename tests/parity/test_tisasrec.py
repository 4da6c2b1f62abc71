"""Our TiSASRec with published padding against numbers of its public reference implementation."""

import helpers
import pytest
import torch
from golden_files import GOLDEN, close, load, load_weights, right_padded

from recbole_adrrec.layers.intervals import TimeIntervals
from recbole_adrrec.losses import binary_cross_entropy
from recbole_adrrec.models.tisasrec import TiSASRec

FILES = ["tisasrec_model_heads1.npz", "tisasrec_model_heads2.npz"]


def parameter_names(n_layers):
    """Reference's names of parameters and ours."""
    names = {
        "item_emb.weight": "item_embedding.weight",
        "abs_pos_K_emb.weight": "kernels.position_key.weight",
        "abs_pos_V_emb.weight": "kernels.position_value.weight",
        "time_matrix_K_emb.weight": "kernels.interval_key.weight",
        "time_matrix_V_emb.weight": "kernels.interval_value.weight",
    }
    modules = {"last_layernorm": "encoder.norm"}
    for layer in range(n_layers):
        ours = f"encoder.layers.{layer}"
        modules |= {
            f"attention_layernorms.{layer}": f"{ours}.attention_norm",
            f"attention_layers.{layer}.Q_w": f"{ours}.attention.query",
            f"attention_layers.{layer}.K_w": f"{ours}.attention.key",
            f"attention_layers.{layer}.V_w": f"{ours}.attention.value",
            f"forward_layernorms.{layer}": f"{ours}.feed_forward_norm",
            f"forward_layers.{layer}.conv1": f"{ours}.feed_forward.0",
            f"forward_layers.{layer}.conv2": f"{ours}.feed_forward.3",
        }
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names


@pytest.fixture(scope="module", params=FILES)
def golden_model(request):
    """The reference's numbers, our model with the reference's weights, and its run."""
    golden, meta = load(GOLDEN / request.param)
    parameters = {name[6:]: value for name, value in golden.items() if name.startswith("param.")}
    tokens, times = golden["input.tokens"], golden["input.time_units"]
    data = helpers.dataset(len(parameters["item_emb.weight"]))
    data.smallest_training_gaps = lambda: torch.ones(1, dtype=torch.int64)  # times are in units already
    model = helpers.build(
        TiSASRec,
        data=data,
        n_layers=meta["blocks"],
        n_heads=meta["heads"],
        hidden_size=meta["hidden"],
        time_span=meta["time_span"],
        layer_norm_eps=meta["layer_norm_eps"],
        published_padding_attention=True,
        loss_type="BCE",
        MAX_ITEM_LIST_LENGTH=tokens.size(1),
    )
    names = parameter_names(meta["blocks"])
    load_weights(model, names, parameters)
    length = (tokens > 0).sum(1)
    inside = torch.arange(tokens.size(1)) < length.unsqueeze(1)
    rows = {name: right_padded(golden[f"input.{name}"], length) * inside for name in ("tokens", "pos", "neg")}
    # Ours takes padding to be one unit before the first event; the golden rows have other distances there.
    model.kernels.intervals = lambda time, unit: golden["input.time_matrix"]
    moments = model._sequence_times(*[right_padded(times, length)] * 2, length, torch.zeros_like(length))
    return golden, model, names, rows, moments


def test_intervals(golden_model):
    golden, model, _, _, moments = golden_model
    index = TimeIntervals.intervals(model.kernels, golden["input.time_units"], model.kernels.units(moments))
    assert torch.equal(index, golden["input.time_matrix"])


def test_features_logits_loss_and_gradients(golden_model):
    golden, model, names, rows, moments = golden_model
    length = moments.valid.sum(1)
    hidden = model(rows["tokens"], moments)
    expected = right_padded(golden["output.features"], length)
    close(hidden[moments.valid], expected[moments.valid])

    has_target = rows["pos"] > 0
    table = model.item_embedding.table
    scores = model.head.score_items(hidden[has_target], table, rows["pos"][has_target], rows["neg"][has_target])
    for kind, score in zip(("pos", "neg"), scores, strict=True):
        close(score, right_padded(golden[f"output.{kind}_logits"], length)[has_target], kind)
    loss = binary_cross_entropy(*(score.unsqueeze(1) for score in scores))
    close(loss, golden["output.bce_loss"])
    loss.backward()
    parameters = dict(model.named_parameters())
    for theirs, ours in names.items():
        close(parameters[ours].grad, golden[f"grad.{theirs}"], theirs)


def test_the_loss_of_a_batch(golden_model):
    golden, model, _, rows, moments = golden_model
    batch = {
        "user_id": torch.zeros(len(rows["tokens"]), dtype=torch.int64),
        "item_id_list": rows["tokens"],
        "timestamp_list": moments.key_time,
        "item_length": moments.valid.sum(1),
        "item_id": rows["pos"],
        "timestamp": moments.key_time,
        "neg_item_id": rows["neg"],
    }
    close(model.calculate_loss(batch), golden["output.bce_loss"])
