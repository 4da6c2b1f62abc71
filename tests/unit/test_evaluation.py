"""Full ranking by blocks of rows gives the metrics of RecBole's full ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_adrrec.integration import ranking
from recbole_adrrec.integration.ranking import RowScores

METRICS = ["Recall", "NDCG", "MRR", "Hit", "MAP", "Precision", "GAUC", "ItemCoverage", "AveragePopularity"]
METRICS += ["Novelty", "IntraListDiversity"]


class LargestResult(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return result


def evaluated(model: str, small: dict[str, Any], **options: Any) -> tuple[dict[str, float], int]:
    settings = {"metrics": METRICS, "topk": [1, 10, 20], "metric_decimal_place": 17, "state": "ERROR", **options}
    settings |= {"train_neg_sample_args": None, "loss_type": "CE", "initializer_range": 0.5}
    config = Config(model, "small", config_dict={**small, **settings})
    init_seed(3, True)
    train, _, test = data_preparation(config, create_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, get_model(model)(config, train._dataset))
    trainer.eval_collector.data_collect(train)
    if options.get("masked"):
        mask_some(test, trainer, options["masked"])
    with LargestResult() as largest:
        result = trainer.evaluate(test, load_best_model=False)
    return dict(result), largest.elements


def mask_some(loader: Any, trainer: Any, form: str) -> None:
    """As RecBole's loaders of other kinds of models do, tell of items that are not to be ranked."""
    collate = loader.collate_fn

    def with_history(index: Any) -> Any:
        interaction, _, at, items = collate(index)
        rng = np.random.default_rng(0)
        rows = torch.arange(len(interaction)).repeat_interleave(5)
        hidden = torch.from_numpy(rng.integers(1, loader._dataset.item_num, len(rows)))
        keep = hidden != items[rows]
        out: Any = (rows[keep], hidden[keep])
        if form == "table":
            out = torch.zeros(len(interaction), loader._dataset.item_num, dtype=torch.bool).index_put(
                out, torch.tensor(True)
            )
        return interaction, out, at, items

    loader.collate_fn = with_history


def by_recbole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let RecBole's own method score and mask, and RecBole's collector count, whole batches."""
    monkeypatch.setattr(ranking, "score_by_rows", lambda trainer, score, batch: score(batch))


@pytest.mark.parametrize("masked", [None, "pairs", "table"])
@pytest.mark.parametrize("model", ["ADRRec", "STOSA", "MEANTIME", "SASRec"])
def test_the_metrics_are_the_same_to_the_last_digit(
    model: str, masked: str | None, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for block in (1, 10_000, 1 << 22):  # single rows; sevens of 60, with a rest; all
        monkeypatch.setitem(ranking.BLOCK_SCORES, "cpu", block)
        found.append(evaluated(model, small, masked=masked)[0])
    by_recbole(monkeypatch)
    whole, _ = evaluated(model, small, masked=masked)
    assert found == [whole] * 3


@pytest.mark.parametrize("model", ["AWRSR", "SASRec"])
def test_no_tensor_holds_all_scores(model: str, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {
        "hidden_size": 4,
        "inner_size": 4,
        "MAX_ITEM_LIST_LENGTH": 2,
        "n_heads": 1,
        "topk": [5],
        "valid_metric": "NDCG@5",
    }
    monkeypatch.setitem(ranking.BLOCK_SCORES, "cpu", 4_000)
    _, by_rows = evaluated(model, small, **tiny)
    by_recbole(monkeypatch)
    _, whole = evaluated(model, small, **tiny)
    assert by_rows < whole / 3


def test_ranks_of_equal_scores_are_shared() -> None:
    scores = torch.tensor([[-torch.inf, 3.0, 1.0, 3.0, 2.0], [-torch.inf, 0.0, 0.0, 0.0, 5.0]])
    for height in (1, 2):
        blocks = [(row, scores[row : row + height]) for row in range(0, 2, height)]
        by_rows = RowScores(2, lambda blocks=blocks: iter(blocks))
        ranks = by_rows.ranks(torch.tensor([0, 0, 1, 1]), torch.tensor([3, 4, 2, 4]))
        assert ranks.tolist() == [1.5, 3.0, 3.0, 1.0]
        best = by_rows.best(2)
        assert sorted(best[0].tolist()) == [1, 3]
        assert best[1, 0] == 4
        assert by_rows.known().tolist() == [4, 4]
