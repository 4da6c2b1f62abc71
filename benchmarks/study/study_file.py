"""Study files: reading one, laying the command line over it, and checking all that needs no data to be loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.data import data_file

from recbole_adrrec import options
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.options import rules
from recbole_adrrec.times import seconds
from study import checks
from study.plan import Entry, Plan, Protocol, Source, safe

KEYS: dict[str, str] = {
    "name": "name of the study; the file's, if unset",
    "datasets": "names of data sets, or mappings with name, label and data_path",
    "models": "names of models, or mappings with label, model, options and reference (the label it is compared with)",
    "seeds": "how many seeds (2020 and up), or a list of them",
    "options": "options of every run, as on RecBole's command line",
    "dataset_options": "options by data set, over those of every run",
    "protocols": "mappings with split, candidates and seen, or their names, such as temporal-full-unseen",
    "also_ranked": "protocols under which each trained model is tested too, with the epoch that its own has chosen",
    "temporal": "entries of the temporal split: shares or times, targets, cold_items, cold_users",
    "metrics": "RecBole's metrics of ranking, Novelty and IntraListDiversity",
    "topk": "lengths of the recommended list",
    "valid_metric": "metric that chooses epochs and, when tuning, settings; on validation alone",
    "test": "whether the chosen models are tested; false: the study sees validation alone, and has no report",
    "shuffled_ties": "how many of the seeds are run again with tie_order random, the n-th with tie_seed n",
    "tuned": "folder of settings that tune.py chose",
    "keep_models": "whether the trained models are kept",
    "results": "folder of the results",
    "data_path": "folder of the data sets",
}
"""Keys of a study file and their meaning."""

FIRST_SEED = 2020
ACCURACY = ("Recall", "MRR", "NDCG", "Hit", "MAP", "Precision")
"""Metrics that can choose epochs and settings."""

METRICS = (*ACCURACY, "Novelty", "IntraListDiversity", "ItemCoverage", "GiniIndex", "ShannonEntropy")
"""Metrics of a study; the last three have one value for all users together."""

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
    **dict.fromkeys(("metric_decimal_place", "show_progress", "nproc", "world_size", "config_files", "show_user"), ""),
    **dict.fromkeys(("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"), ""),
}
"""Options that a study sets by itself, and the key that does so."""

TUNED_KEYS = ("options", "dataset", "label", "model", "protocol", "valid_metric", "value", "trials", "failed", "made")


def load(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    command: str = "",
    read_tuned: bool = True,
) -> Plan:
    """Read a study file with keys of :data:`KEYS`, lay what the command line says over it, and check it.

    ``options`` in ``overrides`` go above all others; a name in ``models`` means the file's entry of that label, if
    there is one. The ``command`` is written into every run's file. ``read_tuned=False`` leaves ``tuned`` unread, as for
    the search that is to fill it.

    Raises
    ------
    UserError
        Naming the key, its value and what would be right.
    """
    filed = options.read_config_file(path) if path is not None else {}
    given = dict(overrides or {})
    checks.keys(filed, KEYS, f"study file {path}")
    checks.keys(given, KEYS, "study")
    entries = _entries(filed.get("models", []))
    if "models" in given:
        known = {entry.label: entry for entry in entries}
        chosen = checks.listed(given["models"], "models", "ADRRec, SASRec")
        entries = [known[each] if isinstance(each, str) and each in known else _entry(each) for each in chosen]
    forced = checks.mapping(given.pop("options", None), "options")
    merged = {**filed, **given}
    name = str(merged.get("name") or (Path(path).stem if path is not None else "study"))
    data_path = str(Path(str(merged.get("data_path") or "dataset/")).resolve())
    datasets, sources = _datasets(merged.get("datasets"), data_path)
    by_dataset = checks.mapping(merged.get("dataset_options"), "dataset_options")
    seeds = _seeds(merged.get("seeds", 5))
    protocols = _protocols(merged.get("protocols") or [{}], "protocols")
    also = _protocols(merged["also_ranked"], "also_ranked") if merged.get("also_ranked") else ()
    for other in also:
        checks.one_of(other.split, [protocol.split for protocol in protocols], f"also_ranked: {other.name}: split")
    plan = Plan(
        name=name,
        datasets=datasets,
        models=tuple(replace(entry, options=_without(entry.options, forced)) for entry in entries),
        seeds=seeds,
        options={**checks.mapping(merged.get("options"), "options"), **forced},
        dataset_options={
            str(key): _without(checks.mapping(value, f"dataset_options: {key}"), forced)
            for key, value in by_dataset.items()
        },
        protocols=protocols,
        temporal=_temporal(merged.get("temporal")),
        metrics=_metrics(merged.get("metrics") or ["Recall", "NDCG", "MRR"]),
        topk=_numbers(merged.get("topk") or [5, 10, 20], "topk", 1),
        valid_metric=str(merged.get("valid_metric") or "NDCG@10"),
        shuffled_ties=checks.whole(merged.get("shuffled_ties", 0), "shuffled_ties", 0, len(seeds)),
        keep_models=checks.flag(merged.get("keep_models", False), "keep_models"),
        results=Path(str(merged.get("results") or Path("results") / safe(name))).resolve(),
        data_path=data_path,
        command=command,
        sources=sources,
        test=checks.flag(merged.get("test", True), "test"),
        also_ranked=tuple(other.name for other in also),
        tuned_from=str(Path(str(merged["tuned"])).resolve()) if merged.get("tuned") else None,
    )
    _check_models(plan)
    _check_options(plan)
    plan = replace(plan, data={dataset: fingerprint(plan, dataset) for dataset in plan.datasets})
    if plan.tuned_from and read_tuned:
        plan = replace(plan, tuned=_read_tuned(Path(plan.tuned_from), plan, forced))
    return plan


# Keys


def _datasets(given: Any, data_path: str) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Labels of the data sets, and what those with a mapping stand for."""
    labels, sources = [], {}
    for value in checks.listed(given, "datasets", "ml-100k"):
        if not isinstance(value, Mapping):
            labels.append(checks.text(value, "datasets"))
            continue
        checks.keys(value, ("name", "label", "data_path"), "datasets")
        for key, each in value.items():
            checks.text(each, f"datasets: {key}")
        if "name" not in value:
            raise OptionError(f"datasets: {dict(value)!r} names no data set; give its name")
        labels.append(value.get("label", value["name"]))
        # A folder of a data set lies in that of all, unless it is given whole.
        sources[labels[-1]] = Source(value["name"], str(Path(data_path, value.get("data_path", "")).resolve()))
    checks.distinct(map(safe, labels), "datasets")
    return tuple(labels), sources


def _without(given: Mapping[str, Any], forced: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in forced}


def _entries(given: Any) -> list[Entry]:
    return [_entry(value) for value in (given if isinstance(given, list | tuple) else [given])]


def _entry(given: Any) -> Entry:
    if isinstance(given, Entry):
        return given
    if isinstance(given, str):
        return Entry(given, given)
    if not isinstance(given, Mapping):
        raise OptionError(f"models: {given!r} is neither a name nor a mapping with label, model and options")
    checks.keys(given, ("label", "model", "options", "reference"), "models")
    if not isinstance(given.get("model"), str):
        raise OptionError(f"models: {dict(given)!r} names no model")
    label = str(given.get("label", given["model"]))
    own = checks.mapping(given.get("options"), f"models: {label}: options")
    return Entry(label, given["model"], own, given.get("reference"))


def _numbers(given: Any, key: str, low: int) -> tuple[int, ...]:
    found = tuple(checks.whole(each, key, low) for each in checks.listed(given, key, "10"))
    checks.distinct(found, key)
    return found


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int):
        return tuple(range(FIRST_SEED, FIRST_SEED + checks.whole(given, "seeds")))
    return _numbers(given, "seeds", 0)


def _protocols(given: Any, key: str) -> tuple[Protocol, ...]:
    values = checks.listed(given, key, "leave_one_out-full-all")
    found = tuple(value if isinstance(value, Protocol) else Protocol.of(value) for value in values)
    checks.distinct([protocol.name for protocol in found], key)
    return found


def _temporal(given: Any) -> dict[str, Any]:
    entries = checks.mapping(given, "temporal")
    rules.check_global_split(entries, "temporal: ")
    if entries.get("times") is not None:
        # Dates of YAML, as seconds: a plan is written as JSON.
        entries["times"] = [seconds(each) for each in entries["times"]]
    return entries


def _metrics(given: Any) -> tuple[str, ...]:
    known = {metric.lower(): metric for metric in METRICS}
    names = [checks.text(each, "metrics") for each in checks.listed(given, "metrics", "NDCG")]
    found = tuple(known.get(name.lower()) or checks.one_of(name, METRICS, "metrics") for name in names)
    checks.distinct(found, "metrics")
    return found


# Models and options


def _check_models(plan: Plan) -> None:
    results = [f"{metric}@{k}" for metric in plan.metrics if metric in ACCURACY for k in plan.topk]
    if plan.valid_metric.lower() not in {result.lower() for result in results}:
        checks.one_of(plan.valid_metric, results, "valid_metric")
    checks.listed(plan.models, "models", "ADRRec, SASRec")
    labels = [entry.label for entry in plan.models]
    checks.distinct(map(safe, labels), "models")
    for entry in plan.models:
        try:
            options.check_model(entry.model)
        except OptionError as error:
            raise OptionError(str(error).replace("model:", "models:", 1)) from error
        if entry.reference is not None:
            checks.one_of(entry.reference, labels, f"models: {entry.label}: reference")


def _check_options(plan: Plan) -> None:
    names = {*plan.datasets, *(source.name for source in plan.sources.values())}
    for dataset in plan.dataset_options:
        if dataset not in options.property_names("dataset"):
            checks.one_of(dataset, sorted(names), "dataset_options")
    sources = [("options", plan.options)]
    sources += [(f"dataset_options: {name}", given) for name, given in plan.dataset_options.items()]
    for entry in plan.models:
        for where, given in sources:
            refuse_owned(given, where)
            options.check_names(given, entry.model, strict=True, where=where, warn=False)
        where = f"models: {entry.label}"
        refuse_owned(entry.options, where)
        options.check_names(entry.options, entry.model, strict=True, where=where)


def refuse_owned(given: Mapping[str, Any], where: str) -> None:
    """Refuse options that the study sets by itself, by an ``OptionError`` that names the key that does so."""
    for name in given:
        if name in OWNED:
            key = f"; set it by {OWNED[name]}" if OWNED[name] else ""
            raise OptionError(f"{where}: {name} is set by the study itself{key}")


# Data and tuned settings


def fingerprint(plan: Plan, dataset: str) -> str:
    """Digest of a data set's interactions; ``DataError`` if they are not there."""
    benchmark = plan.options_of(dataset, plan.models[0], plan.protocols[0]).get("benchmark_filename")
    source = plan.source(dataset)
    name, folder = source.name, data_file(source.name, source.data_path).parent
    digest = hashlib.sha256()
    for part in [f"{name}.{each}" for each in benchmark] if benchmark else [name]:
        try:
            with (folder / f"{part}.inter").open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except (FileNotFoundError, NotADirectoryError):
            missing = options.missing_data(name, folder).removeprefix("dataset: ")
            if "did you mean" not in missing:
                beside = {each.name for each in folder.parent.glob("*") if each.is_dir()}
                missing += rules.suggestion(name, {*beside, *options.property_names("dataset")} - {name}, 0.6)
            raise DataError(f"datasets: {missing}") from None
    return digest.hexdigest()


def tuned_file(folder: Path, dataset: str, label: str, protocol: Protocol) -> Path:
    """File of the settings chosen for a model on a data set."""
    return folder / f"{safe(dataset)}-{safe(label)}-{protocol.name}.yaml"


def _read_tuned(folder: Path, plan: Plan, forced: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Chosen settings by ``data set/label or model/protocol``; a label's own go above those of its model."""
    if not folder.is_dir():
        raise OptionError(f"tuned: there is no folder {folder}; benchmarks/tune.py makes one")
    tuned = {}
    for dataset in plan.datasets:
        for protocol in plan.protocols:
            for entry in plan.models:
                files = {who: tuned_file(folder, dataset, who, protocol) for who in (entry.label, entry.model)}
                found = next(((who, file) for who, file in files.items() if file.is_file()), None)
                if found is None:
                    raise OptionError(
                        f"tuned: {folder} has no settings of {entry.label} on {dataset} under {protocol.name} "
                        f"({files[entry.label].name}); run benchmarks/tune.py for it"
                    )
                who, file = found
                held = options.read_config_file(file)
                checks.keys(held, TUNED_KEYS, str(file))
                chosen = checks.mapping(held.get("options"), f"{file}: options")
                refuse_owned(chosen, str(file))
                options.check_names(chosen, entry.model, strict=True, where=str(file))
                tuned[f"{dataset}/{who}/{protocol.name}"] = _without(chosen, forced)
    return tuned
