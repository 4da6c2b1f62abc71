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

    Raises
    ------
    UserError
        Something the user gave is wrong.
    KeyboardInterrupt
        Training was stopped from outside; the text names what was saved.
    """
    plan = Plan.of(given)
    plan.check()
    return plan.run()


@dataclass(frozen=True)
class Plan:
    """A training: model, data set, configuration files, options of the command line, and those of each file.

    Later files go over earlier ones, and the command line over all of them.
    """

    model: str
    dataset: str
    files: list[str]
    given: Mapping[str, Any]
    filed: list[dict[str, Any]]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Plan:
        """Read the files that a command line names; model and data set may stand in either."""
        files = list(given.get("config_files", []))
        filed = [options.read_config_file(file) for file in files]
        together: dict[str, Any] = {}
        for each in [*filed, given]:
            together.update(each)
        if together.get("resume") is not None:
            return cls._continued(together)
        return cls(together.get("model", MODEL), together.get("dataset", DATASET), files, given, filed)

    @classmethod
    def _continued(cls, given: dict[str, Any]) -> Plan:
        """The plan of the run that left a checkpoint, with the options given now over it."""
        import recbole_adrrec

        recbole_adrrec.register()
        from recbole_adrrec.integration import init_from, resume

        if given.get("init_from") is not None:
            raise OptionError(init_from.EXCLUDES_RESUME)
        file = given["resume"]
        saved = resume.saved_options(file)
        for name in ("model", "dataset"):
            if given.get(name, saved[name]) != saved[name]:
                raise OptionError(
                    f"resume: {file} was trained with {name} {saved[name]}, not {given[name]}; leave {name} out, or "
                    "train anew without resume"
                )
        together = {**saved, **given}
        together.pop("config_files", None)
        return cls(saved["model"], saved["dataset"], [], together, [])

    def option(self, name: str, default: Any = None) -> Any:
        """An option as given on the command line or else in the last file that has it."""
        for source in [self.given, *reversed(self.filed)]:
            if name in source:
                return source[name]
        return default

    @property
    def data_folder(self) -> Path:
        """Folder of the data set."""
        return Path(str(self.option("data_path", "dataset/")), self.dataset)

    def check(self) -> None:
        """Refuse unknown models and options, missing data and wrong numbers of processes before RecBole is imported."""
        options.check_model(self.model)
        if not isinstance(self.dataset, str) or not self.dataset:
            raise OptionError(f"dataset: {self.dataset!r} is not the name of a data set")
        options.check_names(self.given, self.model, strict=True, where="command line", warn=False)
        for file, filed in zip(self.files, self.filed, strict=True):
            options.check_names(filed, self.model, strict=True, where=f"config file {file}", warn=False)
        for name in ("nproc", "world_size", "group_offset"):
            value = self.option(name, 1)
            if isinstance(value, bool) or not isinstance(value, int):
                raise OptionError(f"{name}: {value!r} is not a whole number")
        if self.option("nproc", 1) < 1:
            raise OptionError(f"nproc: {self.option('nproc')} is not a number of processes; choose at least 1")
        # RecBole's own copy of ml-100k is always there; a saved data set stands for its files.
        if self.dataset != "ml-100k" and not self.option("dataset_save_path"):
            options.check_option(self.model, "benchmark_filename", self.option("benchmark_filename"))
            options.check_data(self.dataset, self.data_folder, self.option("benchmark_filename"))

    def run(self) -> str:
        """Train, test, and give the report."""
        import recbole_adrrec

        recbole_adrrec.register()
        from recbole_adrrec.integration import register as plugin

        quick_start = importlib.import_module("recbole.quick_start")
        typed = {name: value for name, value in self.given.items() if name not in options.RUN_OPTIONS}
        processes = {name: self.option(name) for name in PROCESSES if self.option(name) is not None}
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
                result = quick_start.run(self.model, self.dataset, config_file_list=self.files or None, **processes)
            except KeyboardInterrupt as stop:
                raise interrupted(trainers, stop) from None
            except Exception as error:
                found = self._user_error(error, trainers)
                if found is None:
                    raise
                raise found from error
        return self._report(result, trainers[-1] if trainers else None)

    def _config(self) -> Any:
        config_class = importlib.import_module("recbole.config").Config
        return config_class(model=self.model, dataset=self.dataset, config_file_list=self.files or None)

    def _user_error(self, error: Exception, trainers: Sequence[Any]) -> UserError | None:
        """An error of RecBole, the network or the disk as one of the user, if it is one.

        Those are missing data and files, RecBole's complaints about options, errors of ours that come from another
        process, and loaders that were killed.
        """
        if isinstance(error, URLError | ConnectionError | TimeoutError):
            if self.data_folder.exists():
                return None
            missing = options.missing_data(self.dataset, self.data_folder)
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
        loader = getattr(trainer, "evaluated", None)
        saved = getattr(trainer, "saved_model_file", None)
        summary = report.summary(
            self.model,
            self.dataset,
            test_result=result["test_result"] or {},
            valid_metric=config["valid_metric"],
            valid_score=result["best_valid_score"] if result["best_valid_result"] else None,
            users=None if loader is None else _n_users(loader),
            query_time=config["use_query_time"] if self.model in options.property_names("model") else None,
            saved=str(saved) if saved and Path(saved).is_file() else None,
            places=config["metric_decimal_place"] or 4,
        )
        user = config["show_user"]
        case = ""
        if loader is not None and user != "none":
            try:
                case = report.show_case(trainer.model, loader.dataset, config, None if user is None else str(user))
            except UserError as error:
                case = str(error)
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
