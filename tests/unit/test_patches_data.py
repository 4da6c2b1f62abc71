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
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.dataset import dataset as dataset_module
from recbole.data.dataset import sequential_dataset as sequential_module
from recbole.sampler import RepeatableSampler

from recbole_adrrec.integration import patches_data
from recbole_adrrec.integration.patching import Overlay, original

pandas_3 = pytest.mark.skipif(int(pd.__version__.split(".")[0]) < 3, reason="pandas 2 has not the fault")

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
def test_the_faults_are_there_without_the_patches(holes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


AWKWARD = """user_id:token\titem_id:token\trating:float\ttimestamp:float
001\t 7 \t0.1\t1313808000
NA\t"two words"\t1e-3\t1313808001.25
\u00e9\t\u4e2d\t\t9007199254740993
1.0\t-0\t123456789.123456789\t1

None\t#x\tnan\t17
1e5\tTrue\t3.141592653589793238\t999999999999
"""


@pytest.mark.parametrize("seed", range(3))
def test_reading_in_c_gives_the_frames_of_reading_in_python(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**63, 500, dtype=np.uint64).view(np.float64)
    numbers = [
        repr(float(value)) for value in [*bits[np.isfinite(bits)], *rng.random(300), *10 ** rng.normal(5, 4, 300)]
    ]
    rows = [f"u{rng.integers(50)}\ti {i % 90}\t{number}\t{1e9 * rng.random():.6f}" for i, number in enumerate(numbers)]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "odd.inter").write_text(AWKWARD + "\n".join(rows) + "\n", encoding="utf-8")
    read: list[pd.DataFrame] = []

    def keep(frame: pd.DataFrame) -> pd.DataFrame:
        read.append(frame)
        return frame

    fast = dataset_module.pd.read_csv
    monkeypatch.setattr(dataset_module.pd, "read_csv", lambda *a, **k: keep(fast(*a, **k)), raising=False)
    make_odd = {"data_path": str(tmp_path), "load_col": None, "normalize_all": False}
    config = Config(model="BPR", dataset="odd", config_dict=make_odd)
    Dataset(config)
    engines = []
    read_csv = pd.read_csv

    def in_python(*args: Any, **kwargs: Any) -> pd.DataFrame:
        engines.append(kwargs["engine"])
        kwargs |= {"engine": "python"}
        kwargs.pop("float_precision")
        return read_csv(*args, **kwargs)

    monkeypatch.setattr(patches_data.pd, "read_csv", in_python)
    Dataset(config)
    assert engines == ["c"]
    pd.testing.assert_frame_equal(read[0], read[1])
    # To the last place as well, in which pandas 1.5 is off in Python.
    for place, name in ((2, "rating"), (3, "timestamp")):
        assert read[0][name].tolist()[6:] == [float(row.split("\t")[place]) for row in rows]
    assert len(read[0]) == 6 + len(rows)


def test_separators_that_only_python_reads_are_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    lines = ["user_id:token::item_id:token", *(f"u{i % 3}::i{i}" for i in range(9))]
    config = {"data_path": str(tmp_path), "field_separator": ";;", "load_col": None, "normalize_all": False}
    (tmp_path / "long" / "long.inter").write_text("\n".join(lines).replace("::", ";;"))
    assert len(Dataset(Config(model="BPR", dataset="long", config_dict=config)).inter_feat) == 9


def test_loaders_and_samplers_keep_nothing_for_each_row_or_user(small: dict[str, object]) -> None:
    loaders = data_preparation(config := Config("ADRRec", "small", config_dict=small), create_dataset(config))
    for loader in loaders:
        assert torch.utils.data.DataLoader.__getattribute__(loader, "__dict__")["dataset"] == range(loader.sample_size)
    sampled = RepeatableSampler(["train"], loaders[0]._dataset, "uniform").set_phase("train")
    assert len(sampled.used_ids) == 0
    assert (sampled.sample_by_user_ids(np.arange(1, 9), np.full(8, 3), 50) != 3).all()


def test_tokens_are_counted_as_by_a_counter() -> None:
    words = pd.Series(["a", "b", "a", "c"]).values
    counted = dataset_module.Counter(words)
    assert counted == {"a": 2, "b": 1, "c": 1}
    counted -= dataset_module.Counter(words[:2])
    assert counted == {"a": 1, "c": 1}
    assert dataset_module.Counter(np.array([3, 1, 3])) == {3: 2, 1: 1}
    assert dataset_module.Counter() == {}
    assert dataset_module.Counter("aab") == {"a": 2, "b": 1}
