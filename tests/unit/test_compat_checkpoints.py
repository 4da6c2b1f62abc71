"""Checkpoints and saved datasets: whole or absent, and loaded without running what they say."""

from __future__ import annotations

import datetime
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data import utils as data_utils
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import trainer as trainer_module
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.files import AtomicFile, open_atomic
from recbole_adrrec.integration import checkpoints, pickles
from recbole_adrrec.integration import patches as compat
from recbole_adrrec.integration.patching import Overlay

LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}


@pytest.fixture(scope="module")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of RecBole's SASRec after an epoch, and what ``run_recbole`` returned."""
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
        "since": datetime.date(2024, 10, 11),
        "until": datetime.datetime(2024, 10, 11, 12, tzinfo=datetime.timezone.utc),
    }
    result = run_recbole(model="SASRec", dataset="small", config_dict=options)
    (path,) = folder.glob("SASRec-*.pth")
    return path, result


def test_a_saved_model_evaluates_as_before(trained: tuple[Path, dict[str, Any]]) -> None:
    path, result = trained
    config, model, _, _, valid_data, test_data = load_data_and_model(str(path))
    assert type(config) is Config
    assert config.yaml_loader is yaml.FullLoader
    assert config.model_class is SASRec
    assert config["since"] == datetime.date(2024, 10, 11)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert dict(trainer.evaluate(valid_data, load_best_model=False)) == dict(result["best_valid_result"])
    assert dict(trainer.evaluate(test_data, model_file=path)) == dict(result["test_result"])
    trainer.resume_checkpoint(path)
    assert trainer.start_epoch == 1


def test_torch_and_other_loads_are_left_alone(trained: tuple[Path, dict[str, Any]]) -> None:
    assert isinstance(trainer_module.torch, Overlay)
    assert not isinstance(torch, Overlay)
    torch.serialization.add_safe_globals([Path])
    before = set(torch.serialization.get_safe_globals())
    checkpoints.load(trained[0])
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="Config"):
        torch.load(trained[0], weights_only=True)


def test_without_the_mend_torch_refuses_recboles_own_format(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    state = checkpoints.load(trained[0])
    torch.save(state, tmp_path / "protocol4.pth", pickle_protocol=4)  # as trainer.py:308 does
    with (
        pytest.raises(pickle.UnpicklingError, match="Unsupported operand 149"),
        checkpoints.allowed_alone(*checkpoints._stand_ins.values()),
    ):
        torch.load(tmp_path / "protocol4.pth", weights_only=True)
    with pytest.raises(CheckpointError, match=r"protocol4\.pth: saved by RecBole without"):
        compat.load_checkpoint(tmp_path / "protocol4.pth")


class Payload:
    """Creates a file when it is unpickled by whoever calls what a pickle says."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def harmful(marker: Path) -> list[Any]:
    """Ways to create ``marker`` by unpickling, most of them through what a checkpoint really contains."""
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
@pytest.mark.parametrize("place", ["config", "state_dict", "nested"])
def test_a_crafted_checkpoint_runs_nothing(
    which: int, place: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    payload = harmful(marker)[which]
    state = checkpoints.load(trained[0])
    if place == "nested":
        state["config"]["learning_rate"] = payload
    else:
        state[place] = payload
    crafted = tmp_path / "crafted.pth"
    torch.save(state, crafted)
    with pytest.raises(CheckpointError, match=r"crafted\.pth: "):
        load_data_and_model(crafted)
    assert not marker.exists()


def test_the_payloads_do_harm_elsewhere(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"config": harmful(marker)[4]}, tmp_path / "crafted.pth")
    with pytest.raises(Exception, match=r".*"):
        torch.load(tmp_path / "crafted.pth", weights_only=False)["config"]["x"].y()
    assert marker.exists()
    marker.unlink()
    # Even weights_only=True runs it, where Config itself is among the allowed classes.
    with checkpoints.allowed_alone(Config), pytest.raises(Exception, match=r".*"):
        torch.load(tmp_path / "crafted.pth", weights_only=True)["config"]["x"].y()
    assert marker.exists()


def test_options_that_a_model_would_evaluate_are_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for teacher in ("open('marker', 'w')", "exec"):
        state = checkpoints.load(trained[0])
        state["config"]["teacher"] = teacher
        torch.save(state, tmp_path / "crafted.pth")
        with pytest.raises(CheckpointError, match="teacher"):
            load_data_and_model(tmp_path / "crafted.pth")


def test_refused_classes_are_named(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    state = checkpoints.load(trained[0])
    state["other_parameter"] = Payload(os.system, "true")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: holds posix\.system|a\.pth: holds nt\.system"):
        checkpoints.load(tmp_path / "a.pth")
    state["other_parameter"] = Payload(pd.Series, [1])
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth: holds pandas\.(core\.series\.)?Series"):
        checkpoints.load(tmp_path / "b.pth")


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
            checkpoints.load(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds config, state_dict"):
        checkpoints.load(tmp_path / "weights.pth")
    torch.save({"config": 1, "state_dict": {}}, tmp_path / "config.pth")
    with pytest.raises(CheckpointError, match="config is something else"):
        checkpoints.load(tmp_path / "config.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoints.load(tmp_path)


def as_recbole_saves(file: Path, without: str = "training") -> dict[str, Any]:
    """What is in a checkpoint, less what our trainers go on from, and less one entry more."""
    return {name: value for name, value in checkpoints.load(file).items() if name not in ("training", without)}


def test_a_checkpoint_of_another_shape_is_told_in_one_line(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    config = checkpoints.load(trained[0])["config"]
    plain = tmp_path / "plain.pth"
    checkpoints.save(as_recbole_saves(trained[0]), plain)
    config["hidden_size"] = config["inner_size"] = 4
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    model = get_model("SASRec")(config, train_data._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    with pytest.raises(CheckpointError, match="size mismatch") as caught:
        trainer.resume_checkpoint(plain)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="size mismatch"):
        trainer.evaluate(train_data, model_file=trained[0])


def test_a_checkpoint_to_go_on_from_must_be_complete(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    state = checkpoints.load(trained[0])
    config = state["config"]
    train_data, _, _ = data_preparation(config, create_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, get_model("SASRec")(config, train_data._dataset))
    for part in ("epoch", "optimizer"):
        checkpoints.save(as_recbole_saves(trained[0], part), tmp_path / "part.pth")
        with pytest.raises(CheckpointError, match=f"holds no {part}"):
            trainer.resume_checkpoint(tmp_path / "part.pth")


def test_a_model_comes_home_from_a_gpu_and_from_several_processes(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = checkpoints.load(trained[0])
    state["config"]["device"] = torch.device("cuda", 1)
    state["config"]["single_spec"], state["config"]["local_rank"] = False, 1
    checkpoints.save(state, tmp_path / "far.pth")
    config, model, *_ = load_data_and_model(tmp_path / "far.pth")
    assert next(model.parameters()).device == config["device"] == torch.device("cpu")
    assert (config["single_spec"], config["local_rank"]) == (True, 0)


def test_numbers_of_numpy_are_rebuilt_only_when_plain() -> None:
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.plain_dtype("V8")
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.plain_scalar(np.dtype("f8"), b"short")
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.plain_scalar(np.dtype("O"), bytes(8))
    assert checkpoints.plain_scalar(checkpoints.plain_dtype("f8", False, True), np.float64(0.5).tobytes()) == 0.5
    before = np.dtype("f8").__reduce__()
    np.dtype("f8").__setstate__((3, ">", None, None, None, 4, 4, 63))
    assert np.dtype("f8").__reduce__() == before  # numpy's own instance keeps its state


# Files that are whole or absent


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    checkpoints.save({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoints.save({"a": torch.ones(1000), "b": lambda: None}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoints.save({"b": lambda: None}, tmp_path / "new.pth")
    assert os.listdir(tmp_path) == ["model.pth"]


def test_files_get_usual_permissions_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with AtomicFile(tmp_path / "new") as handle:
        handle.write(b"x")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    (tmp_path / "new").chmod(0o640)
    (tmp_path / "link").symlink_to("new")
    with open_atomic(tmp_path / "link", "wb") as handle:
        handle.write(b"y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == b"y"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    with open_atomic(tmp_path / "new") as text:
        assert text.read() == "y"


# Saved datasets and dataloaders


@pytest.fixture
def saving(small: dict[str, object]) -> dict[str, Any]:
    return {**small, "eval_args": LEAVE_ONE_OUT, "save_dataset": True, "save_dataloaders": True}


def prepare(model: str, options: dict[str, Any]) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    config = Config(model=model, dataset="small", config_dict=dict(options))
    dataset = create_dataset(config)
    return config, dataset, data_preparation(config, dataset)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("SASRec", {"train_neg_sample_args": None}),
        ("BERT4Rec", {"train_neg_sample_args": None}),
        ("GRU4Rec", {"loss_type": "BPR", "eval_args": {**LEAVE_ONE_OUT, "mode": "uni10"}}),
        ("BPR", {}),
        ("Pop", {"eval_args": {**LEAVE_ONE_OUT, "mode": "uni10"}}),
        ("ADRRec", {}),
    ],
)
def test_saved_data_is_loaded_again(model: str, more: dict[str, Any], saving: dict[str, Any], monkeypatch: Any) -> None:
    options = {**saving, **more}
    _, dataset, loaders = prepare(model, options)
    loaded = []
    monkeypatch.setitem(data_utils.pickle.__dict__, "load", lambda file: loaded.append(file.name) or pickles.load(file))
    _, dataset_again, loaders_again = prepare(model, options)
    assert len(loaded) == 2
    assert type(dataset_again) is type(dataset)
    assert len(dataset_again) == len(dataset)
    assert dict(dataset_again.field2token_id["item_id"]) == dict(dataset.field2token_id["item_id"])
    for before, after in zip(loaders, loaders_again, strict=True):
        assert type(after) is type(before)
        assert len(after) == len(before)
    first, again = (_first_batch(loader[2]) for loader in (loaders, loaders_again))
    for name in first[0].interaction:
        assert torch.equal(first[0][name], again[0][name])


def _first_batch(loader: Any) -> Any:
    init_seed(1, True)
    return next(iter(loader))


def test_features_survive_saving(saving: dict[str, Any], tmp_path: Path, small_data: Path) -> None:
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    (folder / "small.inter").write_bytes((small_data / "small" / "small.inter").read_bytes())
    users = sorted({line.split("\t")[0] for line in (folder / "small.inter").read_text().splitlines()[1:]})
    rows = [f"{user}\t{place}\t{'red blue' if place % 3 else ''}" for place, user in enumerate(users)]
    (folder / "small.user").write_text("\n".join(["user_id:token\tage:float\ttags:token_seq", *rows]))
    options = {**saving, "data_path": str(tmp_path / "data"), "load_col": None, "save_dataloaders": False}
    config = Config(model="BPR", dataset="small", config_dict=options)
    before, after = create_dataset(config), create_dataset(config)
    for name in ("inter_feat", "user_feat"):
        one, other = getattr(before, name), getattr(after, name)
        assert list(one.columns) == list(other.columns)
        assert (one.dtypes == other.dtypes).all()
        for column in one:
            assert all(np.array_equal(a, b) for a, b in zip(one[column], other[column], strict=True))


def test_data_options_decide_whether_saved_data_is_stale(saving: dict[str, Any]) -> None:
    prepare("SASRec", {**saving, "train_neg_sample_args": None})
    config = Config("SASRec", "small", config_dict={**saving, "train_neg_sample_args": None, "exact_time": False})
    dataset = create_dataset(config)
    assert not dataset.config["exact_time"]
    compat.count_as_dataset_argument("exact_time", "exact_time")
    assert data_utils.dataset_arguments.count("exact_time") == 1


class Filled:
    """An instance with a state of one's choice."""


@pytest.mark.parametrize("which", range(12))
@pytest.mark.parametrize("file", ["small-SequenceDataset.pth", "small-for-SASRec-dataloader.pth"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_crafted_dataset_runs_nothing(
    which: int, file: str, protocol: int, saving: dict[str, Any], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    folder = Path(saving["checkpoint_dir"])
    folder.mkdir()
    (folder / file).write_bytes(pickle.dumps([harmful(marker)[which]], protocol=protocol))
    with pytest.raises(CheckpointError, match=f"{file}: .*delete the file"):
        prepare("SASRec", {**saving, "train_neg_sample_args": None})
    assert not marker.exists()


CRAFTED = {
    "a class set as a function": b"crecbole.data.dataset.dataset\nDataset\n}\x8c\x05buildK\x01sb.",
    "an attribute of a function": b"ccollections\nOrderedDict\n(N}\x8c\x08__call__K\x01stb.",
    "an old instance": b"(crecbole.config.configurator\nConfig\no.",
    "an instance by name": b"(irecbole.config.configurator\nConfig\n.",
    "an instance made with arguments": b"crecbole.config.configurator\nConfig\n(K\x01t\x81.",
    "a called class": b"crecbole.config.configurator\nConfig\n)R.",
    "appending to an instance": b"crecbole.config.configurator\nConfig\n)\x81K\x01a.",
    "items of an instance": b"crecbole.config.configurator\nConfig\n)\x81(K\x01K\x02u.",
    "an extension": b"\x82\x01.",
    "a reference": b"Pfile\n.",
    "a method of one's own": b"crecbole.data.dataset.dataset\nDataset\n)\x81}(\x8c\x05buildK\x01ub.",
    "a structured dtype": b"cnumpy\ndtype\n(\x8c\x02V8I00\nI01\ntR.",
    "another method": b"cbuiltins\ngetattr\n(crecbole.data.dataset.dataset\nDataset\n)\x81\x8c\x04savetR.",
    "a path of names": b"\x8c\x08builtins\x8c\x0deval.__call__\x93.",
    "an iterable of one's own": b"cbuiltins\nset\n(crecbole.config.configurator\nConfig\n)\x81tR.",
    "a number": b"K\x01.",
    "nothing": b"",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_each_way_to_run_something_is_closed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "crafted"
    path.write_bytes(CRAFTED[name])
    with path.open("rb") as file, pytest.raises(CheckpointError, match=r"delete the file"):
        pickles.load(file)


def test_arrays_must_fit_their_content(tmp_path: Path) -> None:
    values = pickle.dumps([np.arange(3), np.array([[1, 2], None], dtype=object), np.array(["a", "bc"])], protocol=4)
    assert pickles.Unpickler(_bytes(values)).load()[2][1] == "bc"
    with pytest.raises(pickle.UnpicklingError, match="too few or too many"):
        pickles.Unpickler(_bytes(values.replace(b"K\x03\x85", b"K\x09\x85"))).load()


def _bytes(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def test_a_truncated_dataset_is_named(saving: dict[str, Any]) -> None:
    options = {**saving, "train_neg_sample_args": None}
    prepare("SASRec", options)
    for path in Path(saving["checkpoint_dir"]).glob("small-*.pth"):
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(CheckpointError, match=f"{path.name}: truncated"):
            prepare("SASRec", options)
        path.unlink()


def test_a_failed_save_of_data_leaves_the_old_file_alone(saving: dict[str, Any]) -> None:
    _, dataset, loaders = prepare("SASRec", {**saving, "train_neg_sample_args": None})
    folder = Path(saving["checkpoint_dir"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    dataset.strange = lambda: None
    loaders[0].strange = lambda: None
    with pytest.raises((pickle.PicklingError, AttributeError)):
        dataset.save()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        data_utils.save_split_dataloaders(dataset.config, loaders[:1])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
