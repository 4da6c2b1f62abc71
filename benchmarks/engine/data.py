"""Where RecBole finds a data set."""

from __future__ import annotations

from pathlib import Path

from recbole_adrrec.options.properties import recbole_folder


def data_file(dataset: str, data_path: str | None = None) -> Path:
    """The atomic file of a data set in a folder of data sets; RecBole brings ml-100k along."""
    if dataset == "ml-100k":
        return recbole_folder() / "dataset_example" / dataset / f"{dataset}.inter"
    return Path(data_path or "dataset", dataset, f"{dataset}.inter").resolve()
