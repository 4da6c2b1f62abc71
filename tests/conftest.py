"""RecBole with the plugin registered, and small data sets to run it on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import recbole_adrrec

recbole_adrrec.register()

import recbole  # noqa: E402

# The same examples in every run; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

sys.path.insert(0, str(Path(__file__).parent))  # tests share helpers.py
ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"


def read_events(path: Path = ML_100K) -> tuple[str, list[list[str]]]:
    """Header of an atomic file, and its lines cut into columns."""
    head, *lines = path.read_text().splitlines()
    return head, [line.split("\t") for line in lines]


def write_dataset(folder: Path, name: str, head: str, rows: list[list[str]]) -> Path:
    """Write ``<folder>/<name>/<name>.inter``."""
    path = folder / name / f"{name}.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set ``small``: ml-100k's first 60 users that it names."""
    head, rows = read_events()
    users: dict[str, None] = dict.fromkeys(row[0] for row in rows)
    kept = set(list(users)[:60])
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "small", head, [row for row in rows if row[0] in kept])
    return folder


@pytest.fixture
def small(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Options for a short training on ``small``; the working directory is a fresh one."""
    monkeypatch.chdir(tmp_path)
    return {
        "data_path": str(small_data),
        "checkpoint_dir": str(tmp_path / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "epochs": 1,
        "show_progress": False,
        "MAX_ITEM_LIST_LENGTH": 12,
        "hidden_size": 16,
        "inner_size": 16,
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
    }
