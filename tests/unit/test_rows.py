"""Prefix rows and windows against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_adrrec.data.rows import Events, PrefixRows, WindowRows


def make_rows(counts: list[int], length: int) -> PrefixRows:
    """Users 1, 2, ... with so many events each; items and times tell the event's index."""
    users = torch.repeat_interleave(torch.arange(1, len(counts) + 1), torch.tensor(counts))
    index = torch.arange(len(users))
    columns = {"user_id": users, "item_id": index + 1, "timestamp": 10_000_000_000 + index}
    events = Events.from_sorted(columns, "user_id", len(counts) + 1)
    targets = index[index != events.first(index)]
    return PrefixRows(events, targets, length, "_list", "item_length")


def plain_prefixes(counts: list[int], length: int) -> list[tuple[int, list[int], int]]:
    """User, history and target of each row, written as a loop."""
    rows, start = [], 0
    for user, count in enumerate(counts, start=1):
        items = list(range(start + 1, start + count + 1))
        rows += [(user, items[max(0, at - length) : at], items[at]) for at in range(1, count)]
        start += count
    return rows


COUNTS = st.lists(st.integers(1, 14), min_size=1, max_size=5).filter(lambda counts: max(counts) > 1)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 6))
def test_prefix_rows_equal_a_loop(counts, length):
    rows = make_rows(counts, length)
    built = rows.build()
    expected = plain_prefixes(counts, length)
    assert len(rows) == len(expected)
    for at, (user, history, target) in enumerate(expected):
        assert built["user_id"][at] == user
        assert built["item_id"][at] == target
        assert built["item_length"][at] == len(history)
        assert built["item_id_list"][at].tolist() == history + [0] * (length - len(history))
        times = [10_000_000_000 + item - 1 for item in history]
        assert built["timestamp_list"][at].tolist() == times + [0] * (length - len(history))
    assert built["timestamp_list"].dtype == torch.int64


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 6), st.data())
def test_windows_train_each_target_once_with_enough_before_it(counts, length, data):
    stride = data.draw(st.integers(1, length))
    rows = make_rows(counts, length)
    windows = WindowRows(rows, stride, cloze=False)
    built = windows.build()
    seen: dict[int, int] = {}
    for row in range(len(windows)):
        size = int(built["item_length"][row])
        inputs = built["item_id_list"][row].tolist()
        assert inputs == list(range(inputs[0], inputs[0] + size)) + [0] * (length - size)
        for slot, target in enumerate(built["item_id"][row].tolist()):
            if target:
                assert target == inputs[slot] + 1
                assert int(built["timestamp"][row, slot]) == 10_000_000_000 + target - 1
                assert target not in seen
                seen[target] = slot + 1
    expected = {target: len(history) for _, history, target in plain_prefixes(counts, 10**6)}
    assert seen.keys() == expected.keys()
    assert windows.n_targets == len(expected)
    for target, before in seen.items():
        assert before >= min(expected[target], length - stride)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 6), st.data())
def test_cloze_windows_offer_each_event_of_training_once(counts, length, data):
    stride = data.draw(st.integers(1, length))
    rows = make_rows(counts, length)
    built = WindowRows(rows, stride, cloze=True).build()
    offered = built["item_id"][built["item_id"] > 0].tolist()
    users = [count for count in counts if count > 1]
    assert len(offered) == len(set(offered)) == sum(users)
    inside = built["item_id"] > 0
    assert torch.equal(built["item_id"][inside], built["item_id_list"][inside])


def test_only_the_rows_given_are_trained():
    rows = make_rows([9], 4)
    kept = rows[[0, 1, 5]]
    built = WindowRows(kept, 2, cloze=False).build()
    assert sorted(built["item_id"][built["item_id"] > 0].tolist()) == sorted(kept["item_id"].tolist())


INDICES = [[2, 0], np.array([1, 3]), torch.tensor([4]), slice(1, 4), range(2), torch.tensor([True, False] * 4)]


@pytest.mark.parametrize("index", INDICES, ids=lambda index: type(index).__name__)
def test_rows_answer_any_index_as_an_interaction_does(index):
    rows = make_rows([5, 5], 3)
    plain = rows.build()
    some = rows[index]
    assert isinstance(some, PrefixRows)
    expected = plain[list(index) if isinstance(index, range) else index]
    for name in plain:
        assert torch.equal(some[name], expected[name])


def test_single_rows_sorting_dropping_and_new_columns():
    rows = make_rows([4, 4], 3)
    assert rows[2]["item_id"].tolist() == rows["item_id"][2].tolist()
    rows["score"] = torch.tensor([5, 3, 4, 1, 0, 2])
    plain = rows.build()
    rows.sort(by="score", ascending=False)
    order = plain["score"].argsort(descending=True)
    assert torch.equal(rows["item_id_list"], plain["item_id_list"][order])
    rows.drop("score")
    assert "score" not in rows
    assert "score" not in list(rows)
    with pytest.raises(ValueError, match="score"):
        rows.drop("score")
    assert rows.user_id.tolist() == rows["user_id"].tolist()
    with pytest.raises(AttributeError):
        _ = rows.nothing


def test_rows_hold_less_than_a_twentieth_of_the_padded_lists():
    rows = make_rows([150] * 40, 50)
    parts = [*rows.events.columns.values(), rows.events.starts, rows.targets]
    held = sum(part.numel() * part.element_size() for part in parts)
    padded = sum(values.numel() * values.element_size() for values in rows.build().interaction.values())
    assert held * 20 < padded
