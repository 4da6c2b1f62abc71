"""Every option of the models changes the model or its training, and bad values are refused."""

import helpers
import pytest
import torch
import yaml

from recbole_adrrec.errors import OptionError
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.awrsr import AWRSR
from recbole_adrrec.models.hstu import HSTU
from recbole_adrrec.models.meantime import MEANTIME
from recbole_adrrec.models.stosa import STOSA
from recbole_adrrec.models.tisasrec import TiSASRec
from recbole_adrrec.options import load_properties

# Another value for each option, and what else has to be set for it to matter.
CHANGES = {
    "n_layers": (1, {}),
    "hidden_size": (32, {}),
    "inner_size": (48, {}),
    "hidden_dropout_prob": (0.4, {}),
    "attn_dropout_prob": (0.4, {}),
    "layer_norm_eps": (0.1, {}),
    "initializer_range": (0.05, {}),
    "absolute_kernels": (["position", "hour"], {}),
    "relative_kernels": (["exponential", "log1p"], {}),
    "time_unit": (60.0, {}),
    "kernel_freq": (50.0, {}),
    "grid_points": (2, {"relative_kernels": ["exponential", "log1p"]}),
    "max_distance": (1, {}),
    "objective": ("cloze", {}),
    "use_query_time": (True, {}),
    "mask_ratio": (0.8, {"objective": "cloze"}),
    "loss_type": ("BPR", {}),
    "negatives": ("shared", {"loss_type": "sampled_softmax"}),
    "gbce_t": (0.2, {"loss_type": "gBCE"}),
    "label_smoothing": (0.1, {}),
    "temperature": (0.2, {}),
    "trend_rank": (2, {}),
    "trend_spacing": (7.5, {"trend_rank": 2}),
    "trend_decay": (0.3, {"trend_rank": 2}),
    "lni_form": ("predictions", {"lni_weight": 0.5}),
    "lni_weight": (0.5, {}),
    "lni_sigma": (0.3, {"lni_weight": 0.5}),
    "lni_noise": ("uniform", {"lni_weight": 0.5}),
    "lni_layers": ([2], {"lni_weight": 0.5}),
    "lni_layer_weights": ([1.0, 0.2], {"lni_weight": 0.5}),
    "lni_stop_gradient": (True, {"lni_weight": 0.5}),
    "n_heads": (1, {}),
    "norm_order": ("pre", {}),
    "drop_residual": (True, {"hidden_dropout_prob": 0.3}),
    "input_position": (False, {}),
    "input_norm": (False, {}),
    "input_scale": (True, {}),
    "final_norm": (True, {"norm_order": "pre"}),
    "activation": ("gelu_tanh", {}),
    "inner_dropout_prob": (0.4, {}),
    "item_head": ("projected", {}),
    "mixture": ("heads", {}),
    "day_spacing": (30, {}),
    "query_size": (4, {}),
    "value_size": (4, {}),
    "position_bias": (False, {}),
    "time_bias": (False, {}),
    "time_span": (2, {}),
    "published_padding_attention": (True, {}),
    "pvn_weight": (0.6, {"loss_type": "BPR"}),
    "published_mean_bypass": (True, {}),
    "refinement": ("value", {}),
    "backbone": ("stosa", {}),
    "refinement_maps": ("place", {}),
    "refinement_rank": (2, {}),
    "refinement_start": (0.5, {"refinement": "additive"}),
    "refinement_layers": ([2], {}),
    "refinement_heads": ([2], {}),
    "refinement_value_map": (True, {"refinement": "value"}),
}
# Options of one backbone of AWRSR.
OF_BACKBONE = {
    **dict.fromkeys(("pvn_weight", "published_mean_bypass"), "stosa"),
    **dict.fromkeys(("time_span", "published_padding_attention"), "tisasrec"),
    **dict.fromkeys(("absolute_kernels", "relative_kernels", "time_unit"), "mix"),
    **dict.fromkeys(("kernel_freq", "grid_points", "max_distance", "use_query_time"), "mix"),
    **dict.fromkeys(("mixture", "day_spacing"), "mix"),
}
# The data layer reads the first; the second needs ties, as in tests/unit/test_ties.py; the last three change cost
# alone, as tests/unit/test_speed_options.py shows.
ELSEWHERE = {"train_rows", "reorder_ties", "train_batch_size", "n_negatives", "recompute", "compile", "event_layout"}
MODELS = [ADRRec, AWRSR, HSTU, MEANTIME, STOSA, TiSASRec]
OPTIONS = [
    (model_class, option)
    for model_class in MODELS
    for option in load_properties("model", model_class.__name__)
    if option not in ELSEWHERE and (model_class, option) != (MEANTIME, "objective")  # it has one value
]


def trained_loss(model_class, changes):
    """Losses before and after one step of training."""
    if model_class is STOSA:
        changes = {"initializer_range": 0.1, **changes}  # distances grow fast
    model = helpers.build(model_class, **changes).train()
    batch = helpers.rows([7, 4, 6], targets=model.objective)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        loss = model.calculate_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_each_default_is_covered_here():
    names = {option for model in MODELS for option in load_properties("model", model.__name__)}
    assert names - ELSEWHERE == set(CHANGES)


@pytest.mark.parametrize(("model_class", "option"), OPTIONS)
def test_each_option_changes_training(model_class, option):
    value, others = CHANGES[option]
    if model_class is AWRSR and option in OF_BACKBONE:
        others = {**others, "backbone": OF_BACKBONE[option]}
    if model_class is AWRSR and option in ("objective", "mask_ratio"):
        others = {**others, "refinement": "none"}
    assert trained_loss(model_class, {**others, option: value}) != trained_loss(model_class, others)


@pytest.mark.parametrize("model_class", MODELS)
def test_the_defaults_build_a_model_that_trains(model_class):
    defaults = load_properties("model", model_class.__name__)
    model = helpers.build(model_class, dtype=torch.float32, **defaults).train()
    assert model.calculate_loss(helpers.rows([7, 4], targets=model.objective)).isfinite()
    assert yaml.safe_dump(defaults)


@pytest.mark.parametrize(
    ("option", "value"), [("objective", "casual"), ("lni_layers", [3]), ("hidden_size", 15), ("negatives", "shared")]
)
def test_a_model_that_is_built_by_hand_refuses_what_a_run_refuses(option, value):
    with pytest.raises(OptionError, match=f"^{option}: "):
        helpers.build(ADRRec, **{option: value})
