import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from recbole_adrrec import cli
from recbole_adrrec.cli.train import interrupted
from recbole_adrrec.errors import UserError
from recbole_adrrec.tools import report

HERE = Path(__file__).parent
RESULT = {
    "best_valid_score": 0.25,
    "valid_score_bigger": True,
    "best_valid_result": {"ndcg@10": 0.25},
    "test_result": {"recall@5": 0.1, "ndcg@5": 0.05},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Errors before RecBole is imported


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lni_wieght=0.1"], "error: command line: unknown option lni_wieght; did you mean lni_weight?"),
        (
            ["ml-100k"],
            "error: 'ml-100k' is no command (recommend, explain, serve, export, doctor, convert, upgrade-checkpoint,",
        ),
        (["recomend", "-c", "x.pth"], "error: 'recomend' is no command; did you mean recommend? (recommend, "),
        (["--epochs"], "error: epochs: no value is given"),
        (["--epochs", "--lni_weight=0.1"], "error: epochs: no value is given"),
        (["--model=ADRec"], "did you mean ADRRec?"),
        (["--dataset=foo"], "dataset/foo/foo.inter"),
        (["--data_path=there", "--dataset=mine"], "there/mine/mine.inter"),
        (["--dataset="], "dataset: '' is not the name of a data set"),
        (["--config_files=none.yaml"], "config file none.yaml: there is no such file"),
        (["--nproc=0"], "nproc: 0 is not a whole number of at least 1"),
        (["--nproc=two"], "nproc: 'two' is not a whole number"),
        (["--topk=[1"], "error: topk: '[1': not valid YAML"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, elsewhere, argv, message):
    assert cli.main(argv) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert list(elsewhere.iterdir()) == []


def test_mistakes_in_files_name_the_file(capsys):
    Path("good.yaml").write_text("model: SASRec\nn_heads: 2\n")
    Path("bad.yaml").write_text("learnin_rate: 1e-3\n")
    assert cli.main(["--config_files", "good.yaml bad.yaml"]) == 2
    assert "config file bad.yaml: unknown option learnin_rate; did you mean learning_rate?" in capsys.readouterr().err


def test_debug_adds_the_traceback(capsys):
    assert cli.main(["--debug", "--dataset=foo"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("error: dataset: ")


def test_help_lists_the_options_of_the_model(capsys):
    assert cli.main(["--help", "--model=MEANTIME"]) == 0
    told = capsys.readouterr().out
    assert "--relative_kernels=[sinusoid,log1p]" in told
    assert "--exact_time=true" in told
    assert "--lni_weight" not in told
    assert cli.main(["-h", "-m", "SASRec"]) == 0
    assert "--n_heads=2" in capsys.readouterr().out
    assert cli.main(["-h", "-m", "SASRek"]) == 2


def test_help_needs_neither_recbole_nor_torch():
    code = (
        "import sys; from recbole_adrrec import cli; cli.main(['--help']); cli.main(['--seeed=1']); "
        "print([name for name in ('torch', 'recbole', 'pandas') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE, timeout=600
    )
    assert done.stderr.splitlines()[-1] == "[]"


# With RecBole, but without training


@pytest.fixture
def runs(monkeypatch):
    """Stand in for RecBole's ``run``: build the Config it would build, keep it, train nothing."""
    import recbole_adrrec

    recbole_adrrec.register()
    quick_start = importlib.import_module("recbole.quick_start")
    config_class = importlib.import_module("recbole.config").Config
    made = []

    def run(model, dataset, config_file_list=None, **processes):
        made.append((config_class(model=model, dataset=dataset, config_file_list=config_file_list), processes))
        return RESULT

    monkeypatch.setattr(quick_start, "run", run)
    return made


def test_options_reach_the_configuration_with_their_types(runs, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--seed=77", "--relative_kernels=[nonsense]"])
    argv = ["--relative_kernels=[sinusoid,log1p]", "--learning_rate", "1e-3", "--checkpoint_dir=a=b", "--show_user=3"]
    assert cli.main(argv) == 0
    config, processes = runs[0]
    assert (config["model"], config["dataset"]) == ("ADRRec", "ml-100k")
    assert config["relative_kernels"] == ["sinusoid", "log1p"]
    assert config["learning_rate"] == 1e-3
    assert config["checkpoint_dir"] == "a=b"
    assert config["show_user"] == 3
    assert config["seed"] == 2020
    assert config["metrics"] == ["Recall", "NDCG", "MRR", "Hit"]
    assert processes == {}
    told = capsys.readouterr().out
    assert re.search(r"^Recall +0\.1000$", told, re.MULTILINE)
    assert "Best validation NDCG@10: 0.2500" in told
    assert "use_query_time: false" in told


def test_the_command_line_goes_over_files_and_later_files_over_earlier(runs):
    Path("a.yaml").write_text("model: MEANTIME\nseed: 1\nn_layers: 1\ntrain_batch_size: 8\n")
    Path("b.yaml").write_text("seed: 2\nn_layers: 3\n")
    assert cli.main(["--config_files=a.yaml b.yaml", "--seed=3"]) == 0
    config = runs[0][0]
    assert (config["model"], config["seed"], config["n_layers"], config["train_batch_size"]) == ("MEANTIME", 3, 3, 8)
    assert cli.main(["--config_files=a.yaml", "-m", "ADRRec"]) == 0
    assert runs[1][0]["model"] == "ADRRec"


def test_processes_are_recboles_matter_but_options_are_checked_first(runs, capsys):
    assert cli.main(["--nproc=2", "--port=1234", "--ip=localhost"]) == 0
    assert runs[0][1] == {"nproc": 2, "port": "1234", "ip": "localhost"}
    capsys.readouterr()
    assert cli.main(["--nproc=2", "--hidden_size=65"]) == 2
    assert "hidden_size: 65" in capsys.readouterr().err
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hidden_size=65"], "error: hidden_size: 65 cannot be divided among n_heads, 2"),
        (["--objective=clozee"], "error: objective: 'clozee' is none of causal, cloze; did you mean cloze?"),
        (["--train_neg_sample_args={distribution: uniform}"], "contradicts loss_type CE"),
        (["--model=SASRec", "--train_rows=sequence"], "error: train_rows: SASRec"),
        (["--model=BPR", "--metrics=[Recall,AUC]", "--valid_metric=AUC"], "error: RecBole: Ranking metrics and value"),
    ],
)
def test_bad_values_are_one_line_and_leave_nothing_behind(runs, capsys, elsewhere, argv, message):
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def failing(monkeypatch, error):
    import recbole_adrrec

    recbole_adrrec.register()

    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(importlib.import_module("recbole.quick_start"), "run", run)


def test_a_failed_download_names_file_and_page(monkeypatch, capsys):
    failing(monkeypatch, URLError("no route"))
    assert cli.main(["--dataset=amazon-beauty", "--data_path=here"]) == 2
    told = capsys.readouterr().err
    assert "here/amazon-beauty/amazon-beauty.inter" in told
    assert "https://jmcauley.ucsd.edu/data/amazon/" in told
    assert "downloading it failed (no route)" in told
    assert told.count("\n") == 1


def test_a_lost_connection_is_not_taken_for_missing_data(monkeypatch):
    Path("here/mine").mkdir(parents=True)
    Path("here/mine/mine.inter").touch()
    failing(monkeypatch, ConnectionResetError("by peer"))
    with pytest.raises(ConnectionResetError):
        cli.main(["--dataset=mine", "--data_path=here"])


def test_errors_that_are_not_the_users_keep_their_traceback(monkeypatch):
    failing(monkeypatch, RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main([])


def test_errors_of_the_user_in_another_process_are_told_in_one_line(monkeypatch, capsys):
    text = "\n\n-- Process 0 terminated with:\nTraceback ...\nrecbole_adrrec.errors.DataError: mine.inter: no times\n"
    failing(monkeypatch, RuntimeError(text))
    assert cli.main(["--nproc=1"]) == 2
    assert capsys.readouterr().err == "error: mine.inter: no times\n"


def test_interruption_names_the_last_checkpoint(monkeypatch, capsys, tmp_path):
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main([]) == 130
    assert "no model was saved yet" in capsys.readouterr().err
    saved = tmp_path / "model.pth"
    saved.touch()
    trainer = type("Trainer", (), {"saved_model_file": str(saved)})()
    assert str(saved) in str(interrupted([trainer], KeyboardInterrupt()))


# A whole run on a small data set


@pytest.fixture
def small(tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(20):
        for event, item in enumerate(rng.sample(range(30), 9)):
            lines.append(f"u{user}\ti{item}\t{1_000_000_000 + 86_400 * event + user}")
    (folder / "small.inter").write_text("\n".join(lines) + "\n")
    titles = ["item_id:token\ttitle:token_seq", *(f"i{item}\tBook {item}" for item in range(30))]
    (folder / "small.item").write_text("\n".join(titles) + "\n")
    return tmp_path / "data"


def test_a_small_run_ends_in_metrics_model_and_recommendations(small, capsys):
    options = {"data_path": small, "dataset": "small", "epochs": 1, "show_user": "u7", "show_progress": "false"}
    options |= {"MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 8, "metrics": "[NDCG,Hit]", "topk": "[5,10]"}
    options |= {"valid_metric": "NDCG@10", "load_col": "{inter: [user_id,item_id,timestamp]}", "repeatable": "true"}
    options["eval_args"] = json.dumps(
        {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
    )
    assert cli.main([f"--{name}={value}" for name, value in options.items()]) == 0
    told = capsys.readouterr().out
    assert "ADRRec on small, test metrics over 20 users" in told
    saved = next(line for line in told.splitlines() if line.startswith("Saved model: "))
    assert Path(saved.removeprefix("Saved model: ")).is_file()
    assert "User u7, the last 5 of 8 events before the test:" in told
    events = [line.split("\t") for line in (small / "small" / "small.inter").read_text().splitlines()[1:]]
    own = [f"Book {item[1:]}" for user, item, _ in events if user == "u7"]
    shown = told.split("before the test:\n")[1].splitlines()[:5]
    assert [line.split(maxsplit=1)[1] for line in shown] == own[3:8]
    assert [line.split()[0] for line in shown] == [f"2001-09-{day:02}" for day in range(12, 17)]
    recommended = [line.split(". ")[1] for line in told.splitlines() if ". Book" in line]
    assert len(recommended) == len(set(recommended)) == 10
    assert not set(recommended) & set(own[:8])
    assert f"What came next: {own[8]} (place " in told


# Report


def test_metrics_table():
    result = {"recall@5": 0.1, "recall@10": 0.2, "ndcg@5": 0.05, "ndcg@10": 0.125, "hit@5": 0.1, "hit@10": 0.2}
    lines = report.metrics_table(result).splitlines()
    assert [line.split() for line in lines if "--" not in line] == [
        ["@5", "@10"],
        ["Recall", "0.1000", "0.2000"],
        ["NDCG", "0.0500", "0.1250"],
        ["Hit", "0.1000", "0.2000"],
    ]
    assert report.metrics_table({"auc": 0.5}, places=2).split()[-2:] == ["auc", "0.50"]


def test_summary_says_whether_the_query_time_was_known(tmp_path):
    saved = tmp_path / "m.pth"
    saved.touch()
    config = {"model": "ADRRec", "dataset": "data", "use_query_time": True, "metric_decimal_place": 2}
    result = {"test_result": {"hit@5": 0.5}, "best_valid_result": None, "best_valid_score": None}
    told = report.summary(config, result, 1234, str(saved))
    assert "ADRRec on data, test metrics over 1,234 users" in told
    assert "The model knows the moment of a recommendation (use_query_time: true)." in told
    assert re.search("Hit +0.50$", told, re.MULTILINE)
    assert f"Saved model: {saved}" in told
    assert "validation" not in told
    for unknown in ({"model": "SASRec"}, {"model": "TiSASRec", "use_query_time": None}):
        told = report.summary({**config, **unknown}, result, None, "gone.pth")
        assert told.startswith(f"{unknown['model']} on data, test metrics\n")
        assert "use_query_time" not in told
        assert "Saved" not in told


def test_titles_come_from_the_first_column_that_has_them(tmp_path):
    file = tmp_path / "x.item"
    file.write_text('item_id:token\tname:token\tmovie_title:token_seq\n1\tn1\t"Quoted\n2\tn2\t\n3\n4\tn4\tÉtoile\n')
    assert report.item_titles(file, "item_id") == {"1": '"Quoted', "4": "Étoile"}
    assert report.item_titles(file, "asin") == {}
    assert report.item_titles(tmp_path / "none.item", "item_id") == {}
    file.write_text("item_id:token\tyear:token\n1\t1995\n")
    assert report.item_titles(file, "item_id") == {}
    file.write_text("")
    assert report.item_titles(file, "item_id") == {}


def test_case_text():
    history = [(f"i{n}", 86_400 * n) for n in range(7)]
    told = report.case_text({"i6": "Last", "a": "First choice"}, "u", history, ["a", "b"], "b", 2, 1000).splitlines()
    assert told[0] == "User u, the last 5 of 7 events before the test:"
    assert told[1] == "    1970-01-03  i2"
    assert told[5] == "    1970-01-07  Last"
    assert told[6] == "2 recommended, out of the 1,000 items this user had not seen:"
    assert told[7:9] == ["   1. First choice", "   2. b"]
    assert told[9] == "What came next: b (place 2 in that order)"
    untimed = report.case_text({}, "u", [("x", None)], ["a"], "x", None, 3)
    assert "    x" in untimed.splitlines()
    assert "seen before" in untimed


def test_users_that_cannot_be_shown():
    dataset = type("Data", (), {})()
    dataset.uid_field, dataset.dataset_name = "user_id", "small"
    dataset.inter_feat = {"user_id": torch.tensor([3, 2, 3])}
    dataset.field2token_id = {"user_id": {"a": 1, "b": 2, "c": 3}}
    assert report._row_of(dataset, None) == 1
    assert report._row_of(dataset, "c") == 2
    with pytest.raises(UserError, match="show_user: there is no user 'z' in small"):
        report._row_of(dataset, "z")
    with pytest.raises(UserError, match="show_user: user 'a' has no test event"):
        report._row_of(dataset, "a")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "1000"}, "None")],
)
def test_threads_wait_passively_unless_the_user_chose(given: dict[str, str], expected: str) -> None:
    code = (
        "import os, sys\n"
        "from recbole_adrrec.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "main(['--help'])\n"
        "print('policy', os.environ.get('OMP_WAIT_POLICY'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in cli.WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, env={**environment, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"policy {expected}"
