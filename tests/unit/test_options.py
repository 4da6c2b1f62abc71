import datetime
import functools
import logging
import math
import re

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_adrrec import options
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.options import (
    check_names,
    check_option,
    check_values,
    names,
    parse_command_line,
    parse_value,
    rules,
)
from recbole_adrrec.options.properties import recbole_folder

# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("3", 3),
        ("-1", -1),
        ("true", True),
        ("False", False),
        ("None", None),
        ("~", None),
        ("'None'", "None"),
        ("[sinusoid,log1p]", ["sinusoid", "log1p"]),
        ("['sinusoid', None]", ["sinusoid", None]),
        ("2024-10-11", datetime.date(2024, 10, 11)),
        ("a=b", "a=b"),
        ("1/0", "1/0"),
        ("max", "max"),
        ("{'split':{'LS':'valid_and_test'}}", {"split": {"LS": "valid_and_test"}}),
        ("{distribution: None}", {"distribution": None}),
        ("(1,2)", [1, 2]),
        ("(a, b)", ["a", "b"]),
        ("('a', None)", ["a", None]),
        ("[5,inf)", "[5,inf)"),
        ("(0,5]", "(0,5]"),
        ("#1", "#1"),
        ("", None),
    ],
)
def test_values_are_yaml(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["[1", "{a: 1", "@x", "*x", "!!python/object/apply:os.getcwd []", "a: b: c", "{a: 1, a: 2}"]
)
def test_malformed_values_name_the_option(text):
    with pytest.raises(OptionError, match=r"^eval_args: .*not valid YAML"):
        parse_value(text, "eval_args")


def test_missing_space_after_a_colon_is_not_swallowed():
    with pytest.raises(OptionError, match="space after the colon of 'sample_num:5'"):
        parse_value("{distribution: uniform, sample_num:5}", "train_neg_sample_args")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.dates()


@given(st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_what_yaml_writes_is_read_back(value):
    written = yaml.safe_dump([value], default_flow_style=True, width=10_000)
    assert parse_value(written) == [value]


# Command line


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["--seed=3"], {"seed": 3}),
        (["--seed", "3"], {"seed": 3}),
        (["--lni_weight", "-1"], {"lni_weight": -1}),
        (["--use_query_time"], {"use_query_time": True}),
        (["--use_query_time", "--seed=1"], {"use_query_time": True, "seed": 1}),
        (["-m", "SASRec", "-d", "ml-1m"], {"model": "SASRec", "dataset": "ml-1m"}),
        (["-mSASRec", "-d=ml-1m"], {"model": "SASRec", "dataset": "ml-1m"}),
        (["--debug", "--help"], {"debug": True, "help": True}),
        (["--seed=3", "--seed=3"], {"seed": 3}),
        (["--note=a=b"], {"note": "a=b"}),
        (["--note="], {"note": None}),
        (["--config_files", "a.yaml b.yaml"], {"config_files": ["a.yaml", "b.yaml"]}),
        (["--config_files", "a.yaml", "b.yaml", "--seed=1"], {"config_files": ["a.yaml", "b.yaml"], "seed": 1}),
        (["--config_files=[a.yaml, b.yaml]"], {"config_files": ["a.yaml", "b.yaml"]}),
        (["--port=5678", "--dataset=2024", "--gpu_id=0,1"], {"port": "5678", "dataset": "2024", "gpu_id": "0,1"}),
        (["--gpu_id=", "--data_path=~"], {"gpu_id": "", "data_path": None}),
        (["--gpu_id=(0,1)"], {"gpu_id": "0,1"}),
        (["--user_inter_num_interval=[5,inf)"], {"user_inter_num_interval": "[5,inf)"}),
        (["--user_inter_num_interval=[5,10]"], {"user_inter_num_interval": "[5,10]"}),
        (["--user_inter_num_interval='[5,10]'"], {"user_inter_num_interval": "[5,10]"}),
        (['--field_separator="\\t"'], {"field_separator": "\t"}),
        ([], {}),
    ],
)
def test_command_line(argv, found):
    assert parse_command_line(argv) == found


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ml-100k"], "'ml-100k' belongs to no option"),
        (["-x"], "'-x' belongs to no option"),
        (["--=3"], "'--=3' belongs to no option"),
        (["--"], "'--' belongs to no option"),
        (["--seed=1", "--seed=2"], "seed: given twice on the command line, as 1 and 2"),
        (["--flag=1", "--flag"], "flag: given twice"),
        (["-m", "ADRRec", "--model=SASRec"], "model: given twice"),
        (["--model"], "model: no value is given"),
        (["--epochs"], "epochs: no value is given"),
        (["--config_files"], "config_files: no file is named"),
        (["--debug", "yes"], "'yes' belongs to no option"),
        (["--topk=[1"], "topk: .*not valid YAML"),
    ],
)
def test_command_lines_that_mean_nothing(argv, message):
    with pytest.raises(OptionError, match=message):
        parse_command_line(argv)


def test_a_config_file_may_have_a_space_in_its_name(tmp_path):
    file = tmp_path / "my options.yaml"
    file.write_text("seed: 1")
    assert parse_command_line([f"--config_files={file}"]) == {"config_files": [str(file)]}


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2", "holds no options"),
        ("seed: 1\nseed: 2", "line 2: not valid YAML .*'seed' stands there twice"),
        ("seed: [1\nother: 2", "line 2: not valid YAML"),
        ("1: 2", "1 is not the name of an option"),
        ("x: !!python/name:os.system", "not valid YAML"),
    ],
)
def test_bad_config_files(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(OptionError, match=f"config file {file}.*{message}"):
        options.read_config_file(file)


def test_config_files_that_cannot_be_read(tmp_path):
    with pytest.raises(OptionError, match="there is no such file"):
        options.read_config_file(tmp_path / "none.yaml")
    with pytest.raises(OptionError, match="cannot be read"):
        options.read_config_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: \xe9".encode("latin-1"))
    with pytest.raises(OptionError, match="cannot be read"):
        options.read_config_file(tmp_path / "latin.yaml")


def test_an_empty_config_file_gives_nothing(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert options.read_config_file(tmp_path / "empty.yaml") == {}


# Names


def test_known_options():
    known = options.known_options()
    assert known >= {"epochs", "gpu_id", "load_col", "encoding", "lni_weight", "exact_time", "n_heads", "nproc"}
    assert known >= {"clip_grad_norm", "benchmark_filename", "alias_of_item_id", "config_files", "show_user"}
    assert not known & {"lni_wieght", "choice", "full"}


# Names that RecBole's source reads and sets itself, or holds as constants.
SET_BY_RECBOLE = {
    *("CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "INVERSE_ITEM_SEQ", "MASK_INDEX", "MASK_ITEM_SEQ", "REORDER_ITEM_SEQ"),
    *("MODEL_INPUT_TYPE", "MODEL_TYPE", "NEG_ITEMS", "POS_ITEMS", "device", "eval_type", "single_spec", "verbose"),
}


def test_options_that_recbole_reads_and_lists_nowhere_are_listed_here():
    read = re.compile(
        r"""config(?:_dict)?\s*(?:\[|\.get\()\s*["'](\w+)["']
          | ["'](\w+)["']\s+(?:not\s+)?in\s+(?:self\.)?config\b(?!\[)""",
        re.VERBOSE,
    )
    sources = [file for file in recbole_folder().rglob("*.py") if file.name != "hyper_tuning.py"]
    found = {first or second for file in sources for first, second in read.findall(file.read_text())}
    listed = options.known_options() - names.SOURCE_OPTIONS
    assert found - listed - SET_BY_RECBOLE == names.SOURCE_OPTIONS - listed
    assert found >= names.SOURCE_OPTIONS


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lni_wieght", "lni_weight"),
        ("learnin_rate", "learning_rate"),
        ("hidden-size", "hidden_size"),
        ("max_item_list_length", "MAX_ITEM_LIST_LENGTH"),
        ("top_k", "topk"),
        ("absolute_kernel", "absolute_kernels"),
        ("epoch", "epochs"),
    ],
)
def test_strict_names_the_nearest(name, near):
    with pytest.raises(OptionError, match=f"^command line: unknown option {name}; did you mean {near}\\?$"):
        check_names({name: 1}, "ADRRec", strict=True, where="command line")


def test_strict_says_nothing_where_nothing_is_near():
    with pytest.raises(OptionError, match=r"^config file a\.yaml: unknown option zzzzqqqq$"):
        check_names({"zzzzqqqq": 1}, "ADRRec", strict=True, where="config file a.yaml")


@pytest.mark.parametrize("name", ["my_option", "kernel_size", "train_size", "time_limit", "lr", "output", "n_heads"])
def test_other_programs_keep_their_own_options(name):
    check_names({name: 1}, "ADRRec", strict=False, where="options")


@pytest.mark.parametrize(
    ("name", "near"), [("lni_wieght", "lni_weight"), ("exact_tim", "exact_time"), ("train-rows", "train_rows")]
)
def test_other_programs_are_told_of_slips_in_our_names(name, near):
    with pytest.raises(OptionError, match=f"did you mean {near}"):
        check_names({name: 1}, "ADRRec", strict=False, where="options")


def test_slips_concern_the_chosen_model_alone():
    check_names({"lni_wieght": 1}, "SASRec", strict=False, where="options")


@pytest.mark.parametrize("strict", [True, False])
def test_options_that_the_model_does_not_read_are_named_once(caplog, strict):
    with caplog.at_level(logging.WARNING):
        check_names(
            {"hidden_act": "gelu", "hidden_size": 4, "epochs": 1, "embedding_size": 3},
            "ADRRec",
            strict,
            "config file a.yaml",
        )
    assert [record.getMessage() for record in caplog.records] == [
        "warning: config file a.yaml: ADRRec does not read embedding_size, hidden_act (no effect)"
    ]


def test_our_options_given_to_another_model_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        check_names({"lni_weight": 0.1, "n_layers": 1, "loss_type": "CE"}, "SASRec", True, "command line")
        check_names({"max_distance": 3, "mask_ratio": 0.1}, "MEANTIME", True, "command line")
        check_names({"mask_ratio": 0.1, "exact_time": True}, "BERT4Rec", True, "command line")
        check_names({"lni_weight": 0.1}, "SomebodysOwnModel", False, "options")
    assert [record.getMessage() for record in caplog.records] == [
        "warning: command line: SASRec does not read lni_weight (no effect)",
        "warning: command line: MEANTIME does not read max_distance (no effect)",
    ]


def test_warnings_can_be_left_to_a_later_check(caplog):
    check_names({"hidden_act": "gelu"}, "ADRRec", strict=True, where="command line", warn=False)
    assert not caplog.records


@pytest.mark.parametrize("name", ["ADRRec", "MEANTIME", "SASRec", "BERT4Rec", "NeuMF"])
def test_models_that_exist(name):
    assert options.check_model(name) == name


@pytest.mark.parametrize(("name", "near"), [("ADRec", "ADRRec"), ("sasrec", "SASRec"), ("Bert4Rec", "BERT4Rec")])
def test_models_that_do_not(name, near):
    with pytest.raises(OptionError, match=f"no model '{name}'; did you mean {near}"):
        options.check_model(name)


@pytest.mark.parametrize("name", ["", None, 3, "AbstractRecommender", "Zzzzz"])
def test_models_that_nobody_means(name):
    with pytest.raises(OptionError, match=r"^model: there is no model"):
        options.check_model(name)


# Data sets


def test_missing_data_says_which_file_where_and_from_which_page(tmp_path):
    text = options.missing_data("amazon-beauty", tmp_path / "amazon-beauty")
    assert str(tmp_path / "amazon-beauty" / "amazon-beauty.inter") in text
    assert "Amazon_Beauty.zip" in text
    assert "https://jmcauley.ucsd.edu/data/amazon/" in text
    unknown = options.missing_data("amazon-beuty", tmp_path / "amazon-beuty")
    assert "did you mean amazon-beauty?" in unknown
    assert "user_id:token" in unknown


def test_data_that_is_there_or_can_be_downloaded_is_accepted(tmp_path):
    options.check_data("amazon-beauty", tmp_path / "amazon-beauty")
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(DataError, match=r"mine\.inter"):
        options.check_data("mine", folder)
    (folder / "mine.inter").touch()
    options.check_data("mine", folder)
    with pytest.raises(DataError):
        options.check_data("mine", folder, ["train", "test"])
    (folder / "mine.train.inter").touch()
    (folder / "mine.test.inter").touch()
    options.check_data("mine", folder, ["train", "test"])
    empty = tmp_path / "ml-1m"
    empty.mkdir()
    with pytest.raises(DataError, match=r"ml-1m\.inter"):
        options.check_data("ml-1m", empty)


# Values and their combinations


@functools.cache
def recbole_defaults():
    recbole = recbole_folder() / "properties"
    found = yaml.safe_load((recbole / "overall.yaml").read_text())
    return found | yaml.safe_load((recbole / "dataset" / "sample.yaml").read_text())


def config(model="ADRRec", **given):
    found = {**recbole_defaults(), **options.load_properties("overall")}
    found |= options.load_properties("model", model)
    found |= options.load_properties("dataset", "ml-100k")
    return {**found, "train_neg_sample_args": None, **given}


SAMPLED = {"distribution": "uniform", "sample_num": 1}
HEADS = {"mixture": "heads"}
FOUR_KERNELS = {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid", "distance"]}
LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"loss_type": "BPR", "train_neg_sample_args": SAMPLED},
        {"train_neg_sample_args": "None"},
        {"train_neg_sample_args": {"distribution": "none", "sample_num": "none"}},
        {"absolute_kernels": [], "relative_kernels": ["log1p", "log1p"]},
        {"absolute_kernels": [], "relative_kernels": []},
        {"absolute_kernels": ("position",), "relative_kernels": [], "hidden_size": 7, **HEADS},
        {"hidden_size": 7, "n_heads": 7, "relative_kernels": ["log1p", "gap_bias"]},
        {"n_heads": 16, "time_unit": 60, "kernel_freq": None},
        {"train_stride": 50},
        {"lni_layers": [2], "lni_layer_weights": [0.5]},
        {"lni_layer_weights": [1, 0]},
        {"lni_form": "predictions", "lni_stop_gradient": True},
        {"lni_form": "noisy", "lni_layers": [2]},
        {"lni_weight": np.float64(0.1), "n_layers": np.int64(2)},
        {"objective": "cloze", "MAX_ITEM_LIST_LENGTH": 2},
        {"exact_time": False},
        {"exact_time": True, "normalize_all": True},
        {
            "exact_time": False,
            "normalize_all": True,
            "absolute_kernels": ["position"],
            "relative_kernels": ["distance"],
        },
        {"exact_time": False, "normalize_field": ["rating"]},
        {"topk": 10, "metrics": "NDCG"},
        {"metrics": ["AUC"], "valid_metric": "auc"},
        {"valid_metric": "ndcg@20"},
        {"valid_metric": "nothing", "eval_step": 0},
        {"gpu_id": 0},
        {"gpu_id": ""},
        {"gpu_id": (0, 1)},
        {"state": "INFO", "learner": "AdamW"},
        {"eval_args": {**LEAVE_ONE_OUT, "mode": {"valid": "uni100", "test": "full"}}},
        {"transform": "user_defined"},
        {"show_user": 196},
        {"time_unit": 3600, "time_unit_in": "ms"},
    ],
)
def test_values_that_can_run(given):
    check_values(config(**given), "ADRRec")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": "big"}, "hidden_size: 'big' is not a whole number of at least 1"),
        ({"n_layers": True}, "n_layers: True is not a whole number"),
        ({"n_layers": 2.0}, "n_layers: 2.0 is not a whole number"),
        ({"n_layers": 0}, "n_layers: 0 is not a whole number of at least 1"),
        ({"epochs": None}, "epochs: None is not a whole number"),
        ({"learning_rate": 0}, "learning_rate: 0 is not a number above 0"),
        ({"learning_rate": "1e-3"}, "learning_rate: '1e-3' is not a number"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"lni_weight": math.inf}, "lni_weight: inf is not a number"),
        ({"lni_sigma": math.nan}, "lni_sigma: nan is not a number above 0"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob: 1 is not a number of at least 0 and below 1"),
        ({"mask_ratio": 0}, "mask_ratio: 0 is not a number above 0 and below 1"),
        ({"kernel_freq": 1}, "kernel_freq: 1 is not a number above 1"),
        ({"seed": -1}, "seed: -1 is not a whole number from 0 to 4294967295"),
        ({"exact_time": "yes"}, "exact_time: 'yes' is neither true nor false"),
        ({"use_query_time": 1}, "use_query_time: 1 is neither true nor false"),
        ({"objective": "close"}, "objective: 'close' is none of causal, cloze; did you mean cloze?"),
        ({"lni_noise": "in-manifold"}, "did you mean in_manifold"),
        ({"learner": "adan"}, "learner: 'adan' is none of .*did you mean adam"),
        ({"loss_type": "ce"}, "loss_type: 'ce' is none of CE, BPR, BCE, sampled_softmax, gBCE; did you mean CE"),
        ({"absolute_kernels": "position"}, "absolute_kernels: 'position' is not a list; write it as"),
        ({"absolute_kernels": ["dya"]}, "absolute_kernels: entry 1: 'dya' is none of .*; did you mean day"),
        ({"absolute_kernels": ["sinusoid"]}, "absolute_kernels: entry 1: 'sinusoid' is none of position, day"),
        ({"absolute_kernels": [], "relative_kernels": [], **HEADS}, "needs at least one"),
        (
            {"hidden_size": 65, **HEADS, **FOUR_KERNELS},
            "65 cannot be divided among 4 kernels .*multiple of 4, for instance 64 or 68",
        ),
        (
            {
                "absolute_kernels": ["position", "day"],
                "relative_kernels": ["log1p", "exponential", "distance"],
                **HEADS,
            },
            r"^hidden_size: 64 cannot be divided among 5 kernels \(heads\); choose a multiple of 5, for instance "
            r"60 or 65, or change absolute_kernels/relative_kernels$",
        ),
        ({"absolute_kernels": [], "relative_kernels": ["sinusoid"], "hidden_size": 7, **HEADS}, "7 is odd.*6 or 8"),
        ({"hidden_size": 2, **HEADS, **FOUR_KERNELS}, "for instance 4,"),
        (
            {"hidden_size": 7, "n_heads": 7, "relative_kernels": ["sinusoid"]},
            "7 is odd.*multiple of 14, for instance 14$",
        ),
        ({"hidden_size": 2, "n_heads": 4}, "n_heads, 4; choose a multiple of 4, for instance 4$"),
        ({"train_stride": 51}, r"train_stride: 51 is more than MAX_ITEM_LIST_LENGTH \(50\).*choose 1 to 50"),
        ({"train_stride": 0}, "train_stride: 0 is not"),
        ({"lni_layers": [3]}, r"lni_layers: there is no layer 3 among 2 \(n_layers\)"),
        ({"lni_layers": [0]}, "lni_layers: entry 1: 0 is not"),
        ({"lni_layers": [1, 1]}, "lni_layers: 1 is listed twice"),
        ({"lni_layers": []}, "lni_layers: the list is empty"),
        ({"lni_layers": [1], "lni_layer_weights": [1, 1]}, r"lni_layer_weights: 2 weights for 1 layers \(lni_layers\)"),
        ({"lni_form": "state"}, "lni_form: 'state' is none of states, predictions, noisy; did you mean states"),
        (
            {"lni_form": "predictions", "lni_layer_weights": [1, 2]},
            r"lni_layer_weights: \[1, 2\] means nothing with lni_form predictions; .*or choose lni_form states$",
        ),
        ({"lni_form": "noisy", "lni_stop_gradient": True}, "lni_stop_gradient: True means nothing with lni_form noisy"),
        ({"lni_layer_weights": [1]}, r"lni_layer_weights: 1 weights for 2 layers \(n_layers\)"),
        ({"objective": "cloze", "MAX_ITEM_LIST_LENGTH": 1}, "MAX_ITEM_LIST_LENGTH: 1 leaves"),
        ({"train_neg_sample_args": SAMPLED}, "train_neg_sample_args: .*contradicts loss_type CE"),
        ({"loss_type": "BPR"}, "train_neg_sample_args: None contradicts loss_type BPR"),
        ({"train_neg_sample_args": "uniform"}, "train_neg_sample_args: 'uniform' is not a mapping"),
        (
            {"loss_type": "BPR", "train_neg_sample_args": {**SAMPLED, "dynamic": True}},
            "dynamic negatives need a row for each target",
        ),
        ({"exact_time": False, "normalize_all": True}, "normalize_all: with exact_time false .*gap_bias"),
        ({"exact_time": False, "normalize_field": ["timestamp"]}, "normalize_field: with exact_time false"),
        ({"transform": "crop_itemseq"}, "transform: 'crop_itemseq' changes items but not their times"),
        ({"topk": 0}, "topk: 0 is not"),
        ({"topk": [5, "10"]}, "topk: entry 2: '10' is not"),
        ({"topk": []}, "topk: the list is empty"),
        ({"metrics": ["Recal"]}, "metrics: 'Recal' is no metric of RecBole; did you mean Recall"),
        ({"metrics": []}, "metrics: the list is empty"),
        ({"valid_metric": "NDCG@7"}, "valid_metric: 'NDCG@7' is not computed; .*NDCG@10"),
        ({"valid_metric": "NDCG"}, "valid_metric: 'NDCG' is not computed"),
        ({"valid_metric": None}, "valid_metric: None is not computed"),
        ({"data_path": 3}, "data_path: 3 is not text"),
        ({"gpu_id": "cuda"}, "gpu_id: 'cuda' names no GPU"),
        ({"gpu_id": None}, "gpu_id: None names no GPU"),
        ({"gpu_id": [0, 1]}, "gpu_id"),
        ({"eval_args": {"mode": "full"}}, "eval_args: .*needs order TO"),
        ({"eval_args": {**LEAVE_ONE_OUT, "mode": "uni"}}, "eval_args: mode 'uni' should be"),
        ({"eval_args": {**LEAVE_ONE_OUT, "spilt": {}}}, "eval_args: 'spilt' is none of .*did you mean split"),
        ({"eval_args": {**LEAVE_ONE_OUT, "split": "LS"}}, "eval_args: split 'LS' should be"),
        ({"eval_args": "LS"}, "eval_args: 'LS' is not a mapping"),
        ({"time_unit_in": "h"}, "time_unit_in: 'h' is none of s, ms, us"),
        ({"train_rows": "windows"}, "train_rows: 'windows' is none of prefix, sequence"),
        ({"show_user": True}, "show_user: True is not a name"),
        ({"val_interval": "[3,inf)"}, "val_interval"),
    ],
)
def test_values_that_cannot(given, message):
    with pytest.raises(OptionError, match=message):
        check_values(config(**given), "ADRRec")


def test_distance_is_no_kernel_of_meantime():
    with pytest.raises(OptionError, match="relative_kernels: entry 2: 'distance' is none of"):
        check_values(config("MEANTIME", relative_kernels=["log1p", "distance"]), "MEANTIME")


def test_meantime_needs_something_to_predict_from():
    with pytest.raises(OptionError, match="MAX_ITEM_LIST_LENGTH: 1"):
        check_values(config("MEANTIME", MAX_ITEM_LIST_LENGTH=1), "MEANTIME")


def test_recboles_models_have_no_loss_at_every_position():
    with pytest.raises(OptionError, match="train_rows: SASRec has no loss at every position"):
        check_values(config("SASRec", train_rows="sequence"), "SASRec")
    check_values(config("SASRec"), "SASRec")
    check_values({"epochs": 1}, "SASRec")
    check_values({}, "ADRRec")


@given(st.integers(1, 300), st.integers(1, 6), st.booleans(), st.booleans())
def test_proposed_widths_would_do(width, heads, paired, adaptive):
    kernels = ["sinusoid" if paired else "log1p"] * heads
    mixture = {"n_heads": heads} if adaptive else HEADS
    given = config(hidden_size=width, absolute_kernels=[], relative_kernels=kernels, **mixture)
    try:
        check_values(given, "ADRRec")
    except OptionError as error:
        proposed = str(error).split("for instance ")[1].split(", or change")[0]
        for number in proposed.split(" or "):
            check_values({**given, "hidden_size": int(number)}, "ADRRec")
    else:
        assert width % heads == 0


def test_every_rule_refuses_something():
    """No option of ours takes whatever it is given."""
    for model, own in rules.MODEL_RULES.items():
        for name, rule in {**rules.OVERALL_RULES, **own}.items():
            assert rule(object()), (model, name)
            assert rule(True) or rule is rules.FLAG, (model, name)


def test_one_option_is_checked_for_one_model():
    check_option("ADRRec", "lni_weight", 0.5)
    check_option("SASRec", "lni_weight", "heavy")  # it does not read it
    check_option("ADRRec", "field_separator", object())  # RecBole judges it
    for model, name, value, message in (
        ("ADRRec", "lni_weight", -1, "lni_weight: -1 is not a number of at least 0"),
        ("SASRec", "learning_rate", 0, "learning_rate: 0 is not a number above 0"),
        ("MEANTIME", "objective", "causal", "objective: 'causal' is none of cloze"),
    ):
        with pytest.raises(OptionError, match=message):
            check_option(model, name, value)
