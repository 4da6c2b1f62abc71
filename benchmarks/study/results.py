"""Reading a folder of finished runs.

``<results>/runs/<id>.json`` and ``<id>.npz`` are one run; a run is done when its JSON is there. Nothing here trains,
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
from numpy.typing import NDArray

from recbole_adrrec.errors import DataError
from study.statistics import Floats, Sample

SETTINGS = "report.json"


@dataclass(frozen=True, order=True)
class Protocol:
    """What figures must share to stand in one table.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    split : str
        ``leave_one_out`` or ``temporal``.
    candidates : str
        ``full``: all items are ranked; ``pop100``: the target among 100 items drawn by popularity.
    seen : str
        ``all``: items that the user knows are ranked too; ``unseen``: they are not.
    query_time : bool
        Whether the models are told the moment for which they recommend.
    ties : str
        Order of events of equal time: ``file`` or ``shuffled``.
    """

    dataset: str
    split: str
    candidates: str
    seen: str
    query_time: bool
    ties: str = "file"

    @property
    def sampled(self) -> bool:
        """Whether items are ranked among a sample only."""
        return self.candidates != "full"

    @property
    def title(self) -> str:
        """Everything that figures under this protocol share, in words."""
        split = {"leave_one_out": "leave-one-out", "temporal": "temporal split"}.get(self.split, self.split)
        if self.candidates == "full":
            ranked = "all items ranked" if self.seen == "all" else "only items new to the user ranked"
        else:
            drawn = {"pop100": "100 negatives by popularity"}.get(self.candidates, self.candidates)
            ranked = f"SAMPLED: {drawn}"
            ranked += ", items known to the user among them" if self.seen == "all" else ", all new to the user"
        told = "query time known" if self.query_time else "query time not known"
        tied = "" if self.ties == "file" else f", ties {self.ties}"
        return f"{self.dataset}: {split}, {ranked}, {told}{tied}"

    @property
    def key(self) -> str:
        """A name for files and anchors."""
        known = "query-time" if self.query_time else "no-query-time"
        parts = [self.dataset, self.split, self.candidates, self.seen, known]
        if self.ties != "file":
            parts.append(self.ties)
        return re.sub(r"[^\w.]+", "-", "-".join(parts)).replace("_", "-")


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
        """Whether it ended with an error."""
        return bool(self.facts["status"] != "done")

    @property
    def protocol(self) -> Protocol:
        """What its figures may stand beside."""
        named = self.facts["protocol"]
        return Protocol(
            dataset=str(self.facts["dataset"]),
            split=str(named["split"]),
            candidates=str(named["candidates"]),
            seen=str(named["seen"]),
            query_time=bool(self.facts.get("query_time", False)),
            ties=str(named.get("ties") or "file"),
        )

    @property
    def metrics(self) -> Mapping[str, float]:
        """Test metrics, ``{"ndcg@10": 0.1}``."""
        found: Mapping[str, float] = self.facts["metrics"]
        return found

    @cached_property
    def _loaded(self) -> dict[str, NDArray[Any]]:
        if self.arrays is None:
            return {}
        try:
            with np.load(self.arrays, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except Exception as error:
            raise DataError(f"{self.arrays}: not readable as arrays of a run ({error}); remove the run") from error

    def by_user(self, metric: str) -> tuple[NDArray[Any], Floats] | None:
        """Users, each once and sorted, and their values; the mean, where a user has several. None without any."""
        found = self._loaded
        if "users" not in found or metric not in found:
            return None
        users, place = np.unique(found["users"].astype(str), return_inverse=True)
        values = np.asarray(found[metric], dtype=np.float64)
        if len(values) != len(place):
            raise DataError(f"{self.arrays}: {len(values)} values of {metric} for {len(place)} users; remove the run")
        return users, np.bincount(place, values, len(users)) / np.bincount(place, minlength=len(users))


@dataclass(frozen=True)
class Settings:
    """What a report is told beyond the runs; ``<results>/report.json`` has what is not left to its defaults.

    Attributes
    ----------
    title : str
        Heading.
    ours : tuple of str
        Models that are none of the baselines.
    metric : str
        The metric that is tested and drawn; that of early stopping where empty.
    references : mapping of str to str
        For a shown name the name that it is compared with; without an entry, the best baseline.
    groups : mapping of str to list of str
        Shown names of an ablation, by what is varied; the first is the reference.
    alpha : float
        Level of the corrected tests.
    seeds : tuple of int
        Seeds that every entry should have; those that any has, where empty.
    notes : tuple of str
        Sentences shown under the heading.
    """

    title: str = ""
    ours: tuple[str, ...] = ("ADRRec", "AWRSR")
    metric: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, list[str]] = field(default_factory=dict)
    alpha: float = 0.05
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Settings:
        """Read ``report.json``, where there is one.

        Raises
        ------
        DataError
            If it is not readable or has an unknown key.
        """
        path = folder / SETTINGS
        if not path.is_file():
            return cls()
        found = read_json(path)
        unknown = sorted(set(found) - set(cls.__dataclass_fields__))
        if unknown:
            raise DataError(f"{path}: {unknown[0]} is unknown; known are {', '.join(cls.__dataclass_fields__)}")
        for name in ("ours", "seeds", "notes"):
            if name in found:
                found[name] = tuple(found[name])
        return cls(**found)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    DataError
        If the file is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); remove it and run the study again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object; remove it and run the study again")
    return found


def _place_of(dataset: Any, protocol: Mapping[str, Any], label: Any) -> tuple[str, ...]:
    return str(dataset), *(str(protocol[name]) for name in ("split", "candidates", "seen")), str(label)


NEEDED = ("label", "model", "dataset", "seed", "protocol", "status")


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
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of results")
        runs = []
        for path in sorted((root / "runs").glob("*.json")):
            facts = read_json(path)
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
        found: Mapping[str, Any] = read_json(path).get("study", {}) if path.is_file() else {}
        return found

    @cached_property
    def never_ran(self) -> list[str]:
        """Entries of the stated study that no run of a data set and protocol belongs to, each named with both."""
        there = {_place_of(run.facts["dataset"], run.facts["protocol"], run.label) for run in self.runs}
        return [
            f"{dataset}, {protocol['split']}, {protocol['candidates']}, {protocol['seen']}: {entry['label']}"
            for dataset in self.stated.get("datasets", ())
            for protocol in self.stated.get("protocols", ())
            for entry in self.stated.get("models", ())
            if _place_of(dataset, protocol, entry["label"]) not in there
        ]

    @property
    def done(self) -> list[Run]:
        """Runs that ended well."""
        return [run for run in self.runs if not run.failed]

    @property
    def failed(self) -> list[Run]:
        """Runs that ended with an error."""
        return [run for run in self.runs if run.failed]

    @cached_property
    def tables(self) -> dict[Protocol, dict[str, list[Run]]]:
        """Finished runs by protocol, then by label in the order of first use, each sorted by seed."""
        found: dict[Protocol, dict[str, list[Run]]] = {}
        for run in sorted(self.done, key=lambda run: (run.protocol, self._place(run.label), run.label, run.seed)):
            found.setdefault(run.protocol, {}).setdefault(run.label, []).append(run)
        return found

    def _place(self, label: str) -> int:
        named = [name for group in self.settings.groups.values() for name in group]
        return named.index(label) if label in named else len(named)

    @cached_property
    def metric(self) -> str:
        """The metric that is tested and drawn."""
        if self.settings.metric:
            return self.settings.metric.lower()
        for run in self.done:
            return str(run.facts.get("valid_metric") or next(iter(run.metrics))).lower()
        return ""

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the study: those it states, or those that any run has."""
        stated = self.settings.seeds or self.stated.get("seeds")
        return tuple(stated or sorted({run.seed for run in self.runs}))

    def missing_seeds(self, protocol: Protocol, runs: Iterable[Run]) -> list[int]:
        """Seeds that none of these runs has, out of the study's; with ties shuffled, out of those shuffled at all."""
        wanted = set(self.seeds)
        if protocol.ties != "file":
            wanted = {run.seed for run in self.runs if run.protocol.ties == protocol.ties}
        return sorted(wanted - {run.seed for run in runs})


def sample_of(runs: Iterable[Run], metric: str) -> Sample:
    """One metric of one label's runs, for the tests."""
    by_seed, by_user = {}, {}
    for run in runs:
        values = run.by_user(metric)
        if metric in run.metrics and values is not None:
            by_seed[run.seed] = float(run.metrics[metric])
            by_user[run.seed] = values
    return Sample(by_seed, by_user)
