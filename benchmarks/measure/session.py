"""One command line of ``efficiency.py``: the variants that can run, their jobs, and the store of what was measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.children import ChildError, call
from engine.data import data_file
from engine.store import MeasurementStore
from tqdm import tqdm

from measure.variants import TRAINING, Variant, choose, common_options


@dataclass
class Job:
    """One measurement, made in a child process: the mode and row of its table, and the number of the repetition.

    ``given`` has all that the result depends on, the key under which it is kept; ``places`` is given to the child's
    ``function`` besides: where data and code lie changes no result. ``call`` has further arguments of
    :func:`engine.children.call`; ``around`` makes the context in which the child runs.
    """

    kind: str
    variant: str
    run: int
    function: str
    given: dict[str, Any]
    places: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


class Session:
    """Things that the reports of all modes share: the command line, the store, a folder for synthetic data and copies.

    ``skipped`` has the variants that can't run here, each with the reason.
    """

    def __init__(self, arguments: argparse.Namespace, store: MeasurementStore, scratch: Path) -> None:
        self.arguments = arguments
        self.store = store
        self.scratch = scratch
        self.skipped: list[str] = []
        self.data_path = str(Path(arguments.data_path).resolve()) if arguments.data_path else None

    def variants(self, default: tuple[str, ...] | None = None, known: tuple[Variant, ...] = TRAINING) -> list[Variant]:
        """Variants that can run here: of ``TRAINING`` those of ``--models``; without it, and of others, ``default``."""
        names = (self.arguments.models if known is TRAINING else None) or (list(default) if default else None)
        usable = []
        for variant in choose(names, self.arguments.device, known):
            reason = self._reason_to_skip(variant)
            if reason is None:
                usable.append(variant)
            elif f"{variant.name}: {reason}" not in self.skipped:
                self.skipped.append(f"{variant.name}: {reason}")
        return usable

    def _reason_to_skip(self, variant: Variant) -> str | None:
        if variant.unknown():
            return f"this version has no option {', '.join(variant.unknown())}"
        python = self.arguments.peer_python
        if variant.source != "peer":
            return None
        if python is None:
            return "no --peer_python, an interpreter with RecTools, was given"
        if not Path(python).exists():
            return f"--peer_python: there is no {python}"
        try:
            call("measure.peer:version", {}, threads=1, python=python, timeout=120)
        except ChildError as error:
            return f"--peer_python has no RecTools ({error})"
        return None

    def options(self, dataset: str | None = None) -> dict[str, Any]:
        """Options of data and training that all variants share."""
        arguments = self.arguments
        return common_options(dataset or arguments.dataset, arguments.length, arguments.batch, arguments.device)

    def training_job(
        self,
        kind: str,
        variant: Variant,
        run: int,
        dataset: str | None = None,
        data_path: str | None = None,
        function: str = "measure.training:measure",
        **given: Any,
    ) -> Job:
        """A training of a variant, by default on the data set of the command line; ``given`` adds to the keys."""
        arguments = self.arguments
        dataset, data_path = dataset or arguments.dataset, data_path or self.data_path
        key = {
            "source": variant.source,
            "model": variant.model,
            "dataset": dataset,
            "epochs": arguments.epochs,
            "steps": arguments.steps,
            "evaluate": True,
            "threads": arguments.threads,
            "options": {**self.options(dataset), **variant.options},
            **given,
        }
        if variant.source == "peer":
            file = {"file": str(data_file(dataset, data_path))}
            return Job(kind, variant.name, run, "measure.peer:measure", key, file, {"python": arguments.peer_python})
        return Job(kind, variant.name, run, function, key, {"data_path": data_path})

    def measure(self, jobs: list[Job], title: str) -> list[dict[str, Any]]:
        """Make the measurements that are missing, with a bar; all of them, in the order of the jobs."""
        arguments, done = self.arguments, []
        with tqdm(jobs, desc=title, unit="run") as bar:
            for job in bar:
                bar.set_postfix_str(job.variant)

                def work(job: Job = job) -> dict[str, Any]:
                    given = {**job.given, **job.places}
                    with job.around():
                        return call(
                            job.function, given, threads=arguments.threads, timeout=arguments.timeout, **job.call
                        )

                done.append(self.store.measure(job.kind, job.variant, job.given, job.run, work))
        return done

    def settings(self) -> str:
        """Sizes, repetitions and machine of the figures of training, in words."""
        arguments, machine = self.arguments, self.store.content["hardware"]
        on = f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB"
        if arguments.device == "cuda":
            on += f", {machine['gpu']}"
        each = f"{arguments.steps} steps" if arguments.steps else f"{arguments.epochs} epochs"
        return (
            f"L = {arguments.length}, d = 64, {arguments.batch} targets a step, {arguments.threads} threads, "
            f"medians of {arguments.runs} runs of {each}; {on}, torch {self.store.content['versions']['torch']}"
        )
