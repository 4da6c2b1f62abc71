"""Events in mapped columns: the same users, rows, statistics, batches and weights as in memory."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from trained import train

import recbole_adrrec
from recbole_adrrec.data import make_columns, mapped, ties
from recbole_adrrec.data.columns import Columns
from recbole_adrrec.errors import CheckpointError, DataError, OptionError
from recbole_adrrec.integration import register as plugin
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.checkpoint_data import check_same_data, data_entry

HEAD = "item_id:token\tuser_id:token\trating:float\ttimestamp:float"
LEAVE = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
OPTIONS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": 5,
    "train_batch_size": 16,
    "eval_args": LEAVE,
    "topk": [3],
    "metrics": ["NDCG"],
    "valid_metric": "NDCG@3",
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Many blocks and parts of few events, as large data have them."""
    monkeypatch.setattr(make_columns, "BLOCK", 7)
    monkeypatch.setattr(mapped, "BLOCK", 7)
    monkeypatch.chdir(tmp_path)


def rows_of(unit: int = 1, fraction: bool = False) -> list[list[str]]:
    """Events of users in no order, many of them tied, one user with a single event; two rows lack a name."""
    draw = random.Random(3)
    users = ["007", "7", "NA", "é ü", '"""q"', *(f"u{number}" for number in range(12))]
    rows = []
    for _ in range(300):
        time = (1_000_000_000 + 40_000 * draw.randrange(30)) * unit
        text = f"{time + draw.randrange(4) / 4}" if fraction else str(time)
        rows.append([f"i{int(draw.random() ** 2 * 25)}", draw.choice(users), "3", text])
    rows[20:20] = [["i1", "", "2", str(2_000_000_000 * unit)], ["", "u1", "2", str(2_000_000_000 * unit)]]
    return [*rows, ["i2", "lonely", "1", str(1_000_000_000 * unit)]]


def made(folder: Path, store: str, **given: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Configuration, data set and loaders of the file ``tiny``."""
    options = {**OPTIONS, "data_path": str(folder), "event_store": store, **given}
    with plugin.command_line(options):
        config = Config("ADRRec", "tiny")
    dataset = create_dataset(config)
    return config, dataset, data_preparation(config, dataset)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "random ties": {"tie_order": "random", "tie_seed": 5},
    "cores": {"user_inter_num_interval": "[12,inf)", "item_inter_num_interval": "[5,50]"},
    "validation alone": {"eval_args": {**LEAVE, "split": {"LS": "valid_only"}}},
    "test alone": {"eval_args": {**LEAVE, "split": {"LS": "test_only"}}},
    "sampled": {"eval_args": {**LEAVE, "mode": "uni5"}, "loss_type": "BPR", "eval_users": 6},
    "milliseconds": {"time_unit_in": "ms"},
    "fractions": {"tie_order": "random"},
    "cloze": {"objective": "cloze", "train_stride": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_all_is_as_in_memory(name: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, "tiny", HEAD, rows_of(1000 if name == "milliseconds" else 1, name == "fractions"))
    (config, there, loaders), (_, here, mapped_loaders) = (
        made(tmp_path, store, **CASES[name]) for store in ("memory", "mapped")
    )
    for field in ("user_id", "item_id"):
        assert list(there.field2id_token[field]) == list(here.field2id_token[field])
        assert dict(there.field2token_id[field]) == dict(here.field2token_id[field])
    assert there.ties_are_orderly == here.ties_are_orderly
    train, mapped_train = loaders[0]._dataset, mapped_loaders[0]._dataset
    assert train.field2type == mapped_train.field2type
    assert train.field2seqlen == mapped_train.field2seqlen
    for include in (False, True):
        assert torch.equal(train.trained_days(include), mapped_train.trained_days(include))
        assert train.time_scale(include) == mapped_train.time_scale(include)
    assert torch.equal(train.smallest_training_gaps(), mapped_train.smallest_training_gaps())
    for loader, other in zip(loaders, mapped_loaders, strict=True):
        assert len(loader) == len(other)
        batches = []
        for each in (loader, other):
            np.random.seed(1)
            batches.append([batch[0] if isinstance(batch, tuple) else batch for batch in each])
        for batch, same in zip(*batches, strict=True):
            assert {*batch} == {*same}
            assert all(torch.equal(batch[field], same[field]) for field in batch)
    entry, mapped_entry = (data_entry(config, each) for each in (train, mapped_train))
    assert entry is not None
    assert mapped_entry is not None
    assert entry["fingerprint"] == mapped_entry["fingerprint"]
    assert entry["days"] == mapped_entry["days"]


def test_rows_of_spans_are_those_of_an_index(tmp_path: Path) -> None:
    write_dataset(tmp_path, "tiny", HEAD, rows_of())
    rows = made(tmp_path, "mapped")[2][0]._dataset.inter_feat
    plain = rows[torch.arange(len(rows))]
    assert torch.equal(plain.targets, rows.targets)
    assert all(torch.equal(one, other) for one, other in zip(plain.spans(), rows.spans(), strict=True))
    index = torch.tensor([5, 0, 17])
    assert torch.equal(rows[index]["item_id_list"], plain[index]["item_id_list"])


def test_columns_are_made_once_and_anew_when_the_file_or_an_option_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dataset(tmp_path, "tiny", HEAD, rows_of())
    done = []
    make = mapped.make
    monkeypatch.setattr(mapped, "make", lambda *given: done.append(make(*given)))
    for given in ({}, {}, {"tie_order": "random"}, {"tie_order": "random"}, {}):
        made(tmp_path, "mapped", **given)
    assert len(done) == 3
    path.write_text(path.read_text() + "i3\tu1\t3\t1100000000\n")
    assert made(tmp_path, "mapped")[1].inter_num == 302
    assert len(done) == 4
    assert sorted(each.name for each in path.parent.iterdir()) == ["tiny.columns", "tiny.inter"]


def test_what_a_killed_making_left_goes_after_a_day(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "tiny", HEAD, rows_of())
    folder = path.with_suffix(".columns")
    old, new = (folder.with_name(f".{folder.name}.{number}.tmp") for number in (1, 2))
    for each in (old, new):
        each.mkdir()
        (each / "rows").write_text("1")
    for each in (old / "rows", old):
        os.utime(each, (0, 0))
    made(tmp_path, "mapped")
    assert not old.exists()
    assert new.exists()


def test_a_failure_leaves_no_columns(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "tiny", HEAD, [*rows_of(), ["i1", "u1", "1", "-4"]])
    with pytest.raises(DataError, match=r"1 of 3 events have a negative timestamp .*first: line 305, -4"):
        made(tmp_path, "mapped")
    assert [each.name for each in path.parent.iterdir()] == ["tiny.inter"]


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([["i1", "u1", "1", "soon"]], {}, "not readable as an atomic file .*soon"),
        ([["i1", '"u1', "1", "3"], ["i2", '"u1', "1", "3"]], {}, "a double quote begins the user_id 'u1"),
        ([], {}, "the file has no events"),
        ([["i1", "u1", "1", "3"]] * 2, {"user_inter_num_interval": "[3,inf)"}, "filtering left nothing; loosen"),
        ([["i1", "u1", "1", "3"]], {}, "no user has two events"),
        (
            [["i1", "u1", "1", "3"]],
            {"TIME_FIELD": "at", "load_col": None},
            "needs a column at:float; the file has item",
        ),
    ],
)
def test_data_that_cannot(rows: list[list[str]], given: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, "tiny", HEAD, rows)
    with pytest.raises(DataError, match=message):
        made(tmp_path, "mapped", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_rows": "prefix"}, "ADRRec takes train_rows prefix"),
        ({"exact_time": False}, "sorts by exact times alone, and exact_time is False"),
        ({"eval_args": {**LEAVE, "split": {"GT": {}}}}, "splits by leave-one-out"),
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp", "rating"]}}, "load_col is"),
        ({"rm_dup_inter": "first"}, "rm_dup_inter is 'first'"),
        ({"val_interval": {"rating": "[3,inf)"}}, "val_interval is"),
        ({"metrics": ["NDCG", "Novelty"]}, "Novelty needs"),
        ({"eval_args": {**LEAVE, "mode": "pop9"}}, "draws negatives uniformly"),
        ({"loss_type": "BPR", "train_neg_sample_args": {"distribution": "popularity"}}, "draws negatives uniformly"),
        ({"event_store": "disk"}, "event_store: 'disk' is none of memory, mapped"),
    ],
)
def test_options_that_cannot_are_refused_before_data_are_read(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message), plugin.command_line({**OPTIONS, "event_store": "mapped", **given}):
        Config("ADRRec", "absent")


def test_popularity_counts_all_events() -> None:
    given = {**OPTIONS, "event_store": "mapped"}
    with pytest.raises(OptionError, match="Popularity takes all events at once"), plugin.command_line(given):
        Config("Popularity", "absent")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An epoch of ADRRec, its events in memory and in columns."""
    folder = tmp_path_factory.mktemp("runs")
    write_dataset(folder, "tiny", HEAD, rows_of())
    given = {"epochs": 2, "epoch_steps": 3, "eval_users": 5, "train_batch_size": 16}
    with plugin.command_line({}, strict=False):
        return {
            store: train("ADRRec", folder, folder / store, "tiny", event_store=store, **given)
            for store in ("memory", "mapped")
        }


def test_weights_and_scores_are_as_in_memory(runs: dict[str, Any]) -> None:
    there, here = (runs[store] for store in ("memory", "mapped"))
    weights = here.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in there.model.state_dict().items())
    assert there.trainer.best_valid_score == here.trainer.best_valid_score
    assert there.trainer.train_loss_dict == here.trainer.train_loss_dict
    assert len(here.test_data._dataset) == 5


def test_an_epoch_has_the_steps_asked_for(runs: dict[str, Any]) -> None:
    assert len(runs["mapped"].train_data) > 3
    state = runs["mapped"].trainer.optimizer.state_dict()["state"]
    assert {int(each["step"]) for each in state.values()} == {6}


def test_checkpoints_name_the_columns_and_answer_from_them(runs: dict[str, Any]) -> None:
    there, here = (recbole_adrrec.load(runs[store].path) for store in ("memory", "mapped"))
    stored = load_checkpoint(runs["mapped"].path)["data"]
    assert stored["users"] is None
    assert stored["events"] is None
    assert Path(stored["columns"]).name == "tiny.columns"
    users = ["007", "é ü", "u3"]
    assert there.recommend(users, top=4).items.tolist() == here.recommend(users, top=4).items.tolist()
    assert there.history("u3")[0] == here.history("u3")[0]
    with pytest.raises(DataError, match="'u99' is unknown"):
        here.recommend(["u99"])
    more = [each.append(["new", "u3"], ["i1", "i2"], [1_300_000_000] * 2) for each in (there, here)]
    assert len({str(each.recommend(["new", "u3"], top=4).items.tolist()) for each in more}) == 1


def test_checkpoints_say_where_the_columns_should_be(runs: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(load_checkpoint(runs["mapped"].path)["data"]["columns"])
    away = folder.rename(tmp_path / "away")
    try:
        with pytest.raises(DataError, match=r"carries no users \(.*columns is not there; put it back"):
            recbole_adrrec.load(runs["mapped"].path).recommend(["u3"])
        new = recbole_adrrec.load(runs["mapped"].path).append(["new"], ["i1"], [1_300_000_000])
        assert len(new.recommend(["new"], top=2).items[0]) == 2
    finally:
        shutil.move(away, folder)


def test_weights_of_other_events_are_refused(runs: dict[str, Any]) -> None:
    loader = runs["mapped"].train_data
    here = load_checkpoint(runs["memory"].path)
    check_same_data(here, loader._dataset, "file")
    here["data"]["fingerprint"]["events"] = "0"
    with pytest.raises(CheckpointError, match="other events"):
        check_same_data(here, loader._dataset, "file")


def test_an_unbroken_run_and_a_resumed_one_agree(runs: dict[str, Any], tmp_path: Path) -> None:
    folder = runs["mapped"].path.parent.parent
    given = {"epoch_steps": 3, "eval_users": 5, "train_batch_size": 16, "event_store": "mapped"}
    with plugin.command_line({}, strict=False):
        first = train("ADRRec", folder, tmp_path / "one", "tiny", epochs=1, **given)
        last = first.path.with_name(f"{first.path.stem}-last.pth")
        second = train("ADRRec", folder, tmp_path / "one", "tiny", epochs=2, resume=str(last), **given)
    weights = second.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in runs["mapped"].model.state_dict().items())


def test_damaged_columns_say_so(tmp_path: Path) -> None:
    write_dataset(tmp_path, "tiny", HEAD, rows_of())
    folder = made(tmp_path, "mapped")[1].store.folder
    np.save(folder / "item.npy", np.zeros(3, np.int32))
    with pytest.raises(DataError, match=r"can't be used \(sizes differ\); remove the folder"):
        Columns.open(folder)
    (folder / "time.npy").unlink()
    with pytest.raises(DataError, match=r"time.npy is not there\); remove the folder"):
        Columns.open(folder)
    with pytest.raises(DataError, match="xxx is not there; put it back"):
        Columns.open(Path("x" * 5000))


def test_ties_are_counted_in_several_passes() -> None:
    draw = np.random.default_rng(0)
    users = np.sort(draw.integers(0, 40, 600))
    items, times = draw.integers(1, 5, 600), np.sort(draw.integers(0, 9, 600))
    order = np.lexsort((times, users))
    part = (users[order], items[order], times[order])
    cut = int(np.searchsorted(part[0], 20))
    parts = [tuple(column[:cut] for column in part), tuple(column[cut:] for column in part)]
    whole = ties.tie_statistics(*part)
    assert whole.repeated_pairs > 5
    assert ties.tie_statistics_of_parts(lambda: parts, pairs_at_a_time=50) == whole


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_medians_are_those_of_torch(count: int) -> None:
    gaps = torch.randint(1, 2**37, (count,), generator=torch.Generator().manual_seed(count))
    assert mapped.lower_median(lambda: iter(gaps.split(3))) == float(gaps.median())
