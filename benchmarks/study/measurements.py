"""Measurements of the saved model of a run: ``<results>/measurements/<id>.json`` beside the runs."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.store import write_json
from tqdm import tqdm

from recbole_adrrec.errors import CheckpointError
from study.plan import Protocol, RunSpec
from study.results import Results, Run, read_object

FOLDER = "measurements"
KINDS = ("robustness", "heads")


@dataclass(frozen=True)
class Measurement:
    """Measurements of one run; ``facts`` is the whole JSON, each row has ``drop``, the share of the metric lost."""

    run: Run
    facts: Mapping[str, Any]

    @property
    def robustness(self) -> Sequence[Mapping[str, Any]]:
        """A row for each kind of change and share."""
        return self.facts.get("robustness") or ()

    @property
    def heads(self) -> Sequence[Mapping[str, Any]]:
        """A row for each head, kernel or group of them that was silenced."""
        return self.facts.get("heads") or ()


def path_of(results_folder: Path, run_id: str) -> Path:
    """The JSON of a run's measurements."""
    return results_folder / FOLDER / f"{run_id}.json"


def read_measurements(results: Results) -> list[Measurement]:
    """All measurements of finished runs, in the order of the tables; ``DataError`` if a file is not readable."""
    runs = [run for table in results.tables.values() for each in table.values() for run in each]
    found = [(run, path_of(results.folder, run.id)) for run in runs]
    return [Measurement(run, read_object(path)) for run, path in found if path.is_file()]


def spec_of(results: Results, run: Run, data_path: str) -> RunSpec:
    """The plan of a finished run; no file of results names the folder of the data sets."""
    stated = results.stated
    return RunSpec(
        study=str(run.facts.get("study")),
        study_hash=str(run.facts.get("study_hash")),
        label=run.label,
        model=str(run.facts["model"]),
        dataset=run.table.dataset,
        seed=run.seed,
        protocol=Protocol(run.table.split, run.table.candidates, run.table.seen),
        options=run.facts["options"],
        temporal=run.facts.get("temporal") or stated.get("temporal", {}),
        metrics=stated["metrics"],
        topk=stated["topk"],
        valid_metric=str(run.facts["valid_metric"]),
        data_path=data_path,
        data_name=str(run.facts.get("data_name", "")),
    )


def specs_of(results: Results, data_path: str) -> list[RunSpec]:
    """The finished runs of a folder whose models were kept."""
    kept = [run for run in results.done if (results.folder / "models" / f"{run.id}.pth").is_file()]
    return [spec_of(results, run, data_path) for run in kept]


def measured_kinds(results_folder: Path, run_id: str) -> set[str]:
    """Kinds of measurement of a run's model that are written."""
    path = path_of(results_folder, run_id)
    return set(read_object(path).get("asked", ())) if path.is_file() else set()


def measure_missing(
    wanted: Sequence[tuple[RunSpec, Collection[str]]],
    results_folder: Path,
    command: str,
    shares: Sequence[float] | None = None,
    deadline: float | None = None,
) -> bool:
    """Measure the models that were not measured in all their kinds; False if ``deadline`` came before all were."""
    missing = [(spec, kinds) for spec, kinds in wanted if not set(kinds) <= measured_kinds(results_folder, spec.id)]
    for spec, kinds in tqdm(missing, desc="measured", unit="model", disable=not missing):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        measure(spec, results_folder, command, sorted(kinds), shares)
    return True


def measure(
    spec: RunSpec,
    results_folder: Path,
    command: str,
    kinds: Sequence[str] = KINDS,
    shares: Sequence[float] | None = None,
) -> Path:
    """Measure the saved model of a finished run; heads are those of models of ours alone. Returns the JSON's path.

    Raises
    ------
    CheckpointError
        If the run's model was not kept, or does not give the run's figures again.
    """
    from study import heads, robustness
    from study.runs import record_path
    from study.session import load_trained

    begin = time.perf_counter()
    session, arrays = load_trained(spec, results_folder / "models" / f"{spec.id}.pth")
    metric = spec.valid_metric.lower()
    clean = arrays[metric]
    recorded = read_object(record_path(results_folder, spec))["metrics"][metric]
    if abs(float(clean.mean()) - recorded) > 1e-6:
        raise CheckpointError(
            f"{spec.id}: the saved model gives {metric} {clean.mean():.6f}, the run had {recorded:.6f}"
        )
    facts: dict[str, Any] = {"run": spec.id, "metric": metric, "command": command, "asked": list(kinds), "format": 1}
    if "robustness" in kinds:
        facts["robustness"] = robustness.robustness_rows(session, metric, clean, shares or robustness.SHARES)
    if "heads" in kinds and heads.attentions(session.model):
        facts["heads"] = heads.head_rows(session, metric, clean)
    facts["wall_s"] = time.perf_counter() - begin
    path = path_of(results_folder, spec.id)
    write_json(path, facts)
    return path
