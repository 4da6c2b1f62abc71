"""Training to early stopping, and what each user got: one run, in a child process."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any


def train_and_score(given: dict[str, Any]) -> dict[str, Any]:
    """Train one model and score every user with its best state.

    Parameters
    ----------
    given : dict
        ``model``, ``dataset``, ``settings_of`` (the data set whose options of ours are taken) and ``options``.

    Returns
    -------
    dict
        ``valid`` and ``test``: NDCG@10 of each user, in the order of ``users``; ``epochs``, ``best_epoch``,
        ``train_s`` and ``curve`` (validation score after each epoch).
    """
    import recbole_adrrec

    recbole_adrrec.register()
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    from recbole_adrrec import options

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    chosen = {
        **options.load_properties("dataset", given["settings_of"]),
        **given["options"],
        "show_progress": False,
        "checkpoint_dir": str(Path.cwd() / "saved"),
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
    }
    config = Config(model=given["model"], dataset=given["dataset"], config_dict=chosen)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    curve: list[float] = []

    def remember(epoch: int, score: float) -> None:
        curve.append(float(score))

    start = time.perf_counter()
    trainer.fit(train_data, valid_data, saved=True, show_progress=False, callback_fn=remember)
    train_s = time.perf_counter() - start
    best = trainer.saved_model_file
    return {
        "users": dataset.id2token(dataset.uid_field, _users(test_data)).tolist(),
        "valid": _by_user(trainer, valid_data, best, config),
        "test": _by_user(trainer, test_data, best, config),
        "epochs": len(curve),
        "best_epoch": max(range(len(curve)), key=curve.__getitem__) + 1,
        "train_s": train_s,
        "curve": curve,
    }


def _users(loader: Any) -> Any:
    return loader.dataset.inter_feat[loader.dataset.uid_field].numpy()


def _by_user(trainer: Any, loader: Any, best: str, config: Any) -> list[float]:
    """NDCG@10 of each row of a full ranking, whose mean is RecBole's metric."""
    metric = importlib.import_module("recbole.evaluator.metrics").NDCG(config)
    collected: list[Any] = []
    evaluate = trainer.evaluator.evaluate

    def keep(struct: Any) -> Any:
        collected.append(struct.get("rec.topk"))
        return evaluate(struct)

    trainer.evaluator.evaluate = keep
    try:
        trainer.evaluate(loader, load_best_model=True, model_file=best, show_progress=False)
    finally:
        trainer.evaluator.evaluate = evaluate
    hits = collected[0].numpy()
    by_length = metric.metric_info(hits[:, :-1].astype(bool), hits[:, -1])
    return [float(value) for value in by_length[:, -1]]
