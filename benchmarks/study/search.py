"""Equal tuning: every model gets the same number of trials from a stated space, judged on validation alone.

A trial is a run of the study that stops after validation: its process never asks the test data. Optuna proposes
settings (tree-structured Parzen estimators); its journal, one file for each model on each data set, makes a search
that was killed go on where it was.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.options import rules
from study import grid, runs
from study import plan as plans
from study.plan import Entry, Plan, Protocol, RunSpec

Space = dict[str, Any]
"""Option to the values it may take: a list, or a mapping with low, high and perhaps step or log."""

RANGE_KEYS = ("low", "high", "step", "log")
STATE_FILE = "search.json"


@dataclass(frozen=True)
class Spaces:
    """What is searched for every model, and what for some beside or in place of it."""

    every: Space
    models: dict[str, Space]

    def of(self, entry: Entry) -> Space:
        """The space of one model; what its entry fixes is not searched."""
        own = {**self.every, **self.models.get(entry.model, {}), **self.models.get(entry.label, {})}
        return {name: values for name, values in own.items() if values is not None and name not in entry.options}


def read_spaces(path: str | Path, plan: Plan) -> Spaces:
    """Read a file of search spaces and check it against the models of a study.

    Parameters
    ----------
    path : path-like
        YAML with ``every`` and ``models``, both mappings of options to a list of values or to ``{low, high}`` with
        ``step`` or ``log: true``; under ``models`` a null takes an option out.
    plan : Plan
        The study.

    Raises
    ------
    OptionError
        Naming the option, its values and what would be right.
    """
    held = options.read_config_file(path)
    for key in held:
        if key not in ("every", "models"):
            near = rules.suggestion(key, ("every", "models"), 0.6)
            raise OptionError(f"space {path}: unknown key {key}{near or '; keys are every and models'}")
    every, models = held.get("every") or {}, held.get("models") or {}
    for name, given in (("every", every), ("models", models), *models.items()):
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(f"space {path}: {name}: {given!r} is not a mapping such as {{learning_rate: [1e-3]}}")
    known = [*options.model_names(), *(entry.label for entry in plan.models)]
    for name in models:
        if name not in known:
            raise OptionError(f"space {path}: there is no model {name!r}{rules.suggestion(name, known, 0.5)}")
    spaces = Spaces(dict(every), {name: dict(given or {}) for name, given in models.items()})
    own_names = {each for name in options.model_names() for each, *_ in options.describe_options(name)}
    for entry in plan.models:
        space = spaces.of(entry)
        plans.refuse_owned(space, f"space {path}")
        options.check_names(space, entry.model, strict=True, where=f"space {path}", warn=False)
        read = {name for name, *_ in options.describe_options(entry.model)}
        for name, values in space.items():
            if name in own_names - read and name not in rules.RECBOLE_RULES:
                raise OptionError(
                    f"space {path}: {entry.model} does not read {name}, and its trials would be spent on nothing; put "
                    f"it under models, or {entry.model}: {{{name}: ~}} there"
                )
            distribution(name, values, str(path))
        if not space:
            raise OptionError(f"space {path}: nothing is left to search for {entry.label}")
    return spaces


def distribution(name: str, values: Any, where: str) -> Any:
    """Optuna's distribution of one option.

    Raises
    ------
    OptionError
        If the values are neither a list nor a range.
    """
    kinds = importlib.import_module("optuna.distributions")
    if isinstance(values, list) and values:
        # Optuna takes plain values alone; lists, such as kernels, go as JSON.
        return kinds.CategoricalDistribution([_coded(value) for value in values])
    if isinstance(values, Mapping):
        for key in values:
            if key not in RANGE_KEYS:
                near = rules.suggestion(str(key), RANGE_KEYS, 0.5)
                raise OptionError(f"space {where}: {name}: {key!r} is none of {', '.join(RANGE_KEYS)}{near}")
        low, high, step = values.get("low"), values.get("high"), values.get("step")
        numbers = [each for each in (low, high) if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(numbers) == 2 and numbers[0] < numbers[1]:
            try:
                if isinstance(low, int) and isinstance(high, int):
                    return kinds.IntDistribution(low, high, log=bool(values.get("log")), step=step or 1)
                return kinds.FloatDistribution(float(low or 0), float(high or 0), bool(values.get("log")), step)
            except ValueError as error:
                raise OptionError(f"space {where}: {name}: {error}") from error
    raise OptionError(
        f"space {where}: {name}: {values!r} should be a list of values, or a range such as "
        "{low: 1e-4, high: 1e-2, log: true}"
    )


def _coded(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value


def _within(value: Any, values: Any) -> bool:
    """Whether a value lies in a list or range of a space."""
    if isinstance(values, list):
        return any(type(value) is type(each) and value == each for each in values)
    if isinstance(value, bool) or not isinstance(value, int | float) or not values["low"] <= value <= values["high"]:
        return False
    step = values.get("step")
    return step is None or math.isclose((value - values["low"]) / step, round((value - values["low"]) / step))


class Task:
    """The search for one model on one data set under one protocol.

    Parameters
    ----------
    plan : Plan
        The study; its first seed is the trials'.
    dataset, protocol, entry
        What of it.
    space : Space
        Its options.
    folder : Path
        Where the journal and the trials' files lie.
    """

    def __init__(self, plan: Plan, dataset: str, protocol: Protocol, entry: Entry, space: Space, folder: Path) -> None:
        self.dataset, self.protocol, self.entry, self.space = dataset, protocol, entry, space
        single = replace(plan, datasets=(dataset,), protocols=(protocol,), models=(entry,), seeds=plan.seeds[:1])
        self.base = replace(single, shuffled_ties=0, keep_models=False).specs()[0]
        self.folder = folder
        self.name = self.base.id.removesuffix(f"-s{self.base.seed}")
        self.optuna = importlib.import_module("optuna")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.distributions = {name: distribution(name, values, "") for name, values in space.items()}
        self.study = self._open()
        if not self.study.trials:
            # The study's own settings are the first trial, so that no search ends below them by bad luck.
            self.study.enqueue_trial(self._default())

    def _open(self) -> Any:
        journal = importlib.import_module("optuna.storages.journal")
        (self.folder / "journals").mkdir(parents=True, exist_ok=True)
        backend = journal.JournalFileBackend(str(self.folder / "journals" / f"{self.name}.log"))
        return self.optuna.create_study(
            storage=self.optuna.storages.JournalStorage(backend),
            study_name=self.name,
            direction="maximize",
            load_if_exists=True,
        )

    def _default(self) -> dict[str, Any]:
        with runs.devices_unchanged():
            config = runs.configure(self.base, self.folder / "scratch")
        return {name: _coded(config[name]) for name, values in self.space.items() if _within(config[name], values)}

    @property
    def over(self) -> int:
        """How many trials are over, failed ones among them."""
        return sum(trial.state.is_finished() for trial in self.study.trials)

    def next(self) -> tuple[int, RunSpec]:
        """Number and run of the trial to do: one that was begun and never ended, or else a new one."""
        begun = [trial for trial in self.study.trials if trial.state == self.optuna.trial.TrialState.RUNNING]
        if begun:
            number, params = begun[0].number, begun[0].params
        else:
            # A seed for each trial: proposals don't depend on where a search was cut.
            self.study.sampler = self.optuna.samplers.TPESampler(seed=self.base.seed + self.over)
            trial = self.study.ask(self.distributions)
            number, params = trial.number, trial.params
        chosen = {name: _decoded(value) for name, value in params.items()}
        given = {**self.base.options, **chosen}
        return number, replace(self.base, options=given, test=False, suffix=f"-trial{number}")

    def tell(self, number: int, record: Path) -> None:
        """Take over what a trial's file says."""
        facts = json.loads(record.read_text(encoding="utf-8"))
        value = facts.get("best_valid")
        if facts["status"] == "done" and value is not None:
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)

    def chosen(self, plan: Plan) -> dict[str, Any] | None:
        """The best settings and where they come from; None where every trial failed."""
        state = self.optuna.trial.TrialState
        done = self.study.get_trials(deepcopy=False, states=(state.COMPLETE,))
        if not done:
            return None
        best = max(done, key=lambda trial: trial.value)
        return {
            "options": {name: _decoded(value) for name, value in best.params.items()},
            "dataset": self.dataset,
            "label": self.entry.label,
            "model": self.entry.model,
            "protocol": self.protocol.name,
            "valid_metric": plan.valid_metric,
            "value": best.value,
            "trials": self.over,
            "failed": self.over - len(done),
            "made": {
                "command": plan.command,
                "commit": runs.commit(),
                "versions": {**runs.versions(), "optuna": self.optuna.__version__},
                "hardware": runs.hardware(),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            },
        }


def search(plan: Plan, spaces: Spaces, trials: int, folder: Path, jobs: int = 1) -> tuple[list[Path], list[str]]:
    """Give every model its trials and write what is chosen.

    Parameters
    ----------
    plan : Plan
        The study.
    spaces : Spaces
        What is searched.
    trials : int
        How many trials each model has on each data set under each protocol; failed ones count.
    folder : Path
        Where the chosen settings are written, a file each, and in ``work`` what the search needs to go on.
    jobs : int
        How many trials at a time; those of one model follow each other.

    Returns
    -------
    files : list of Path
        The chosen settings.
    empty : list of str
        Searches all of whose trials failed.
    """
    with _claimed(plan, spaces, folder):
        work = folder / "work"
        tasks = [
            Task(plan, dataset, protocol, entry, spaces.of(entry), work)
            for dataset in plan.datasets
            for protocol in plan.protocols
            for entry in plan.models
        ]
        done = sum(min(task.over, trials) for task in tasks)
        with tqdm(
            total=trials * len(tasks), initial=done, desc=f"{plan.name}, trials", unit="trial", dynamic_ncols=True
        ) as bar:
            _work(deque(tasks), trials, work, jobs, bar)
        files, empty = [], []
        for task in tasks:
            chosen = task.chosen(plan)
            if chosen is None:
                empty.append(task.name)
                continue
            files.append(plans.tuned_file(folder, task.dataset, task.entry.label, task.protocol))
            with AtomicFile(files[-1]) as file:
                file.write(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True).encode())
        return files, empty


def _work(waiting: deque[Task], trials: int, work: Path, jobs: int, bar: Any) -> None:
    working: list[tuple[Task, int, runs.Child]] = []
    environment, gpus = grid.threads_each(jobs), grid.gpus_here()
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                task = waiting.popleft()
                if task.over >= trials:
                    continue
                number, spec = task.next()
                record = runs.record_path(work, spec)
                if record.is_file():  # over, but the search was killed before it was told
                    task.tell(number, record)
                    bar.update(1)
                    waiting.append(task)
                    continue
                gpu = grid.least_used(gpus, [each[2].environment for each in working])
                working.append((task, number, runs.Child(spec.to_json(), str(work), {**environment, **gpu})))
                bar.set_postfix_str(spec.id, refresh=True)
            ended = [each for each in working if each[2].process.poll() is not None]
            for each in ended:
                working.remove(each)
                task, number, child = each
                if child.finish() == "failed":
                    bar.write(f"failed: {child.spec.id} (the search goes on)")
                task.tell(number, runs.record_path(work, child.spec))
                bar.update(1)
                waiting.append(task)
            if not ended and working:
                grid.tick(bar)
    finally:
        for _, _, child in working:
            child.stop()


@contextmanager
def _claimed(plan: Plan, spaces: Spaces, folder: Path) -> Iterator[None]:
    """Hold a folder of settings for this search and this process alone."""
    stated = {
        "study": {name: value for name, value in plan.stated().items() if name not in ("shuffled_ties", "keep_models")},
        "space": {"every": spaces.every, "models": spaces.models},
    }
    stated = json.loads(json.dumps(stated))
    path = folder / "work" / STATE_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with grid.locked(folder, "tuned"):
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there != stated:
                what = "; ".join(
                    plans.differences(
                        {**stated["study"], "space": stated["space"]}, {**there["study"], "space": there["space"]}
                    )
                )
                raise OptionError(
                    f"tuned: {folder} holds another search, which differs in {what}; choose another folder"
                )
        elif any(each.name != ".lock" for each in folder.iterdir()):
            raise OptionError(f"tuned: {folder} is not empty and holds no search; choose another folder")
        for name in ("runs", "logs", "scratch"):
            (folder / "work" / name).mkdir(parents=True, exist_ok=True)
        for left in (folder / "work" / "scratch").iterdir():
            shutil.rmtree(left, ignore_errors=True)
        if not path.is_file():
            with AtomicFile(path) as file:
                file.write((json.dumps(stated, indent=1) + "\n").encode())
        yield
