"""What was measured on the saved model of a run: its file beside the runs.

``<results>/measurements/<id>.json`` has rows of numbers, ``<id>.npz`` the arrays of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_adrrec.compat.files import AtomicFile
from study.plots import KernelCurve
from study.results import Results, Run, read_json

FOLDER = "measurements"
KINDS = ("robustness", "heads", "noise")

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
        arrays[f"gaps{number}"], arrays[f"added{number}"] = curve.gaps, curve.added
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
        "kernels": [{"kernel": curve.kernel, "layer": curve.layer} for curve in kernels],
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
            KernelCurve(told["kernel"], int(told["layer"]), arrays[f"gaps{number}"], arrays[f"added{number}"])
            for number, told in enumerate(facts.get("kernels") or ())
        ]
        attention: Attention | None = None
        if facts.get("attention_heads"):
            refined = arrays.get("refined", None)
            attention = arrays["plain"], refined, list(facts["attention_heads"])
    rows = {kind: facts.get(kind) or () for kind in KINDS}
    return Measurement(run, facts, **rows, kernels=kernels, attention=attention)
