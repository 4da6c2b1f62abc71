"""RecBole's own sequential models from training to recommendation, through all mends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer
from recbole.utils.case_study import full_sort_scores, full_sort_topk


@pytest.mark.parametrize("model_name", ["SASRec", "BERT4Rec", "GRU4Rec"])
def test_models_of_recbole_go_all_the_way(model_name: str, small: dict[str, Any]) -> None:
    options = {
        **small,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "embedding_size": 8,
        "hidden_size": 8,
        "inner_size": 8,
        "num_layers": 1,
        "n_layers": 1,
        "topk": [50],
        "valid_metric": "NDCG@50",
        "stopping_step": 3,
        "checkpoint_last": 0,
    }
    result = run_recbole(model=model_name, dataset="small", config_dict=dict(options))
    (path,) = Path(options["checkpoint_dir"]).glob(f"{model_name}-*.pth")

    config, model, dataset, train_data, valid_data, test_data = load_data_and_model(str(path))
    trainer = get_trainer(config["MODEL_TYPE"], model_name)(config, model)
    torch.manual_seed(0)
    assert dict(trainer.evaluate(valid_data, load_best_model=False)) == dict(result["best_valid_result"])
    assert dict(trainer.evaluate(test_data, model_file=str(path))) == dict(result["test_result"])

    trainer.resume_checkpoint(str(path))
    assert trainer.start_epoch == 1
    trainer.epochs = 2
    trainer.fit(train_data, valid_data, saved=True, verbose=False)
    assert trainer.start_epoch == 1
    assert sorted(trainer.train_loss_dict) == [0, 1]

    users = dataset.token2id(dataset.uid_field, [dataset.id2token(dataset.uid_field, user) for user in (1, 2, 3)])
    scores, items = full_sort_topk(users, model, test_data, k=10, device=config["device"])
    assert scores.shape == items.shape == (3, 10)
    every = full_sort_scores(users, model, test_data, device=config["device"])
    assert torch.equal(every.gather(1, items), scores)
    assert (items > 0).all()
