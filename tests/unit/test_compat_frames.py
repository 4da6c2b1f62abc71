"""Datasets with missing values and sequences, against numbers worked out by hand (and equal under pandas 2 and 3)."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.dataset import dataset as dataset_module
from recbole.data.dataset import sequential_dataset as sequential_module

from recbole_adrrec.compat import frames
from recbole_adrrec.compat.patching import Overlay, original

pandas_3 = pytest.mark.skipif(not frames.copies_columns(), reason="this pandas has not the fault")

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
a\tx\t1\t10
a\ty\t\t11
b\tx\t4\t12
b\tz\t1\t13
"""
USER = """user_id:token\tage:float\tjob:token\ttags:token_seq
a\t20\t\tred blue
b\t\tcook\t
"""
ITEM = """item_id:token\tweights:float_seq\tcolour:token
x\t0.5 1.5 2.5\tred
y\t\tblue
z\t4.5\t
"""


@pytest.fixture
def holes(tmp_path: Path) -> Path:
    folder = tmp_path / "holes"
    folder.mkdir()
    for suffix, text in (("inter", INTER), ("user", USER), ("item", ITEM)):
        (folder / f"holes.{suffix}").write_text(text)
    return tmp_path


def make(holes: Path, kind: type = Dataset, model: str = "BPR", **options: Any) -> Any:
    settings = {"data_path": str(holes), "normalize_all": False, "load_col": None, "numerical_features": [], **options}
    return kind(Config(model=model, dataset="holes", config_dict=settings))


def test_missing_values_are_filled_in_every_kind_of_column(holes: Path) -> None:
    dataset = make(holes)
    assert dataset.inter_feat["rating"].tolist() == [1, 2, 4, 1]  # the mean of 1, 4 and 1
    assert dataset.user_feat["age"].tolist() == [20, 20, 20]  # users [PAD], a, b
    assert dataset.user_feat["job"].tolist() == [0, 0, 1]
    assert dataset.id2token("job", [1]) == ["cook"]
    assert [list(row) for row in dataset.user_feat["tags"]] == [[], [1, 2], []]
    assert list(dataset.id2token("tags", [1, 2])) == ["red", "blue"]
    assert [list(row) for row in dataset.item_feat["weights"]] == [[], [0.5, 1.5, 2.5], [], [4.5]]
    assert dataset.item_feat["colour"].tolist() == [0, 1, 2, 0]
    assert dataset.field2seqlen["weights"] == 3
    train, _, _ = dataset.build()
    assert train.item_feat["weights"].tolist() == [[0, 0, 0], [0.5, 1.5, 2.5], [0, 0, 0], [4.5, 0, 0]]
    assert train.user_feat["job"].tolist() == [0, 0, 1]
    assert train.user_feat["tags"].tolist() == [[0, 0], [1, 2], [0, 0]]
    assert train.user_feat["job"].dtype == torch.int64


def test_sequences_are_normalised_row_by_row(holes: Path) -> None:
    dataset = make(holes, normalize_all=True)
    expected = [[], [0, 0.25, 0.5], [], [1]]
    assert [list(row) for row in dataset.item_feat["weights"]] == expected
    assert dataset.inter_feat["rating"].tolist() == pytest.approx([0, 1 / 3, 1, 0])


def test_sequences_are_put_into_buckets_row_by_row(holes: Path) -> None:
    options = {
        "numerical_features": ["weights", "age"],
        "discretization": {"weights": {"method": "ED", "bucket": 4}, "age": {"method": "LD"}},
    }
    dataset = make(holes, **options)
    assert [list(row[1]) for row in dataset.item_feat["weights"]] == [[], [1, 1, 2], [], [4]]
    assert [list(row[0]) for row in dataset.item_feat["weights"]] == [[], [1, 1, 1], [], [1]]
    undiscretised = make(holes, numerical_features=["weights"])
    assert [list(row[0]) for row in undiscretised.item_feat["weights"]] == [[], [0.5, 1.5, 2.5], [], [4.5]]


def test_sequences_of_the_interactions_keep_their_lengths(tmp_path: Path) -> None:
    folder = tmp_path / "holes"
    folder.mkdir()
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, rows in (("train", "a\tx y\tz\nb\tx\ty\n"), ("valid", "a\tx y z\tw\n"), ("test", "b\tw\tx\n")):
        (folder / f"holes.{part}.inter").write_text(head + rows)
    options = {
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    }
    dataset = make(tmp_path, SequentialDataset, "SASRec", **options)
    assert list(dataset.inter_feat["item_length"]) == [2, 1, 3, 1]


@pandas_3
def test_the_faults_are_there_without_the_mends(holes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_csv = dataset_module.pd
    assert isinstance(plain_csv, Overlay)
    with monkeypatch.context() as without:
        without.setattr(dataset_module, "pd", pd)
        with pytest.raises(AttributeError, match="split"):
            make(holes)
    with monkeypatch.context() as without:
        without.setattr(Dataset, "_fill_nan", original(Dataset._fill_nan))
        assert np.isnan(make(holes, load_col={"inter": "*"}).inter_feat["rating"][1])
    with monkeypatch.context() as without:
        without.delattr(dataset_module, "len")
        with pytest.raises(ValueError, match="length"):
            make(holes, normalize_all=True)


@pandas_3
def test_pandas_itself_is_left_alone() -> None:
    assert pd.read_csv.__module__.startswith("pandas")
    assert builtins.len is len
    assert sequential_module.__dict__["len"]([1, 2]) == 2
    series = pd.Series([[1, 2], [3]])
    assert series.agg(len) == 2


def test_mends_are_left_out_where_pandas_has_no_such_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "copies_columns", lambda: False)
    monkeypatch.setattr(frames, "aggregates_whole", lambda: False)
    untouched = original(Dataset._fill_nan) or Dataset._fill_nan
    monkeypatch.setattr(Dataset, "_fill_nan", untouched)
    frames.mend_fill_nan()
    frames.mend_sequence_columns()
    frames.mend_lengths()
    assert Dataset._fill_nan is untouched
