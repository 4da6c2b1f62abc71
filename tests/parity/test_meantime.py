"""Our MEANTIME against numbers of its public reference implementation, in float64."""

import helpers
import pytest
import torch
from golden_files import GOLDEN, close, load, load_weights, right_padded

from recbole_adrrec.layers.attention import captured_weights
from recbole_adrrec.layers.kernels import RELATIVE_KERNELS
from recbole_adrrec.layers.layout import SequenceTimes
from recbole_adrrec.layers.relative_kernels import Clock, KernelSettings
from recbole_adrrec.losses import item_cross_entropy
from recbole_adrrec.models.meantime import MEANTIME

SHORT_NAMES = {
    "p": "position",
    "d": "day",
    "c": "constant",
    "s": "sinusoid",
    "e": "exponential",
    "l": "log1p",
}


def kernel_files():
    return sorted(path.name for path in GOLDEN.glob("meantime_kernels_*.npz"))


def test_golden_vectors_are_there():
    assert kernel_files()
    assert (GOLDEN / "meantime_model.npz").is_file()


@pytest.mark.parametrize("file", kernel_files())
@pytest.mark.parametrize("name", ["sinusoid", "exponential", "log1p"])
def test_kernel_features(file, name):
    golden, meta = load(GOLDEN / file)
    times, width, freq = golden["timestamps"], meta["hidden"], float(meta["freq"])
    unit = float(meta["time_unit_divide"])
    written_out = helpers.written_out_features(name, times, times, width, unit, freq)
    torch.testing.assert_close(written_out, golden[name], rtol=0, atol=1e-9)

    settings = KernelSettings(width, times.size(1), lambda: times.new_zeros(1), lambda: Clock(unit, freq))
    kernel = RELATIVE_KERNELS[name](settings)
    valid = times > 0
    scorer = kernel(SequenceTimes(torch.zeros_like(times), times, times, valid), torch.float64)
    # A unit vector as the projected query picks one feature.
    rows, length = times.shape
    features = [
        scorer(unit_vector.expand(rows, 1, length, width), None).squeeze(1)
        for unit_vector in torch.eye(width, dtype=torch.float64)
    ]
    # Padding has time 0: 1.3e9 seconds from an event, an angle that float64 itself rounds to 1e-7.
    pairs = valid.unsqueeze(2) & valid.unsqueeze(1)
    torch.testing.assert_close(torch.stack(features, -1)[pairs], golden[name][pairs], rtol=0, atol=1e-9)


def parameter_names(n_layers, n_absolute, n_relative):
    """Reference's names of parameters and ours. ``relative_bias`` and ``head.bias`` differ in shape."""
    names = {"token_embedding.emb.weight": "item_embedding.weight", "head.bias": "head.bias"}
    for head in range(n_absolute):
        names[f"absolute_kernel_embeddings_list.{head}.emb.weight"] = f"kernels.absolute.{head}.embedding.weight"
    modules = {"head.out.0": "head.linear", "head.out.2": "head.norm"}
    for layer in range(n_layers):
        theirs, ours = f"body.transformer_blocks.{layer}", f"encoder.layers.{layer}"
        names[f"{theirs}.attention.rel_position_bias"] = f"{ours}.attention.relative_bias"
        parts = {
            "attention.content_linear_layers.0": "attention.query",
            "attention.content_linear_layers.1": "attention.key",
            "attention.content_linear_layers.2": "attention.value",
            "attention.output_linear": "attention.output",
            "feed_forward.w_1": "feed_forward.0",
            "feed_forward.w_2": "feed_forward.3",
            "input_sublayer.norm": "attention_norm",
            "output_sublayer.norm": "feed_forward_norm",
        }
        for head in range(n_absolute):
            for side in ("query", "key"):
                parts[f"attention.abs_position_{side}_linear_layers.{head}"] = f"attention.absolute_{side}.{head}"
        for head in range(n_relative):
            parts[f"attention.rel_position_key_linear_layers.{head}"] = f"attention.relative_key.{head}"
        modules |= {f"{theirs}.{part}": f"{ours}.{name}" for part, name in parts.items()}
    for theirs, ours in modules.items():
        for kind in ("weight", "bias"):
            names[f"{theirs}.{kind}"] = f"{ours}.{kind}"
    return names


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "packed"])
def golden_model(request):
    """The reference's numbers, our model with the reference's weights, and its run in either layout."""
    golden, meta = load(GOLDEN / "meantime_model.npz")
    absolute = [SHORT_NAMES[name] for name in meta["absolute"].split("-")]
    relative = [SHORT_NAMES[name] for name in meta["relative"].split("-")]
    parameters = {k[6:]: v for k, v in golden.items() if k.startswith("param.")}
    tokens, times = golden["input.tokens"], golden["input.timestamps"]
    valid = tokens > 0
    # The golden days turn at another hour than UTC's midnight, where ours do. With all times shifted
    # to that hour the two are the same, and nothing but the day kernel sees the shift.
    within_day = times - 86400 * golden["input.days"]
    times = times - within_day[valid].min()
    assert torch.equal(times[valid] // 86400, golden["input.days"][valid])
    n_days = len(parameters["absolute_kernel_embeddings_list.1.emb.weight"])
    model = helpers.build(
        MEANTIME,
        data=helpers.dataset(meta["num_items"] + 1, torch.arange(n_days)),
        n_layers=meta["blocks"],
        hidden_size=meta["hidden"],
        inner_size=4 * meta["hidden"],
        absolute_kernels=absolute,
        relative_kernels=relative,
        time_unit=float(meta["time_unit_divide"]),
        kernel_freq=float(meta["freq"]),
        use_query_time=True,
        MAX_ITEM_LIST_LENGTH=tokens.size(1),
    )
    model.event_layout = "grouped" if request.param else "padded"
    assert model.mask_token == meta["mask_token"]
    names = parameter_names(meta["blocks"], len(absolute), len(relative))
    load_weights(model, names, parameters)

    length = valid.sum(1)
    tokens, times = right_padded(tokens, length), right_padded(times, length)
    labels = right_padded(golden["input.labels"], length)
    inside = torch.arange(tokens.size(1)) < length.unsqueeze(1)
    moments = model._sequence_times(times, times, length)
    with captured_weights(model) as weights:
        hidden = model(tokens * inside, moments)
    has_target = (labels > 0) & inside
    table = model.item_embedding.weight
    loss = item_cross_entropy(*model.head.as_product(hidden[has_target], table), labels[has_target])
    loss.backward()
    run = {
        "hidden": hidden.detach(),
        "loss": loss.detach(),
        "weights": weights,
        "groups": model._layout(moments.valid).groups,
        "scores": model.head(hidden, table).detach(),
    }
    run["tokens"], run["times"] = tokens, times
    return golden, model, names, length, run


def test_hidden_states(golden_model):
    golden, _, _, length, run = golden_model
    expected = right_padded(golden["output.hidden"], length)
    for row, count in enumerate(length):
        close(run["hidden"][row, :count], expected[row, :count])


def test_attention_of_every_layer(golden_model):
    golden, _, _, length, run = golden_model
    n_layers, n_groups = sum(name.startswith("output.attn_layer") for name in golden), len(run["groups"])
    assert len(run["weights"]) == n_layers * n_groups
    compared = []
    for number, weights in enumerate(run["weights"]):
        group = run["groups"][number % n_groups]
        expected = golden[f"output.attn_layer{number // n_groups}"]
        rows = torch.arange(len(length))[group.places] if group.rows is None else group.rows
        for row, own in zip(rows.tolist(), weights.refined, strict=True):
            count = length[row]
            close(own[:, :count, :count], expected[row, :, -count:, -count:])
            compared.append(row)
        assert torch.equal(weights.plain, weights.refined)
    assert sorted(compared) == sorted(list(range(len(length))) * n_layers)


def test_scores_at_the_last_place(golden_model):
    golden, _, _, length, run = golden_model
    last = run["scores"][torch.arange(len(length)), length - 1]
    close(last, golden["output.scores_last"])


def test_loss(golden_model):
    golden, _, _, _, run = golden_model
    close(run["loss"].reshape(1), golden["output.loss"])


def test_gradients_of_every_parameter(golden_model):
    golden, model, names, _, _ = golden_model
    parameters = dict(model.named_parameters())
    for theirs, ours in names.items():
        close(parameters[ours].grad, golden[f"grad.{theirs}"], theirs)


def test_full_sort_predict_from_the_history_alone(golden_model):
    """The model's own evaluation path appends the mask token that the golden rows carry."""
    golden, model, _, length, run = golden_model
    tokens, times = run["tokens"], run["times"]
    history = torch.arange(tokens.size(1)) < (length - 1).unsqueeze(1)
    last = (length - 1).unsqueeze(1)
    interaction = {
        "item_id_list": tokens * history,
        "timestamp_list": times * history,
        "item_length": length - 1,
        "timestamp": times.gather(1, last).squeeze(1),
        "item_id": golden["input.labels"][:, -1],
    }
    scores = model.full_sort_predict(interaction).detach()
    close(scores, golden["output.scores_last"])
