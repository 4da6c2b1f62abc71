"""RecTools' SASRec on the same sequences: runs with the interpreter of its own environment, without this package.

Checked with RecTools 0.19.0 (``pip install "rectools[torch]==0.19.*"``).
"""

from __future__ import annotations

import importlib
import os
import time
import warnings
from importlib.metadata import version as version_of
from typing import Any

from measure import memory

SIZES = {"n_factors": 64, "n_blocks": 2, "n_heads": 2, "dropout_rate": 0.2}


def version(given: dict[str, Any]) -> dict[str, Any]:
    """Versions of RecTools and torch in this environment; fails where one is missing."""
    return {name: version_of(name) for name in ("rectools", "torch")}


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train and recommend to all users.

    Given is what :func:`measure.training.measure` takes, of whose options length, batch and device are read; and
    ``file``, the atomic file of the events, times in seconds. Found are the keys of the same that make sense here. Each
    user's last two events are held out, as for the others. RecTools trains on a user's last ``L + 1`` events alone:
    ``targets`` counts what it trains on. Its first epoch is warm-up.
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
    options, count = given["options"], given["epochs"] + 1
    length, device = options["MAX_ITEM_LIST_LENGTH"], "cuda" if options["use_gpu"] else "cpu"
    base = memory.resident()
    start = time.perf_counter()
    events = pd.read_csv(given["file"], sep="\t").rename(columns=lambda name: name.split(":")[0])
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    train = events[events.groupby("user_id").cumcount(ascending=False) >= 2]
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
    per_user = np.minimum(per_user[per_user >= 2] - 1, length)
    targets, rows = int(per_user.sum()), len(per_user)
    batch = max(1, round(options["train_batch_size"] * rows / targets))
    steps = -(-rows // batch)
    scale = max(1.0, steps / given["steps"]) if given["steps"] else 1.0
    began: list[float] = []
    epochs: list[float] = []

    class Clock(lightning.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            began.append(time.perf_counter())

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            epochs.append((time.perf_counter() - began[-1]) * scale)

    def trainer() -> Any:
        return lightning.Trainer(
            max_epochs=count,
            min_epochs=count,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=given["steps"] or 1.0,
            accelerator="gpu" if device == "cuda" else "cpu",
            callbacks=[Clock()],
        )

    model = SASRecModel(
        **SIZES,
        session_max_len=length,
        batch_size=batch,
        loss="softmax",
        lr=1e-3,
        epochs=count,
        dataloader_num_workers=0,
        recommend_torch_device=device,
        get_trainer_func=trainer,
    )
    model.fit(dataset)
    # Sequences are built inside ``fit``, before the first epoch.
    prepare = began[0] - start
    start = time.perf_counter()
    model.recommend(users=frame[Columns.User].unique(), dataset=dataset, k=10, filter_viewed=False)
    return {
        "epoch_s": epochs[1:],
        "scaled": scale > 1,
        "steps_s": sum(epochs[1:]) / scale,
        "targets": targets,
        "rows": rows,
        "steps": steps,
        "prepare_s": prepare,
        "eval_s": time.perf_counter() - start,
        "metrics": {},
        "parameters": sum(each.numel() for each in model.torch_model.parameters() if each.requires_grad),
        "peak_mib": memory.peak(),
        "base_mib": base,
        "first_step_s": None,
        "gpu_peak_mib": None,
        "stages": {},
        "loss": None,
    }
