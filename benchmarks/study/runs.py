"""One run of a study: train, choose the epoch on validation, test, and write the result as two whole files.

A run that is broken off leaves its checkpoints in ``scratch/<id>/saved``, and beside them, in ``progress.json``, its
curve and seconds so far. Begun again, it goes on from its last whole epoch to the figures of an unbroken run.
"""

from __future__ import annotations

import importlib
import os
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from engine import provenance
from engine.children import Child, ChildError, child_environment
from engine.store import FORMAT, now, read_json, write_json
from numpy.typing import NDArray

from recbole_adrrec.errors import CheckpointError, UserError
from recbole_adrrec.files import AtomicFile
from study.plan import Protocol, RunSpec
from study.session import Arrays, Session, configure

PROGRESS = "progress.json"


def record_path(results: Path, spec: RunSpec) -> Path:
    """The file whose existence says that a run is over."""
    return results / "runs" / f"{spec.id}.json"


def scratch_of(results: Path, spec: RunSpec) -> Path:
    """The folder of a run that is not over."""
    return results / "scratch" / spec.id


def status(results: Path, spec: RunSpec) -> str | None:
    """``done``, ``failed``, or None for a run that is not over."""
    found = read_json(record_path(results, spec))
    return None if found is None else str(found["status"])


def run_one(spec: RunSpec, folder: Path) -> None:
    """Execute one run in this process and write ``runs/<id>.npz`` and then ``runs/<id>.json`` into a results folder.

    Training and evaluation are RecBole's own: trainer, loss, early stopping, ranking and metrics. With ``spec.test``
    false it stops after validation: the test data is not ranked. Protocols of ``also_ranked`` have files of their own.
    """
    from study import protocols

    saved, begin = scratch_of(folder, spec) / "saved", time.perf_counter()
    session, before = begin_or_go_on(spec, saved)
    started = before["started"]

    def seconds() -> float:
        return float(before["wall_s"] + time.perf_counter() - begin)

    session.curve = before["curve"]
    session.changed = lambda: write_json(saved / PROGRESS, {**before, "wall_s": seconds(), "curve": session.curve})
    session.train()
    facts: dict[str, Any] = {
        **identity(spec, started),
        "wall_s": 0.0,
        "train_s": session.train_seconds,
        "epochs": len(session.curve),
        "best_epoch": session.best["epoch"],
        "best_valid": session.best["valid"],
        "valid_metric": spec.valid_metric,
        "n_parameters": sum(parameter.numel() for parameter in session.model.parameters()),
        "metrics": {},
        "query_time": bool(session.config["use_query_time"]),
        "saved": None,
        "status": "done",
        "curve": session.curve,
        "data": session.data_facts(),
        "threads": importlib.import_module("torch").get_num_threads(),
    }
    arrays: Arrays = {}
    if spec.test:
        arrays, facts["metrics"] = session.test()
        for name in spec.also_ranked:
            other = replace(spec, protocol=Protocol.of(name))
            session.test_data = protocols.restricted(other.protocol, session.config, session.all_ranked, "test")
            values, metrics = session.test()
            beside = {**identity(other, started), "metrics": metrics, "trained_by": spec.id}
            write_record(folder, other, {**facts, **beside}, values)
    if spec.keep_model:
        kept = folder / "models" / f"{spec.id}.pth"
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(session.trainer.saved_model_file, kept)
        facts["saved"] = str(kept)
    facts["wall_s"] = seconds()
    write_record(folder, spec, facts, arrays)
    shutil.rmtree(saved)


def begin_or_go_on(spec: RunSpec, saved: Path) -> tuple[Session, dict[str, Any]]:
    """Session of a run, and its progress so far: ``origin``, ``started``, ``wall_s`` and ``curve``.

    It goes on where it has a checkpoint made by the same code and versions on the same kind of processor, and starts
    over where it has none, as do trainers with epochs of their own.
    """
    origin = provenance.origin()
    origin["hardware"] = {name: origin["hardware"][name] for name in ("cpu", "gpu")}
    before, last = read_json(saved / PROGRESS), next(saved.glob("*-last.pth"), None)
    if last is not None and before is not None:
        try:
            if before["origin"] != origin:
                raise CheckpointError("commit, versions or processor are not those that it began with")
            return Session(spec, configure(spec, saved, last)), before
        except UserError as error:
            print(f"The run starts over: {error}", flush=True)
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir(parents=True)
    anew = {"origin": origin, "started": now(), "wall_s": 0.0, "curve": []}
    return Session(spec, configure(spec, saved)), anew


def identity(spec: RunSpec, started: str) -> dict[str, Any]:
    """The part of a run's file that does not depend on how the run ended."""
    split, candidates, seen = asdict(spec.protocol).values()
    ties = "shuffled" if spec.shuffle_ties else "file"
    return {
        "format": FORMAT,
        "study": spec.study,
        "study_hash": spec.study_hash,
        "label": spec.label,
        "model": spec.model,
        "dataset": spec.dataset,
        **({"data_name": spec.data_name} if spec.data_name else {}),
        "seed": spec.seed,
        "protocol": {"split": split, "candidates": candidates, "seen": seen, "ties": ties},
        "temporal": dict(spec.temporal) if split == "temporal" else None,
        "options": dict(spec.options),
        "command": spec.command,
        **provenance.origin(),
        "started": started,
    }


def write_record(folder: Path, spec: RunSpec, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a run's two files, each whole, the one that says that it is over last."""
    path = record_path(folder, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        with AtomicFile(path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_json(path, facts)


def write_failure(folder: Path, spec: RunSpec, error: str, started: str, seconds: float) -> None:
    """Record that a run failed, and why."""
    empty = {"valid_metric": spec.valid_metric, "metrics": {}, "query_time": False, "saved": None, "curve": []}
    facts = {**identity(spec, started), "wall_s": seconds, **empty, "status": "failed", "error": error}
    write_record(folder, spec, facts, {})


# A process of its own


class RunChild(Child):
    """One run in a child process, whose end is recorded, whatever the end."""

    def __init__(self, spec: RunSpec, results: Path, environment: Mapping[str, str] | None = None) -> None:
        self.spec, self.results = spec, results
        self.started, self.begin = now(), time.perf_counter()
        (results / "logs").mkdir(parents=True, exist_ok=True)
        super().__init__(
            "study.runs:run_recorded",
            {"spec": asdict(spec), "results": str(results)},
            scratch_of(results, spec) / "child",
            results / "logs" / f"{spec.id}.log",
            environment=child_environment(environment),
        )

    def finish(self) -> str:
        """Wait for the end, record a failure that the process could not record itself; ``done`` or ``failed``.

        The checkpoints of a run that was killed stay: run again, it goes on from them.
        """
        try:
            self.result()
        except ChildError as error:
            if status(self.results, self.spec) is None:
                seconds = time.perf_counter() - self.begin
                write_failure(self.results, self.spec, str(error), self.started, seconds)
                return "failed"
        shutil.rmtree(scratch_of(self.results, self.spec), ignore_errors=True)
        return str(status(self.results, self.spec))


def run_recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The child's side of :class:`RunChild`: run, and record a failure with its error."""
    spec, folder = RunSpec.of(given["spec"]), Path(given["results"])
    started, begin = now(), time.perf_counter()
    try:
        run_one(spec, folder)
    except Exception as error:
        text = str(error)
        if not isinstance(error, UserError):
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        write_failure(folder, spec, text, started, time.perf_counter() - begin)
    return {}


def sweep(results: Path) -> None:
    """Make the folders of runs, and remove what a killed study left, but for checkpoints of runs that are not done.

    Nobody else may be at work there.
    """
    for name in ("runs", "logs", "scratch"):
        (results / name).mkdir(parents=True, exist_ok=True)
    for left in (results / "runs").glob(".*.tmp"):
        left.unlink()
    for folder in (results / "scratch").iterdir():
        record = read_json(results / "runs" / f"{folder.name}.json")
        done = record is not None and record["status"] == "done"
        if done or not (folder / "saved" / PROGRESS).is_file():
            shutil.rmtree(folder, ignore_errors=True)
