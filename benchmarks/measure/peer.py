"""RecTools' SASRec on the same sequences: runs with the interpreter of its own environment, without this package.

Checked with RecTools 0.19.0 (``pip install "rectools[torch]==0.19.*"``).
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
import warnings
from typing import Any


def version(given: dict[str, Any]) -> dict[str, Any]:
    """Versions of RecTools and torch in this environment; fails where one is missing."""
    from importlib.metadata import version as of

    return {"rectools": of("rectools"), "torch": of("torch"), "python": sys.version.split()[0]}


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train and ask for recommendations.

    Parameters
    ----------
    given : dict
        ``file`` (atomic file of the events, times in seconds), ``length`` L, ``batch`` (targets of a step),
        ``hidden_size``, ``n_layers``, ``n_heads``, ``dropout``, ``epochs``, ``device``, ``steps`` (0: whole epochs;
        else so many steps of each, of which the time of an epoch is told).

    Returns
    -------
    dict
        The keys of :func:`measure.training.measure` that make sense here. Each user's last two events are held out, as
        for the others. RecTools trains on a user's last ``L + 1`` events alone: ``targets`` counts what it trains on.
        Its first epoch is warm-up.
    """
    import numpy as np
    import pandas as pd
    import torch
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    lightning: Any = importlib.import_module("pytorch_lightning")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = _resident()
    start = time.perf_counter()
    with open(given["file"]) as lines:
        names = [column.split(":")[0] for column in lines.readline().rstrip("\n").split("\t")]
    events = pd.read_csv(given["file"], sep="\t", skiprows=1, names=names, usecols=["user_id", "item_id", "timestamp"])
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    from_end = events.groupby("user_id").cumcount(ascending=False)
    train = events[from_end >= 2]
    frame = pd.DataFrame(
        {
            Columns.User: train["user_id"],
            Columns.Item: train["item_id"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(train["timestamp"], unit="s"),
        }
    )
    dataset = Dataset.construct(frame)
    per_user = train.groupby("user_id").size().to_numpy()
    per_user = np.minimum(per_user[per_user >= 2] - 1, given["length"])
    targets, rows = int(per_user.sum()), len(per_user)
    batch = max(1, round(given["batch"] * rows / targets))
    steps = -(-rows // batch)
    share = max(1.0, steps / given["steps"]) if given["steps"] else 1.0

    epochs: list[float] = []
    began: list[float] = []

    class Clock(lightning.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            began.append(time.perf_counter())

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            epochs.append((time.perf_counter() - began[-1]) * share)

    def trainer() -> Any:
        return lightning.Trainer(
            max_epochs=given["epochs"] + 1,
            min_epochs=given["epochs"] + 1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=given["steps"] or 1.0,
            accelerator="gpu" if given["device"] == "cuda" else "cpu",
            callbacks=[Clock()],
        )

    model = SASRecModel(
        n_factors=given["hidden_size"],
        n_blocks=given["n_layers"],
        n_heads=given["n_heads"],
        dropout_rate=given["dropout"],
        session_max_len=given["length"],
        batch_size=batch,
        loss="softmax",
        lr=1e-3,
        epochs=given["epochs"] + 1,
        dataloader_num_workers=0,
        recommend_torch_device=given["device"],
        get_trainer_func=trainer,
    )
    model.fit(dataset)
    # Sequences are built inside ``fit``, before the first epoch.
    prepare = began[0] - start
    users = frame[Columns.User].unique()
    start = time.perf_counter()
    model.recommend(users=users, dataset=dataset, k=10, filter_viewed=False)
    eval_s = time.perf_counter() - start
    net = model.torch_model
    return {
        "epoch_s": epochs[1:],
        "scaled": share > 1,
        "steps_s": sum(epochs[1:]) / share,
        "targets": targets,
        "rows": rows,
        "steps": steps,
        "prepare_s": prepare,
        "eval_s": eval_s,
        "metrics": {},
        "parameters": sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad),
        "peak_mib": _peak(),
        "base_mib": base,
        "first_step_s": None,
        "gpu_peak_mib": None,
        "stages": {},
        "loss": None,
    }


def _status(name: str) -> float | None:
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
    except OSError:
        return None


def _resident() -> float:
    return _status("VmRSS") or _peak()


def _peak() -> float:
    found = _status("VmHWM")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if found is not None else used / (2**20 if sys.platform == "darwin" else 1024)
