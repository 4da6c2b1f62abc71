"""Training that is broken off and continued ends at the weights of a run that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import run_recbole
from recbole.trainer.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adrrec import cli
from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.integration import resume
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.checkpoint_data import CheckpointData
from recbole_adrrec.integration.trainer import ResumableTrainer

Trained = tuple[Path, dict[str, Any]]
Refused = Callable[..., str]
EPOCHS = 4
CUT = 2  # whole epochs before training is broken off


def write_tiny(folder: Path, users: int = 24, items: int = 12, seed: int = 3) -> Path:
    """``<folder>/tiny/tiny.inter``, small enough for an epoch in an instant."""
    draw = random.Random(seed)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        time = 1_600_000_000 + draw.randrange(10**6)
        for _ in range(draw.randrange(5, 12)):
            time += draw.randrange(1, 10**5)
            lines.append(f"u{user}\ti{draw.randrange(items)}\t{time}")
    path = folder / "tiny" / "tiny.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a short training, with dropout and several steps an epoch, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("psutil.cpu_percent", lambda **_: 0.0)  # RecBole measures for a second
    write_tiny(tmp_path)
    return {
        "data_path": str(tmp_path),
        "checkpoint_dir": str(tmp_path / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "epochs": EPOCHS,
        "show_progress": False,
        "MAX_ITEM_LIST_LENGTH": 6,
        "hidden_size": 8,
        "inner_size": 8,
        "hidden_dropout_prob": 0.3,
        "attn_dropout_prob": 0.3,
        "train_batch_size": 32,
        "metrics": ["NDCG"],
        "topk": [5],
        "valid_metric": "NDCG@5",
    }


class BrokenOffError(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def break_off(monkeypatch: pytest.MonkeyPatch, epoch: int = CUT, step: int = 2) -> None:
    """Let training end within an epoch, after some steps of it."""
    train_epoch = Trainer._train_epoch

    def train_and_break(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if epoch_idx != epoch:
            return train_epoch(self, train_data, epoch_idx, *args, **kwargs)
        calculate, steps = self.model.calculate_loss, iter(range(step))

        def calculate_loss(interaction: Any) -> Any:
            if next(steps, None) is None:
                raise BrokenOffError
            return calculate(interaction)

        return train_epoch(self, train_data, epoch_idx, calculate_loss, *args[1:], **kwargs)

    monkeypatch.setattr(Trainer, "_train_epoch", train_and_break)


def files(folder: Path) -> tuple[Path, Path]:
    """The best model and the last state in a folder of one run."""
    (last,) = folder.glob("*-last.pth")
    (best,) = set(folder.glob("*.pth")) - {last}
    return best, last


def whole_and_continued(model: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Results and (best, last) checkpoints of an unbroken run, and of one that is broken off and continued."""
    found = []
    for name in ("whole", "broken"):
        folder = Path(options["checkpoint_dir"]).parent / name
        given = {**options, "checkpoint_dir": str(folder)}
        if name == "broken":
            with monkeypatch.context() as patched:
                break_off(patched)
                with pytest.raises(BrokenOffError):
                    run_recbole(model=model, dataset="tiny", config_dict=given)
            scramble()
            given["resume"] = str(files(folder)[1])
            assert load_checkpoint(given["resume"])["training"]["whole_epochs"] == CUT
        result = run_recbole(model=model, dataset="tiny", config_dict=given)
        found.append((result, [load_checkpoint(file) for file in files(folder)]))
    return found


def scramble() -> None:
    """Leave no source of randomness as it was."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one["state_dict"]) == list(other["state_dict"])
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert fingerprint(one["optimizer"]) == fingerprint(other["optimizer"])
    for name in ("epoch", "cur_step", "best_valid_score"):
        assert one[name] == other[name], name
    for name in ("whole_epochs", "best_valid_result", "train_loss", "random", "has_best"):
        assert fingerprint(one["training"][name]) == fingerprint(other["training"][name]), name


VARIANTS = {
    "ADRRec, noise injected": ("ADRRec", {"lni_weight": 0.5}),
    "ADRRec, cloze": ("ADRRec", {"objective": "cloze"}),
    "ADRRec, shared negatives, trend": (
        "ADRRec",
        {"loss_type": "sampled_softmax", "negatives": "shared", "n_negatives": 5, "trend_rank": 2, "trend_spacing": 2},
    ),
    "MEANTIME": ("MEANTIME", {}),
    "TiSASRec, negatives": ("TiSASRec", {"loss_type": "BCE"}),
    "ADRRec, popular negatives": (
        "ADRRec",
        {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}},
    ),
    "RecBole's SASRec": ("SASRec", {"train_neg_sample_args": None}),
    "RecBole's BERT4Rec, masks of Python's random": ("BERT4Rec", {"train_neg_sample_args": None}),
    "RecBole's GRU4Rec, sampled evaluation": (
        "GRU4Rec",
        {"loss_type": "BPR", "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni4"}},
    ),
    "workers": ("ADRRec", {"loss_type": "BPR", "worker": 1}),
    "no validation": ("ADRRec", {"eval_step": 0}),
}


@pytest.mark.parametrize(("model", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_a_continued_run_ends_at_the_weights_of_an_unbroken_one(
    model: str, changes: dict[str, Any], tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole, unbroken), (continued, resumed) = whole_and_continued(model, {**tiny, **changes}, monkeypatch)
    for one, other in zip(unbroken, resumed, strict=True):
        assert_same(one, other)
    assert dict(whole["test_result"]) == dict(continued["test_result"])
    assert whole["best_valid_score"] == continued["best_valid_score"]


def test_the_comparison_would_find_a_lost_random_state(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "set_random_state", lambda state, loaders: None)
    (_, unbroken), (_, resumed) = whole_and_continued("ADRRec", tiny, monkeypatch)
    with pytest.raises(AssertionError):
        assert_same(unbroken[1], resumed[1])


def test_early_stopping_counts_on(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.update(learning_rate=1e-12, stopping_step=2, epochs=30, valid_metric="NDCG@5", hidden_dropout_prob=0.0)
    # From the second epoch on no epoch is better, so that every one of them counts.
    evaluate = ResumableTrainer.evaluate
    scores = {"n": 0}

    def worse_and_worse(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = evaluate(self, *args, **kwargs)
        if not kwargs.get("load_best_model", True):
            result["ndcg@5"] = 1.0 - self._whole_epochs / 100
            scores["n"] += 1
        return result

    monkeypatch.setattr(ResumableTrainer, "evaluate", worse_and_worse)
    (whole, unbroken), (continued, resumed) = whole_and_continued("ADRRec", tiny, monkeypatch)
    assert unbroken[1]["cur_step"] == 3
    assert unbroken[1]["training"]["whole_epochs"] == 4
    assert_same(unbroken[1], resumed[1])
    assert whole["best_valid_score"] == continued["best_valid_score"] == 0.99
    last = files(Path(tiny["checkpoint_dir"]).parent / "broken")[1]
    before = scores["n"]
    again = run_recbole(
        model="ADRRec",
        dataset="tiny",
        config_dict={**tiny, "checkpoint_dir": str(last.parent), "resume": str(last)},
    )
    assert scores["n"] == before  # it had stopped: not one more epoch
    assert dict(again["test_result"]) == dict(whole["test_result"])


def test_a_longer_run_continues_a_finished_one(tiny: dict[str, Any]) -> None:
    folder = Path(tiny["checkpoint_dir"])
    run_recbole(model="ADRRec", dataset="tiny", config_dict={**tiny, "epochs": EPOCHS})
    whole = load_checkpoint(files(folder)[1])
    shorter = folder.with_name("shorter")
    run_recbole(model="ADRRec", dataset="tiny", config_dict={**tiny, "epochs": 2, "checkpoint_dir": str(shorter)})
    last = files(shorter)[1]
    run_recbole(model="ADRRec", dataset="tiny", config_dict={**tiny, "resume": str(last)})
    assert_same(whole, load_checkpoint(last))


def test_the_best_model_can_be_continued_too(tiny: dict[str, Any]) -> None:
    folder = Path(tiny["checkpoint_dir"])
    tiny = {**tiny, "learning_rate": 0.3}  # The best epoch is not the last.
    run_recbole(model="ADRRec", dataset="tiny", config_dict=tiny)
    best, last = files(folder)
    whole = load_checkpoint(last)
    assert load_checkpoint(best)["training"]["whole_epochs"] <= EPOCHS
    last.unlink()
    run_recbole(model="ADRRec", dataset="tiny", config_dict={**tiny, "resume": str(best)})
    assert_same(whole, load_checkpoint(last))


@pytest.mark.parametrize("seed", [2020, 7])
def test_one_seed_gives_the_same_weights_twice(seed: int, tiny: dict[str, Any]) -> None:
    found = []
    for name in ("one", "other"):
        folder = Path(tiny["checkpoint_dir"]) / name
        given = {**tiny, "seed": seed, "epochs": 2, "lni_weight": 0.5, "checkpoint_dir": str(folder)}
        run_recbole(model="ADRRec", dataset="tiny", config_dict=given)
        found.append([load_checkpoint(file) for file in files(folder)])
        scramble()
    for one, other in zip(*found, strict=True):
        assert_same(one, other)
    if seed == 7:
        run_recbole(
            model="ADRRec",
            dataset="tiny",
            config_dict={**tiny, "epochs": 2, "lni_weight": 0.5, "checkpoint_dir": str(folder / "third")},
        )
        third = load_checkpoint(files(folder / "third")[1])
        assert fingerprint(dict(third["state_dict"])) != fingerprint(dict(found[0][1]["state_dict"]))


# Killed processes

KILLED = """
import os, signal, sys
import recbole_adrrec
recbole_adrrec.register()
from recbole.trainer.trainer import Trainer
from recbole_adrrec import cli

train_epoch = Trainer._train_epoch
def kill(self, train_data, epoch_idx, *args, **kwargs):
    if epoch_idx == 2:
        calculate, steps = self.model.calculate_loss, iter(range(2))
        def calculate_loss(interaction):
            if next(steps, None) is None:
                os.kill(os.getpid(), int(sys.argv[1]))
            return calculate(interaction)
        return train_epoch(self, train_data, epoch_idx, calculate_loss, *args[1:], **kwargs)
    return train_epoch(self, train_data, epoch_idx, *args, **kwargs)
Trainer._train_epoch = kill
sys.exit(cli.main(sys.argv[2:]))
"""


def command_line(options: dict[str, Any], **changes: Any) -> list[str]:
    kept = {name: value for name, value in {**options, **changes}.items() if name != "eval_args"}
    return ["--dataset=tiny", *(f"--{name}={value}" for name, value in kept.items())]


def run_and_signal(which: int, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(int(which)), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def test_a_killed_process_is_continued_from_the_command_line(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command_line(tiny, checkpoint_dir=tmp_path / "whole")) == 0
    killed = run_and_signal(signal.SIGKILL, command_line(tiny, checkpoint_dir=tmp_path / "killed"), tmp_path)
    assert killed.returncode == -signal.SIGKILL
    last = files(tmp_path / "killed")[1]
    assert cli.main([f"--resume={last}"]) == 0
    for one, other in zip(files(tmp_path / "whole"), files(tmp_path / "killed"), strict=True):
        assert_same(load_checkpoint(one), load_checkpoint(other))
    assert "test metrics" in capsys.readouterr().out


def test_a_terminated_process_says_how_to_go_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    stopped = run_and_signal(signal.SIGTERM, command_line(tiny), tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    best, last = files(tmp_path / "saved")
    assert f"terminated; the best model so far is saved in {best}; go on with --resume={last}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not list((tmp_path / "saved").glob("*.tmp"))


def test_an_interrupted_run_says_how_to_go_on(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BrokenOffError", KeyboardInterrupt)
    break_off(monkeypatch)
    assert cli.main(command_line(tiny)) == 130
    best, last = files(Path(tiny["checkpoint_dir"]))
    assert (
        f"interrupted; the best model so far is saved in {best}; go on with --resume={last}" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_two_processes_are_continued_as_one_is(tiny: dict[str, Any], tmp_path: Path) -> None:
    def run(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "recbole_adrrec", "--nproc=2", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=1200,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    run(*command_line(tiny, epochs=3, checkpoint_dir=tmp_path / "whole"))
    run(*command_line(tiny, epochs=2, checkpoint_dir=tmp_path / "shorter"))
    run(f"--resume={files(tmp_path / 'shorter')[1]}", "--epochs=3")
    for one, other in zip(files(tmp_path / "whole"), files(tmp_path / "shorter"), strict=True):
        assert_same(load_checkpoint(one), load_checkpoint(other))


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a refused command line in a working directory of its own, and gives what it says."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run of two epochs: its last state, and its options."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny(folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        options = {
            **{"data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "show_progress": False},
            **{"MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 8, "inner_size": 8, "epochs": 2, "train_batch_size": 32},
            **{"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5"},
        }
        run_recbole(model="ADRRec", dataset="tiny", config_dict=options)
    finally:
        os.chdir(before)
    return files(folder / "saved")[1], options


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--learning_rate=0.5", "was trained with learning_rate 0.001, this run has 0.5"),
        ("--seed=1", "was trained with seed 2020, this run has 1"),
        ("--clip_grad_norm={max_norm: 1.0}", "was trained with clip_grad_norm None"),
        ("--hidden_size=16", "was trained with hidden_size 8, this run has 16"),
        ("--model=SASRec", "was trained with model ADRRec, not SASRec"),
        ("--dataset=ml-100k", "was trained with dataset tiny, not ml-100k"),
        ("--worker=2", "was trained with worker 0, this run has 2"),
    ],
)
def test_other_options_are_refused_by_name(argument: str, told: str, trained: Trained, refused: Refused) -> None:
    file, _ = trained
    before = file.read_bytes()
    assert told in refused(f"--resume={file}", argument)
    assert file.read_bytes() == before


def test_other_data_are_refused(trained: Trained, tmp_path: Path, refused: Refused) -> None:
    path = write_tiny(tmp_path)
    lines = path.read_text().splitlines()
    user, item, time = lines[3].split("\t")
    lines[3] = f"{user}\t{item}\t{int(time) + 1}"
    path.write_text("\n".join(lines) + "\n")
    file, _ = trained
    error = refused(f"--resume={file}", f"--data_path={tmp_path}", "--epochs=3")
    assert "the training events are not those of" in error


def damaged(file: Path, how: str, folder: Path) -> Path:
    """A copy of a checkpoint with something wrong, its best model beside it."""
    for each in file.parent.glob("*.pth"):
        (folder / each.name).write_bytes(each.read_bytes())
    copy = folder / file.name
    whole = copy.read_bytes()
    if how == "truncated":
        copy.write_bytes(whole[: len(whole) // 2])
    elif how == "last byte missing":
        copy.write_bytes(whole[:-1])
    elif how == "empty":
        copy.write_bytes(b"")
    elif how == "a bit flipped in the weights":
        weights = load_checkpoint(copy)["state_dict"]["item_embedding.weight"].numpy().tobytes()
        at = whole.index(weights) + 40
        copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    elif how == "no model beside it":
        next(each for each in folder.glob("*.pth") if each != copy).unlink()
    else:
        state = load_checkpoint(copy)
        tamper[how](state)
        torch.save(state, copy)
    return copy


def _scale(state: dict[str, Any]) -> None:
    state["state_dict"]["item_embedding.weight"].mul_(1.5)


tamper: dict[str, Any] = {
    "weights changed": _scale,
    "counter changed": lambda state: state.update(cur_step=7),
    "random state changed": lambda state: state["training"]["random"][0]["torch"].zero_(),
    "option changed": lambda state: state["config"]["options"].update(learning_rate=0.5),
    "fingerprint removed": lambda state: state.pop("fingerprint"),
    "state of training removed": lambda state: state.pop("training"),
}


@pytest.mark.parametrize(
    "how",
    [
        *("truncated", "last byte missing", "empty", "a bit flipped in the weights", "no model beside it"),
        *tamper,
    ],
)
def test_a_damaged_checkpoint_is_refused_and_never_half_loaded(
    how: str, trained: Trained, tmp_path: Path, refused: Refused
) -> None:
    file = damaged(trained[0], how, tmp_path)
    assert str(file) in refused(f"--resume={file}", "--epochs=3")
    trainer = make_trainer(trained[1])
    weights, optimizer = fingerprint(dict(trainer.model.state_dict())), fingerprint(trainer.optimizer.state_dict())
    trainer.config["resume"] = str(file)
    with pytest.raises(CheckpointError):
        trainer.resume_checkpoint(file)
    assert fingerprint(dict(trainer.model.state_dict())) == weights
    assert fingerprint(trainer.optimizer.state_dict()) == optimizer
    assert trainer.start_epoch == 0


def make_trainer(options: dict[str, Any]) -> Any:
    config = Config(model="ADRRec", dataset="tiny", config_dict={**options, "epochs": 3})
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, _ = data_preparation(config, create_dataset(config))
    model = get_model("ADRRec")(config, train_data._dataset)
    return get_trainer(config["MODEL_TYPE"], "ADRRec")(config, model)


def test_weights_that_do_not_fit_are_refused_before_any_is_loaded(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path, users=20, items=9, seed=5)
    trainer = make_trainer({**trained[1], "data_path": str(tmp_path)})
    before = fingerprint(dict(trainer.model.state_dict()))
    with pytest.raises(CheckpointError, match=r"doesn.t fit: .*bias_tables.0 is \(2, 11\) there and \(2, 10\) here"):
        trainer.resume_checkpoint(trained[0])
    assert fingerprint(dict(trainer.model.state_dict())) == before


def test_models_that_train_in_their_own_way_say_so(tiny: dict[str, Any]) -> None:
    config = Config(model="S3Rec", dataset="tiny", config_dict={**tiny, "resume": "x.pth", "train_stage": "finetune"})
    with pytest.raises(OptionError, match="S3Rec trains in a way of its own"):
        resume.check_resume(config)


def test_checkpoint_last_sets_how_often(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save_last = ResumableTrainer._save_last

    def counted(self: Any) -> None:
        saved.append(self._whole_epochs)
        save_last(self)

    monkeypatch.setattr(ResumableTrainer, "_save_last", counted)
    run_recbole(model="ADRRec", dataset="tiny", config_dict={**tiny, "epochs": 5, "checkpoint_last": 2})
    assert saved == [2, 4, 5]
    folder = Path(tiny["checkpoint_dir"]).with_name("none")
    run_recbole(
        model="ADRRec",
        dataset="tiny",
        config_dict={**tiny, "checkpoint_last": 0, "checkpoint_dir": str(folder)},
    )
    assert len(list(folder.glob("*.pth"))) == 1
    quiet = folder.with_name("unsaved")
    run_recbole(
        model="ADRRec", dataset="tiny", config_dict={**tiny, "epochs": 1, "checkpoint_dir": str(quiet)}, saved=False
    )
    assert not list(quiet.glob("*.pth"))


def test_the_last_state_leaves_out_names_and_events(trained: Trained) -> None:
    last = load_checkpoint(trained[0])
    (best,) = set(trained[0].parent.glob("*.pth")) - {trained[0]}
    assert "data" in load_checkpoint(best)
    assert "data" not in last
    with pytest.raises(CheckpointError, match=f"ask the best model beside it, {best}"):
        CheckpointData.of(last, str(trained[0]))


def test_another_file_is_no_state_of_training(tiny: dict[str, Any], tmp_path: Path, refused: Refused) -> None:
    assert "nowhere.pth: there is no such checkpoint" in refused("--resume=nowhere.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert "text.pth" in refused("--resume=text.pth")
    refused("--resume=3")
