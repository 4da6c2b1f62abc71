"""Seconds and memory of a training epoch: ``efficiency.py --training``.

:func:`measure` runs in a child process, possibly with a package of another version: what is imported at the top of
this module must not need the package.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from measure import memory
from measure.tables import Row, medians, ratio, text
from measure.variants import BASELINE, QUICK, Variant

if TYPE_CHECKING:
    from measure.session import Session

WARM_UP_STEPS = 3
"""Steps before the clock runs: they start threads, fill caches and compile."""

COLUMNS = {
    "epoch_s": "s / epoch",
    "times_faster": "times faster",
    "targets_per_s": "targets / s",
    "targets_ratio": "over RecBole",
    "rows_per_s": "rows / s",
    "prepare_s": "prepare s",
    "eval_s": "evaluate s",
    "peak_mib": "peak MiB",
    "rise_mib": "over imports",
    "gpu_peak_mib": "GPU MiB",
    "parameters": "parameters",
}

QUANTITIES = (
    *("epoch_s", "targets", "rows", "prepare_s", "eval_s", "peak_mib", "rise_mib", "gpu_peak_mib"),
    *("first_step_s", "parameters"),
)


def report(session: Session) -> str:
    """Measure whole models by turns; table in Markdown."""
    arguments = session.arguments
    variants = session.variants(QUICK if arguments.quick else None)
    jobs = [session.training_job("training", each, run) for run in range(arguments.runs) for each in variants]
    rows = table(session.measure(jobs, "training"), variants)
    session.store.note("training", rows)
    if arguments.plots:
        from measure import plots

        plots.training(rows, arguments.plots)
    return f"### Training on {arguments.dataset}\n\n{session.settings()}\n\n{text(rows, COLUMNS)}"


def table(measurements: Sequence[Row], variants: Sequence[Variant]) -> list[Row]:
    """One row for each variant: medians of ``QUANTITIES``, and ratios against ``BASELINE``.

    Further keys: ``targets_per_s`` (null for cloze models), ``rows_per_s``, ``times_faster`` (the baseline's seconds an
    epoch over these; null where an epoch has fewer targets), ``targets_ratio`` (targets a second over the baseline's).
    """
    rows = medians(measurements, [variant.name for variant in variants], QUANTITIES)
    measured = [row for row in rows if row["runs"]]
    base = next((row for row in measured if row["variant"] == BASELINE), None)
    cloze = {variant.name for variant in variants if variant.cloze}
    for row in measured:
        row["rows_per_s"] = row["rows"] / row["epoch_s"]
        row["targets_per_s"] = None if row["variant"] in cloze else row["targets"] / row["epoch_s"]
        # A cloze model may mask a user's first event too: its epoch has a target a user more, never fewer.
        comparable = base is not None and row["targets"] >= base["targets"]
        row["times_faster"] = base["epoch_s"] / row["epoch_s"] if base and comparable else None
        row["targets_ratio"] = ratio(row["targets_per_s"], base["targets"] / base["epoch_s"]) if base else None
    return rows


# In the child process


@dataclass
class Stages:
    """Seconds and resident memory of one stage after another."""

    found: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens meanwhile: ``s``, ``rss_mib`` at its end, ``peak_mib`` in it."""
        memory.reset_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.found[name] = {"s": seconds, "rss_mib": memory.resident(), "peak_mib": memory.peak()}


class FirstBatches:
    """The first batches of a loader, as a loader; ``given`` counts them."""

    def __init__(self, loader: Any, most: int) -> None:
        self.loader, self.most, self.given = loader, most, 0

    def __len__(self) -> int:
        return min(self.most, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.given += 1
            yield batch
            if self.given == self.most:
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def start(source: str) -> None:
    """Import RecBole: with what lets it run on today's libraries alone, or with this package registered.

    Importing RecBole's models turns torch's anomaly detection on; ``recbole`` keeps it so, as users of RecBole alone
    have it, and ``untraced`` is RecBole without it.
    """
    import torch

    if source in ("recbole", "untraced"):
        from recbole_adrrec.integration import patches

        patches.check_version()
        patches.apply_patches()
        torch.autograd.set_detect_anomaly(source == "recbole")
    else:
        import recbole_adrrec

        recbole_adrrec.register()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    import recbole.config
    import recbole.data
    import recbole.utils  # noqa: F401


def config_of(given: dict[str, Any], **more: Any) -> Any:
    """RecBole's ``Config`` of a job: ``model``, ``dataset``, ``options`` and ``data_path`` of what is given."""
    from recbole.config import Config

    options = {**given["options"], "show_progress": False, "checkpoint_dir": str(Path.cwd() / "saved"), **more}
    if given.get("data_path"):
        options["data_path"] = given["data_path"]
    return Config(model=given["model"], dataset=given["dataset"], config_dict=options)


def prepare(config: Any, stages: Stages, seed_again: bool = False) -> SimpleNamespace:
    """Loaders (``train``, ``valid``, ``test``), ``model`` and ``trainer``, each in a stage."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    init_seed(config["seed"], False)
    with stages.stage("dataset"):
        dataset = create_dataset(config)
    with stages.stage("loaders"):
        train, valid, test = data_preparation(config, dataset)
    if seed_again:
        init_seed(config["seed"], False)
    with stages.stage("model"):
        model = get_model(config["model"])(config, train.dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return SimpleNamespace(train=train, valid=valid, test=test, model=model, trainer=trainer)


def check_tree(folder: str | None) -> None:
    """Refuse to measure a package, or default options, from outside of the folder given."""
    if folder is None:
        return
    for name in ("recbole_adrrec", "recbole_adrrec.properties"):
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if not Path(place).resolve().is_relative_to(Path(folder).resolve()):
                raise RuntimeError(f"measured would be {place}, which is not in {folder}")


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Load data, train and evaluate one model, measuring each.

    Given are ``source`` (of a ``Variant``), ``model``, ``dataset``, ``options``, ``data_path`` (optional), ``epochs``,
    ``steps`` (0: whole epochs; else so many training steps in all, from which an epoch's time is scaled up),
    ``evaluate`` (bool), ``ranked`` (``valid`` or ``test``: whose users are ranked; test by default) and
    ``tree_folder`` (the folder that the package must come from; by default any).

    Found are ``epoch_s`` (one for each epoch), ``scaled`` (bool: from some steps), ``steps_s`` (seconds of the steps
    that were run), ``targets``, ``rows`` and ``steps`` of an epoch, ``prepare_s`` (from the file to loaders),
    ``eval_s`` (full ranking of all users; null without ``evaluate``), ``metrics`` of that ranking, ``parameters``,
    ``peak_mib``, ``base_mib`` (resident after imports), ``first_step_s`` (with compilation, if any), ``gpu_peak_mib``
    (null on CPU), ``stages`` and ``loss`` (mean of the last batches).
    """
    check_tree(given.get("tree_folder"))
    start(given["source"])
    import torch

    base, stages = memory.resident(), Stages()
    config = config_of(given, epochs=max(1, given["epochs"]))
    run = prepare(config, stages)
    cuda = config["device"].type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def train(loader: Any, epoch: int = 0) -> tuple[float, float]:
        begin = time.perf_counter()
        total = run.trainer._train_epoch(loader, epoch, show_progress=False)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin, sum(total) if isinstance(total, tuple) else total

    with stages.stage("warm-up"):
        first_step, _ = train(FirstBatches(run.train, 1))
        train(FirstBatches(run.train, WARM_UP_STEPS - 1))
    batches, done, seconds = len(run.train), 0, []
    with stages.stage("training"):
        if given["steps"]:
            while done < given["steps"]:
                part = FirstBatches(run.train, given["steps"] - done)
                spent, total = train(part)
                seconds.append(spent)
                done += part.given
                loss = total / part.given
            epochs = [sum(seconds) / done * batches]
        else:
            for epoch in range(given["epochs"]):
                spent, total = train(run.train, epoch)
                seconds.append(spent)
                loss = total / batches
            epochs = seconds
    metrics = {}
    if given["evaluate"]:
        ranked = run.valid if given.get("ranked") == "valid" else run.test
        with stages.stage("evaluation"):
            metrics = run.trainer.evaluate(ranked, load_best_model=False, show_progress=False)
    windows, rows = getattr(run.train.dataset, "windows", None), len(run.train.dataset)
    return {
        "epoch_s": epochs,
        "scaled": bool(given["steps"]),
        "steps_s": sum(seconds),
        "targets": rows if windows is None else int(windows.n_targets),
        "rows": rows,
        "steps": batches,
        "prepare_s": stages.found["dataset"]["s"] + stages.found["loaders"]["s"],
        "eval_s": stages.found["evaluation"]["s"] if given["evaluate"] else None,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "parameters": sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad),
        "peak_mib": max(stage["peak_mib"] for stage in stages.found.values()),
        "base_mib": base,
        "first_step_s": first_step,
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / memory.MIB if cuda else None,
        "stages": stages.found,
        "loss": loss,
    }
