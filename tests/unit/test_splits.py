"""The global split in time: who lands where, what each row may see, and what is cold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_events, write_dataset
from recbole.config import Config
from recbole.data import create_dataset

from recbole_adrrec.data.splits import GlobalSplit
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.integration import register as plugin

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
DAY = 86_400
EVENTS = [
    # ann spans all periods, bob stops before the test, cem comes with the test, dan has one event in it
    *[("ann", item, day) for item, day in (("a", 1), ("b", 2), ("c", 3), ("a", 11), ("d", 12), ("b", 21), ("e", 22))],
    *[("bob", item, day) for item, day in (("b", 1), ("a", 4), ("c", 13))],
    *[("cem", item, day) for item, day in (("a", 23), ("f", 24), ("c", 25))],
    *[("dan", item, day) for item, day in (("a", 26),)],
    *[("eve", item, day) for item, day in (("c", 5), ("b", 6), ("a", 14), ("b", 27))],
]
LATE = [["b", item, "2"] for item in "y"] + [["c", "z", "3"]]
TIMES = [10 * DAY, 20 * DAY]


def build(
    folder: Path, rows: list[list[str]] | None = None, given: dict[str, Any] | None = None, **entries: Any
) -> Any:
    """Data set, and its training, validation and test parts under the global split with these entries."""
    own = [[user, item, str(day * DAY)] for user, item, day in EVENTS]
    write_dataset(folder, "tiny", HEAD, rows or own)
    eval_args = {"split": {"GT": entries}, "order": "TO", "group_by": "user", "mode": "full"}
    options = {"data_path": str(folder), "eval_args": eval_args, "topk": [2], "metrics": ["NDCG"], **(given or {})}
    with plugin.command_line({**options, "valid_metric": "NDCG@2"}):
        dataset = create_dataset(Config("ADRRec", "tiny"))
    return dataset, dataset.build()


def shown(dataset: Any) -> set[tuple[str, str, str]]:
    """User, history and target of each row, in letters."""
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    rows = dataset.inter_feat.build()
    return {
        (users[user], "".join(items[item] for item in history if item), items[target])
        for user, history, target in zip(rows["user_id"], rows["item_id_list"], rows["item_id"], strict=True)
    }


def test_last_targets_see_all_that_came_before_them(tmp_path: Path) -> None:
    _, (train, valid, test) = build(tmp_path, times=TIMES, cold_items="keep")
    assert shown(train) == {("ann", "a", "b"), ("ann", "ab", "c"), ("bob", "b", "a"), ("eve", "c", "b")}
    assert shown(valid) == {("ann", "abca", "d"), ("bob", "ba", "c"), ("eve", "cb", "a")}
    assert shown(test) == {("ann", "abcadb", "e"), ("cem", "af", "c"), ("eve", "cba", "b")}


def test_first_and_successive_targets(tmp_path: Path) -> None:
    _, (_, valid, test) = build(tmp_path, times=TIMES, targets="first", cold_items="keep")
    assert shown(valid) == {("ann", "abc", "a"), ("bob", "ba", "c"), ("eve", "cb", "a")}
    # cem's first event of all has nothing before it: the first that can be predicted is the second.
    assert shown(test) == {("ann", "abcad", "b"), ("cem", "a", "f"), ("eve", "cba", "b")}
    _, (_, valid, test) = build(tmp_path, times=TIMES, targets="successive", cold_items="keep")
    assert len(valid) == 4
    assert shown(test) >= {("ann", "abcad", "b"), ("ann", "abcadb", "e"), ("cem", "a", "f"), ("cem", "af", "c")}


@pytest.mark.parametrize("train_rows", ["prefix", "sequence"])
def test_training_from_a_moment_predicts_no_earlier_events_and_shows_them(tmp_path: Path, train_rows: str) -> None:
    given = {"train_rows": train_rows, "MAX_ITEM_LIST_LENGTH": 4}
    whole, part = (build(tmp_path, None, given, times=TIMES, **entries)[1] for entries in ({}, {"train_from": 3 * DAY}))
    assert shown(part[0]) == {("ann", "ab", "c"), ("bob", "b", "a"), ("eve", "c", "b")}
    assert [shown(each) for each in part[1:]] == [shown(each) for each in whole[1:]]
    if train_rows == "sequence":
        assert [each[0].windows.n_targets for each in (whole, part)] == [4, 3]


def test_cold_items_leave_histories_targets_and_the_ranking(tmp_path: Path) -> None:
    kept, _ = build(tmp_path, times=TIMES, cold_items="keep")
    dropped, (_, valid, test) = build(tmp_path, times=TIMES)
    assert shown(valid) == {("ann", "abc", "a"), ("bob", "ba", "c"), ("eve", "cb", "a")}
    assert shown(test) == {("ann", "abca", "b"), ("cem", "a", "c"), ("eve", "cba", "b")}
    assert (kept.item_num, dropped.item_num) == (7, 4)
    for counts in (kept.split_counts, dropped.split_counts):
        assert (counts["cold_items"], counts["cold_item_events"]) == (3, {"train": 0, "valid": 1, "test": 2})
        assert (counts["cold_users"], counts["cold_user_events"]) == (2, {"train": 0, "valid": 0, "test": 4})
        assert counts["events"] == {"train": 7, "valid": 4, "test": 7}


def test_cold_users_can_be_dropped(tmp_path: Path) -> None:
    dataset, (_, _, test) = build(tmp_path, times=TIMES, cold_users="drop")
    assert {user for user, _, _ in shown(test)} == {"ann", "eve"}
    assert dataset.user_num == 4
    assert dataset.split_counts["cold_users_are"] == "dropped"


@pytest.mark.parametrize("train_rows", ["sequence", "prefix"])
def test_nothing_of_later_periods_is_trained(tmp_path: Path, train_rows: str) -> None:
    _, rows = read_events()
    rows = [[user, item, time] for user, item, _, time in rows[:20_000]]
    dataset, (train, valid, test) = build(
        tmp_path, rows, {"train_rows": train_rows, "MAX_ITEM_LIST_LENGTH": 10}, targets="successive"
    )
    first, second = dataset.split_moments
    built = train[torch.arange(len(train))]
    assert int(built["timestamp"].max()) < first
    assert int(built["timestamp_list"].max()) < first
    assert int(train.trained_days(True).max()) <= first // DAY
    assert (valid.inter_feat["timestamp"] >= first).all()
    assert (valid.inter_feat["timestamp"] < second).all()
    assert (test.inter_feat["timestamp"] >= second).all()
    trained = set(built["item_id"].flatten().tolist()) | set(built["item_id_list"].flatten().tolist())
    assert set(test.inter_feat["item_id"].tolist()) <= trained


@pytest.mark.parametrize("count", [10, 97, 100, 1000])
def test_shares_cut_where_they_say(count: int) -> None:
    first, second = GlobalSplit().moments(np.random.default_rng(0).permutation(count))
    assert (first, second) == (int(0.8 * count), int(0.9 * count))


def test_events_of_one_second_are_not_parted() -> None:
    assert GlobalSplit(shares=(1, 1, 1)).moments(np.array([5, 5, 5, 5, 7, 9])) == (5, 7)


def test_dates_are_days_in_utc(tmp_path: Path) -> None:
    by_date, _ = build(tmp_path, times=["1970-01-11", "1970-01-21"])
    assert by_date.split_moments == tuple(TIMES)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"target": "last"}, "did you mean targets"),
        ({"targets": "lst"}, "did you mean last"),
        ({"shares": [0.8, 0.2]}, "should be three"),
        ({"shares": [0.8, 0.1, 0]}, "above 0"),
        ({"times": [20, 10]}, "the earlier first"),
        ({"times": ["soon", "later"]}, "dates such as"),
        ({"times": [10, 20], "shares": [1, 1, 1]}, "exclude each other"),
        ({"cold_items": "ignore"}, "none of drop, keep"),
        ({"train_from": "soon"}, "train_from: .*'soon' is neither a number nor ISO 8601"),
    ],
)
def test_wrong_entries_are_refused(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(tmp_path, **entries)


def test_rounded_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="needs exact_time true"):
        build(tmp_path, given={"exact_time": False})


def test_an_empty_period_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event for valid"):
        build(tmp_path, times=[10 * DAY, 10 * DAY + 1])
    with pytest.raises(DataError, match="nothing to predict for train"):
        build(tmp_path, [["a", "xyz"[time % 3], str(time)] for time in (2, 31, 50)] + LATE, times=[20, 40])


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "MEANTIME"])
def test_models_train_and_test_on_it(small: dict[str, object], model: str) -> None:
    from recbole.quick_start import run_recbole

    eval_args = {"split": {"GT": {}}, "order": "TO", "group_by": "user", "mode": "full"}
    options = {name: value for name, value in small.items() if model != "SASRec" or name != "inner_size"}
    with plugin.command_line({**options, "eval_args": eval_args}):
        result = run_recbole(model=model, dataset="small")
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
