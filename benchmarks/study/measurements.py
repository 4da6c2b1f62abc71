"""What was measured on the saved model of a run: its file beside the runs.

``<results>/measurements/<id>.json`` has rows of numbers, ``<id>.npz`` the arrays of pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.files import AtomicFile
from study.plan import Protocol, RunSpec
from study.plots import KernelCurve
from study.results import Results, Run, read_json

FOLDER = "measurements"
KINDS = ("robustness", "heads", "noise")
CURVE = ("gaps", "added", "low", "high")

Attention = tuple[NDArray[Any], "NDArray[Any] | None", list[str]]


@dataclass(frozen=True)
class Measurement:
    """Measurements of one run.

    Attributes
    ----------
    run : Run
        Whose saved model was measured.
    facts : mapping
        The whole JSON: ``metric``, ``command``, ``wall_s``, ``lni``, ``user``.
    robustness, heads, noise : sequence of mapping
        Rows; each has ``drop``, the share of the metric that is lost.
    kernels : sequence of KernelCurve
        What relative heads add over gaps.
    attention : (plain, refined or None, names of heads), optional
        Weights of one user in the last layer, Float[H, L, L].
    """

    run: Run
    facts: Mapping[str, Any]
    robustness: Sequence[Mapping[str, Any]]
    heads: Sequence[Mapping[str, Any]]
    noise: Sequence[Mapping[str, Any]]
    kernels: Sequence[KernelCurve]
    attention: Attention | None


def path_of(results_folder: Path, run_id: str) -> Path:
    """The JSON of a run's measurements."""
    return results_folder / FOLDER / f"{run_id}.json"


def write_measurement(
    results_folder: Path,
    run_id: str,
    facts: Mapping[str, Any],
    kernels: Sequence[KernelCurve] = (),
    attention: Attention | None = None,
) -> None:
    """Write the measurements of a run; the JSON comes last, so that it stands for both files."""
    path = path_of(results_folder, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {}
    for number, curve in enumerate(kernels):
        arrays |= {f"{part}{number}": getattr(curve, part) for part in CURVE}
    if attention is not None:
        plain, refined, _ = attention
        arrays["plain"] = plain.astype(np.float32)
        if refined is not None:
            arrays["refined"] = refined.astype(np.float32)
    with AtomicFile(path.with_suffix(".npz")) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    told = {
        **facts,
        "format": 1,
        "kernels": [{"kernel": curve.kernel, "layer": curve.layer, "head": curve.head} for curve in kernels],
        "attention_heads": None if attention is None else attention[2],
    }
    with AtomicFile(path) as file:
        file.write(json.dumps(told, indent=1).encode())


def read_measurements(results: Results) -> list[Measurement]:
    """All measurements of finished runs, in the order of the tables.

    Raises
    ------
    DataError
        If a file is not readable.
    """
    found = []
    for table in results.tables.values():
        for run in (run for runs in table.values() for run in runs):
            path = path_of(results.folder, run.id)
            if path.is_file():
                found.append(_read(run, path))
    return found


def _read(run: Run, path: Path) -> Measurement:
    facts = read_json(path)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        kernels = [
            KernelCurve(
                told["kernel"],
                int(told["layer"]),
                **{part: arrays[f"{part}{number}"] for part in CURVE},
                head=told.get("head"),
            )
            for number, told in enumerate(facts.get("kernels") or ())
        ]
        attention: Attention | None = None
        if facts.get("attention_heads"):
            refined = arrays.get("refined", None)
            attention = arrays["plain"], refined, list(facts["attention_heads"])
    rows = {kind: facts.get(kind) or () for kind in KINDS}
    return Measurement(run, facts, **rows, kernels=kernels, attention=attention)


def specs_of(results: Results, data_path: str) -> list[RunSpec]:
    """What the finished runs of a folder were told, for those whose models were kept.

    Parameters
    ----------
    results : Results
        With the ``study.json`` that states the study.
    data_path : str
        Folder of the data sets, which no file of results names.
    """
    stated = results.stated
    return [
        RunSpec(
            study=str(run.facts.get("study")),
            study_hash=str(run.facts.get("study_hash")),
            label=run.label,
            model=str(run.facts["model"]),
            dataset=run.protocol.dataset,
            seed=run.seed,
            protocol=Protocol(run.protocol.split, run.protocol.candidates, run.protocol.seen),
            options=run.facts["options"],
            temporal=run.facts.get("temporal") or stated.get("temporal", {}),
            metrics=stated["metrics"],
            topk=stated["topk"],
            valid_metric=str(run.facts["valid_metric"]),
            data_path=data_path,
            data_name=str(run.facts.get("data_name", "")),
        )
        for run in results.done
        if (results.folder / "models" / f"{run.id}.pth").is_file()
    ]


def measured_kinds(results_folder: Path, run_id: str) -> set[str]:
    """What was asked of a run's model and is written."""
    path = path_of(results_folder, run_id)
    return set(read_json(path).get("asked", ())) if path.is_file() else set()


def measure(
    spec: RunSpec,
    results_folder: Path,
    command: str,
    kinds: Sequence[str] = KINDS,
    shares: Sequence[float] | None = None,
) -> Path:
    """Measure the saved model of a finished run, and write what was found.

    Parameters
    ----------
    spec : RunSpec
        The run.
    results_folder : Path
        Where its files are.
    command : str
        What asked for it, for the report.
    kinds : sequence of str
        Which of ``robustness``, ``heads``, ``noise``; the last two, kernels and attention are of models of ours alone.
    shares : sequence of float, optional
        Parts of the history that are changed.

    Returns
    -------
    Path
        The JSON.

    Raises
    ------
    CheckpointError
        If the run's model was not kept, or does not give the run's figures again.
    """
    from study import heads, loaded, robustness

    begin = time.perf_counter()
    trained = loaded.load(spec, results_folder / "models" / f"{spec.id}.pth")
    metric = spec.valid_metric.lower()
    clean = trained.values(metric)[metric]
    told = read_json(results_folder / "runs" / f"{spec.id}.json")["metrics"][metric]
    if abs(float(clean.mean()) - told) > 1e-6:
        raise CheckpointError(f"{spec.id}: the saved model gives {metric} {clean.mean():.6f}, the run had {told:.6f}")
    facts: dict[str, Any] = {"run": spec.id, "metric": metric, "command": command, "asked": list(kinds)}
    ours = bool(heads.attentions(trained.model)) and hasattr(trained.model, "explain")
    if "robustness" in kinds:
        facts["robustness"] = robustness.robustness_rows(
            trained, metric, clean, shares=robustness.SHARES if shares is None else shares
        )
    if ours and "heads" in kinds:
        facts["heads"] = heads.head_rows(trained, metric, clean)
    if ours and "noise" in kinds:
        facts["noise"] = heads.noise_rows(trained, metric, clean)
        facts["lni"] = _noise_in_training(trained.config)
    kernels, attention = [], None
    if ours and "heads" in kinds:
        kernels = heads.learned_kernels(trained, metric)
        facts["user"], *_ = pictured = heads.one_users_attention(trained)
        attention = pictured[1:]
    facts["wall_s"] = time.perf_counter() - begin
    write_measurement(results_folder, spec.id, facts, kernels, attention)
    return path_of(results_folder, spec.id)


def _noise_in_training(config: Any) -> str:
    """Noise of a model, as a few words."""
    weight = config["lni_weight"]
    if not weight:
        return "none"
    return f"{config['lni_noise']}, size {config['lni_sigma']:g}, weight {weight:g}"
