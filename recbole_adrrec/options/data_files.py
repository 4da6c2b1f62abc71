"""Data files that a run needs: which are missing, and where they can be had."""

import os
from collections.abc import Sequence
from pathlib import Path

from recbole_adrrec.errors import DataError
from recbole_adrrec.options.names import suggestion
from recbole_adrrec.options.properties import load_yaml, property_names, recbole_folder

_PAGES = {
    "ml-": "https://grouplens.org/datasets/movielens/",
    "amazon-": "https://jmcauley.ucsd.edu/data/amazon/",
}
_RECBOLE_PAGE = "https://github.com/RUCAIBox/RecDatasets"


def _download_links() -> dict[str, str]:
    text = (recbole_folder() / "properties/dataset/url.yaml").read_text(encoding="utf-8")
    return load_yaml(text, "RecBole's url.yaml") or {}


def missing_data(dataset: str, folder: str | Path) -> str:
    """Say which file of a data set is wanted in its ``folder``, and from which public page it can be had."""
    wanted = Path(folder, f"{dataset}.inter")
    link = _download_links().get(dataset)
    if link is None:
        near = suggestion(dataset, {*_download_links(), *property_names("dataset")}, 0.75)
        return (
            f"dataset: there is no file {wanted}, and RecBole knows no download named {dataset!r}"
            f"{near}; put the file there (columns user_id:token, item_id:token, timestamp:float) "
            f"or set data_path; data sets that RecBole knows: {_RECBOLE_PAGE}"
        )
    page = next((page for start, page in _PAGES.items() if dataset.startswith(start)), _RECBOLE_PAGE)
    return (
        f"dataset: there is no file {wanted}; download {link} (data from {page}), unpack it and "
        f"give the file that name, or set data_path to a folder that holds {dataset}/{wanted.name}"
    )


def check_data(dataset: str, folder: str | Path, benchmark: Sequence[str] | None = None) -> None:
    """Refuse a data set that is neither there nor to be downloaded by RecBole with a DataError that says what to do.

    ``benchmark`` has the names of the parts, where the events are split into ``<dataset>.<part>.inter``.
    """
    if not os.path.exists(folder) and dataset in _download_links():
        return
    names = [f"{dataset}.{part}.inter" for part in benchmark] if benchmark else [f"{dataset}.inter"]
    if not all(os.path.isfile(os.path.join(folder, name)) for name in names):
        raise DataError(missing_data(dataset, folder))
