"""Options of models that do not go together are refused with the reason, before data is read."""

import dataclasses
import itertools

import helpers
import pytest
from recbole.config import Config

from recbole_adrrec.errors import OptionError
from recbole_adrrec.layers.refinement import REFINEMENTS
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.awrsr import BACKBONES
from recbole_adrrec.options import MODEL_OPTIONS

NEGATIVES = {"distribution": "uniform", "sample_num": 1}


HEADS = {
    "mixture": "heads",
    "absolute_kernels": ["position", "day"],
    "relative_kernels": ["sinusoid", "distance"],
}


def config(model, **given):
    return Config(model=model, dataset="ml-100k", config_dict={"data_path": "nowhere", **given})


@pytest.mark.parametrize(("refinement", "backbone"), list(itertools.product(["none", *REFINEMENTS], BACKBONES)))
def test_every_refinement_goes_with_every_backbone(refinement, backbone):
    made = config("AWRSR", refinement=refinement, backbone=backbone)
    assert (made["refinement"], made["backbone"]) == (refinement, backbone)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("ADRRec", {"absolute_kernels": [], "relative_kernels": []}),
        ("ADRRec", {"hidden_size": 50, "n_heads": 5, "relative_kernels": ["gap_bias", "distance_bias"]}),
        ("ADRRec", {"hidden_size": 63, "n_heads": 7, "relative_kernels": ["log1p"]}),
        ("AWRSR", {"backbone": "mix", "n_heads": 3, **HEADS}),
        ("AWRSR", {"backbone": "mix", "time_unit": 60, "kernel_freq": 2}),
        ("HSTU", {"hidden_size": 65, "n_heads": 3, "query_size": 4, "value_size": 5}),
        ("HSTU", {"time_bias": False, "position_bias": False}),
        ("HSTU", {"time_bias": False, "use_query_time": True, "trend_rank": 4}),
        ("HSTU", {"loss_type": "sampled_softmax", "negatives": "shared", "temperature": 0.05}),
    ],
)
def test_taken(model, given):
    made = config(model, **given)
    assert {name: made[name] for name in given} == given


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("AWRSR", {"refinement": "values"}, "refinement: 'values' is none of none, simple, value"),
        ("AWRSR", {"objective": "cloze"}, "refinement_maps: distance .*choose place, or refinement none"),
        (
            "AWRSR",
            {"objective": "cloze", "backbone": "stosa", "refinement": "none"},
            "objective: 'cloze' means nothing with backbone stosa .*choose backbone sasrec or mix",
        ),
        ("AWRSR", {"backbone": "bert"}, "backbone: 'bert' is none of sasrec, stosa, tisasrec, mix"),
        ("AWRSR", {"refinement": "none", "refinement_rank": 8}, "refinement_rank: 8 means nothing"),
        ("AWRSR", {"refinement": "none", "refinement_layers": [1]}, "refinement_layers: .*means nothing"),
        ("AWRSR", {"refinement": "none", "refinement_heads": [1]}, "refinement_heads: .*means nothing"),
        (
            "AWRSR",
            {"refinement_value_map": True},
            "refinement_value_map: True means nothing with refinement additive; .*choose refinement value",
        ),
        ("AWRSR", {"refinement": "none", "refinement_maps": "place"}, "refinement_maps: 'place' means nothing"),
        ("AWRSR", {"refinement_maps": "places"}, "refinement_maps: 'places' is none of distance, place; did you mean"),
        (
            "AWRSR",
            {"refinement": "simple", "refinement_start": 0.5},
            "refinement_start: 0.5 means nothing with refinement .*choose refinement additive",
        ),
        (
            "AWRSR",
            {"refinement": "none", "refinement_start": 0.5},
            "refinement_start: 0.5 means nothing with refinement .*choose refinement additive",
        ),
        ("AWRSR", {"refinement_start": 1}, "refinement_start: 1 is not a number above 0 and below 1"),
        ("AWRSR", {"refinement_rank": 0}, "refinement_rank: 0 is not a whole number of at least 1"),
        ("AWRSR", {"refinement_layers": [3]}, r"refinement_layers: there is no layer 3 among 2 \(n_layers\)"),
        ("AWRSR", {"refinement_heads": [3]}, r"refinement_heads: there is no head 3 among 2 \(n_heads\)"),
        (
            "AWRSR",
            {"refinement_heads": [5], "backbone": "mix", **HEADS},
            "no head 5 among 4 .one head for each kernel",
        ),
        ("AWRSR", {"refinement_heads": [3], "backbone": "mix"}, r"no head 3 among 2 \(n_heads\)"),
        ("AWRSR", {"refinement_heads": []}, "refinement_heads: the list is empty"),
        ("AWRSR", {"MAX_ITEM_LIST_LENGTH": 1}, "MAX_ITEM_LIST_LENGTH: 1 leaves one attention weight"),
        ("AWRSR", {"hidden_size": 65}, "hidden_size: 65 cannot be divided among n_heads, 2; .*64 or 66"),
        ("AWRSR", {"hidden_size": 66, "backbone": "mix", **HEADS}, "hidden_size: 66 cannot be divided among 4 kernels"),
        ("ADRRec", {"hidden_size": 66, **HEADS}, "hidden_size: 66 cannot be divided among 4 kernels"),
        ("ADRRec", {"hidden_size": 65}, "hidden_size: 65 cannot be divided among n_heads, 2; .*64 or 66"),
        (
            "ADRRec",
            {"n_heads": 3, "relative_kernels": ["sinusoid"]},
            "hidden_size: 64 cannot be .* n_heads, 3; .*60 or 66$",
        ),
        ("AWRSR", {"n_heads": 3, "backbone": "mix"}, "hidden_size: 64 cannot be divided among n_heads, 3"),
        (
            "ADRRec",
            {"hidden_size": 63, "n_heads": 3, "relative_kernels": ["sinusoid"]},
            "hidden_size: 63 is odd, but the sinusoid .*60 or 66$",
        ),
        ("ADRRec", {"n_heads": 0}, "n_heads: 0 is not a whole number of at least 1"),
        ("ADRRec", {"n_heads": 4, **HEADS}, "n_heads: 4 means nothing with mixture heads.* each of its 4 kernels"),
        *(
            (model, {**HEADS, "relative_kernels": ["sinusoid", bias], **own}, f"relative_kernels: {bias} adds to the")
            for bias in ("gap_bias", "distance_bias")
            for model, own in (("ADRRec", {}), ("AWRSR", {"backbone": "mix"}))
        ),
        ("MEANTIME", {"relative_kernels": ["gap_bias"]}, "relative_kernels: entry 1: 'gap_bias' is none of sinusoid"),
        ("AWRSR", {"mixture": "adaptiv"}, "mixture: 'adaptiv' is none of adaptive, heads; did you mean adaptive"),
        ("AWRSR", {"norm_order": "query"}, "norm_order: 'query' is none of post, pre"),
        ("ADRRec", {"drop_residual": 0}, "drop_residual: 0 is neither true nor false"),
        ("ADRRec", {"inner_dropout_prob": 1}, "inner_dropout_prob: 1 is not a number of at least 0 and below 1"),
        ("ADRRec", {"day_spacing": 1.5}, "day_spacing: 1.5 is not a whole number of at least 1"),
        ("ADRRec", {"time_unit": 0}, "time_unit: 0 is not a number above 0"),
        ("MEANTIME", {"time_unit": None}, "time_unit: None is not a number above 0"),
        (
            "AWRSR",
            {"published_padding_attention": True},
            "published_padding_attention: True means nothing with backbone sasrec; .*choose backbone tisasrec",
        ),
        (
            "AWRSR",
            {"published_mean_bypass": True, "backbone": "mix"},
            "means nothing with backbone mix .only its states have means",
        ),
        (
            "AWRSR",
            {"use_query_time": True, "backbone": "tisasrec"},
            "use_query_time: True means nothing with backbone tisasrec",
        ),
        ("AWRSR", {"loss_type": "BCE", "backbone": "stosa"}, "loss_type: BCE reads a score above 0 as likely"),
        ("STOSA", {"loss_type": "gBCE"}, "loss_type: gBCE reads a score above 0 as likely"),
        ("STOSA", {"hidden_size": 6}, "hidden_size: 6 cannot be divided among n_heads, 4"),
        ("STOSA", {"hidden_size": 3}, "for instance 4"),
        ("STOSA", {"pvn_weight": -1}, "pvn_weight: -1 is not a number of at least 0"),
        ("HSTU", {"time_bias": 1}, "time_bias: 1 is neither true nor false"),
        ("HSTU", {"position_bias": "yes"}, "position_bias: 'yes' is neither true nor false"),
        ("HSTU", {"query_size": 0}, "query_size: 0 is not a whole number of at least 1"),
        ("HSTU", {"value_size": 2.5}, "value_size: 2.5 is not a whole number of at least 1"),
        ("HSTU", {"hidden_size": 65, "value_size": 8}, "hidden_size: 65 cannot be divided among n_heads, 2"),
        (
            "HSTU",
            {"use_query_time": True, "time_bias": False},
            "use_query_time: True means nothing without time_bias and trend_rank .*choose time_bias true",
        ),
        ("HSTU", {"exact_time": False, "normalize_all": True}, "normalize_all: .*HSTU's time bias read"),
        ("TiSASRec", {"time_span": 0}, "time_span: 0 is not a whole number of at least 1"),
        ("TiSASRec", {"published_padding_attention": 1}, "published_padding_attention: 1 is neither true nor false"),
        ("TiSASRec", {"gbce_t": 1.5}, "gbce_t: 1.5 is not a number from 0 to 1"),
        ("TiSASRec", {"n_negatives": 0}, "n_negatives: 0 is not"),
        ("TiSASRec", {"exact_time": False, "normalize_all": True}, "normalize_all: .*TiSASRec's intervals"),
        ("TiSASRec", {"train_neg_sample_args": NEGATIVES}, "contradicts loss_type CE"),
        ("TiSASRec", {"negatives": "common"}, "negatives: 'common' is none of own, shared"),
        (
            "TiSASRec",
            {"negatives": "shared"},
            "negatives: 'shared' means nothing with loss_type CE .*choose loss_type sampled_softmax",
        ),
        (
            "ADRRec",
            {"negatives": "shared", "loss_type": "gBCE"},
            "negatives: 'shared' means nothing with loss_type gBCE",
        ),
        (
            "ADRRec",
            {"negatives": "shared", "loss_type": "sampled_softmax", "train_neg_sample_args": NEGATIVES},
            "train_neg_sample_args: .*contradicts negatives shared",
        ),
        ("MEANTIME", {"label_smoothing": 1}, "label_smoothing: 1 is not a number of at least 0 and below 1"),
        *(
            (
                "AWRSR",
                {"label_smoothing": 0.1, "loss_type": loss},
                f"label_smoothing: 0.1 means nothing with loss_type {loss} ",
            )
            for loss in ("BPR", "BCE", "gBCE")
        ),
        ("STOSA", {"label_smoothing": 0.1}, "label_smoothing: 0.1 means nothing with loss_type BPR "),
        ("TiSASRec", {"temperature": 0}, "temperature: 0 is not a number above 0"),
        ("AWRSR", {"temperature": 0.1, "backbone": "stosa"}, "temperature: 0.1 means nothing with backbone stosa"),
        (
            "AWRSR",
            {"trend_rank": 4, "backbone": "stosa"},
            "trend_rank: 4 means nothing with backbone stosa .*minus a distance",
        ),
        ("ADRRec", {"trend_rank": -1}, "trend_rank: -1 is not a whole number of at least 0"),
        ("ADRRec", {"trend_spacing": 0}, "trend_spacing: 0 is not a number above 0"),
        ("ADRRec", {"trend_decay": -1}, "trend_decay: -1 is not a number of at least 0"),
        ("AWRSR", {"trend_rank": 4, "exact_time": False, "normalize_all": True}, "normalize_all: .*the trend read"),
    ],
)
def test_refused(model, given, message):
    with pytest.raises(OptionError, match=message):
        config(model, **given)


@pytest.mark.parametrize("model", MODEL_OPTIONS)
def test_options_are_one_frozen_object(model):
    made = MODEL_OPTIONS[model].read(config(model))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.loss_type = "BPR"
    assert hash(made) == hash(MODEL_OPTIONS[model].read({}))  # an absent option has its default


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"event_layout": "grouped", "compile": True}, "event_layout: grouped .*without compile True; choose auto"),
        (
            {"event_layout": "jagged", "attn_dropout_prob": 0.2},
            "event_layout: jagged .*without attn_dropout_prob 0.2, ",
        ),
        ({"event_layout": "jagged", "recompute": True}, "relative_kernels .*'distance'.*recompute True"),
        ({"grid_points": 4}, r"grid_points: 4 means nothing without exponential or log1p .*\['sinusoid', 'distance'\]"),
    ],
)
def test_contradictions_reach_a_model_that_is_built_by_hand(given, message):
    with pytest.raises(OptionError, match=message):
        helpers.build(ADRRec, **given)


@pytest.mark.parametrize(
    ("loss", "count"), [("BPR", 1), ("BCE", 1), ("sampled_softmax", 7), ("gBCE", 7), ("CE", "none")]
)
def test_negatives_follow_the_loss(loss, count):
    made = config("TiSASRec", loss_type=loss, n_negatives=7)
    assert made["train_neg_sample_args"]["sample_num"] == count
    assert made["MODEL_INPUT_TYPE"].name == ("POINTWISE" if loss == "CE" else "PAIRWISE")


@pytest.mark.parametrize("model", ["ADRRec", "AWRSR", "HSTU", "MEANTIME", "STOSA", "TiSASRec"])
def test_recbole_draws_no_negatives_that_are_shared(model):
    made = config(model, loss_type="sampled_softmax", negatives="shared", n_negatives=256)
    assert made["train_neg_sample_args"]["distribution"] == "none"
    assert made["MODEL_INPUT_TYPE"].name == "POINTWISE"


@pytest.mark.parametrize("backbone", ["sasrec", "tisasrec"])
def test_a_trend_reads_the_query_time_on_any_backbone(backbone):
    assert config("AWRSR", backbone=backbone, use_query_time=True, trend_rank=4)["use_query_time"] is True


def test_a_shared_files_trend_does_not_reach_a_model_without_one():
    assert config("TiSASRec", trend_rank=4)["trend_rank"] is None


def test_given_negatives_stay():
    made = config("ADRRec", loss_type="gBCE", train_neg_sample_args={"distribution": "popularity", "sample_num": 3})
    assert (made["train_neg_sample_args"]["distribution"], made["train_neg_sample_args"]["sample_num"]) == (
        "popularity",
        3,
    )


@pytest.mark.parametrize("model", ["TiSASRec", "STOSA", "HSTU"])
def test_a_shared_files_objective_does_not_reach_a_causal_model(model):
    """Windows of a cloze model hold each place's own event as its target: a causal model would copy it."""
    made = config(model, objective="cloze")
    assert made["objective"] is None
    assert config("ADRRec", objective="cloze")["objective"] == "cloze"
    assert config("TiSASRec", use_query_time=True)["use_query_time"] is None
