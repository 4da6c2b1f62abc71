"""Small trained models and their checkpoints, for tests of what is done with them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_adrrec.integration import register as plugin
from recbole_adrrec.integration.checkpoint import load_checkpoint, save_checkpoint

SIZE = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "epochs": 0,
    "show_progress": False,
    "MAX_ITEM_LIST_LENGTH": 12,
    "hidden_size": 16,
    "inner_size": 16,
    "n_layers": 2,
    "n_heads": 2,
    "metrics": ["NDCG"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}


@dataclass
class Trained:
    """A training and the files it left behind."""

    path: Path
    config: Any
    model: Any
    trainer: Any
    train_data: Any
    test_data: Any


def train(model: str, data_path: Path, folder: Path, dataset: str = "small", **options: Any) -> Trained:
    """Train as RecBole's ``run_recbole`` does, and keep everything; no epoch unless ``epochs`` is given."""
    recbole = importlib.import_module("recbole.quick_start.quick_start")
    options = {**SIZE, "data_path": str(data_path), "checkpoint_dir": str(folder), **options}
    if model in ("SASRec", "BERT4Rec", "GRU4Rec"):
        options.setdefault("train_neg_sample_args", None)
    config = recbole.Config(model=model, dataset=dataset, config_dict=options)
    recbole.init_seed(config["seed"], config["reproducibility"])
    data = recbole.create_dataset(config)
    train_data, valid_data, test_data = recbole.data_preparation(config, data)
    made = recbole.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    trainer = recbole.get_trainer(config["MODEL_TYPE"], config["model"])(config, made)
    trainer.fit(train_data, valid_data, verbose=False)
    return Trained(Path(trainer.saved_model_file), config, made.eval(), trainer, train_data, test_data)


def train_once(options: Mapping[str, dict[str, Any]], data_path: Path, folder: Path) -> Callable[[str], Trained]:
    """Gives trainings by name, which begins with the model's, each done when it is first asked for."""

    @functools.cache
    def get(name: str) -> Trained:
        with plugin.command_line({}, strict=False):
            return train(name.split()[0], data_path, folder / name.replace(" ", "_"), **options.get(name, {}))

    return get


def saved(path: Path, change: Callable[[Any], object]) -> Path:
    """A copy of a checkpoint, ``changed.pth``, with something changed and a fingerprint that fits again."""
    checkpoint = load_checkpoint(path)
    change(checkpoint)
    other = Path("changed.pth").resolve()
    save_checkpoint(checkpoint, other)
    return other
