"""Readers of checkpoints under test, small valid checkpoints for them, and the watch on what a reading does.

Nothing that a file brings may run: an audit hook of the interpreter watches for processes, for files written elsewhere
than in the log, for connections, and for the compilation of text that a file brought.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import recbole_adrrec
from fuzzing.checkpoint_values import MARK
from recbole_adrrec import cli
from recbole_adrrec.cli import train as training
from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.integration import init_from, resume
from recbole_adrrec.integration import register as plugin

# The watch


RUNS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "os.kill"),
    *("subprocess.Popen", "pty.spawn", "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "urllib.Request"),
    *("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"),
}
"""Audit events that no reading of a file has a use for."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Collects, while it is on, what the interpreter does that reading a file must not do."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)  # for the rest of the process

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS:
            self.seen.append(f"{event}{arguments}"[:200])
        elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES) or event == "os.mkdir":
            self._write(event, arguments[0])
        elif event == "import" and MARK in str(arguments[0]):
            self.seen.append(f"import of {arguments[0]}")
        elif event == "compile" and MARK in str(arguments[0]):
            self.seen.append("compile of a file's text")

    def _write(self, event: str, path: Any) -> None:
        # RecBole writes a log, and its trainers make the folder of checkpoints.
        if not isinstance(path, str | bytes):  # an open file
            return
        found = os.path.realpath(os.fsdecode(path))
        log = os.path.realpath("log")
        if found != os.path.realpath("saved") and os.path.commonpath([log, found]) != log:
            self.seen.append(f"{event} of {os.fsdecode(path)}")


class TookTooLongError(BaseException):
    """The limit of time is over; no handler of errors holds it up."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TookTooLongError` in what takes longer."""

    def stop(*_: Any) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory_mb() -> float:
    """Most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Valid checkpoints


OPTIONS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    **{"epochs": 1, "n_layers": 1, "n_heads": 2, "hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 6},
    **{"metrics": ["NDCG"], "topk": [3], "valid_metric": "NDCG@3", "show_progress": False},
}


@dataclass
class Run:
    """A trained model with what made it."""

    path: Path
    config: Any
    model: Any
    train_data: Any
    valid_data: Any


def write_events(folder: Path) -> None:
    """``tiny/tiny.inter``: 8 users, 10 items."""
    draw = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(8):
        moment = 1_600_000_000
        for _ in range(draw.randrange(5, 10)):
            moment += draw.randrange(1, 10**5)
            lines.append(f"u{user}\ti{draw.randrange(10)}\t{moment}")
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / "tiny" / "tiny.inter").write_text("\n".join(lines) + "\n")


def train(model: str, folder: Path, **options: Any) -> Run:
    """Train a model for an epoch on the events of ``folder``."""
    recbole: Any = importlib.import_module("recbole.quick_start.quick_start")
    given = {**OPTIONS, "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), **options}
    with plugin.command_line({}, strict=False):
        config = recbole.Config(model=model, dataset="tiny", config_dict=given)
    recbole.init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, _ = recbole.data_preparation(config, recbole.create_dataset(config))
    made = recbole.get_model(model)(config, train_data._dataset)
    trainer = recbole.get_trainer(config["MODEL_TYPE"], model)(config, made)
    trainer.fit(train_data, valid_data, verbose=False)
    return Run(Path(trainer.saved_model_file), config, made, train_data, valid_data)


# Readers


class Readers:
    """Every way by which the package reads a checkpoint, on the data of a run."""

    def __init__(self, run: Run, resumed: Run) -> None:
        self.run, self.resumed = run, resumed
        self.recbole: Any = importlib.import_module("recbole.quick_start.quick_start")

    def load(self, path: str) -> None:
        """``recbole_adrrec.load``, and an answer to its first user."""
        recommender = recbole_adrrec.load(path)
        with contextlib.suppress(UserError):  # weights that are not numbers, a user without events
            recommender.recommend(recommender.users[:1], top=3)

    def resume(self, path: str) -> None:
        """``--resume``: options of the new run, then a trainer that goes on."""
        given = training.resumed({"resume": path})
        training.check(given, {"command line": given})
        typed = {name: value for name, value in given.items() if name not in ("model", "dataset")}
        with plugin.command_line(typed):
            try:
                config = self.recbole.Config(model=given["model"], dataset=given["dataset"])
            except ValueError as error:  # as the command line says what RecBole refuses
                raise OptionError(f"{path}: RecBole: {error}") from error
            resume.check_resume(config)
        run, config = self.resumed, self._config(self.resumed, resume=path)
        model = self.recbole.get_model(config["model"])(config, run.train_data._dataset)
        with mock.patch("recbole.trainer.trainer.get_tensorboard"):  # a folder for each trainer otherwise
            trainer = self.recbole.get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.fit(run.train_data, run.valid_data, verbose=False, saved=False)

    def init_from(self, path: str) -> None:
        """``--init_from``: checks before the data, then the weights."""
        config = self._config(self.run, init_from=path)
        init_from.prepare(config)
        init_from.fill(self.run.model, self.run.train_data._dataset, path, logging.getLogger())

    def load_data_and_model(self, path: str) -> None:
        """RecBole's ``load_data_and_model``."""
        self.recbole.load_data_and_model(path)

    def upgrade(self, path: str) -> None:
        """``upgrade-checkpoint`` without ``--trust``, which has to refuse."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = cli.main(["upgrade-checkpoint", path, "-o", "new.pth"])
        if code != 2:
            raise AssertionError(f"upgrade-checkpoint gave {code}")
        raise UserError(said.getvalue().removeprefix("error: ").removesuffix("\n"))

    @staticmethod
    def _config(run: Run, **changes: Any) -> Any:
        config = copy.copy(run.config)
        config.final_config_dict = {**config.final_config_dict, **changes}
        return config

    def all(self) -> dict[str, tuple[Callable[[str], None], int]]:
        """Readers with their shares of the inputs."""
        return {
            "load": (self.load, 55),
            "resume": (self.resume, 16),
            "init_from": (self.init_from, 18),
            "load_data_and_model": (self.load_data_and_model, 3),
            "upgrade-checkpoint": (self.upgrade, 8),
        }
