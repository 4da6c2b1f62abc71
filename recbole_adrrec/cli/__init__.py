"""The command line: RecBole's own with our models known, values read as YAML, and a report at the end."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

from recbole_adrrec import options
from recbole_adrrec.cli import commands
from recbole_adrrec.errors import DataError, OptionError, UserError
from recbole_adrrec.options.rules import suggestion

MODEL = "ADRRec"
DATASET = "ml-100k"

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Settings of how threads of OpenMP wait."""


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait for one another, unless the user has chosen how they wait.

    By its own choice OpenMP spins, which on processors that another program uses too makes training many times slower
    (docs/performance.md has the figures, and what sleeping costs on idle ones). It is read when torch is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training and test from the command line, or one of ``commands.COMMANDS``, which stands first then.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if None.

    Returns
    -------
    int
        Exit code: 0 done, 2 something the user gave is wrong, or training can't go on, 130 interrupted from the
        keyboard, 143 terminated by the system. Other errors are raised.
    """
    wait_passively()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in commands.COMMANDS:
        return commands.run(arguments[0], arguments[1:])
    try:
        if arguments and not arguments[0].startswith("-"):
            known = f"{', '.join(commands.COMMANDS)}, or options to train with, --key=value"
            raise OptionError(f"{arguments[0]!r} is no command{suggestion(arguments[0], commands.COMMANDS)} ({known})")
        given = options.parse_command_line(arguments)
        if given.get("help"):
            print(usage(options.check_model(given.get("model", MODEL))))
            return 0
        with terminable():
            plan = Plan.of(given)
            plan.check()
            print(plan.run())
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        return stop.exit_code
    except Terminated:
        print("\nterminated", file=sys.stderr)
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


class Interrupted(Exception):  # noqa: N818 - the user's wish, not an error
    """Training was stopped from outside; the text says what was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Terminated(KeyboardInterrupt):
    """The system asked this process to end (SIGTERM): to be treated as an interruption everywhere."""


@contextmanager
def terminable() -> Iterator[None]:
    """While this lasts, SIGTERM raises :class:`Terminated`, so that files under way are cleared up."""

    def stop(*_: object) -> NoReturn:
        for child in multiprocessing.active_children():
            child.terminate()
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # signals belong to the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Plan:
    """What a command line asks for.

    Parameters
    ----------
    model, dataset : str
        Their names.
    files : list of str
        Configuration files, later ones over earlier ones.
    given : mapping
        Options of the command line itself.
    filed : list of dict
        What each of the files holds.
    """

    def __init__(
        self, model: str, dataset: str, files: list[str], given: Mapping[str, Any], filed: list[dict[str, Any]]
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.files = files
        self.given = given
        self.filed = filed

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Plan:
        """Read the files that a command line names; model and data set may stand in either.

        Raises
        ------
        OptionError
            If a file can't be used.
        """
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
        """The plan of the run that left a checkpoint, with what is given now over it.

        Raises
        ------
        UserError
            The checkpoint can't be continued from, or was made by another model or with another data set.
        """
        import recbole_adrrec

        recbole_adrrec.register()
        from recbole_adrrec.integration import resume

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

    def check(self) -> None:
        """Refuse what can be seen to be wrong before RecBole is imported.

        Raises
        ------
        UserError
            For an unknown model or option, a missing data set, or a number of processes that is none.
        """
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
            options.check_data(self.dataset, self._data_folder(), self.option("benchmark_filename"))

    def _data_folder(self) -> Path:
        return Path(str(self.option("data_path", "dataset/")), self.dataset)

    def run(self) -> str:
        """Train and test.

        Returns
        -------
        str
            The report.
        """
        import recbole_adrrec

        recbole_adrrec.register()
        from recbole_adrrec.integration import register as plugin

        quick_start = importlib.import_module("recbole.quick_start")
        typed = {name: value for name, value in self.given.items() if name not in options.RUN_OPTIONS}
        processes: dict[str, Any] = {
            name: self.option(name)
            for name in ("nproc", "world_size", "ip", "port", "group_offset")
            if self.option(name) is not None
        }
        if "port" in processes:
            processes["port"] = str(processes["port"])
        single = processes.get("nproc", 1) == 1 and processes.get("world_size", -1) <= 0
        with plugin.command_line(typed), plugin.watch_trainers() as trainers:
            try:
                if not single:
                    self._config()  # so that errors are told once, here, and not by every process
                result = quick_start.run(self.model, self.dataset, config_file_list=self.files or None, **processes)
            except KeyboardInterrupt as stop:
                raise _interrupted(trainers, stop) from None
            except (URLError, ConnectionError, TimeoutError) as error:
                folder = self._data_folder()
                if folder.exists():
                    raise
                reason = getattr(error, "reason", error)
                missing = options.missing_data(self.dataset, folder)
                raise DataError(f"{missing}; downloading it failed ({reason})") from error
            except UserError:
                raise
            except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
                if error.filename is None:
                    raise
                raise OptionError(f"{error.filename}: {error.strerror}; choose another place for it") from error
            except Exception as error:
                told = _of_the_user(error, trainers)
                if told is None:
                    raise
                raise OptionError(told) from error
        return self._report(result, trainers[-1] if trainers else None)

    def _config(self) -> Any:
        config_class = importlib.import_module("recbole.config").Config
        return config_class(model=self.model, dataset=self.dataset, config_file_list=self.files or None)

    def _report(self, result: Mapping[str, Any] | None, trainer: Any) -> str:
        from recbole_adrrec.tools import report

        if result is None:
            return "This machine's processes are done; the first machine of the group has the result."
        config = trainer.config if trainer is not None else self._config()
        saved = str(trainer.saved_model_file) if trainer is not None else None
        loader = getattr(trainer, "evaluated", None)
        lines = [
            "",
            report.summary(
                report.Run(
                    model=self.model,
                    dataset=self.dataset,
                    test_result=result["test_result"] or {},
                    valid_metric=config["valid_metric"],
                    valid_score=result["best_valid_score"] if result["best_valid_result"] else None,
                    users=_test_users(loader),
                    query_time=config["use_query_time"] if self.model in options.property_names("model") else None,
                    saved=saved if saved and Path(saved).is_file() else None,
                    places=config["metric_decimal_place"] or 4,
                )
            ),
        ]
        user = config["show_user"]
        if trainer is not None and loader is not None and user != "none":
            lines += ["", self._case(trainer, loader, config, None if user is None else str(user))]
        return "\n".join(lines).rstrip()

    def _case(self, trainer: Any, loader: Any, config: Any, user: str | None) -> str:
        from recbole_adrrec.tools import report

        try:
            case = report.show_case(trainer.model, loader, config, user)
        except UserError as error:
            return str(error)
        if case is None:
            return ""
        titles = report.item_titles(
            Path(config["data_path"], f"{self.dataset}.item"),
            config["ITEM_ID_FIELD"],
            config["field_separator"],
            config["encoding"] or "utf-8",
        )
        return report.case_text(case, titles)


def _interrupted(trainers: Sequence[Any], stop: KeyboardInterrupt) -> Interrupted:
    how, code = ("terminated", EXIT_TERMINATED) if isinstance(stop, Terminated) else ("interrupted", EXIT_INTERRUPTED)
    file = Path(trainers[-1].saved_model_file) if trainers else None
    saved = f"the best model so far is saved in {file}" if file and file.is_file() else "no model was saved yet"
    return Interrupted(f"{how}; {saved}{_where_to_go_on(trainers)}", code)


def _where_to_go_on(trainers: Sequence[Any]) -> str:
    where = getattr(trainers[-1], "where_to_go_on", None) if trainers else None
    return where() if where is not None else ""


def _test_users(loader: Any) -> int | None:
    """Number of users in the test data, for loaders that tell."""
    if loader is None:
        return None
    if getattr(loader, "uid_list", None) is not None:
        return len(loader.uid_list)
    dataset = loader.dataset
    return len(dataset.inter_feat[dataset.uid_field].unique())


def _of_the_user(error: Exception, trainers: Sequence[Any]) -> str | None:
    """What to tell the user of an error that isn't ours, if it is the user's to mend.

    Those are RecBole's complaints about options, our own that come from another process, and loaders that were killed.
    """
    theirs = re.search(r"^recbole_adrrec\.errors\.\w+: (.*)$", str(error), re.MULTILINE)
    if theirs:
        return theirs[1]
    lost = r"DataLoader worker \(pid.*?\d\) (?:exited unexpectedly|is killed by signal: \w+)"
    killed = re.search(lost, str(error))
    if killed:
        return (
            f"worker: {killed[0]}, often for want of memory; choose fewer workers, 0 for none"
            f"{_where_to_go_on(trainers)}"
        )
    last = traceback.extract_tb(error.__traceback__)[-1:]
    if last and Path(last[0].filename).parts[-3:] == ("recbole", "config", "configurator.py"):
        return f"RecBole: {error}"
    return None


def usage(model: str) -> str:
    """How to call the program, and the options of one model with their defaults."""
    program = Path(sys.argv[0]).name or "run_recbole.py"
    if program == "__main__.py":
        program = "python -m recbole_adrrec"
    general = [
        (name, default, options.comments("overall").get(name, ""))
        for name, default in options.load_properties("overall").items()
        if name not in options.load_properties("model", model)
    ]
    run = [
        ("model", MODEL, f"-m; ours: {', '.join(options.property_names('model'))}; RecBole's by their names."),
        ("dataset", DATASET, f"-d; with settings of ours: {', '.join(options.property_names('dataset'))}."),
        ("config_files", None, "One or more YAML files with options; the command line goes above them."),
        ("nproc", 1, "Processes on this machine (also ip, port, world_size, group_offset, as in RecBole)."),
        ("debug", False, "Show where an error came from."),
        ("help", False, "-h; this text, for the model named before or after it."),
    ]
    parts = [
        f"usage: {program} [--model={MODEL}] [--dataset={DATASET}] [--key=value | --key value | --flag ...]",
        f"       {program} {' | '.join(commands.COMMANDS)} --help\n"
        + "\n".join(f"           {name}: {what}" for name, what in commands.COMMANDS.items()),
        "Values are YAML: --learning_rate=1e-3 --absolute_kernels=[position,day] --train_stride=~",
        f"Run:\n{_listing(run)}",
        f"Options of {model}:\n{_listing(options.describe_options(model))}",
        f"Options of every sequential model:\n{_listing(general)}",
        "RecBole's own options: https://recbole.io/docs/user_guide/config_settings.html",
    ]
    return "\n\n".join(parts)


def _listing(entries: Sequence[tuple[str, Any, str]]) -> str:
    lines = []
    for name, default, meaning in entries:
        lines.append(f"  --{name}={_as_yaml(default)}")
        lines += textwrap.wrap(meaning, width=96, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    if value is None:
        return "~"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_as_yaml(each) for each in value)}]"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
