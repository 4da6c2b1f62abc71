"""Training and test from the command line."""

from __future__ import annotations

import importlib
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from recbole_adrrec import options
from recbole_adrrec.cli.usage import DATASET, MODEL
from recbole_adrrec.errors import DataError, OptionError, UserError

PROCESSES = ("nproc", "world_size", "ip", "port", "group_offset")
"""Arguments of RecBole's ``run``."""


def train(given: Mapping[str, Any]) -> str:
    """Train and test as a command line says, and give the report.

    Raises a UserError where something the user gave is wrong, and a KeyboardInterrupt, whose text names what was saved,
    where training was stopped from outside.
    """
    files = {file: options.read_config_file(file) for file in given.get("config_files", [])}
    # Later files go over earlier ones, and the command line over all of them.
    together: dict[str, Any] = {}
    for each in [*(files[file] for file in given.get("config_files", [])), given]:
        together.update(each)
    sources = {f"config file {file}": each for file, each in files.items()}
    if together.get("resume") is not None:
        given, sources = resumed(together), {}
        together = dict(given)
    together = {"model": MODEL, "dataset": DATASET, **together}
    check(together, {"command line": given, **sources})
    return Training(together, list(given.get("config_files", [])), given).run()


def resumed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the run that left the checkpoint ``resume``, with those given now over them."""
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.integration import init_from, resume

    if given.get("init_from") is not None:
        raise OptionError(init_from.EXCLUDES_RESUME)
    saved = resume.saved_options(given["resume"])
    for name in ("model", "dataset"):
        if given.get(name, saved[name]) != saved[name]:
            raise OptionError(
                f"resume: {given['resume']} was trained with {name} {saved[name]}, not {given[name]}; leave {name} "
                "out, or train anew without resume"
            )
    return {name: value for name, value in {**saved, **given}.items() if name != "config_files"}


def check(given: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse unknown models and options, missing data and wrong numbers of processes before RecBole is imported."""
    model, dataset = options.check_model(given["model"]), given["dataset"]
    if not isinstance(dataset, str) or not dataset:
        raise OptionError(f"dataset: {dataset!r} is not the name of a data set")
    for where, each in sources.items():
        options.check_names(each, model, strict=True, where=where, warn=False)
    for name in ("nproc", "world_size", "group_offset"):
        options.check_option(model, name, given.get(name, 1))
    # RecBole's own copy of ml-100k is always there; a saved data set stands for its files.
    if dataset != "ml-100k" and not given.get("dataset_save_path"):
        options.check_option(model, "benchmark_filename", given.get("benchmark_filename"))
        options.check_data(dataset, _data_folder(given), given.get("benchmark_filename"))


def _data_folder(given: Mapping[str, Any]) -> Path:
    return Path(str(given.get("data_path", "dataset/")), given["dataset"])


@dataclass(frozen=True)
class Training:
    """A training: all options, the configuration files, and the options of the command line."""

    together: Mapping[str, Any]
    files: list[str]
    given: Mapping[str, Any]

    def run(self) -> str:
        """Train, test, and give the report."""
        import recbole_adrrec

        recbole_adrrec.register()
        from recbole_adrrec.integration import register as plugin

        quick_start = importlib.import_module("recbole.quick_start")
        typed = {name: value for name, value in self.given.items() if name not in options.RUN_OPTIONS}
        processes = {name: self.together[name] for name in PROCESSES if self.together.get(name) is not None}
        if "TORCHELASTIC_RUN_ID" in os.environ:
            if processes:
                raise OptionError(f"{next(iter(processes))}: torchrun says how many processes meet where; leave it out")
            processes = torchrun_processes()
            typed.setdefault("gpu_id", os.environ["LOCAL_RANK"])
        if "port" in processes:
            processes["port"] = str(processes["port"])
        single = processes.get("nproc", 1) == 1 and processes.get("world_size", -1) <= 0
        with plugin.command_line(typed), plugin.watch_trainers() as trainers:
            try:
                if not single:
                    self._config()  # so that errors are shown once, here, and not by every process
                result = quick_start.run(**self._named, **processes)
            except KeyboardInterrupt as stop:
                raise interrupted(trainers, stop) from None
            except Exception as error:
                found = self._user_error(error, trainers)
                if found is None:
                    raise
                raise found from error
        return self._report(result, trainers[-1] if trainers else None)

    @property
    def _named(self) -> dict[str, Any]:
        return {**{name: self.together[name] for name in ("model", "dataset")}, "config_file_list": self.files or None}

    def _config(self) -> Any:
        return importlib.import_module("recbole.config").Config(**self._named)

    def _user_error(self, error: Exception, trainers: Sequence[Any]) -> UserError | None:
        """An error of RecBole, the network or the disk as one of the user, if it is one.

        Those are missing data and files, RecBole's complaints about options, errors of ours that come from another
        process, and loaders that were killed.
        """
        if isinstance(error, URLError | ConnectionError | TimeoutError):
            folder = _data_folder(self.together)
            if folder.exists():
                return None
            missing = options.missing_data(self.together["dataset"], folder)
            return DataError(f"{missing}; downloading it failed ({getattr(error, 'reason', error)})")
        if isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError | PermissionError):
            if error.filename is None:
                return None
            return OptionError(f"{error.filename}: {error.strerror}; choose another place for it")
        if isinstance(error, UserError):
            return None
        ours = re.search(r"^recbole_adrrec\.errors\.\w+: (.*)$", str(error), re.MULTILINE)
        if ours:
            return OptionError(ours[1])
        lost = r"DataLoader worker \(pid.*?\d\) (?:exited unexpectedly|is killed by signal: \w+)"
        killed = re.search(lost, str(error))
        if killed:
            remedy = "often for want of memory; choose fewer workers, 0 for none"
            return OptionError(f"worker: {killed[0]}, {remedy}{_where_to_go_on(trainers)}")
        last = traceback.extract_tb(error.__traceback__)[-1:]
        if last and Path(last[0].filename).parts[-3:] == ("recbole", "config", "configurator.py"):
            return OptionError(f"RecBole: {error}")
        return None

    def _report(self, result: Mapping[str, Any] | None, trainer: Any) -> str:
        from recbole_adrrec.tools import report

        if result is None:
            return "This machine's processes are done; the first machine of the group has the result."
        config = trainer.config if trainer is not None else self._config()
        loader, user, case = getattr(trainer, "evaluated", None), config["show_user"], ""
        if loader is not None and user != "none":
            try:
                case = report.show_case(trainer.model, loader.dataset, config, None if user is None else str(user))
            except UserError as error:
                case = str(error)
        users = None if loader is None else _n_users(loader)
        summary = report.summary(config, result, users, getattr(trainer, "saved_model_file", None))
        return f"\n{summary}\n\n{case}".rstrip()


def torchrun_processes() -> dict[str, Any]:
    """RecBole's options of the processes that torchrun started, each as a machine with one process."""
    # RecBole's processes make their own meeting point, beside that of torchrun.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    return {
        "nproc": 1,
        "world_size": int(os.environ["WORLD_SIZE"]),
        "group_offset": int(os.environ["RANK"]),
        "ip": os.environ["MASTER_ADDR"],
        "port": str(int(os.environ["MASTER_PORT"]) + 1),
    }


def interrupted(trainers: Sequence[Any], stop: KeyboardInterrupt) -> KeyboardInterrupt:
    """An interruption of the same kind whose text names what was saved."""
    how = "interrupted" if type(stop) is KeyboardInterrupt else "terminated"
    file = Path(trainers[-1].saved_model_file) if trainers else None
    saved = f"the best model so far is saved in {file}" if file and file.is_file() else "no model was saved yet"
    return type(stop)(f"{how}; {saved}{_where_to_go_on(trainers)}")


def _where_to_go_on(trainers: Sequence[Any]) -> str:
    where = getattr(trainers[-1], "where_to_go_on", None) if trainers else None
    return where() if where is not None else ""


def _n_users(loader: Any) -> int:
    """Number of users in the test data."""
    if getattr(loader, "uid_list", None) is not None:
        return len(loader.uid_list)
    dataset = loader.dataset
    return len(dataset.inter_feat[dataset.uid_field].unique())
