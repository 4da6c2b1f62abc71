"""Small stand-ins for RecBole's objects, so that models are tested without the data layer."""

from types import SimpleNamespace

import torch

from recbole_adrrec.options import load_properties, property_names

SMALL = {
    "n_layers": 2,
    "hidden_size": 16,
    "inner_size": 32,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.5,
    "absolute_kernels": ["position", "day"],
    "relative_kernels": ["sinusoid", "distance"],
    "time_unit": 3600.0,
    "kernel_freq": 10000.0,
    "max_distance": 3,
    "mask_ratio": 0.3,
    "loss_type": "CE",
    "n_negatives": 4,
    "time_span": 12,
    "pvn_weight": 0.1,
    "refinement": "simple",
}
"""Options of tests in place of the models' defaults."""

OF_MODEL = {"MEANTIME": {"relative_kernels": ["sinusoid", "log1p"], "use_query_time": False}, "STOSA": {"n_heads": 2}}

RECBOLE_OPTIONS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "timestamp",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": 7,
    "train_neg_sample_args": None,
    "device": torch.device("cpu"),
    "seed": 2020,
}

N_ITEMS = 20
FIRST_TIME = 1_300_000_000


def options(model="", **changes):
    """All models' options with RecBole's, a small model."""
    found = dict(RECBOLE_OPTIONS)
    for name in (*property_names("model"), model):
        found |= load_properties("model", name)
    return {**found, **SMALL, **OF_MODEL.get(model, {}), **changes}


def dataset(n_items=N_ITEMS, days=None):
    """A data set that knows its number of items, its trained days and its users' smallest gaps."""
    if days is None:
        days = torch.arange(60) * 2 + FIRST_TIME // 86400
    gaps = torch.arange(1, 9) * 86400
    span = float((days[-1] - days[0]) * 86400)
    return SimpleNamespace(
        num=lambda field: n_items,
        trained_days=lambda include_targets: days,
        time_scale=lambda include_targets: (86400.0, span),
        smallest_training_gaps=lambda: gaps,
    )


def build(model_class, seed=0, dtype=torch.float64, data=None, **changes):
    """Make a model with seeded weights, biases included, in evaluation mode."""
    torch.manual_seed(seed)
    # RecBole's own models take what all of ours have.
    given = options(model_class.options_class.model if hasattr(model_class, "options_class") else "", **changes)
    model = model_class(given, dataset() if data is None else data).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return model.eval()


def rows(lengths, width=7, seed=0, n_items=N_ITEMS, targets="row"):
    """A batch as the data layer gives it: prefix rows (``row``), ``causal`` or ``cloze`` rows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    length = torch.tensor(lengths)
    valid = torch.arange(width) < length.unsqueeze(1)
    count = len(lengths)
    items = draw(1, n_items, count, width + 1)
    times = FIRST_TIME + draw(0, 20 * 86400, count, width + 1).cumsum(1)
    negatives = draw(1, n_items, count, width)
    batch = {
        "user_id": torch.arange(1, count + 1),
        "item_id_list": items[:, :width] * valid,
        "timestamp_list": times[:, :width] * valid,
        "item_length": length,
    }
    following = length.unsqueeze(1)
    if targets == "row":
        batch["item_id"] = items.gather(1, following).squeeze(1)
        batch["timestamp"] = times.gather(1, following).squeeze(1)
        batch["neg_item_id"] = negatives[:, 0]
    else:
        shift = 1 if targets == "causal" else 0
        batch["item_id"] = items[:, shift : width + shift] * valid
        batch["timestamp"] = times[:, shift : width + shift] * valid
        batch["neg_item_id"] = negatives * valid
    return batch


def written_out_features(name, query_time, key_time, width, time_unit, freq):
    """Features of a gap kernel by their definition, [B, L, L, width] in float64."""
    gap = ((query_time.unsqueeze(2) - key_time.unsqueeze(1)).double() / time_unit).unsqueeze(-1)
    if name == "sinusoid":
        angle = gap * freq ** (-torch.arange(0, width, 2).double() / width)
        return torch.cat([angle.sin(), angle.cos()], -1)
    scaled = gap.abs() * freq ** (-torch.arange(width).double() / width)
    return torch.exp(-scaled) if name == "exponential" else torch.log1p(scaled)


def assert_same(fast, plain, inputs, rtol=0.0, atol=1e-10):
    """Values agree, and gradients by the inputs, which may be ten times as far apart."""
    torch.testing.assert_close(fast, plain, rtol=rtol, atol=atol)
    factors = torch.randn_like(plain.detach())
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    inputs = list(inputs)
    gradients = (torch.autograd.grad((each * factors).sum(), inputs, **options) for each in (fast, plain))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * rtol, atol=10 * atol)
