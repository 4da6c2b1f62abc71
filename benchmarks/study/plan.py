"""A study, stated whole and checked: which models on which data, under which protocols and how often."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_adrrec.options import load_tuned
from study import checks

SPLITS = ("leave_one_out", "temporal")
CANDIDATES = ("full", "pop100")
SEEN = ("all", "unseen")


@dataclass(frozen=True)
class Protocol:
    """Split, ranked items and treatment of known items; ``docs/protocol.md`` says what each choice means."""

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
        choices = {"split": SPLITS, "candidates": CANDIDATES, "seen": SEEN}
        if isinstance(given, str):
            given = dict(zip((*choices, "a fourth part"), given.split("-"), strict=False))
        given = checks.mapping(given, "protocols")
        checks.keys(given, choices, "protocols")
        for name, value in given.items():
            checks.one_of(value, choices[name], f"protocols: {name}")
        return cls(**given)


@dataclass(frozen=True)
class Entry:
    """One line of the comparison: a model with options of its own, under the name it is shown by.

    ``reference`` is the label that it is compared with; without one the best baseline is.
    """

    label: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set of a study: RecBole's name for it, and the folder of data sets it lies in."""

    name: str
    data_path: str


@dataclass(frozen=True)
class RunSpec:
    """Everything that one run depends on; it can be written as JSON and read back.

    ``dataset`` is the label of the data set in the study, ``data_name`` its name where that is another. ``also_ranked``
    names protocols under which the trained model is tested too.
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
    also_ranked: Sequence[str] = ()

    @property
    def id(self) -> str:
        """Name of the run's files: data set, label, protocol and seed."""
        ties = "-ties" if self.shuffle_ties else ""
        return f"{safe(self.dataset)}-{safe(self.label)}-{self.protocol.name}{ties}-s{self.seed}{self.suffix}"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunSpec:
        """The run whose ``asdict`` this is."""
        return cls(**{**values, "protocol": Protocol(**values["protocol"])})


@dataclass(frozen=True)
class Plan:
    """A study, checked; the fields are the keys of a study file, in one form each.

    ``datasets`` has labels; ``sources`` says which data those stand for whose label is not the name, or whose folder is
    not ``data_path``. ``tuned`` maps ``(data set, label or model, protocol)`` to the options chosen; ``data`` maps a
    data set to a digest of its file, so that results of other data are recognised.
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
    also_ranked: tuple[str, ...] = ()

    def stated(self) -> dict[str, Any]:
        """All that decides the numbers of this study, as plain data; where files lie does not."""
        plain = asdict(self)
        for name in ("results", "data_path", "tuned_from", "command"):
            del plain[name]
        for entry in plain["models"]:
            del entry["reference"]  # decides what is compared, not what is measured
        plain["sources"] = {label: source.name for label, source in self.sources.items()}
        pairs = {(entry.model, self.source(label).name) for entry in self.models for label in self.datasets}
        plain["properties"] = {".".join(pair): found for pair in sorted(pairs) if (found := load_tuned(*pair))}
        # What was added later is stated where it is used, so that studies from before keep their hash.
        for name, unused in (("sources", {}), ("properties", {}), ("test", True), ("also_ranked", ())):
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
        seeds = [(seed, False) for seed in self.seeds] + [(seed, True) for seed in self.seeds[: self.shuffled_ties]]
        study_hash = self.hash
        return [
            self._spec(study_hash, dataset, entry, protocol, seed, shuffle)
            for seed, shuffle in seeds
            for dataset in self.datasets
            for protocol in self.protocols
            for entry in self.models
        ]

    def _spec(
        self, study_hash: str, dataset: str, entry: Entry, protocol: Protocol, seed: int, shuffle_ties: bool
    ) -> RunSpec:
        source, options = self.source(dataset), self.options_of(dataset, entry, protocol)
        shared = ("temporal", "metrics", "topk", "valid_metric", "test", "command")
        if shuffle_ties:
            options |= {"tie_order": "random", "tie_seed": 1 + self.seeds.index(seed)}
        return RunSpec(
            study=self.name,
            study_hash=study_hash,
            label=entry.label,
            model=entry.model,
            dataset=dataset,
            seed=seed,
            protocol=protocol,
            options=options,
            data_path=source.data_path,
            keep_model=self.keep_models and not shuffle_ties,
            shuffle_ties=shuffle_ties,
            data_name="" if source.name == dataset else source.name,
            also_ranked=[name for name in self.also_ranked if name != protocol.name],
            **{name: getattr(self, name) for name in shared},
        )


def safe(text: str) -> str:
    """``text`` as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", text)
