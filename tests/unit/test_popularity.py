"""Popularity: counts of items, over all of training and before a query."""

from types import SimpleNamespace

import helpers
import pytest
import torch
from trained import train

from recbole_adrrec import load
from recbole_adrrec.errors import OptionError
from recbole_adrrec.models.popularity import Popularity
from recbole_adrrec.tools import explain

DAY = 86400
ITEMS = torch.tensor([3, 1, 1, 2, 3, 3, 1])
DAYS = torch.tensor([9, 1, 2, 5, 6, 9, 30])


def model(**changes):
    """A model of seven events, not in order of time."""
    data = SimpleNamespace(
        num=lambda field: 5,
        shown_events=lambda include_targets, *fields: tuple(
            {"item_id": ITEMS, "timestamp": DAYS * DAY}[name] for name in fields
        ),
    )
    return Popularity(helpers.options("Popularity", **changes), data).eval()


def query(history_day, target_day):
    """One row: its only event, and the moment of the next."""
    return {
        "user_id": torch.tensor([1]),
        "item_id_list": torch.tensor([[4, 0, 0]]),
        "timestamp_list": torch.tensor([[history_day, 0, 0]]) * DAY,
        "item_length": torch.tensor([1]),
        "item_id": torch.tensor([3]),
        "timestamp": torch.tensor([target_day]) * DAY,
    }


@pytest.mark.parametrize(
    ("changes", "rows", "counts"),
    [
        ({"window_days": None}, query(5, 9), [0, 3, 1, 3, 0]),
        ({"window_days": 4, "use_query_time": True}, query(5, 9), [0, 0, 1, 1, 0]),  # days 5 to 8
        ({"window_days": 4, "use_query_time": False}, query(9, 30), [0, 0, 1, 3, 0]),  # days 5 to 9
        ({"window_days": 1.5, "use_query_time": True}, query(5, 2), [0, 1, 0, 0, 0]),
        ({"window_days": 7, "use_query_time": True}, query(5, 20), [0, 0, 0, 0, 0]),
    ],
)
def test_counts_before_the_moment_of_the_query(changes, rows, counts):
    made = model(**changes)
    scores = made.full_sort_predict(rows)
    assert scores.floor().tolist() == [counts]
    assert made.predict(rows).tolist() == [scores[0, 3].item()]


def test_equal_counts_are_ordered_by_all_events():
    scores = model(window_days=7, use_query_time=True).full_sort_predict(query(5, 20))[0]
    assert scores.tolist() == pytest.approx([0, 3 / 8, 1 / 8, 3 / 8, 0])


def test_rows_of_a_batch_are_scored_apart():
    made = model(window_days=4, use_query_time=True)
    rows = [query(5, day) for day in (9, 2, 9, 31)]
    together = {field: torch.cat([row[field] for row in rows]) for field in rows[0]}
    expected = torch.cat([made.full_sort_predict(row) for row in rows])
    assert torch.equal(made.full_sort_predict(together), expected)


def test_a_window_is_needed_for_a_moment():
    with pytest.raises(OptionError, match="use_query_time: True means nothing without window_days"):
        model(window_days=None, use_query_time=True)


def test_it_trains_recommends_and_has_nothing_to_explain(small_data, tmp_path):
    made = train("Popularity", small_data, tmp_path, epochs=1)
    events = made.train_data._dataset.shown_events(True, "item_id", "timestamp")
    assert torch.equal(made.model.event_time, events[1].sort().values)
    recommender = load(made.path)
    answers = recommender.recommend(recommender.users[:2])
    assert len(list(answers)) == 2
    assert not recommender.knows_query_time
    with pytest.raises(OptionError, match="Popularity has no attention weights"):
        explain.explain(recommender, recommender.users[0])
