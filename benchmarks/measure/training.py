"""One measurement of training: runs in a child process, see :mod:`measure.children`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import memory

WARM_UP_STEPS = 3
"""Steps before the clock runs: they start threads, fill caches and compile."""


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
        self.found[name] = {
            "s": time.perf_counter() - start,
            "rss_mib": memory.resident(),
            "peak_mib": memory.peak(),
        }

    def peak(self) -> float:
        """Highest resident memory of all stages, in MiB."""
        return max(stage["peak_mib"] for stage in self.found.values())


def known(given: dict[str, Any]) -> dict[str, Any]:
    """Names of our options that a model (``model``) of this process's package reads, as ``options``."""
    _check_tree(given["tree"])
    from recbole_adrrec.options import load_properties

    return {"options": sorted({*load_properties("overall"), *load_properties("model", given["model"])})}


def _check_tree(tree: str | None) -> None:
    """Refuse to measure a package, or default options, from outside of the folder given."""
    if tree is None:
        return
    import recbole_adrrec

    package = Path(str(recbole_adrrec.__file__)).parent
    spec = importlib.util.find_spec("recbole_adrrec.properties")
    properties = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for place in (package, *properties):
        if not place.resolve().is_relative_to(Path(tree).resolve()):
            raise RuntimeError(f"measured would be {place}, which is not in {tree}")


def _start(source: str) -> None:
    """``recbole``: mend RecBole for today's libraries and leave its data set and loaders; ``ours``: register.

    Importing RecBole's models turns torch's anomaly detection on; ``recbole`` keeps it so, as users of RecBole alone
    have it, and ``untraced`` is RecBole without it.
    """
    if source in ("recbole", "untraced"):
        import torch

        from recbole_adrrec.integration import patches

        patches.check_version()
        patches.apply_patches()
        torch.autograd.set_detect_anomaly(source == "recbole")
    else:
        import recbole_adrrec

        recbole_adrrec.register()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Load data, train and evaluate one model, measuring each.

    Parameters
    ----------
    given : dict
        ``source`` (``recbole``: RecBole with nothing but what makes it run on today's libraries; ``ours``: this package
        registered), ``model``, ``dataset``, ``options``, ``epochs``, ``steps`` (0: whole epochs; else so many training
        steps in all, of which the time of an epoch is told), ``evaluate`` (bool), ``ranked`` (``valid`` or ``test``:
        whose users are ranked; test by default), ``tree`` (the folder that the package must come from, if not any).

    Returns
    -------
    dict
        ``epoch_s`` (one for each epoch), ``scaled`` (whether it was told from some steps), ``steps_s`` (seconds of the
        steps that were run), ``targets``, ``rows`` and ``steps`` of an epoch, ``prepare_s`` (from the file to loaders),
        ``eval_s`` (full ranking of all users; null if not asked), ``metrics`` of that ranking, ``parameters``,
        ``peak_mib``, ``base_mib`` (resident after imports), ``first_step_s`` (with compilation, if any),
        ``gpu_peak_mib`` (null on CPU), ``stages`` and ``loss`` (mean of the last epoch's batches).
    """
    _check_tree(given.get("tree"))
    _start(given["source"])
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options = {
        **given["options"],
        "show_progress": False,
        "checkpoint_dir": str(Path.cwd() / "saved"),
        "epochs": max(1, given["epochs"]),
    }
    base = memory.resident()
    stages = Stages()
    config = Config(model=given["model"], dataset=given["dataset"], config_dict=options)
    cuda = config["device"].type == "cuda"
    init_seed(config["seed"], False)
    with stages.stage("dataset"):
        dataset = create_dataset(config)
    with stages.stage("loaders"):
        train_data, valid_data, test_data = data_preparation(config, dataset)
    rows, targets = _sizes(train_data)
    with stages.stage("model"):
        model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with stages.stage("warm-up"):
        first_step = _warm_up(trainer, train_data, wait)
    batches = len(train_data)
    epochs: list[float] = []
    steps_s = 0.0
    loss = float("nan")
    with stages.stage("training"):
        if given["steps"]:
            done, steps_s = 0, 0.0
            while done < given["steps"]:
                part = _Part(train_data, given["steps"] - done)
                start = time.perf_counter()
                total = trainer._train_epoch(part, 0, show_progress=False)
                wait()
                steps_s += time.perf_counter() - start
                done += part.given
                loss = _mean(total, part.given)
            epochs.append(steps_s / done * batches)
        else:
            for epoch in range(given["epochs"]):
                start = time.perf_counter()
                total = trainer._train_epoch(train_data, epoch, show_progress=False)
                wait()
                epochs.append(time.perf_counter() - start)
                steps_s += epochs[-1]
                loss = _mean(total, batches)
    eval_s, metrics = None, {}
    if given["evaluate"]:
        ranked = valid_data if given.get("ranked") == "valid" else test_data
        with stages.stage("evaluation"):
            start = time.perf_counter()
            metrics = trainer.evaluate(ranked, load_best_model=False, show_progress=False)
            wait()
            eval_s = time.perf_counter() - start
    return {
        "epoch_s": epochs,
        "scaled": bool(given["steps"]),
        "steps_s": steps_s,
        "targets": targets,
        "rows": rows,
        "steps": batches,
        "prepare_s": stages.found["dataset"]["s"] + stages.found["loaders"]["s"],
        "eval_s": eval_s,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "peak_mib": stages.peak(),
        "base_mib": base,
        "first_step_s": first_step,
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / memory.MIB if cuda else None,
        "stages": stages.found,
        "loss": loss,
    }


class _Part:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Any, most: int) -> None:
        self.loader = loader
        self.most = most
        self.given = 0

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


def _warm_up(trainer: Any, loader: Any, wait: Callable[[], None]) -> float:
    start = time.perf_counter()
    trainer._train_epoch(_Part(loader, 1), 0, show_progress=False)
    wait()
    first = time.perf_counter() - start
    trainer._train_epoch(_Part(loader, WARM_UP_STEPS - 1), 0, show_progress=False)
    wait()
    return first


def _mean(total: Any, batches: int) -> float:
    return (sum(total) if isinstance(total, tuple) else total) / max(1, batches)


def _sizes(loader: Any) -> tuple[int, int]:
    """Rows of an epoch, and targets in them."""
    dataset = loader.dataset
    windows = getattr(dataset, "windows", None)
    rows = len(dataset)
    return rows, rows if windows is None else int(windows.n_targets)


def augment(given: dict[str, Any]) -> dict[str, Any]:
    """Build a data set and measure the making of training rows alone, which RecBole calls augmentation.

    Parameters
    ----------
    given : dict
        ``source``, ``model``, ``dataset``, ``options`` as for :func:`measure`.

    Returns
    -------
    dict
        ``augment_s``; ``rows_mib`` (bytes of the tensors that hold events and rows), ``peak_mib`` (rise of resident
        memory meanwhile), ``rows``, ``dataset_s`` (all of the data set, from the file to its three parts).
    """
    _start(given["source"])
    where = "recbole.data.dataset.SequentialDataset"
    if given["source"] == "ours":
        where = "recbole_adrrec.data.dataset.SequenceDataset"
    module, _, name = where.rpartition(".")
    owner: Any = getattr(importlib.import_module(module), name)
    from recbole.config import Config
    from recbole.data import create_dataset

    found: dict[str, Any] = {}
    original = owner.data_augmentation

    def timed(self: Any) -> None:
        before = memory.resident()
        memory.reset_peak()
        start = time.perf_counter()
        original(self)
        found["augment_s"] = time.perf_counter() - start
        found["peak_mib"] = max(0.0, memory.peak() - before)
        rows = self.inter_feat
        found["rows"] = len(rows)
        if hasattr(rows, "events"):
            tensors = [rows.targets, rows.events.starts, *rows.events.columns.values()]
        else:
            tensors = list(rows.interaction.values())
        found["rows_mib"] = sum(tensor.untyped_storage().nbytes() for tensor in tensors) / memory.MIB

    owner.data_augmentation = timed
    config = Config(model=given["model"], dataset=given["dataset"], config_dict=given["options"])
    start = time.perf_counter()
    create_dataset(config).build()
    found["dataset_s"] = time.perf_counter() - start
    return found


def to_best(given: dict[str, Any]) -> dict[str, Any]:
    """Train to early stopping and note when each validation score was reached.

    Parameters
    ----------
    given : dict
        ``source``, ``model``, ``dataset``, ``options`` as for :func:`measure`; ``epochs`` at most.

    Returns
    -------
    dict
        ``best_s`` and ``best_epoch`` (seconds of training and validation up to the best score), ``best_valid``,
        ``total_s``, ``epochs`` run, ``curve`` (``[seconds, score]`` after each epoch).
    """
    _start(given["source"])
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options = {
        **given["options"],
        "epochs": given["epochs"],
        "show_progress": False,
        "checkpoint_dir": str(Path.cwd() / "saved"),
    }
    config = Config(model=given["model"], dataset=given["dataset"], config_dict=options)
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    curve: list[tuple[float, float]] = []
    start = time.perf_counter()

    def note(epoch: int, score: float) -> None:
        curve.append((time.perf_counter() - start, float(score)))

    trainer.fit(train_data, valid_data, saved=False, show_progress=False, callback_fn=note)
    best = max(range(len(curve)), key=lambda epoch: curve[epoch][1])
    return {
        "best_s": curve[best][0],
        "best_epoch": best + 1,
        "best_valid": curve[best][1],
        "total_s": curve[-1][0],
        "epochs": len(curve),
        "curve": curve,
    }
