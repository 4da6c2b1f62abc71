"""Options that all sides of a comparison share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_adrrec import options


def common(dataset: str, data_path: str | None, length: int, batch: int, device: str) -> dict[str, Any]:
    """Options of the data and of training that RecBole reads too.

    Every event is kept (no k-core filter), the same three columns are read, and nothing is rescaled.

    Parameters
    ----------
    dataset : str
        A data set of RecBole's layout.
    data_path : str, optional
        Its folder.
    length : int
        ``MAX_ITEM_LIST_LENGTH``.
    batch : int
        ``train_batch_size``: targets of a training step.
    device : str
        ``cpu`` or ``cuda``.
    """
    fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
    if dataset in options.property_names("dataset"):
        known = options.load_properties("dataset", dataset)
        fields = {name: known.get(name, value) for name, value in fields.items()}
    chosen: dict[str, Any] = {
        **fields,
        "load_col": {"inter": list(fields.values())},
        "user_inter_num_interval": None,
        "item_inter_num_interval": None,
        "val_interval": None,
        "normalize_all": False,
        "MAX_ITEM_LIST_LENGTH": length,
        "train_batch_size": batch,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": {"valid": "full", "test": "full"},
        },
        "repeatable": True,
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": device == "cuda",
        "seed": 2020,
    }
    if data_path is not None:
        chosen["data_path"] = str(Path(data_path).resolve())
    return chosen
