"""Our HSTU against numbers of RecTools' dense form, and against its equations written out pair by pair."""

import json
import math

import helpers
import pytest
import torch
from golden_files import GOLDEN, close, load_weights, right_padded
from torch.nn import functional as F

from recbole_adrrec.models.hstu import HSTU

CASES = json.loads((GOLDEN / "hstu.json").read_text(encoding="utf-8"))["cases"]
OF_LAYER = {
    "norm_input.weight": "norm.weight",
    "norm_input.bias": "norm.bias",
    "uvqk_proj": "attention.input.weight",
    "rel_attn.time_weights": "attention.gap_bias.weight",
    "rel_attn.pos_weights": "attention.distance_bias.weight",
    "norm_attn_output.weight": "attention.norm.weight",
    "norm_attn_output.bias": "attention.norm.bias",
    "output_mlp.weight": "attention.output.weight",
    "output_mlp.bias": "attention.output.bias",
}
"""Reference's names of a layer's parameters, and ours."""


def our_name(theirs):
    if theirs.startswith("transformer_layers"):
        _, _, layer, name = theirs.split(".", 3)
        return f"encoder.layers.{layer}.{OF_LAYER[name]}"
    return {
        "item.weight": "item_embedding.weight",
        "pos_encoding_layer.pos_emb.weight": "item_embedding.position.weight",
    }[theirs]


def as_ours(name, values, parameters, length):
    """A parameter, or its gradient, laid out as ours are."""
    given, values = parameters[name], torch.tensor(values, dtype=torch.float64)
    if isinstance(given, dict):  # of the tables of time those buckets that some pair has
        return values.new_zeros(given["size"]).index_put_((torch.tensor(given["at"]),), values)
    if name.endswith("uvqk_proj"):
        return values.T.contiguous()
    # Theirs has a number for each j - i, later places first counted; ours for each i - j of a causal model.
    return values[:length].flip(0) if name.endswith("pos_weights") else values


@pytest.fixture(params=CASES)
def reference(request):
    """The reference's numbers, and our model with its weights on its rows."""
    golden = CASES[request.param]
    items, times = (torch.tensor(golden[name]) for name in ("items", "times"))
    width = items.size(1)
    given = golden["parameters"]
    model = helpers.build(
        HSTU,
        data=helpers.dataset(len(given["item.weight"])),
        n_heads=golden["heads"],
        hidden_size=len(given["item.weight"][0]),
        layer_norm_eps=golden["epsilon"],
        MAX_ITEM_LIST_LENGTH=width,
        use_query_time=golden["time_bias"],
        **{name: golden[name] for name in ("query_size", "value_size", "position_bias", "time_bias")},
    )
    names = {name: our_name(name) for name in given}
    load_weights(
        model,
        names,
        {
            name: as_ours(name, value["values"] if isinstance(value, dict) else value, given, width)
            for name, value in given.items()
        },
    )
    length = (items > 0).sum(1)
    key_time = right_padded(times[:, :-1], length)
    moments = model._causal_times(key_time, length, times[:, -1])
    # Theirs counts positions from the newest event back, ours from the oldest.
    position = (length.unsqueeze(1) - 1 - moments.position).clamp(min=0)
    moments = type(moments)(position, moments.query_time, moments.key_time, moments.valid)
    return golden, model, names, right_padded(items, length) * moments.valid, moments


@pytest.mark.parametrize("layout", ["padded", "grouped"])
def test_states_scalar_and_gradients(reference, layout):
    golden, model, names, items, moments = reference
    model.event_layout = layout
    model.train()
    laid_out, encode = model._encoder_of(items, moments)
    length = moments.valid.sum(1)
    states = [laid_out.unpack(state) for state in encode(None)]
    assert len(states) == len(golden["states"]) == 2
    for ours, theirs in zip(states, golden["states"], strict=True):
        for row, expected in enumerate(theirs):
            close(ours[row, : length[row]], torch.tensor(expected, dtype=torch.float64))
    weights = right_padded(torch.tensor(golden["coefficients"], dtype=torch.float64), length)
    scalar = (weights * states[-1])[moments.valid].sum()
    close(scalar, torch.tensor(golden["scalar"], dtype=torch.float64))
    scalar.backward()
    parameters = dict(model.named_parameters())
    for theirs, ours in names.items():
        expected = as_ours(theirs, golden["gradients"][theirs], golden["parameters"], items.size(1))
        found = parameters[ours].grad
        close(torch.zeros_like(parameters[ours]) if found is None else found, expected, theirs)


def written_out(model, items, times, at):
    """State of the last event of one row, and weights of each layer, pair by pair; ``at`` are the times of queries."""
    options, state, seen = model.options, {}, []
    heads, widest = options.n_heads, model.max_seq_length
    size = options.hidden_size
    dq, dv = (each or size // heads for each in (options.query_size, options.value_size))
    table, place = model.item_embedding.weight, model.item_embedding.position.weight
    x = [table[item] * math.sqrt(size) + place[number] for number, item in enumerate(items)]
    for layer in model.encoder.layers:
        part = layer.attention
        parts = [part.input.weight @ F.layer_norm(one, [size], *norm_of(layer.norm)) for one in x]
        state = [
            torch.split(one * torch.sigmoid(one), [heads * dv, heads * dv, heads * dq, heads * dq]) for one in parts
        ]
        weights = torch.zeros(heads, len(x), len(x), dtype=torch.float64)
        after = []
        for i, (gate, _, query, _) in enumerate(state):
            summed = torch.zeros(heads, dv, dtype=torch.float64)
            for head in range(heads):
                for j in range(i + 1):
                    score = query.view(heads, dq)[head] @ state[j][3].view(heads, dq)[head]
                    if options.position_bias:
                        score = score + part.distance_bias.weight[i - j, 0]
                    if options.time_bias:
                        bucket = math.floor(math.log(max(abs(at[i] - times[j]), 1)) / 0.301)
                        score = score + part.gap_bias.weight[min(bucket, 128), 0]
                    weights[head, i, j] = score * torch.sigmoid(score) / widest
                    summed[head] = summed[head] + weights[head, i, j] * state[j][1].view(heads, dv)[head]
            normed = F.layer_norm(summed.flatten(), [heads * dv], *norm_of(part.norm))
            after.append(x[i] + part.output.weight @ (gate * normed) + part.output.bias)
        x = after
        seen.append(weights)
    return x[-1], seen


def norm_of(norm):
    return norm.weight, norm.bias, norm.eps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_query_time": True},
        {"time_bias": False, "n_heads": 1, "query_size": 3, "value_size": 5},
        {"position_bias": False, "n_layers": 3},
        {"position_bias": False, "time_bias": False},
    ],
)
def test_the_model_is_its_equations(options):
    model = helpers.build(HSTU, **options)
    batch = helpers.rows([7, 2, 1, 4])
    scores = model.full_sort_predict(batch)
    for row, length in enumerate(batch["item_length"].tolist()):
        items, times = (batch[name][row, :length].tolist() for name in ("item_id_list", "timestamp_list"))
        told = [*times[1:], int(batch["timestamp"][row])] if model.use_query_time else times
        state, weights = written_out(model, items, times, told)
        torch.testing.assert_close(scores[row], model.item_embedding.weight @ state, rtol=1e-9, atol=1e-9)
        seen = model.explain({field: value[row : row + 1] for field, value in batch.items()})
        torch.testing.assert_close(seen.plain, torch.stack(weights), rtol=1e-9, atol=1e-12)
        assert torch.equal(seen.plain, seen.refined)
