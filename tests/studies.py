"""Small studies for tests, and a stand-in for the processes of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from study import grid, runs, search, study_file
from study import plan as plans

OPTIONS = {
    "hidden_size": 8,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 10,
    "epochs": 1,
    "user_inter_num_interval": "[20,60]",
}


def plan_of(folder: Path, results: Path, **study: Any) -> plans.Plan:
    given = {"datasets": ["small"], "models": ["ADRRec"], "seeds": 1, "metrics": ["NDCG"], "topk": [10], "name": "tiny"}
    options = {**OPTIONS, **study.pop("options", {})}
    return study_file.load(
        None, {**given, **study, "options": options, "data_path": str(folder), "results": str(results)}, "the command"
    )


class Instant:
    """In place of a child process: the run is over at once; ``bad`` names runs that fail."""

    started: ClassVar[list[str]] = []
    bad: ClassVar[tuple[str, ...]] = ()
    ended = True

    def __init__(self, spec: plans.RunSpec, results: Path, environment: Any = None) -> None:
        self.spec, self.results, self.environment = spec, results, dict(environment or {})
        type(self).started.append(self.spec.id)

    def finish(self) -> str:
        status = "failed" if self.spec.id in self.bad else "done"
        facts = {"status": status, "error": "an error", "metrics": {}, "best_valid": float(self.spec.seed)}
        runs.write_record(self.results, self.spec, facts, {})
        return status

    def stop(self) -> None:
        raise AssertionError("nothing was at work")


def use(monkeypatch: pytest.MonkeyPatch, child: type[Instant]) -> type[Instant]:
    monkeypatch.setattr(child, "started", [])
    monkeypatch.setattr(child, "bad", ())
    for module in (grid, search):
        monkeypatch.setattr(module, "RunChild", child)
    return child


def command(small_data: Path, results: Path, *more: str) -> list[str]:
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    study = ["--datasets", "small", "--models", "ADRRec", "--seeds", "1", "--metrics", "NDCG", "--topk", "10"]
    return [*study, *options, "--data_path", str(small_data), "--results", str(results), *more]
