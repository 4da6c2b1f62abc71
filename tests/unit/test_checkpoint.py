"""Checkpoints: plain data, whole or absent, and loaded without running what they say; saved data is ignored."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model, get_trainer
from test_resume import write_tiny

import recbole_adrrec
from recbole_adrrec import cli
from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.integration.checkpoint import load_checkpoint, save_checkpoint

LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
VERSION_0_1 = Path(__file__).parents[1] / "data" / "version_0_1.pth"
"""ADRRec's best model of two epochs on the data of ``write_tiny``, saved by version 0.1."""


@pytest.fixture(scope="module", name="trained")
def trained_sasrec(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of RecBole's SASRec after an epoch, and the result of ``run_recbole``."""
    folder = tmp_path_factory.mktemp("trained")
    options = {
        "data_path": str(small_data),
        "checkpoint_dir": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": LEAVE_ONE_OUT,
        "epochs": 1,
        "hidden_size": 8,
        "inner_size": 8,
        "MAX_ITEM_LIST_LENGTH": 10,
        "topk": [50],
        "valid_metric": "NDCG@50",
        "train_neg_sample_args": None,
        "show_progress": False,
        "checkpoint_last": 0,
    }
    result = run_recbole(model="SASRec", dataset="small", config_dict=options)
    (path,) = folder.glob("SASRec-*.pth")
    return path, result


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("psutil.cpu_percent", lambda **_: 0.0)  # RecBole measures for a second


def changed(path: Path, change: Callable[[dict[str, Any]], Any], to: str = "changed.pth") -> Path:
    """A copy of a checkpoint with something changed, and a fingerprint that fits again."""
    state = load_checkpoint(path)
    change(state)
    save_checkpoint(state, to)
    return Path(to)


def trainer_of(path: Path, **changes: Any) -> tuple[Any, Any]:
    """A fresh trainer with the options of a checkpoint, and its training data."""
    config, *_ = load_data_and_model(path)
    config.final_config_dict.update(changes)
    train_data, _, _ = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, train_data._dataset)
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model), train_data


def test_a_saved_model_evaluates_as_before(trained: tuple[Path, dict[str, Any]]) -> None:
    path, result = trained
    config, model, _, _, valid_data, test_data = load_data_and_model(str(path))
    assert type(config) is Config
    assert (config.model, config.dataset, config.model_class) == ("SASRec", "small", SASRec)
    assert config["MODEL_TYPE"].name == "SEQUENTIAL"
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert dict(trainer.evaluate(valid_data, load_best_model=False)) == dict(result["best_valid_result"])
    assert dict(trainer.evaluate(test_data, model_file=path)) == dict(result["test_result"])
    trainer.resume_checkpoint(path)
    assert trainer.start_epoch == 1


def test_a_checkpoint_is_plain_data(trained: tuple[Path, dict[str, Any]]) -> None:
    def kinds(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {dict}.union(*(kinds(key) | kinds(entry) for key, entry in value.items()))
        if isinstance(value, list | tuple):
            return {list}.union(*map(kinds, value))
        return {type(value)}

    found = torch.load(trained[0], weights_only=True)
    assert kinds(found) <= {dict, list, str, int, float, bool, type(None), torch.Tensor}
    assert found["version"] == recbole_adrrec.__version__


class Payload:
    """Creates a file when it is unpickled by whoever calls what a pickle says."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def harmful(marker: Path) -> list[Any]:
    """Ways to create ``marker`` by unpickling."""
    code = f"open({str(marker)!r}, 'w')"
    return [
        Payload(os.system, f"touch {marker}"),
        Payload(open, str(marker), "w"),
        Payload(eval, code),
        Payload(getattr, Path(marker), "touch"),
        # Config evaluates every string it is given.
        Payload(Config, "SASRec", "small", None, {"seed": code}),
        Payload(yaml.FullLoader, "a: 1"),
        Payload(SASRec, {}, None),
        Payload(torch.load, str(marker)),
        Payload(torch.save, {}, str(marker)),
        Payload(pd.read_pickle, str(marker)),
        Payload(np.fromfile, str(marker)),
        Payload(Path.touch, marker),
    ]


@pytest.mark.parametrize("which", range(12))
@pytest.mark.parametrize("place", ["whole", "state_dict", "option"])
def test_a_crafted_checkpoint_runs_nothing(
    which: int, place: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    payload = harmful(marker)[which]
    state: Any = load_checkpoint(trained[0])
    if place == "option":
        state["config"]["options"]["learning_rate"] = payload
    else:
        state = payload if place == "whole" else state | {place: payload}
    torch.save(state, "crafted.pth")
    for load in (load_data_and_model, recbole_adrrec.load, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"crafted\.pth: "):
            load("crafted.pth")
    assert not marker.exists()


def test_the_payloads_do_harm_elsewhere(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"config": harmful(marker)[4]}, "crafted.pth")
    with pytest.raises(Exception, match=r".*"):
        torch.load("crafted.pth", weights_only=False)["config"]["x"].y()
    assert marker.exists()


def test_refused_classes_are_named() -> None:
    torch.save({"a": Payload(os.system, "true")}, "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: holds posix\.system|a\.pth: holds nt\.system"):
        load_checkpoint("a.pth")
    torch.save({"a": Payload(pd.Series, [1])}, "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth: holds pandas\.(core\.series\.)?Series"):
        load_checkpoint("b.pth")


@pytest.mark.parametrize("reader", ["load", "load_data_and_model", "--resume", "resume_checkpoint", "evaluate"])
def test_an_option_that_is_a_call_is_never_called(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["study.py"])
    write_tiny(Path())
    assert cli.main(["upgrade-checkpoint", str(VERSION_0_1), "-o", "good.pth", "--trust"]) == 0
    marker = tmp_path / "marker"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    trainer, train_data = trainer_of(Path("good.pth"))
    readers: dict[str, Callable[[Path], Any]] = {
        "load": recbole_adrrec.load,
        "load_data_and_model": load_data_and_model,
        "--resume": lambda file: cli.main([f"--resume={file}", "--epochs=3"]),
        "resume_checkpoint": trainer.resume_checkpoint,
        "evaluate": lambda file: trainer.evaluate(train_data, model_file=file),
    }
    # The first is free text, which nothing refuses.
    for name in ("wandb_project", "learning_rate", "valid_metric", "teacher", "device", "model"):

        def call_in(state: dict[str, Any], name: str = name) -> None:
            for part in ("options", "given"):
                state["config"][part][name] = code
            if name == "model":
                state["config"]["model"] = code

        crafted = changed(Path("good.pth"), call_in)
        with contextlib.suppress(ValueError, RuntimeError, KeyError, NotImplementedError, TypeError):
            readers[reader](crafted)
        assert not marker.exists(), name
    # The same string does harm where RecBole's Config is made in its usual way.
    Config("SASRec", "ml-100k", config_dict={"wandb_project": code})
    assert marker.exists()


def test_options_that_a_model_would_evaluate_are_refused(trained: tuple[Path, dict[str, Any]]) -> None:
    for teacher in ("open('marker', 'w')", "exec"):
        crafted = changed(trained[0], lambda state, teacher=teacher: state["config"]["options"].update(teacher=teacher))
        with pytest.raises(CheckpointError, match="teacher"):
            load_data_and_model(crafted)


def test_other_files_are_told_from_checkpoints(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole = trained[0].read_bytes()
    cases = {
        "absent": (None, "there is no such checkpoint"),
        "empty": (b"", "not a checkpoint"),
        "text": (b"hello\n" * 100, "not a checkpoint"),
        "half": (whole[: len(whole) // 2], "truncated"),
        "short": (whole[:-10], "truncated"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.pth"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    torch.save({"weight": torch.ones(2)}, "weights.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of recbole_adrrec"):
        load_checkpoint("weights.pth")
    save_checkpoint({"config": 1, "state_dict": {}}, "config.pth")
    with pytest.raises(CheckpointError, match="not what this package writes"):
        load_checkpoint("config.pth")
    later = {"format": 3, "version": "9.0"}
    torch.save(later | {"fingerprint": fingerprint(later)}, "later.pth")
    with pytest.raises(CheckpointError, match=r"saved by a later version, 9\.0"):
        load_checkpoint("later.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(trained: tuple[Path, dict[str, Any]]) -> None:
    plain = changed(trained[0], lambda state: state.pop("training"))
    trainer, train_data = trainer_of(trained[0], hidden_size=4, inner_size=4)
    before = fingerprint(trainer.model.state_dict())
    with pytest.raises(CheckpointError, match=r"doesn't fit: \S+ is \(8,\) there and \(4,\) here") as caught:
        trainer.resume_checkpoint(plain)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="doesn't fit this SASRec"):
        trainer.evaluate(train_data, model_file=trained[0])
    assert fingerprint(trainer.model.state_dict()) == before


def test_a_checkpoint_to_go_on_from_must_be_complete(trained: tuple[Path, dict[str, Any]]) -> None:
    trainer, _ = trainer_of(trained[0])
    for part in ("epoch", "optimizer"):
        with pytest.raises(CheckpointError, match=f"holds no {part}"):
            trainer.resume_checkpoint(changed(trained[0], lambda state, part=part: state.pop(part)))


def test_a_model_comes_home_from_a_gpu_and_from_several_processes(
    trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    far = changed(
        trained[0],
        lambda state: state["config"]["options"].update(device="cuda:1", single_spec=False, local_rank=1),
    )
    config, model, *_ = load_data_and_model(far)
    assert next(model.parameters()).device == config["device"] == torch.device("cpu")
    assert (config["single_spec"], config["local_rank"]) == (True, 0)


FEATURES = "item_id:token\tkind:token_seq\n" + "".join(f"i{item}\tk{item % 3} k{item % 2}\n" for item in range(12))


def features(**changes: Any) -> dict[str, Any]:
    write_tiny(Path())
    Path("tiny", "tiny.item").write_text(FEATURES)
    return {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "kind"]},
        "eval_args": LEAVE_ONE_OUT,
        "train_neg_sample_args": None,
        "epochs": 1,
        "hidden_size": 8,
        "inner_size": 8,
        "MAX_ITEM_LIST_LENGTH": 6,
        "topk": [5],
        "valid_metric": "NDCG@5",
        "show_progress": False,
        **changes,
    }


def test_a_model_that_keeps_a_module_beside_its_weights_is_loaded_again() -> None:
    result = run_recbole(model="SASRecF", dataset="tiny", config_dict=features(selected_features=["kind"]))
    (path,) = set(Path("saved").glob("*.pth")) - set(Path("saved").glob("*-last.pth"))
    config, model, _, _, _, test_data = load_data_and_model(path)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRecF")(config, model)
    assert dict(trainer.evaluate(test_data, load_best_model=False)) == dict(result["test_result"])


def test_a_model_trained_twice_starts_from_its_own_checkpoint() -> None:
    options = features(item_attribute="kind", pretrain_epochs=1, save_step=1, mask_ratio=0.2)
    run_recbole(model="S3Rec", dataset="tiny", config_dict={**options, "train_stage": "pretrain"}, saved=False)
    (pretrained,) = Path("saved").glob("S3Rec-tiny-1.pth")
    run_recbole(
        model="S3Rec",
        dataset="tiny",
        config_dict={**options, "train_stage": "finetune", "pre_model_path": str(pretrained)},
    )
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run_recbole(
            model="S3Rec",
            dataset="tiny",
            config_dict={**options, "train_stage": "finetune", "pre_model_path": "nowhere.pth"},
        )


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"b\['c'\] is of type function"):
        save_checkpoint({"a": torch.ones(1000), "b": {"c": lambda: None}}, path)
    with pytest.raises(OSError, match="No such file"):
        save_checkpoint({"a": 1}, tmp_path / "nowhere" / "model.pth")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]


def test_files_get_usual_permissions_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with AtomicFile(tmp_path / "new") as handle:
        handle.write(b"x")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    (tmp_path / "new").chmod(0o640)
    (tmp_path / "link").symlink_to("new")
    with AtomicFile(tmp_path / "link") as handle:
        handle.write(b"y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == b"y"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("file", ["small-SequenceDataset.pth", "small-for-SASRec-dataloader.pth"])
def test_saved_data_is_ignored_with_a_note(
    file: str, protocol: int, small: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(str(small["checkpoint_dir"]))
    folder.mkdir()
    options = {**small, "eval_args": LEAVE_ONE_OUT, "train_neg_sample_args": None, "save_dataloaders": True}
    for payload in harmful(tmp_path / "marker"):
        (folder / file).write_bytes(pickle.dumps([payload], protocol=protocol))
        config = Config("SASRec", "small", config_dict=dict(options))
        train_data, _, _ = data_preparation(config, create_dataset(config))
        assert len(next(iter(train_data))) > 0
        assert f"{file}: saved" in caplog.text
        caplog.clear()
        if "loader" in file:
            break  # each time as many loaders
    assert not (tmp_path / "marker").exists()


def test_an_unknown_model_in_a_checkpoint_is_refused(trained: tuple[Path, dict[str, Any]]) -> None:
    def misspell(state: dict[str, Any]) -> None:
        state["config"]["model"] = state["config"]["options"]["model"] = "SASRek"

    crafted = changed(trained[0], misspell)
    with pytest.raises(CheckpointError, match=r"changed\.pth: model: there is no model 'SASRek'"):
        load_data_and_model(crafted)
