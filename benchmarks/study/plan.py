"""A study stated whole: which models on which data, how they are asked and how often; checked before anything runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_adrrec import options
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.options import rules
from recbole_adrrec.times import seconds

KEYS: dict[str, str] = {
    "name": "name of the study; the file's, if unset",
    "datasets": "names of data sets, or mappings with name, label and data_path",
    "models": "names of models, or mappings with label, model and options",
    "seeds": "how many seeds (2020 and up), or a list of them",
    "options": "options of every run, as on RecBole's command line",
    "dataset_options": "options by data set, over those of every run",
    "protocols": "mappings with split, candidates and seen, or their names, such as temporal-full-unseen",
    "temporal": "entries of the temporal split: shares or times, targets, cold_items, cold_users",
    "metrics": "metrics with a value for each user",
    "topk": "lengths of the recommended list",
    "valid_metric": "metric that chooses epochs and, when tuning, settings; on validation alone",
    "test": "whether the chosen models are tested; false: the study sees validation alone, and has no report",
    "shuffled_ties": "how many of the seeds are run again with events of equal time in a random order",
    "tuned": "folder of settings that tune.py chose",
    "keep_models": "whether the trained models are kept",
    "results": "folder of the results",
    "data_path": "folder of the data sets",
}
"""Keys of a study file and what they mean."""

FIRST_SEED = 2020
METRICS = ("Recall", "MRR", "NDCG", "Hit", "MAP", "Precision")
"""RecBole's metrics that have a value for each user."""

SPLITS = ("leave_one_out", "temporal")
CANDIDATES = ("full", "pop100")
SEEN = ("all", "unseen")

OWNED = {
    "model": "models",
    "dataset": "datasets",
    "seed": "seeds",
    "eval_args": "protocols",
    "repeatable": "protocols",
    "metrics": "metrics",
    "topk": "topk",
    "valid_metric": "valid_metric",
    "data_path": "data_path",
    "checkpoint_dir": "keep_models",
    "metric_decimal_place": "",
    "show_progress": "",
    "nproc": "",
    "world_size": "",
    "config_files": "",
    "save_dataset": "",
    "save_dataloaders": "",
    "dataset_save_path": "",
    "dataloaders_save_path": "",
    "show_user": "",
}
"""Options that a study sets by itself, and the key that says how."""


@dataclass(frozen=True)
class Protocol:
    """How models are asked and judged; ``docs/protocol.md`` says what each choice means."""

    split: str = "leave_one_out"
    candidates: str = "full"
    seen: str = "all"

    @property
    def name(self) -> str:
        """As in file names and on the command line: ``leave_one_out-full-all``."""
        return f"{self.split}-{self.candidates}-{self.seen}"

    @classmethod
    def of(cls, given: Any) -> Protocol:
        """Read a mapping, or a name whose last parts may be missing.

        Raises
        ------
        OptionError
            For an unknown key or choice.
        """
        names = ("split", "candidates", "seen")
        if isinstance(given, str):
            parts = given.split("-")
            if len(parts) > len(names):
                raise OptionError(f"protocols: {given!r} should be split-candidates-seen, as in temporal-full-unseen")
            given = dict(zip(names, parts, strict=False))
        if not isinstance(given, Mapping):
            raise OptionError(f"protocols: {given!r} should be a mapping with split, candidates and seen, or a name")
        for name, value in given.items():
            if name not in names:
                near = rules.suggestion(str(name), names, 0.6)
                raise OptionError(f"protocols: {name!r} is none of {', '.join(names)}{near}")
            fault = rules.Choice({"split": SPLITS, "candidates": CANDIDATES, "seen": SEEN}[name]).fault(value)
            if fault:
                raise OptionError(f"protocols: {name}: {fault}")
        return cls(**given)


@dataclass(frozen=True)
class Entry:
    """One line of the comparison: a model with options of its own, under the name it is shown by."""

    label: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A data set of a study: RecBole's name for it, and the folder of data sets it lies in."""

    name: str
    data_path: str


@dataclass(frozen=True)
class RunSpec:
    """Everything that one run needs to know; it can be written as JSON and read back.

    ``dataset`` is the label of the data set in the study, ``data_name`` its name where that is another.
    """

    study: str
    study_hash: str
    label: str
    model: str
    dataset: str
    seed: int
    protocol: Protocol
    options: Mapping[str, Any]
    temporal: Mapping[str, Any]
    metrics: Sequence[str]
    topk: Sequence[int]
    valid_metric: str
    data_path: str
    keep_model: bool = False
    shuffle_ties: bool = False
    test: bool = True
    command: str = ""
    suffix: str = ""
    data_name: str = ""

    @property
    def id(self) -> str:
        """Name of the run's files: data set, label, protocol and seed."""
        ties = "-ties" if self.shuffle_ties else ""
        return f"{safe(self.dataset)}-{safe(self.label)}-{self.protocol.name}{ties}-s{self.seed}{self.suffix}"

    def to_json(self) -> str:
        """This as JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        values["protocol"] = Protocol(**values["protocol"])
        return cls(**values)


@dataclass(frozen=True)
class Plan:
    """A study, checked; the fields are the keys of a study file, in one form each.

    ``datasets`` has labels; ``sources`` says which data those stand for whose label is not the name, or whose folder is
    not ``data_path``. ``tuned`` maps ``(data set, label or model, protocol)`` to the options chosen; ``data`` maps a
    data set to a digest of its file, so that results of other data are told apart.
    """

    name: str
    datasets: tuple[str, ...]
    models: tuple[Entry, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, Any]
    dataset_options: Mapping[str, Mapping[str, Any]]
    protocols: tuple[Protocol, ...]
    temporal: Mapping[str, Any]
    metrics: tuple[str, ...]
    topk: tuple[int, ...]
    valid_metric: str
    shuffled_ties: int
    keep_models: bool
    results: Path
    data_path: str
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    tuned_from: str | None = None
    command: str = ""
    sources: Mapping[str, Source] = field(default_factory=dict)
    test: bool = True

    def stated(self) -> dict[str, Any]:
        """What decides the numbers of this study, as plain data; where files lie does not."""
        plain = asdict(self)
        for name in ("results", "data_path", "tuned_from", "command"):
            del plain[name]
        plain["sources"] = {label: source.name for label, source in self.sources.items()}
        # What was added later is stated where it is used, so that studies from before keep their hash.
        for name, unused in (("sources", {}), ("test", True)):
            if plain[name] == unused:
                del plain[name]
        return json.loads(json.dumps(plain, default=str))

    @property
    def hash(self) -> str:
        """Digest of :meth:`stated`."""
        return hashlib.sha256(json.dumps(self.stated(), sort_keys=True).encode()).hexdigest()

    def source(self, label: str) -> Source:
        """The data that a label stands for."""
        return self.sources.get(label) or Source(label, self.data_path)

    def options_of(self, dataset: str, entry: Entry, protocol: Protocol) -> dict[str, Any]:
        """Options of a run: every run's, under the data set's (by name, then label), the tuned and the entry's own."""
        names = (f"{dataset}/{who}/{protocol.name}" for who in (entry.label, entry.model))
        tuned = next((self.tuned[name] for name in names if name in self.tuned), {})
        by_dataset: dict[str, Any] = {}
        for name in dict.fromkeys((self.source(dataset).name, dataset)):
            by_dataset |= self.dataset_options.get(name, {})
        return {**self.options, **by_dataset, **tuned, **entry.options}

    def specs(self) -> list[RunSpec]:
        """Every run of the study: seed by seed, so that a study cut short has compared all models on some seeds."""
        runs = [(seed, False) for seed in self.seeds] + [(seed, True) for seed in self.seeds[: self.shuffled_ties]]
        return [
            self._spec(dataset, entry, protocol, seed, shuffle)
            for seed, shuffle in runs
            for dataset in self.datasets
            for protocol in self.protocols
            for entry in self.models
        ]

    def _spec(self, dataset: str, entry: Entry, protocol: Protocol, seed: int, shuffle_ties: bool) -> RunSpec:
        return RunSpec(
            study=self.name,
            study_hash=self.hash,
            label=entry.label,
            model=entry.model,
            dataset=dataset,
            seed=seed,
            protocol=protocol,
            options=self.options_of(dataset, entry, protocol),
            temporal=self.temporal,
            metrics=self.metrics,
            topk=self.topk,
            valid_metric=self.valid_metric,
            data_path=self.source(dataset).data_path,
            keep_model=self.keep_models and not shuffle_ties,
            shuffle_ties=shuffle_ties,
            test=self.test,
            command=self.command,
            data_name="" if self.source(dataset).name == dataset else self.source(dataset).name,
        )


def safe(text: str) -> str:
    """``text`` as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", text)


def load(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    command: str = "",
    read_tuned: bool = True,
) -> Plan:
    """Read a study file, lay what the command line says over it, and check everything that needs no data to be read.

    Parameters
    ----------
    path : path-like, optional
        A YAML file with keys of :data:`KEYS`.
    overrides : mapping, optional
        The same keys. ``options`` there go above all others; a name in ``models`` means the file's entry of that
        label, if there is one.
    command : str
        The command that asked for the study; it is written into every run's file.
    read_tuned : bool
        False: leave ``tuned`` unread, as for the search that is to fill it.

    Returns
    -------
    Plan

    Raises
    ------
    UserError
        Naming the key, its value and what would be right: an unknown model, data set, metric, option or key, or a
        value that no study could use.
    """
    filed = options.read_config_file(path) if path is not None else {}
    given = dict(overrides or {})
    for keys, where in ((filed, f"study file {path}: "), (given, "")):
        for key in keys:
            if key not in KEYS:
                near = rules.suggestion(str(key), KEYS, 0.6)
                raise OptionError(f"{where}unknown key {key}{near or '; keys are ' + ', '.join(KEYS)}")
    entries = _entries(filed.get("models", []))
    if "models" in given:
        known = {entry.label: entry for entry in entries}
        chosen = given["models"] if isinstance(given["models"], list | tuple) else [given["models"]]
        entries = tuple(
            known[each] if isinstance(each, str) and each in known else _entries([each])[0] for each in chosen
        )
    forced = _mapping(given.pop("options", None), "options")
    merged = {**filed, **given}
    name = str(merged.get("name") or (Path(path).stem if path is not None else "study"))
    by_dataset = _mapping(merged.get("dataset_options"), "dataset_options")
    data_path = str(Path(str(merged.get("data_path") or "dataset/")).resolve())
    datasets, sources = _datasets(merged.get("datasets"), data_path)
    plan = Plan(
        name=name,
        datasets=datasets,
        models=tuple(replace(entry, options=_without(entry.options, forced)) for entry in entries),
        seeds=_seeds(merged.get("seeds", 5)),
        options={**_mapping(merged.get("options"), "options"), **forced},
        dataset_options={
            str(key): _without(_mapping(value, f"dataset_options: {key}"), forced) for key, value in by_dataset.items()
        },
        protocols=_protocols(merged.get("protocols")),
        temporal=_temporal(merged.get("temporal")),
        metrics=_metrics(merged.get("metrics") or ["Recall", "NDCG", "MRR"]),
        topk=_topk(merged.get("topk") or [5, 10, 20]),
        valid_metric=str(merged.get("valid_metric") or "NDCG@10"),
        shuffled_ties=_shuffled_ties(merged.get("shuffled_ties", 0), len(_seeds(merged.get("seeds", 5)))),
        keep_models=_flag(merged.get("keep_models", False), "keep_models"),
        results=Path(str(merged.get("results") or Path("results") / safe(name))).resolve(),
        data_path=data_path,
        command=command,
        sources=sources,
        test=_flag(merged.get("test", True), "test"),
    )
    _check_valid_metric(plan)
    _check_models(plan)
    _check_options(plan)
    plan = replace(plan, data={dataset: fingerprint(plan, dataset) for dataset in plan.datasets})
    if merged.get("tuned"):
        plan = replace(plan, tuned_from=str(Path(str(merged["tuned"])).resolve()))
    if plan.tuned_from and read_tuned:
        plan = replace(plan, tuned=_read_tuned(Path(plan.tuned_from), plan, forced))
        _check_options(plan)
    return plan


def _datasets(given: Any, data_path: str) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Labels of the data sets, and what those with a mapping stand for."""
    values = given if isinstance(given, list | tuple) else [given]
    labels, sources = [], {}
    for value in values:
        if not isinstance(value, Mapping):
            labels.append(value)
            continue
        keys = ("name", "label", "data_path")
        for key in value:
            if key not in keys:
                near = rules.suggestion(str(key), keys, 0.6)
                raise OptionError(f"datasets: {key!r} is none of {', '.join(keys)}{near}")
        for key, text in value.items():
            if not isinstance(text, str) or not text:
                raise OptionError(f"datasets: {key}: {text!r} is not a text")
        if "name" not in value:
            raise OptionError(f"datasets: {dict(value)!r} names no data set; give its name")
        label = value.get("label", value["name"])
        # A folder of a data set lies in that of all, unless it is given whole.
        sources[label] = Source(value["name"], str(Path(data_path, value.get("data_path", "")).resolve()))
        labels.append(label)
    found = _texts(labels if given is not None else None, "datasets", "ml-100k")
    _refuse_twice([safe(label) for label in found], "datasets")
    return tuple(found), sources


def _texts(given: Any, key: str, example: str) -> list[str]:
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list | tuple) or not values:
        raise OptionError(f"{key}: nothing is named; give at least one, as in {key}: [{example}]")
    for value in values:
        if not isinstance(value, str):
            raise OptionError(f"{key}: {value!r} is not a name")
    _refuse_twice(values, key)
    return list(values)


def _refuse_twice(values: Iterable[Any], key: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise OptionError(f"{key}: {value} stands there twice")
        seen.add(value)


def _mapping(given: Any, key: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise OptionError(f"{key}: {given!r} is not a mapping such as {{epochs: 20}}")
    return dict(given)


def _without(given: Mapping[str, Any], forced: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in forced}


def _entries(given: Any) -> tuple[Entry, ...]:
    values = [given] if isinstance(given, str | Mapping | Entry) else given
    if not isinstance(values, list | tuple):
        raise OptionError(f"models: {given!r} is not a list of models")
    entries = []
    for value in values:
        if isinstance(value, Entry):
            entries.append(value)
        elif isinstance(value, str):
            entries.append(Entry(value, value))
        elif isinstance(value, Mapping):
            for key in value:
                if key not in ("label", "model", "options"):
                    near = rules.suggestion(str(key), ("label", "model", "options"), 0.6)
                    raise OptionError(f"models: {key!r} is none of label, model, options{near}")
            if not isinstance(value.get("model"), str):
                raise OptionError(f"models: {dict(value)!r} names no model")
            label = str(value.get("label", value["model"]))
            entries.append(Entry(label, value["model"], _mapping(value.get("options"), f"models: {label}: options")))
        else:
            raise OptionError(f"models: {value!r} is neither a name nor a mapping with label, model and options")
    return tuple(entries)


def _whole_numbers(given: Any, key: str) -> tuple[int, ...]:
    rule = rules.ListOf(rules.Number(low=0, high=2**32 - 1, whole=True), distinct=True)
    fault = rule.fault(given)
    if fault:
        raise OptionError(f"{key}: {fault}")
    return tuple(int(each) for each in given)


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 1:
            raise OptionError(f"seeds: {given} seeds are none; choose at least 1")
        return tuple(range(FIRST_SEED, FIRST_SEED + given))
    seeds = _whole_numbers(given, "seeds")
    if not seeds:
        raise OptionError("seeds: the list is empty; give a number of seeds or a list of them")
    return seeds


def _shuffled_ties(given: Any, most: int) -> int:
    fault = rules.Number(low=0, high=most, whole=True).fault(given)
    if fault:
        raise OptionError(f"shuffled_ties: {fault}, which is the number of seeds")
    return int(given)


def _flag(given: Any, key: str) -> bool:
    fault = rules.Flag().fault(given)
    if fault:
        raise OptionError(f"{key}: {fault}")
    return bool(given)


def _protocols(given: Any) -> tuple[Protocol, ...]:
    values = [{}] if given is None else [given] if isinstance(given, str | Mapping) else given
    if not isinstance(values, list | tuple) or not values:
        raise OptionError(f"protocols: {given!r} is not a list of protocols")
    protocols = tuple(value if isinstance(value, Protocol) else Protocol.of(value) for value in values)
    _refuse_twice([protocol.name for protocol in protocols], "protocols")
    return protocols


def _temporal(given: Any) -> dict[str, Any]:
    entries = _mapping(given, "temporal")
    rules.check_global_split(entries, "temporal: ")
    if entries.get("times") is not None:
        # Dates of YAML, as seconds: a plan is written as JSON.
        entries["times"] = [seconds(each) for each in entries["times"]]
    return entries


def _metrics(given: Any) -> tuple[str, ...]:
    known = {metric.lower(): metric for metric in METRICS}
    found = []
    for metric in _texts(given, "metrics", "NDCG"):
        if metric.lower() not in known:
            near = rules.suggestion(metric, METRICS, 0.5)
            raise OptionError(
                f"metrics: {metric!r} is no metric with a value for each user, which are {', '.join(METRICS)}{near}"
            )
        found.append(known[metric.lower()])
    _refuse_twice(found, "metrics")
    return tuple(found)


def _topk(given: Any) -> tuple[int, ...]:
    values = given if isinstance(given, list | tuple) else [given]
    fault = rules.ListOf(rules.COUNT, distinct=True, filled=True).fault(values)
    if fault:
        raise OptionError(f"topk: {fault}")
    return tuple(int(value) for value in values)


def _check_valid_metric(plan: Plan) -> None:
    results = [f"{metric}@{k}" for metric in plan.metrics for k in plan.topk]
    if plan.valid_metric.lower() not in {result.lower() for result in results}:
        near = rules.suggestion(plan.valid_metric, results, 0.6)
        raise OptionError(
            f"valid_metric: {plan.valid_metric!r} is not computed; metrics and topk give {', '.join(results)}{near}"
        )


def _check_models(plan: Plan) -> None:
    if not plan.models:
        raise OptionError("models: nothing is named; give at least one, as in models: [ADRRec, SASRec]")
    for entry in plan.models:
        try:
            options.check_model(entry.model)
        except OptionError as error:
            raise OptionError(str(error).replace("model:", "models:", 1)) from error
    _refuse_twice([safe(entry.label) for entry in plan.models], "models")


def _check_options(plan: Plan) -> None:
    names = {*plan.datasets, *(source.name for source in plan.sources.values())}
    for dataset in plan.dataset_options:
        if dataset not in names:
            known = {*names, *options.property_names("dataset")}
            if dataset not in known:
                raise OptionError(
                    f"dataset_options: {dataset!r} is none of the study's data sets"
                    f"{rules.suggestion(dataset, names, 0.6)}"
                )
    sources = [(plan.options, "options")]
    sources += [(given, f"dataset_options: {name}") for name, given in plan.dataset_options.items()]
    for given, where in sources:
        refuse_owned(given, where)
        for entry in plan.models:
            options.check_names(given, entry.model, strict=True, where=where, warn=False)
    for entry in plan.models:
        refuse_owned(entry.options, f"models: {entry.label}")
        options.check_names(entry.options, entry.model, strict=True, where=f"models: {entry.label}")


def refuse_owned(given: Mapping[str, Any], where: str) -> None:
    """Refuse options that the study sets by itself.

    Raises
    ------
    OptionError
        Naming the key that says it instead.
    """
    for name in given:
        if name in OWNED:
            key = f"; say it by {OWNED[name]}" if OWNED[name] else ""
            raise OptionError(f"{where}: {name} is set by the study itself{key}")


def data_folder(dataset: str, data_path: str) -> Path:
    """Where RecBole looks for a data set: its own copy of ml-100k, else ``<data_path>/<dataset>``."""
    if dataset == "ml-100k":
        spec = importlib.util.find_spec("recbole")
        for place in (spec.submodule_search_locations if spec else None) or []:
            return Path(place, "dataset_example", dataset)
    return Path(data_path, dataset)


def fingerprint(plan: Plan, dataset: str) -> str:
    """Digest of a data set's interactions.

    Raises
    ------
    DataError
        If they are not there.
    """
    benchmark = plan.options_of(dataset, plan.models[0], plan.protocols[0]).get("benchmark_filename")
    source = plan.source(dataset)
    dataset, folder = source.name, data_folder(source.name, source.data_path)
    names = [f"{dataset}.{part}.inter" for part in benchmark] if benchmark else [f"{dataset}.inter"]
    digest = hashlib.sha256()
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except (FileNotFoundError, NotADirectoryError):
            beside = [each.name for each in folder.parent.glob("*") if each.is_dir()] if folder.parent.is_dir() else []
            near = rules.suggestion(dataset, {*beside, *options.property_names("dataset")} - {dataset}, 0.6)
            missing = options.missing_data(dataset, folder).removeprefix("dataset: ")
            raise DataError(f"datasets: {missing}{near if 'did you mean' not in missing else ''}") from None
    return digest.hexdigest()


TUNED_KEYS = ("options", "dataset", "label", "model", "protocol", "valid_metric", "value", "trials", "failed", "made")


def tuned_file(folder: Path, dataset: str, label: str, protocol: Protocol) -> Path:
    """Where the settings chosen for a model on a data set stand."""
    return folder / f"{safe(dataset)}-{safe(label)}-{protocol.name}.yaml"


def _read_tuned(folder: Path, plan: Plan, forced: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if not folder.is_dir():
        raise OptionError(f"tuned: there is no folder {folder}; benchmarks/tune.py makes one")
    tuned = {}
    for dataset in plan.datasets:
        for protocol in plan.protocols:
            for entry in plan.models:
                who = next(
                    (who for who in (entry.label, entry.model) if tuned_file(folder, dataset, who, protocol).is_file()),
                    None,
                )
                if who is None:
                    raise OptionError(
                        f"tuned: {folder} has no settings of {entry.label} on {dataset} under {protocol.name} "
                        f"({tuned_file(folder, dataset, entry.label, protocol).name}); run benchmarks/tune.py for it"
                    )
                file = tuned_file(folder, dataset, who, protocol)
                held = options.read_config_file(file)
                for key in held:
                    if key not in TUNED_KEYS:
                        raise OptionError(f"{file}: unknown key {key}{rules.suggestion(key, TUNED_KEYS, 0.6)}")
                chosen = _mapping(held.get("options"), f"{file}: options")
                refuse_owned(chosen, str(file))
                options.check_names(chosen, entry.model, strict=True, where=str(file))
                tuned[f"{dataset}/{who}/{protocol.name}"] = _without(chosen, forced)
    return tuned


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two studies, as :meth:`Plan.stated`, differ, each with both values shortened."""
    found = []
    for key in sorted({*ours, *theirs}):
        mine, yours = ours.get(key), theirs.get(key)
        if mine != yours:
            found.append(f"{key} ({_short(yours)} there, {_short(mine)} here)")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
