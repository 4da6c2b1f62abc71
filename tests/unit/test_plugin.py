"""RecBole's look-ups find ours, in the promised order of precedence, and nothing else changes."""

import datetime
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import recbole.data.utils
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.utils import get_model
from recbole.utils.case_study import full_sort_topk

import recbole_adrrec
from recbole_adrrec.data import SequenceDataset
from recbole_adrrec.errors import OptionError
from recbole_adrrec.integration import register as plugin

MODELS = recbole_adrrec.models()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def config(monkeypatch, argv=(), **kwargs):
    monkeypatch.setattr(sys, "argv", ["study.py", *argv])
    return Config(**{"model": "ADRRec", "dataset": "ml-100k", **kwargs})


def test_models_are_listed_and_found():
    assert MODELS == ["ADRRec", "AWRSR", "HSTU", "MEANTIME", "Popularity", "STOSA", "TiSASRec"]
    for name in MODELS:
        found = get_model(name)
        assert found.__name__ == name
        assert found.__module__.startswith("recbole_adrrec.models.")
    assert get_model("SASRec").__module__ == "recbole.model.sequential_recommender.sasrec"


def test_registering_again_changes_nothing():
    before = Config._load_cmd_line, recbole.data.utils.create_dataset
    recbole_adrrec.register()
    assert (Config._load_cmd_line, recbole.data.utils.create_dataset) == before


def test_precedence_from_recbole_up_to_the_command_line(monkeypatch, tmp_path):
    assert config(monkeypatch, model="SASRec")["n_heads"] == 2  # RecBole's model YAML
    assert config(monkeypatch)["hidden_size"] == 64  # our model YAML
    assert config(monkeypatch)["valid_metric"] == "NDCG@10"  # our dataset YAML over RecBole's MRR@10
    assert config(monkeypatch)["normalize_all"] is False  # ... and over RecBole's dataset YAML
    for number, value in enumerate((32, 48)):
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"hidden_size": value}))
    files = [str(tmp_path / "0.yaml"), str(tmp_path / "1.yaml")]
    assert config(monkeypatch, config_file_list=files)["hidden_size"] == 48
    dictionary = {"hidden_size": 80}
    assert config(monkeypatch, config_file_list=files, config_dict=dictionary)["hidden_size"] == 80
    line = ["--hidden_size=96"]
    assert config(monkeypatch, line, config_file_list=files, config_dict=dictionary)["hidden_size"] == 96


def test_our_dataset_yaml_lies_over_our_model_yaml(monkeypatch):
    given = {
        "overall": {"hidden_size": 1, "epochs": 1},
        "model": {"hidden_size": 20, "epochs": 2},
        "dataset": {"epochs": 3},
    }
    real = plugin.options.load_properties

    def load(kind, name=None):
        return real(kind, name) | given[kind] if name else real(kind)

    monkeypatch.setattr(plugin.options, "load_properties", load)
    made = config(monkeypatch)
    assert (made["hidden_size"], made["epochs"]) == (20, 3)


def test_foreign_arguments_disturb_nothing(monkeypatch, caplog):
    foreign = [
        "--local_rank=0",
        "--nproc=4",
        "-k",
        "name",
        "--rdzv-id=1=2",
        "--maxfail=1/0",
        "--own-flag=[",
        "file.txt",
    ]
    made = config(monkeypatch, foreign)
    plain = config(monkeypatch)
    assert made.final_config_dict == plain.final_config_dict
    assert not caplog.records


@pytest.mark.parametrize("program", ["/usr/bin/pytest", "/x/pytest/__main__.py", "/x/ipykernel_launcher.py"])
def test_arguments_of_test_runners_are_never_read(monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "--epochs=7"])
    assert Config(model="ADRRec", dataset="ml-100k")["epochs"] != 7


def test_values_on_a_foreign_command_line_are_read_as_yaml(monkeypatch):
    made = config(monkeypatch, ["--relative_kernels=[sinusoid,log1p]", "--learning_rate=1e-4"])
    assert made["relative_kernels"] == ["sinusoid", "log1p"]
    assert made["learning_rate"] == 1e-4
    with pytest.raises(OptionError, match="epochs"):
        config(monkeypatch, ["--epochs=2", "--epochs=3"])


def test_near_misses_of_ours_are_refused_in_other_programs_and_the_rest_left_alone(monkeypatch):
    with pytest.raises(OptionError, match="lni_weight"):
        config(monkeypatch, config_dict={"lni_wieght": 0.1})
    with pytest.raises(OptionError, match="lni_weight"):
        config(monkeypatch, ["--lni_wieght=0.1"])
    assert config(monkeypatch, config_dict={"my_own_thing": 5})["my_own_thing"] == 5


def test_our_command_line_replaces_the_programs(monkeypatch):
    date = datetime.date(2024, 10, 11)
    with plugin.command_line({"learning_rate": 0.5, "wandb_project": date}):
        made = config(monkeypatch, ["--learning_rate=0.1"])
    assert made["learning_rate"] == 0.5
    assert made["wandb_project"] == date
    with plugin.command_line({"nonsense_option": 1}), pytest.raises(OptionError, match="nonsense_option"):
        config(monkeypatch)


def test_parsed_values_are_not_evaluated_again(monkeypatch):
    text = {"wandb_project": "1/0", "notes": "a=b"}
    assert config(monkeypatch, config_dict=plugin.Parsed(text))["wandb_project"] == "1/0"


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "ADRRec"])
def test_unset_negatives_follow_the_loss(monkeypatch, model):
    assert config(monkeypatch, model=model)["train_neg_sample_args"]["distribution"] == "none"
    with_bpr = config(monkeypatch, model=model, config_dict={"loss_type": "BPR"})
    assert with_bpr["train_neg_sample_args"]["distribution"] == "uniform"


@pytest.mark.parametrize("model", ["SASRec", "ADRRec"])
def test_a_contradiction_of_loss_and_negatives_stays_an_error(monkeypatch, model):
    negatives = {"distribution": "uniform", "sample_num": 1}
    with pytest.raises(ValueError, match="train_neg_sample_args"):
        config(monkeypatch, model=model, config_dict={"train_neg_sample_args": negatives, "loss_type": "CE"})


def test_models_that_are_not_sequential_are_left_alone(monkeypatch):
    made = config(monkeypatch, model="BPR")
    assert made["exact_time"] is None
    assert made["valid_metric"] == "MRR@10"
    assert type(create_dataset(made)).__module__ == "recbole.data.dataset.dataset"


@pytest.mark.parametrize("model", [*MODELS, "SASRec", "BERT4Rec", "GRU4Rec"])
def test_every_pipeline_of_recbole_runs(small, model):
    result = run_recbole(model=model, dataset="small", config_dict={**small, "checkpoint_last": 0})
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    (file,) = Path(str(small["checkpoint_dir"])).iterdir()
    made, loaded, dataset, _train, _valid, test = load_data_and_model(str(file))
    assert type(dataset) is SequenceDataset
    users = test.dataset.inter_feat["user_id"][:3].numpy()
    scores, items = full_sort_topk(users, loaded, test, k=5, device=made["device"])
    assert items.shape == (3, 5)
    assert scores.diff(dim=1).le(0).all()
    batch = next(iter(test))[0]
    everything = loaded.full_sort_predict(batch).view(len(batch), -1)
    one = loaded.predict(batch)
    own = everything.gather(1, batch["item_id"][:, None]).squeeze(1)
    assert torch.allclose(one, own, atol=1e-5)


def test_objective_function_runs(small):
    result = objective_function({**small, "model": "ADRRec", "dataset": "small"})
    assert result["model"] == "ADRRec"


def test_prefix_rows_train_our_models_too(small):
    result = run_recbole(model="ADRRec", dataset="small", config_dict={**small, "train_rows": "prefix"})
    assert result["test_result"]


@pytest.mark.parametrize("model", [model for model in MODELS if model != "Popularity"])
def test_bpr_trains_with_a_negative_for_each_target(small, model):
    made = Config(model=model, dataset="small", config_dict={**small, "loss_type": "BPR"})
    train, *_ = data_preparation(made, create_dataset(made))
    batch = next(iter(train))
    negatives, targets = batch["neg_item_id"], batch["item_id"]
    assert negatives.shape == targets.shape
    assert torch.equal(negatives > 0, targets > 0)
    assert not (negatives[targets > 0] == targets[targets > 0]).any()
    loss = get_model(model)(made, train._dataset).calculate_loss(batch)
    assert torch.isfinite(loss)


def test_two_processes_know_our_models(small, small_data):
    """RecBole's ``run`` spawns processes that import nothing of ours by themselves."""
    code = f"""
import recbole_adrrec
from recbole_adrrec.integration import register as plugin
recbole_adrrec.register()
from recbole.quick_start import run
if __name__ == "__main__":
    print(run("ADRRec", "small", config_dict={small!r}, nproc=2, port="{free_port()}")["test_result"])
"""
    script = small_data / "two.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), "--learning_rate=0.002"], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ndcg@10" in done.stdout
    assert (
        "learning_rate = 0.002"
        in done.stdout.replace("\x1b[1;36m", "").replace("\x1b[0m", "").replace("\x1b[1;33m", "") + done.stderr
    )
