import dataclasses
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from measure.against import SASREC_BLOCK
from recbole.config import Config

import recbole_adrrec
from recbole_adrrec import options
from recbole_adrrec.layers.kernels import ABSOLUTE_KERNELS, RELATIVE_KERNELS
from recbole_adrrec.layers.noise import NOISES
from recbole_adrrec.layers.refinement import REFINEMENT_MAPS, REFINEMENTS
from recbole_adrrec.layers.transformer import ACTIVATIONS
from recbole_adrrec.losses import LOSSES, SMOOTHED_LOSSES
from recbole_adrrec.models.awrsr import BACKBONES
from recbole_adrrec.options import MODEL_OPTIONS, kinds, names, properties, rules, schema

MODELS = options.property_names("model")
DATASETS = options.property_names("dataset")
TUNED = [f"{model}.{dataset}" for model, dataset in options.tuned_names()]
FILES = [
    ("overall", "overall"),
    *(("model", name) for name in [*MODELS, *TUNED]),
    *(("dataset", name) for name in DATASETS),
]


def rules_of(kind, name):
    if name in TUNED:
        return rules.rules_of(name.split(".")[0])
    return {"overall": rules.OVERALL_RULES, "model": rules.MODEL_RULES.get(name), "dataset": rules.RECBOLE_RULES}[kind]


def recbole_yaml(name):
    text = (properties.recbole_folder() / "properties" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def test_names():
    assert (
        MODELS
        == recbole_adrrec.models()
        == list(MODEL_OPTIONS)
        == ["ADRRec", "AWRSR", "HSTU", "MEANTIME", "Popularity", "STOSA", "TiSASRec"]
    )
    assert DATASETS == ["amazon-beauty", "amazon-games-2018", "amazon-video-games", "ml-100k", "ml-1m", "ml-20m"]
    assert options.property_names("overall") == ["overall"]


def test_no_file_means_no_defaults():
    assert options.load_properties("model", "SASRec") == {}
    assert options.load_properties("dataset", "../overall") == {}
    assert options.load_properties("model", "") == {}


def test_defaults_are_copies():
    options.load_properties("model", "ADRRec")["absolute_kernels"].append("hour")
    assert options.load_properties("model", "ADRRec")["absolute_kernels"] == ["position", "day"]


@pytest.mark.parametrize("model", MODELS)
def test_every_field_without_a_value_is_an_option(model):
    """And options that only some models have are those models' constants in the others."""
    fields = dataclasses.fields(MODEL_OPTIONS[model])
    own = set(options.load_properties("model", model))
    assert {field.name for field in fields if field.default is dataclasses.MISSING} <= own
    assert own <= {field.name for field in fields}


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_defaults_follow_their_rules(kind, name):
    known = rules_of(kind, name)
    defaults = options.load_properties(kind, name)
    if kind == "overall":
        assert set(defaults) == set(known)
    for option, default in defaults.items():
        assert option not in known or known[option](default) is None, option
    assert kind == "dataset" or set(defaults) <= set(known)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_option_is_explained_with_its_type(kind, name):
    meanings = options.comments(kind, name)
    defaults = options.load_properties(kind, name)
    assert list(meanings) == list(defaults)
    types = {"int": int, "float": (int, float), "bool": bool, "str": str, "list": list, "dict": dict}
    for option, meaning in meanings.items():
        kind_named = re.match(r"\((int|float|bool|str|list|dict)\) \S.*\.$", meaning)
        if kind == "dataset":
            kind_named = re.match(r"\((int|float|bool|str|list|dict)\) \S", meaning)
        assert kind_named, f"{option}: {meaning}"
        default = defaults[option]
        assert default is None or isinstance(default, types[kind_named[1]]), option


@pytest.mark.parametrize(("kind", "name"), FILES)
@pytest.mark.parametrize("flow", [True, False])
def test_yaml_round_trip(kind, name, flow):
    defaults = options.load_properties(kind, name)
    written = yaml.safe_dump(defaults, default_flow_style=flow, sort_keys=False)
    assert properties.load_yaml(written, name) == defaults


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_command_line_round_trip(kind, name):
    """Every default can be given on the command line as YAML writes it, and means the same there."""
    for option, default in options.load_properties(kind, name).items():
        written = yaml.safe_dump(default, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        assert options.parse_command_line([f"--{option}={written}"]) == {option: default}
        assert options.parse_command_line([f"--{option}", written]) == {option: default}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_defaults_together_can_run(model, dataset):
    config = {**recbole_yaml("overall"), **recbole_yaml("dataset/sample"), **options.load_properties("overall")}
    config |= options.load_properties("model", model) | options.load_properties("dataset", dataset)
    if config["loss_type"] == "CE":
        config["train_neg_sample_args"] = None
    options.check_values(config | options.load_tuned(model, dataset), model)


@pytest.mark.parametrize(("model", "dataset"), options.tuned_names())
def test_tuned_options_are_of_a_model_and_a_data_set_known_here_and_change_something(model, dataset):
    assert dataset in DATASETS
    tuned, defaults = options.load_tuned(model, dataset), options.load_properties("model", model)
    options.check_names(tuned, model, strict=True, where="tuned")
    assert tuned
    assert all(name not in defaults or defaults[name] != value for name, value in tuned.items())


def test_tuned_options_lie_over_the_models_on_their_data_set_alone_and_under_the_users():
    model, dataset = "AWRSR", "amazon-beauty"
    tuned, defaults = options.load_tuned(model, dataset), options.load_properties("model", model)

    def config(model, dataset, **given):
        return Config(model=model, dataset=dataset, config_dict={"data_path": "nowhere", **given})

    assert {name: config(model, dataset)[name] for name in tuned} == tuned
    own = {name: value for name, value in defaults.items() if name in tuned}
    assert own
    assert {name: config(model, "ml-20m")[name] for name in own} == own
    assert config(model, dataset, hidden_dropout_prob=0.3)["hidden_dropout_prob"] == 0.3
    assert config("TiSASRec", dataset)["hidden_dropout_prob"] == 0.2


def test_meantime_is_adrrec_without_its_own_parts():
    adrrec, meantime = options.load_properties("model", "ADRRec"), options.load_properties("model", "MEANTIME")
    extra = {"max_distance", "train_batch_size", "n_heads", "mixture", "event_layout", *SASREC_BLOCK}
    extra |= {name for name in adrrec if name.startswith(("lni_", "trend_"))}
    extra -= {"layer_norm_eps"}
    assert set(adrrec) - set(meantime) == extra
    assert set(meantime) <= set(adrrec)
    assert meantime["relative_kernels"] == ["sinusoid", "log1p"]
    assert (meantime["use_query_time"], adrrec["use_query_time"]) == (True, False)
    assert (adrrec["objective"], meantime["objective"]) == ("causal", "cloze")


@pytest.mark.parametrize("model", ["ADRRec", "AWRSR", "HSTU", "MEANTIME", "TiSASRec"])
def test_comments_name_every_choice(model):
    meanings = options.comments("model", model)
    for option in rules.MODEL_RULES[model]:
        for name in choices(model, option) if option not in ("objective", "train_rows") else ():
            assert name in meanings[option], (option, name)


def choices(model, option):
    """Names that an option, or the entries of its list, may have."""
    hint = get_type_hints(MODEL_OPTIONS[model])[option]
    while get_origin(hint) not in (Literal, None):
        hint = get_args(hint)[0]
    return list(get_args(hint))


def test_choices_are_those_that_exist():
    assert choices("ADRRec", "absolute_kernels") == list(ABSOLUTE_KERNELS)
    assert choices("ADRRec", "relative_kernels") == list(RELATIVE_KERNELS)
    assert choices("ADRRec", "loss_type") == list(LOSSES)
    assert choices("ADRRec", "lni_noise") == list(NOISES)
    assert choices("AWRSR", "refinement") == ["none", *REFINEMENTS]
    assert choices("AWRSR", "refinement_maps") == list(REFINEMENT_MAPS)
    assert choices("AWRSR", "backbone") == list(BACKBONES)
    assert set(choices("ADRRec", "activation")) < set(ACTIVATIONS)
    assert {name for name, kernel in RELATIVE_KERNELS.items() if kernel.is_bias} == schema.BIAS_KERNELS
    assert {*ABSOLUTE_KERNELS, *RELATIVE_KERNELS} > kinds.TIMELESS_KERNELS
    (smoothed,) = (each for each in kinds.DEPENDENCIES if each.name == "label_smoothing")
    assert smoothed.values == SMOOTHED_LOSSES


@pytest.mark.parametrize("model", ["ADRRec", "AWRSR"])
def test_the_default_block_is_sasrecs(model):
    defaults = options.load_properties("model", model)
    assert {name: defaults[name] for name in SASREC_BLOCK} == SASREC_BLOCK


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_sets_are_split_filtered_and_ranked_alike(dataset):
    settings = options.load_properties("dataset", dataset)
    assert settings["eval_args"] == {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": "full",
    }
    assert settings["user_inter_num_interval"] == settings["item_inter_num_interval"] == "[5,inf)"
    assert settings["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert settings["metrics"] == ["Recall", "NDCG", "MRR", "Hit"]
    assert settings["topk"] == [5, 10, 20]
    assert settings["valid_metric"] == "NDCG@10"
    assert settings["repeatable"] is True
    assert settings["val_interval"] is None
    assert settings["threshold"] is None
    head = properties._text("dataset", dataset).split("\n\n")[0]
    assert "https://" in head


def test_nothing_of_recboles_own_ml_100k_file_shines_through():
    theirs, plain = recbole_yaml("dataset/ml-100k"), recbole_yaml("dataset/sample")
    odd = {name for name, value in theirs.items() if plain.get(name) != value and "kg" not in name}
    assert {"load_col", "normalize_all"} <= odd
    assert odd <= set(options.load_properties("dataset", "ml-100k"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_dataset_options_are_recboles(dataset):
    assert set(options.load_properties("dataset", dataset)) <= names.general_options()


def test_checkout_without_install_finds_properties_beside_the_package(monkeypatch):
    checkout = Path(__file__).resolve().parents[2]
    monkeypatch.setattr(properties, "__file__", str(checkout / "recbole_adrrec" / "options" / "properties.py"))
    folder = properties._folder.__wrapped__("overall")
    assert folder == checkout / "properties"
    assert (folder / "overall.yaml").is_file()
