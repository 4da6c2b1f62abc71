"""Our STOSA's layer, distances and losses against numbers of its public reference implementation."""

import helpers
import pytest
import torch
from golden_files import GOLDEN, close, load, load_weights

from recbole_adrrec.layers.attention import captured_weights
from recbole_adrrec.layers.gaussian_points import gaussian_points, negative_squared_distance
from recbole_adrrec.layers.heads import GaussianItemHead
from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.losses import bayesian_personalized_ranking, positive_versus_negative
from recbole_adrrec.models.stosa import stosa_layer
from recbole_adrrec.options.schema import STOSAOptions


def parameter_names():
    """Reference's names of parameters and ours."""
    modules = {"attention.LayerNorm": "attention_norm"}
    for theirs, part in (("mean", "mean"), ("cov", "covariance")):
        for name, ours in (("query", "query"), ("key", "key"), ("value", "value"), ("dense", "output")):
            modules[f"attention.{theirs}_{name}"] = f"attention.{ours}.{part}"
        modules[f"{theirs}_intermediate.dense_1"] = f"feed_forward.{part}.0"
        modules[f"{theirs}_intermediate.dense_2"] = f"feed_forward.{part}.3"
        modules[f"{theirs}_intermediate.LayerNorm"] = f"feed_forward_norm.{part}"
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def golden_layer():
    golden, meta = load(GOLDEN / "stosa_layer.npz")
    parameters = {name[6:]: value for name, value in golden.items() if name.startswith("param.")}
    layer = stosa_layer(
        STOSAOptions.read(
            helpers.options(
                hidden_size=meta["hidden"],
                inner_size=len(parameters["mean_intermediate.dense_1.weight"]),
                n_heads=meta["heads"],
                layer_norm_eps=meta["layer_norm_eps"],
            )
        )
    ).double()
    names = parameter_names()
    load_weights(layer, names, parameters)
    return golden, meta, layer.eval(), names


def test_outputs_attention_and_gradients(golden_layer):
    golden, _, layer, names = golden_layer
    valid = golden["input.valid"]
    states = torch.stack([golden["input.mean"], golden["input.cov"]], -2)
    with captured_weights(layer) as weights:
        output = layer(states, Layout.padded(valid, causal=True), None)
    close(output[..., 0, :][valid], golden["output.mean"][valid])
    close(output[..., 1, :][valid], golden["output.cov"][valid])
    queries = valid[:, None, :, None]
    close(weights[0].refined * queries, golden["output.attention"] * queries)
    output[valid].square().sum().backward()
    parameters = dict(layer.named_parameters())
    for theirs, ours in names.items():
        close(parameters[ours].grad, golden[f"grad.{theirs}"], theirs)


def test_distances_and_losses(golden_layer):
    golden, meta, _, _ = golden_layer
    states = torch.stack([golden["output.mean"], golden["output.cov"]], -2)
    points = {
        kind: gaussian_points(golden[f"input.{kind}_mean"], golden[f"input.{kind}_cov"]) for kind in ("pos", "neg")
    }
    head = GaussianItemHead(1)
    place = torch.arange(states.size(0) * states.size(1))
    valid = golden["input.valid"].flatten()
    to = {}
    for kind, table in points.items():
        (score,) = head.score_items(states.flatten(0, 1), table.flatten(0, 1), place)
        to[kind] = -score
        close(to[kind], golden[f"output.dist_{kind}"].flatten(), kind)
    between = -head.compare(points["pos"], points["neg"]).flatten()
    close(between, golden["output.dist_pos_neg"].flatten())
    close(bayesian_personalized_ranking(-to["pos"][valid], -to["neg"][valid]), golden["output.bpr_loss"])
    close(meta["pvn_weight"] * positive_versus_negative(to["pos"][valid], between[valid]), golden["output.pvn_loss"])


def test_pairwise_distances(golden_layer):
    golden, _, _, _ = golden_layer
    states = gaussian_points(golden["output.mean"][0], golden["output.cov"][0])
    items = gaussian_points(golden["input.pos_mean"][0], golden["input.pos_cov"][0])
    close(-negative_squared_distance(states, items), golden["output.pairwise_w2"])
