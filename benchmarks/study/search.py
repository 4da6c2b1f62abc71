"""Equal tuning: every model gets the same number of trials from a stated space, judged on validation alone.

A trial is a run of the study that stops after validation: its process never ranks the test data. Optuna proposes
settings (tree-structured Parzen estimators); its journal, one file for each model on each data set, makes a search
that was killed go on where it was. With ``first_epochs`` trials are short, and only the best two are trained to their
end (successive halving in one step).
"""

from __future__ import annotations

import importlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from engine import provenance
from engine.children import run_children
from engine.store import now, owned, read_json, write_text
from tqdm import tqdm

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError
from recbole_adrrec.options import rules
from study import checks, grid, runs, session
from study.plan import Entry, Plan, Protocol, RunSpec
from study.runs import RunChild, record_path
from study.study_file import refuse_owned, tuned_file

Space = dict[str, Any]
"""Option to the values it may take: a list, or a mapping with low, high and perhaps step or log."""

RANGE_KEYS = ("low", "high", "step", "log")
STATE_FILE = "search.json"
FINALISTS = 2
"""Trials of each model that are trained to their end, where the others had few epochs."""
PROPOSALS = 20
"""Proposals that may repeat settings which were tried before such settings get another trial."""


@dataclass(frozen=True)
class Spaces:
    """Options searched for every model, and those of some models beside or in place of them."""

    every: Space
    models: dict[str, Space]

    def of(self, entry: Entry) -> Space:
        """The space of one model; what its entry fixes is not searched."""
        own = {**self.every, **self.models.get(entry.model, {}), **self.models.get(entry.label, {})}
        return {name: values for name, values in own.items() if values is not None and name not in entry.options}


def read_spaces(path: str | Path, plan: Plan, only: Set[tuple[str, str]] | None = None) -> Spaces:
    """Read a file of search spaces and check it against a study's models, of those in ``only`` (see :func:`search`).

    YAML with ``every`` and ``models``, both mappings of options to a list of values or to ``{low, high}`` with ``step``
    or ``log: true``; under ``models`` a null takes an option out.

    Raises
    ------
    OptionError
        Naming the option, its values and what would be right.
    """
    where = f"space {path}"
    held = options.read_config_file(path)
    checks.keys(held, ("every", "models"), where)
    every, models = (checks.mapping(held.get(name), f"{where}: {name}") for name in ("every", "models"))
    models = {name: checks.mapping(given, f"{where}: {name}") for name, given in models.items()}
    known = [*options.model_names(), *(entry.label for entry in plan.models)]
    for name in models:
        checks.one_of(name, known, f"{where}: models")
    spaces = Spaces(every, models)
    ours = {each for name in options.model_names() for each, *_ in options.describe_options(name)}
    for entry in plan.models:
        if only is not None and entry.label not in {label for _, label in only}:
            continue
        space = spaces.of(entry)
        refuse_owned(space, where)
        options.check_names(space, entry.model, strict=True, where=where, warn=False)
        read = {name for name, *_ in options.describe_options(entry.model)}
        for name, values in space.items():
            if name in ours - read and name not in rules.RECBOLE_RULES:
                raise OptionError(
                    f"{where}: {entry.model} does not read {name}, and its trials would be spent on nothing; put "
                    f"it under models, or {entry.model}: {{{name}: ~}} there"
                )
            distribution(name, values, where)
        if not space:
            raise OptionError(f"{where}: nothing is left to search for {entry.label}")
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
        checks.keys(values, RANGE_KEYS, f"{where}: {name}")
        low, high, step = values.get("low"), values.get("high"), values.get("step")
        numbers = [each for each in (low, high) if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(numbers) == 2 and numbers[0] < numbers[1]:
            try:
                if isinstance(low, int) and isinstance(high, int):
                    return kinds.IntDistribution(low, high, log=bool(values.get("log")), step=step or 1)
                return kinds.FloatDistribution(*map(float, numbers), bool(values.get("log")), step)
            except ValueError as error:
                raise OptionError(f"{where}: {name}: {error}") from error
    raise OptionError(
        f"{where}: {name}: {values!r} should be a list of values, or a range such as "
        "{low: 1e-4, high: 1e-2, log: true}"
    )


def _coded(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _decoded(params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value
        for name, value in params.items()
    }


def _within(value: Any, values: Any) -> bool:
    """True for a value in a list or range of a space."""
    if isinstance(values, list):
        return any(type(value) is type(each) and value == each for each in values)
    if isinstance(value, bool) or not isinstance(value, int | float) or not values["low"] <= value <= values["high"]:
        return False
    step = values.get("step")
    return step is None or math.isclose((value - values["low"]) / step, round((value - values["low"]) / step))


class Task:
    """The search for one model on one data set under one protocol, with the study's first seed.

    ``folder`` holds the journal and the trials' files; ``first_epochs`` are a trial's, by default the study's.
    """

    def __init__(
        self,
        plan: Plan,
        dataset: str,
        protocol: Protocol,
        entry: Entry,
        space: Space,
        folder: Path,
        first_epochs: int | None = None,
    ) -> None:
        self.dataset, self.protocol, self.entry, self.space, self.folder = dataset, protocol, entry, space, folder
        self.first_epochs = first_epochs
        single = replace(plan, datasets=(dataset,), protocols=(protocol,), models=(entry,), seeds=plan.seeds[:1])
        self.base = replace(single, shuffled_ties=0, keep_models=False).specs()[0]
        self.name = self.base.id.removesuffix(f"-s{self.base.seed}")
        self.optuna = importlib.import_module("optuna")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.distributions = {name: distribution(name, values, "space") for name, values in space.items()}
        self.study = self._open()
        if not self.study.trials:
            # The study's own settings are the first trial, so that no search ends below them by bad luck.
            self.study.enqueue_trial(self._default())

    def _open(self) -> Any:
        file = self.folder / "journals" / f"{self.name}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        storages = self.optuna.storages
        storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(file)))
        return self.optuna.create_study(
            storage=storage, study_name=self.name, direction="maximize", load_if_exists=True
        )

    def _default(self) -> dict[str, Any]:
        with session.devices_unchanged():
            config = session.configure(self.base, self.folder / "scratch")
        return {name: _coded(config[name]) for name, values in self.space.items() if _within(config[name], values)}

    @property
    def over(self) -> int:
        """Number of trials that are over, failed ones among them; repetitions, which were never run, don't count."""
        pruned = self.optuna.trial.TrialState.PRUNED
        return sum(trial.state.is_finished() and trial.state != pruned for trial in self.study.trials)

    def next(self) -> tuple[int, RunSpec]:
        """Number and run of the trial to do: one that was begun and never ended, or else a new one."""
        begun = [trial for trial in self.study.trials if trial.state == self.optuna.trial.TrialState.RUNNING]
        trial = begun[0] if begun else self._proposed()
        return trial.number, self._spec(trial, f"-trial{trial.number}", self.first_epochs)

    def _proposed(self) -> Any:
        tried = [trial.params for trial in self.study.trials]
        for _ in range(PROPOSALS):
            trial = self._ask()
            if trial.params not in tried:
                return trial
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        return self._ask()

    def _ask(self) -> Any:
        # A seed for each proposal: they don't depend on where a search was cut.
        self.study.sampler = self.optuna.samplers.TPESampler(seed=self.base.seed + len(self.study.trials))
        return self.study.ask(self.distributions)

    def _spec(self, trial: Any, suffix: str, epochs: int | None) -> RunSpec:
        given = {**self.base.options, **_decoded(trial.params), **({"epochs": epochs} if epochs else {})}
        return replace(self.base, options=given, test=False, suffix=suffix)

    def _done(self) -> list[Any]:
        """Trials that ended well, the best first."""
        done = self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.COMPLETE,))
        return sorted(done, key=lambda trial: -trial.value)

    def finals(self) -> dict[int, RunSpec]:
        """Runs of the best trials to their end, by number; none where all trials had all epochs."""
        best = self._done()[:FINALISTS] if self.first_epochs else []
        return {trial.number: self._spec(trial, f"-final{trial.number}", None) for trial in best}

    def tell(self, number: int, record: Path) -> None:
        """Take over the score in a trial's file."""
        facts = read_json(record)
        value = facts.get("best_valid")
        if facts["status"] == "done" and value is not None:
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)

    def unranked(self, work: Path) -> list[RunSpec]:
        """Finals that have not run."""
        return [spec for spec in self.finals().values() if not record_path(work, spec).is_file()]

    def chosen(self, plan: Plan) -> dict[str, Any] | None:
        """The best settings and their origin; None where no trial ended well."""
        done = self._done()
        scores = {trial.number: trial.value for trial in done}
        if self.first_epochs:
            ran = {number: read_json(record_path(self.folder, spec)) for number, spec in self.finals().items()}
            scores = {number: facts["best_valid"] for number, facts in ran.items() if facts["status"] == "done"}
        if not scores:
            return None
        best = max((trial for trial in done if trial.number in scores), key=lambda trial: scores[trial.number])
        made = {"command": plan.command, **provenance.origin(), "finished": now()}
        made["versions"]["optuna"] = self.optuna.__version__
        return {
            "options": _decoded(best.params),
            "dataset": self.dataset,
            "label": self.entry.label,
            "model": self.entry.model,
            "protocol": self.protocol.name,
            "valid_metric": plan.valid_metric,
            "value": scores[best.number],
            "trials": self.over,
            "failed": self.over - len(done),
            "made": made,
        }


@dataclass(frozen=True)
class Found:
    """Files of chosen settings; names of searches without a trial that ended well, and of those that are not over."""

    files: list[Path]
    empty: list[str]
    left: list[str]


def search(
    plan: Plan,
    spaces: Spaces,
    trials: int,
    folder: Path,
    jobs: int = 1,
    deadline: float | None = None,
    first_epochs: int | None = None,
    only: Set[tuple[str, str]] | None = None,
) -> Found:
    """Give every model its trials on each data set under each protocol, and write the settings that are chosen.

    Failed trials count. ``folder`` gets the chosen settings, a file each, and in ``work`` what the search needs to go
    on. ``jobs`` trials run at a time; those of one model follow each other. At ``deadline`` (``time.monotonic``) trials
    at work are stopped; the next call goes on with them. With ``first_epochs`` trials have so many epochs; the best two
    are then trained as long as the study says, and the better one is chosen. ``only``, if given, holds the data sets
    and labels that are searched now.
    """
    with _claimed(plan, spaces, folder, first_epochs):
        work = folder / "work"
        tasks = [
            Task(plan, dataset, protocol, entry, spaces.of(entry), work, first_epochs)
            for dataset in plan.datasets
            for protocol in plan.protocols
            for entry in plan.models
            if only is None or (dataset, entry.label) in only
        ]
        done = sum(min(task.over, trials) for task in tasks)
        done += sum(len(task.finals()) - len(task.unranked(work)) for task in tasks if task.over >= trials)
        finals = FINALISTS * len(tasks) if first_epochs else 0
        total = trials * len(tasks) + finals
        with tqdm(total=total, initial=done, desc=f"{plan.name}, trials", unit="trial", dynamic_ncols=True) as bar:
            at_work = _Search(tasks, trials, work, bar)
            run_children(at_work.start, at_work.ended, jobs, deadline, lambda: grid.tick(bar))
        found = Found([], [], [])
        for task in tasks:
            if task.over < trials or task.unranked(work):
                found.left.append(task.name)
            elif (chosen := task.chosen(plan)) is None:
                found.empty.append(task.name)
            else:
                found.files.append(tuned_file(folder, task.dataset, task.entry.label, task.protocol))
                _write_chosen(found.files[-1], chosen)
        return found


def _write_chosen(file: Path, chosen: dict[str, Any]) -> None:
    """Write chosen settings, unless the file holds them: a search that had nothing left to do keeps their origin."""
    held = options.read_config_file(file) if file.is_file() else {}
    if {**held, "made": None} != {**chosen, "made": None}:
        write_text(file, yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True))


class _Search:
    """The trials of several tasks, and then their finals, in child processes."""

    def __init__(self, tasks: list[Task], trials: int, work: Path, bar: Any) -> None:
        self.trials, self.work, self.bar = trials, work, bar
        self.waiting = deque(tasks)
        self.finals: list[RunSpec] = []
        self.trial_of: dict[str, tuple[Task, int]] = {}

    def start(self, environment: Mapping[str, str]) -> RunChild | None:
        while self.waiting:
            task = self.waiting.popleft()
            if task.over >= self.trials:
                self.finals += task.unranked(self.work)
                continue
            number, spec = task.next()
            self.trial_of[spec.id] = task, number
            if record_path(self.work, spec).is_file():  # over, but the search was killed before it knew
                self.tell(spec)
                continue
            return self.child(spec, environment)
        return self.child(self.finals.pop(0), environment) if self.finals else None

    def child(self, spec: RunSpec, environment: Mapping[str, str]) -> RunChild:
        self.bar.set_postfix_str(spec.id, refresh=True)
        return RunChild(spec, self.work, environment)

    def ended(self, child: RunChild) -> None:
        if child.finish() == "failed":
            self.bar.write(f"failed: {child.spec.id} (the search goes on)")
        self.tell(child.spec)

    def tell(self, spec: RunSpec) -> None:
        self.bar.update(1)
        if spec.id in self.trial_of:
            task, number = self.trial_of.pop(spec.id)
            task.tell(number, record_path(self.work, spec))
            self.waiting.append(task)


@contextmanager
def _claimed(plan: Plan, spaces: Spaces, folder: Path, first_epochs: int | None) -> Iterator[None]:
    """Hold a folder of settings for this search and this process alone."""
    study = {name: value for name, value in plan.stated().items() if name not in ("shuffled_ties", "keep_models")}
    space: dict[str, Any] = {"every": spaces.every, "models": spaces.models}
    if first_epochs:
        space["first_epochs"] = first_epochs
    content = json.loads(json.dumps({"study": study, "space": space}))

    def read(held: Any) -> dict[str, Any]:
        return {**held["study"], "space": held["space"]}

    with owned(folder, folder / "work" / STATE_FILE, content, read, "tuned", "search"):
        runs.sweep(folder / "work")
        yield
