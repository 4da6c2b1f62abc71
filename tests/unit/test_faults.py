"""Bad input and bad luck, as tabled in docs/reliability.md: what is tried, what happens, nothing lost."""

from __future__ import annotations

import errno
import gc
import gzip
import os
import random
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.trainer.trainer import Trainer
from test_resume import break_off, files, write_tiny

from recbole_adrrec import cli
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.trainer import ResumableTrainer

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
START = 1_600_000_000

TINY = [
    *("--model=ADRRec", "--epochs=1", "--show_progress=false", "--hidden_size=8", "--inner_size=8"),
    *("--MAX_ITEM_LIST_LENGTH=6", "--topk=[3]", "--metrics=[NDCG]", "--valid_metric=NDCG@3", "--train_batch_size=64"),
]

Row = tuple[str, ...]


def events(users: int = 12, items: int = 9, each: int = 6, user: str = "u{}", item: str = "i{}") -> list[Row]:
    draw = random.Random(1)
    return [
        (user.format(u), item.format(draw.randrange(items)), str(START + u * 1000 + k * 777))
        for u in range(users)
        for k in range(each)
    ]


def text(rows: list[Row], head: str = HEAD, separator: str = "\t", end: str = "\n") -> bytes:
    return end.join([head, *(separator.join(row) for row in rows), ""]).encode()


GOOD = events()


def among(*row: str) -> bytes:
    """A good file with one more row, its line 7."""
    return text([*GOOD[:5], row, *GOOD[5:]])


def renamed(names: dict[str, str]) -> list[Row]:
    return [(names.get(user, user), names.get(item, item), time) for user, item, time in GOOD]


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "the file is empty; expected a header"),
    "header alone": (text([]), "the file has no events"),
    "no header": (text(GOOD)[len(HEAD) + 1 :], "header column 'u0' is not of the form name:type"),
    "header without types": (text(GOOD, head="user_id\titem_id\ttimestamp"), "not of the form name:type"),
    "unknown type in the header": (text(GOOD, head=HEAD.replace("float", "int")), "Type int from field timestamp"),
    "a column twice in the header": (
        text([(u, i, i, t) for u, i, t in GOOD], head="user_id:token\titem_id:token\titem_id:token\ttimestamp:float"),
        "header column 'item_id:token' stands there twice",
    ),
    "commas for tabs": (text(GOOD, head=HEAD.replace("\t", ","), separator=","), "are columns separated by"),
    "spaces for tabs": (text(GOOD, head=HEAD.replace("\t", " "), separator=" "), "are columns separated by"),
    "tabs in the header, commas in rows": (text(GOOD, separator=","), "72 of 72 events have no timestamp"),
    "no column of times": (text([row[:2] for row in GOOD], head=HEAD.rpartition("\t")[0]), "no column 'timestamp'"),
    "no column of items": (
        text([(row[0], row[2]) for row in GOOD], head="user_id:token\ttimestamp:float"),
        "no column 'item_id' was loaded",
    ),
    "times as tokens": (text(GOOD, head=HEAD.replace(":float", ":token")), "timestamp is a token column"),
    "a time that is NaN": (among("u1", "i2", "nan"), "(first: line 7, nothing)"),
    "a time that is missing": (among("u1", "i2", ""), "(first: line 7, nothing)"),
    "a time that is infinite": (among("u1", "i2", "inf"), "an infinite timestamp (first: line 7, inf)"),
    "a time beyond floats": (among("u1", "i2", "1e400"), "line 7, "),  # infinite for pandas 3, not a number for 2
    "a time that is text": (among("u1", "i2", "yesterday"), "not a number at line 7, 'yesterday'"),
    "a negative time": (among("u1", "i2", "-5"), "a negative timestamp (before 1970) (first: line 7, -5)"),
    "times in milliseconds": (text([(u, i, t + "000") for u, i, t in GOOD]), "set time_unit_in: ms"),
    "times scaled to [0, 1]": (
        text([(u, i, str(k / 100)) for k, (u, i, t) in enumerate(GOOD)]),
        "normalised and have lost their unit",
    ),
    "a row cut short": (among("u1", "i2"), "1 of 73 events have no timestamp (first: line 7"),
    "quotes that do not end": (text(renamed({"u1": '"u1'})), "a double quote begins the user_id 'u1"),
    "one quote that does not end": (among('"u1', "i2", str(START)), "a double quote begins"),
    "a byte order mark": (b"\xef\xbb\xbf" + text(GOOD), "begins with a byte order mark; set encoding: utf-8-sig"),
    "Latin-1": (text(events(user="Zoë {}")).decode().encode("latin-1"), "not readable as utf-8"),
    "UTF-16": (text(GOOD).decode().encode("utf-16"), "not readable as utf-8"),
    "random bytes": (bytes(range(256)) * 20, "not readable as utf-8"),
    "a gzip file": (gzip.compress(text(GOOD)), "not readable as utf-8"),
    "a single event for each user": (text(events(each=1)), "no user has two events"),
    "two events for each user": (text(events(each=2)), "leave-one-out leaves nothing to test on"),
    "one event in all": (text(GOOD[:1]), "no user has two events"),
}

WORKS: dict[str, tuple[bytes, int]] = {
    "one user": (text(events(users=1, each=12)), 12),
    "all times equal": (text([(u, i, str(START)) for u, i, _ in GOOD]), 72),
    "times in reverse": (text(GOOD[::-1]), 72),
    "gaps of a century": (text([(u, i, "0" if k % 2 else "4000000000") for k, (u, i, t) in enumerate(GOOD)]), 72),
    "names with spaces and Unicode": (text(events(user="Zoë {}", item="緑茶 № {}")), 72),
    "names such as NA, null and nan": (text(renamed({"u1": "NA", "u2": "null", "i1": "nan", "i2": "None"})), 72),
    "names with # and quotes within": (text(renamed({"u1": "#1", "u2": 'a"b'})), 72),
    "a row without a user": (among("", "i2", str(START)), 72),
    "a row without an item, after one without a user": (
        text([*GOOD[:5], ("", "i2", str(START)), ("u1", "", str(START)), *GOOD[5:]]),
        72,
    ),
    "blank lines": (among(""), 72),
    "a column too many in one row": (among("u1", "i2", str(START), "x"), 73),
    "a tab too many at the end of every row": (text([(*row, "") for row in GOOD]), 72),
    "Windows line ends": (text(GOOD, end="\r\n"), 72),
    "no line end at the end": (text(GOOD)[:-1], 72),
    "every event twice": (text([*GOOD, *GOOD]), 144),
    "a NUL in a name": (among("u\0", "i2", str(START)), 73),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("psutil.cpu_percent", lambda **_: 0.0)  # RecBole measures for a second


def put(content: bytes, name: str = "mine") -> Path:
    path = Path(name, f"{name}.inter")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def train(*more: str) -> int:
    given = {argument.partition("=")[0]: argument for argument in [*TINY, *more]}
    return cli.main(["--dataset=mine", "--data_path=.", *given.values()])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, which is all that is told of it."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_data_are_refused_in_a_line(content: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(content)
    assert train() == 2
    assert message in told(capsys)
    assert path.read_bytes() == content
    assert not list(Path("saved").glob("*"))


@pytest.mark.parametrize(("content", "n_events"), WORKS.values(), ids=WORKS)
def test_unusual_data_work_and_lose_nothing(
    content: bytes, n_events: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    put(content)
    assert train() == 0
    assert "test metrics over" in capsys.readouterr().out
    (best,) = set(Path("saved").glob("*.pth")) - set(Path("saved").glob("*-last.pth"))
    assert len(load_checkpoint(best)["data"]["events"]["items"]) == n_events


def test_names_and_orders_are_those_of_the_file() -> None:
    put(text(renamed({"u1": "NA", "u2": "Zoë B.", "i1": "nan"})[::-1]))
    options = {"data_path": ".", "topk": [3], "valid_metric": "MRR@3"}
    dataset = create_dataset(Config(model="ADRRec", dataset="mine", config_dict=options)).build()[-1]
    expected: dict[str, list[str]] = {}
    for user, item, _ in renamed({"u1": "NA", "u2": "Zoë B.", "i1": "nan"}):
        expected.setdefault(user, []).append(item)
    found = {
        str(dataset.field2id_token["user_id"][user]): [str(dataset.field2id_token["item_id"][i]) for i in items]
        for user, items, _ in dataset.histories()
    }
    assert found == expected


def test_rows_without_user_or_item_are_left_out_and_no_others() -> None:
    put(WORKS["a row without an item, after one without a user"][0])
    options = {"data_path": ".", "topk": [3], "valid_metric": "MRR@3"}
    dataset = create_dataset(Config(model="ADRRec", dataset="mine", config_dict=options)).build()[-1]
    times = sorted(int(time) for _, _, times in dataset.histories() for time in times)
    assert times == sorted(int(time) for _, _, time in GOOD)


@pytest.mark.parametrize("more", [[], ["--lni_weight=0.5"], ["--objective=cloze", "--MAX_ITEM_LIST_LENGTH=2"]])
def test_a_catalogue_of_one_item(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    put(text(events(items=1)))
    assert train() == 2
    assert "topk: 3 is more than the 1 items of mine" in told(capsys)
    assert train("--topk=[1]", "--valid_metric=NDCG@1", *more) == 0
    assert re.search(r"NDCG +1\.0000", capsys.readouterr().out)


@pytest.mark.parametrize("model", ["ADRRec", "HSTU", "TiSASRec", "STOSA", "SASRec"])
def test_a_window_of_one_event(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(text(GOOD))
    more = ["--loss_type=CE"] if model == "SASRec" else []
    assert train(f"--model={model}", "--MAX_ITEM_LIST_LENGTH=1", *more) == 0
    assert "test metrics over" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["ADRRec", "AWRSR", "HSTU", "MEANTIME", "STOSA", "TiSASRec"])
def test_a_batch_of_nothing_but_padding_has_finite_scores_and_gradients(model: str) -> None:
    from recbole.data import data_preparation
    from recbole.utils import get_model

    write_tiny(Path())
    options = {"data_path": ".", "topk": [3], "valid_metric": "MRR@3", "MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 8}
    config = Config(model=model, dataset="tiny", config_dict={**options, "inner_size": 8})
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    network = get_model(model)(config, train_data._dataset).train()
    batch = next(iter(train_data))
    for name in batch.interaction:
        if name != "user_id":
            batch.interaction[name] = torch.zeros_like(batch.interaction[name])
    loss = network.calculate_loss(batch)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in network.parameters() if each.grad is not None)
    rows = next(iter(valid_data))[0]
    for name in rows.interaction:
        rows.interaction[name] = torch.zeros_like(rows.interaction[name])
    assert torch.isfinite(network.eval().full_sort_predict(rows)).all()


def spoil_loss(monkeypatch: pytest.MonkeyPatch, value: float, epoch: int = 1) -> None:
    train_epoch = Trainer._train_epoch

    def spoiled(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        calculate = self.model.calculate_loss
        loss = (lambda batch: calculate(batch) * value) if epoch_idx == epoch else calculate
        return train_epoch(self, train_data, epoch_idx, loss, *args[1:], **kwargs)

    monkeypatch.setattr(Trainer, "_train_epoch", spoiled)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_with_the_best_model_whole(
    value: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(text(GOOD))
    spoil_loss(monkeypatch, value)
    assert train("--epochs=3") == 2
    best, last = files(Path("saved"))
    assert told(capsys) == (
        f"error: the training loss is {value}: training diverged; try a lower learning_rate (now 0.001) or "
        f"clip_grad_norm: {{max_norm: 5}}; {best} has the best model so far"
    )
    for file in (best, last):
        state = load_checkpoint(file)
        assert state["training"]["whole_epochs"] == 1
        assert all(torch.isfinite(each).all() for each in state["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(text(GOOD))
    train_epoch = Trainer._train_epoch

    def spoil(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        loss = train_epoch(self, train_data, epoch_idx, *args, **kwargs)
        if epoch_idx == 1:
            next(self.model.parameters()).data[0] = float("nan")
        return loss

    monkeypatch.setattr(Trainer, "_train_epoch", spoil)
    assert train("--epochs=3") == 2
    assert "is no longer finite after epoch 1: training diverged" in told(capsys)
    assert {load_checkpoint(file)["training"]["whole_epochs"] for file in files(Path("saved"))} == {1}


def test_a_killed_loader_process_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from recbole_adrrec.data.loader import WindowTrainDataLoader

    put(text(events(users=40)))
    parent, collate = os.getpid(), WindowTrainDataLoader.collate_fn
    marker = Path("second_epoch")

    def die(self: Any, index: Any) -> Any:
        if os.getpid() != parent and marker.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(self, index)

    monkeypatch.setattr(WindowTrainDataLoader, "collate_fn", die)
    save_last = ResumableTrainer._save_last

    def mark(self: Any) -> None:
        save_last(self)
        marker.touch()

    monkeypatch.setattr(ResumableTrainer, "_save_last", mark)
    assert train("--worker=2", "--epochs=3") == 2
    _, last = files(Path("saved"))
    error = told(capsys)
    assert re.search(r"worker: DataLoader worker \(pid\S*? ?\d+\) (exited unexpectedly|is killed by signal)", error)
    assert "choose fewer workers" in error
    assert f"go on with --resume={last}" in error


class FullDisk:
    """A file on a disk that has room for the first bytes only."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        if self._file.tell() + len(bytes(data)) > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written: int = self._file.write(data)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill_disk(monkeypatch: pytest.MonkeyPatch, full: Callable[[str], bool]) -> None:
    enter = AtomicFile.__enter__

    def enter_full(self: AtomicFile) -> Any:
        file = enter(self)
        return FullDisk(file) if full(self.path) else file

    monkeypatch.setattr(AtomicFile, "__enter__", enter_full)


def test_a_full_disk_while_the_last_state_is_saved_costs_nothing_but_that_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    put(text(GOOD))
    fill_disk(monkeypatch, lambda path: path.endswith("-last.pth"))
    assert train("--epochs=3") == 0
    assert "test metrics over" in capsys.readouterr().out
    (best,) = Path("saved").glob("*")  # neither a last state nor a part of one
    assert load_checkpoint(best)["training"]["has_best"]


def test_a_full_disk_while_the_best_model_is_saved_leaves_the_earlier_one_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(text(GOOD))
    saved: list[bytes] = []

    def full(path: str) -> bool:
        if path.endswith("-last.pth"):
            return False
        if Path(path).exists():
            saved.append(Path(path).read_bytes())
        return bool(saved)

    with monkeypatch.context() as patched:
        fill_disk(patched, full)
        assert train("--epochs=30", "--learning_rate=0.01") == 2
    best, last = files(Path("saved"))
    error = told(capsys)
    assert f"{best}: could not be saved (No space left on device); what stood there is whole" in error
    assert f"go on with --resume={last}" in error
    assert best.read_bytes() == saved[0]
    assert sorted(Path("saved").glob("*")) == sorted([best, last])
    assert cli.main([f"--resume={last}", "--epochs=3"]) == 0


def test_a_checkpoint_dir_that_can_not_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    put(text(GOOD))
    Path("file").write_text("not a folder")
    assert train("--checkpoint_dir=file/saved") == 2
    assert "file/saved: Not a directory; choose another place for it" in told(capsys)
    assert Path("file").read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    put(text(GOOD))
    Path("locked").mkdir()
    Path("locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert train("--checkpoint_dir=locked") == 2
    assert "Permission denied" in told(capsys)


def test_a_folder_that_refuses_files_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(text(GOOD))

    def refuse(self: AtomicFile, path: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(AtomicFile, "__init__", refuse)
    assert train() == 2
    assert "could not be saved (Permission denied)" in told(capsys)


def test_a_data_folder_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 2
    assert "mine" in told(capsys)


@pytest.mark.parametrize(("leak", "steps_more"), [(False, 1000), (True, 20)])
def test_memory_is_flat_over_a_thousand_training_steps(leak: bool, steps_more: int) -> None:
    from recbole.data import data_preparation
    from recbole.utils import get_model, get_trainer

    write_tiny(Path())
    options = {"data_path": ".", "topk": [3], "valid_metric": "MRR@3", "MAX_ITEM_LIST_LENGTH": 6, "hidden_size": 8}
    options |= {"inner_size": 8, "lni_weight": 0.1, "train_batch_size": 32, "show_progress": False, "n_layers": 1}
    options |= {"absolute_kernels": ["position"], "relative_kernels": ["sinusoid"], "learner": "sgd"}
    config = Config(model="ADRRec", dataset="tiny", config_dict=options)
    train_data, _, _ = data_preparation(config, create_dataset(config))
    model = get_model("ADRRec")(config, train_data._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "ADRRec")(config, model)
    kept, steps = [], 0
    calculate = model.calculate_loss

    def counted(batch: Any) -> Any:
        nonlocal steps
        steps += 1
        loss = calculate(batch)
        if leak:
            kept.append(loss)
        return loss

    def epochs_until(count: int) -> tuple[int, int]:
        while steps < count:
            trainer._train_epoch(train_data, 0, counted)
        gc.collect()
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        return len(tensors), sum(each.numel() for each in tensors)

    before = epochs_until(20)
    after = epochs_until(20 + steps_more)
    assert (before == after) is not leak


def test_the_broken_off_epoch_of_an_interruption_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import test_resume

    put(text(events(users=40)))
    monkeypatch.setattr(test_resume, "BrokenOffError", KeyboardInterrupt)
    break_off(monkeypatch, epoch=1, step=1)
    assert train("--epochs=3") == 130
    assert "interrupted; the best model so far is saved in" in capsys.readouterr().err
    assert load_checkpoint(files(Path("saved"))[1])["training"]["whole_epochs"] == 1
