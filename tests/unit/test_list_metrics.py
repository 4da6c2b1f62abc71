"""Novelty and diversity of lists against their definitions, and as RecBole's ``metrics`` option finds them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from recbole.config import Config
from recbole.quick_start import run_recbole
from scipy.sparse import csr_matrix

from recbole_adrrec.integration import ranking
from recbole_adrrec.integration.ranking import IntraListDiversity, Novelty

CONFIG = {"topk": [1, 3, 5], "metric_decimal_place": 12}


def drawn(n_lists: int = 300, n_items: int = 40, n_users: int = 25) -> tuple[np.ndarray, list[set[int]]]:
    """Lists of five items, and the users of each item; nobody met item 1."""
    rng = np.random.default_rng(5)
    lists = np.stack([rng.choice(np.arange(1, n_items), 5, replace=False) for _ in range(n_lists)])
    met = [set(rng.choice(n_users, rng.integers(1, 9), replace=False).tolist()) for _ in range(n_items)]
    met[0] = met[1] = set()
    return lists, met


def as_matrix(met: list[set[int]]) -> csr_matrix:
    return csr_matrix(np.array([[float(user in users) for user in range(25)] for users in met]))


def test_novelty_is_the_mean_self_information():
    lists, met = drawn()
    everybody = len(set().union(*met))
    for k in (1, 3, 5):
        expected = [np.mean([np.log2(everybody / max(len(met[item]), 1)) for item in row[:k]]) for row in lists]
        np.testing.assert_allclose(Novelty(CONFIG).metric_info(lists, as_matrix(met))[:, k - 1], expected, rtol=1e-12)


def test_diversity_is_the_mean_distance_of_pairs():
    def distance(one: int, other: int) -> float:
        size = len(met[one]) * len(met[other])
        return 1 - len(met[one] & met[other]) / size**0.5 if size else 1.0

    lists, met = drawn()
    assert len(lists) > 2 * ranking.BLOCK_LISTS
    found = IntraListDiversity(CONFIG).metric_info(lists, as_matrix(met))
    assert np.all(found[:, 0] == 0)
    for k in (2, 3, 5):
        expected = [np.mean([distance(*pair) for pair in itertools.combinations(row[:k], 2)]) for row in lists]
        np.testing.assert_allclose(found[:, k - 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["ADRRec", "SASRec", "BPR"])
def test_recbole_finds_them_beside_its_own(model: str, small: dict[str, Any]):
    names = ["NDCG", "Novelty", "IntraListDiversity", "ItemCoverage", "GiniIndex", "AveragePopularity"]
    more = {} if model == "BPR" else {"train_neg_sample_args": None, "loss_type": "CE"}
    given = {**small, **more, "metrics": names, "topk": [5], "valid_metric": "NDCG@5", "epochs": 1}
    result = dict(run_recbole(model=model, dataset="small", config_dict=given, saved=False)["test_result"])
    assert set(result) == {f"{name.lower()}@5" for name in names}
    assert 0 < result["intralistdiversity@5"] < 1
    # The mean information of items met by c users each, of n in all, can't be below that of their mean count.
    assert result["novelty@5"] > np.log2(60 / result["averagepopularity@5"]) - 0.01


def test_users_of_items_are_those_of_training_targets(small: dict[str, Any]):
    from recbole.data import create_dataset, data_preparation

    config = Config("ADRRec", "small", config_dict={**small, "train_neg_sample_args": None})
    train, _, _ = data_preparation(config, create_dataset(config))
    met = ranking.users_of_items(train.dataset)
    counts = train.dataset.item_counter
    assert met.sum() == sum(counts.values())
    assert all(met[item].sum() == count for item, count in counts.items())
