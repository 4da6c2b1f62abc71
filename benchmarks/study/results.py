"""Reading a folder of finished runs.

``<results>/runs/<id>.json`` and ``<id>.npz`` are one run; a run is over when its JSON is there. Nothing here trains,
and nothing needs RecBole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recbole_adrrec.errors import DataError
from study import checks
from study.statistics import Sample

SETTINGS = "report.json"
NEEDED = ("label", "model", "dataset", "seed", "protocol", "status")


@dataclass(frozen=True, order=True)
class TableKey:
    """Everything that figures must share to stand in one table: data set, protocol, query time known, order of ties."""

    dataset: str
    split: str
    candidates: str
    seen: str
    query_time: bool
    ties: str = "file"

    @property
    def sampled(self) -> bool:
        """True where items are ranked among a sample only."""
        return self.candidates != "full"

    @property
    def split_name(self) -> str:
        """Split in words."""
        return {"leave_one_out": "leave-one-out", "temporal": "temporal split"}.get(self.split, self.split)

    @property
    def ranked(self) -> str:
        """Split and ranked items in words."""
        if not self.sampled:
            ranked = "all items ranked" if self.seen == "all" else "only items new to the user ranked"
        else:
            drawn = {"pop100": "100 negatives by popularity"}.get(self.candidates, self.candidates)
            ranked = f"SAMPLED: {drawn}"
            ranked += ", items known to the user among them" if self.seen == "all" else ", all new to the user"
        return f"{self.split_name}, {ranked}" + ("" if self.ties == "file" else f", ties {self.ties}")

    @property
    def title(self) -> str:
        """Everything that figures in the table share, in words."""
        return f"{self.dataset}: {self.ranked}, query time {'known' if self.query_time else 'not known'}"

    @property
    def key(self) -> str:
        """A name for files and anchors."""
        known = "query-time" if self.query_time else "no-query-time"
        ties = () if self.ties == "file" else (self.ties,)
        return slug("-".join([self.dataset, self.split, self.candidates, self.seen, known, *ties]))


def slug(text: str) -> str:
    """``text`` as a part of a file's name or an anchor."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


@dataclass(frozen=True)
class Run:
    """One finished run, as its files have it; ``facts`` is the whole JSON."""

    id: str
    facts: Mapping[str, Any]
    arrays: Path | None

    @property
    def label(self) -> str:
        """Shown name."""
        return str(self.facts["label"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.facts["seed"])

    @property
    def failed(self) -> bool:
        """True where it ended with an error."""
        return bool(self.facts["status"] != "done")

    @property
    def table(self) -> TableKey:
        """The table of its figures."""
        named = self.facts["protocol"]
        split, candidates, seen = (str(named[name]) for name in ("split", "candidates", "seen"))
        query_time, ties = bool(self.facts.get("query_time", False)), str(named.get("ties") or "file")
        return TableKey(str(self.facts["dataset"]), split, candidates, seen, query_time, ties)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Test metrics, ``{"ndcg@10": 0.1}``."""
        found: Mapping[str, float] = self.facts["metrics"]
        return found

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Seconds of training up to each epoch with a validation score, and these scores."""
        points = [point for point in self.facts.get("curve") or () if point.get("valid") is not None]
        return [float(point["train_s"]) for point in points], [float(point["valid"]) for point in points]

    @cached_property
    def _loaded(self) -> dict[str, NDArray[Any]]:
        if self.arrays is None:
            return {}
        try:
            with np.load(self.arrays, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except Exception as error:
            raise DataError(f"{self.arrays}: not readable as arrays of a run ({error}); remove the run") from error

    def by_user(self, metric: str) -> pd.Series | None:
        """Values of the users, each once and sorted; the mean, where a user has several. None without any."""
        found = self._loaded
        if "users" not in found or metric not in found:
            return None
        users, values = found["users"].astype(str), np.asarray(found[metric], dtype=np.float64)
        if len(values) != len(users):
            raise DataError(f"{self.arrays}: {len(values)} values of {metric} for {len(users)} users; remove the run")
        means = by_user(users, {metric: values})
        return pd.Series(means[metric], means["users"].astype(object))


def by_user(users: NDArray[np.str_], rows: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[Any]]:
    """``users``, each once and in order, and for each metric their values; the mean, where a user has several rows."""
    unique, place = np.unique(users, return_inverse=True)
    counts = np.bincount(place)
    means = {name: np.bincount(place, values, len(unique)) / counts for name, values in rows.items()}
    return {"users": unique, **means}


@dataclass(frozen=True)
class Settings:
    """Settings of a report, from ``<results>/report.json`` where they are not left to their defaults.

    ``ours`` are models that are none of the baselines, ``baselines`` beginnings of the shown names of entries that are
    baselines all the same, such as SASRec, which is AWRSR without refinement. ``metric`` is tested and drawn; that of
    early stopping where empty. ``references`` has for a shown name the one that it is compared with, instead of the
    best baseline; ``groups`` the shown names of an ablation, by what is varied, the reference first. ``alpha`` is the
    level of the corrected tests, ``seeds`` are those that every entry should have (those that any has, where empty),
    ``notes`` sentences under the heading.
    """

    title: str = ""
    ours: tuple[str, ...] = ("ADRRec", "AWRSR")
    baselines: tuple[str, ...] = ("SASRec", "BERT4Rec")
    metric: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, list[str]] = field(default_factory=dict)
    alpha: float = 0.05
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def is_ours(self, label: str, model: str) -> bool:
        """True for an entry that is none of the baselines."""
        return model in self.ours and not label.startswith(tuple(self.baselines))

    @classmethod
    def of(cls, folder: Path) -> Settings:
        """Read ``report.json``, where there is one; ``UserError`` if it is not readable or has an unknown key."""
        path = folder / SETTINGS
        if not path.is_file():
            return cls()
        found = read_object(path)
        checks.keys(found, tuple(cls.__dataclass_fields__), str(path))
        lists: dict[str, Any] = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{**found, **lists})


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; ``DataError`` if the file is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); remove it and run the study again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object; remove it and run the study again")
    return found


@dataclass(frozen=True)
class Results:
    """All runs of a folder."""

    folder: Path
    runs: tuple[Run, ...]
    settings: Settings

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """Read a results folder.

        Raises
        ------
        DataError
            If there are no runs, or a file is not what it should be.
        """
        root = Path(folder).resolve()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of results")
        runs = []
        for path in sorted((root / "runs").glob("*.json")):
            facts = read_object(path)
            missing = [name for name in NEEDED if name not in facts]
            if missing:
                raise DataError(f"{path}: {missing[0]} is missing; remove the file and run the study again")
            arrays = path.with_suffix(".npz")
            runs.append(Run(path.stem, facts, arrays if arrays.is_file() else None))
        if not runs:
            raise DataError(f"{root}: no finished runs (runs/*.json) to report")
        return cls(root, tuple(runs), Settings.of(root))

    @cached_property
    def stated(self) -> Mapping[str, Any]:
        """The study as ``study.json`` states it; empty without one."""
        path = self.folder / "study.json"
        found: Mapping[str, Any] = read_object(path).get("study", {}) if path.is_file() else {}
        return found

    @cached_property
    def never_ran(self) -> list[str]:
        """Entries of the stated study that no run of a data set and protocol belongs to, each named with both."""

        def named(dataset: Any, protocol: Mapping[str, Any], label: Any) -> str:
            return f"{dataset}, {', '.join(str(protocol[name]) for name in ('split', 'candidates', 'seen'))}: {label}"

        there = {named(run.facts["dataset"], run.facts["protocol"], run.label) for run in self.runs}
        wanted = [
            named(dataset, protocol, entry["label"])
            for dataset in self.stated.get("datasets", ())
            for protocol in self.stated.get("protocols", ())
            for entry in self.stated.get("models", ())
        ]
        return [name for name in wanted if name not in there]

    @property
    def done(self) -> list[Run]:
        """Runs that ended well."""
        return [run for run in self.runs if not run.failed]

    @property
    def failed(self) -> list[Run]:
        """Runs that ended with an error."""
        return [run for run in self.runs if run.failed]

    @cached_property
    def tables(self) -> dict[TableKey, dict[str, list[Run]]]:
        """Finished runs by table, then by label in the order of first use, each sorted by seed."""
        named = [name for group in self.settings.groups.values() for name in group]
        place = {name: number for number, name in reversed(list(enumerate(named)))}
        found: dict[TableKey, dict[str, list[Run]]] = {}
        for run in sorted(
            self.done, key=lambda run: (run.table, place.get(run.label, len(named)), run.label, run.seed)
        ):
            found.setdefault(run.table, {}).setdefault(run.label, []).append(run)
        return found

    @cached_property
    def metric(self) -> str:
        """The metric that is tested and drawn."""
        if self.settings.metric:
            return self.settings.metric.lower()
        return next((str(run.facts.get("valid_metric") or next(iter(run.metrics))).lower() for run in self.done), "")

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the study: those it states, or those that any run has."""
        stated = self.settings.seeds or self.stated.get("seeds")
        return tuple(stated or sorted({run.seed for run in self.runs}))

    def missing_seeds(self, table: TableKey, runs: Iterable[Run]) -> list[int]:
        """Seeds that none of these runs has, out of the study's; with ties shuffled, out of those shuffled at all."""
        wanted = set(self.seeds)
        if table.ties != "file":
            wanted = {run.seed for run in self.runs if run.table.ties == table.ties}
        return sorted(wanted - {run.seed for run in runs})


def sample_of(runs: Iterable[Run], metric: str) -> Sample:
    """One metric of one label's runs, for the tests."""
    found = {run.seed: (run.metrics[metric], run.by_user(metric)) for run in runs if metric in run.metrics}
    known = {seed: each for seed, each in sorted(found.items()) if each[1] is not None}
    by_seed = pd.Series({seed: score for seed, (score, _) in known.items()}, dtype=float)
    return Sample(by_seed, pd.DataFrame({seed: values for seed, (_, values) in known.items()}))
