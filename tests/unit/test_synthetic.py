"""Synthetic events: counts, shapes, and files."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import synthetic


def generate(**given):
    """Users, items and times of all events."""
    events = pd.concat(synthetic.blocks(**given))
    return tuple(events[name].to_numpy() for name in ("user", "item", "time"))


@pytest.fixture(scope="module")
def events():
    return generate(users=3000, items=2000, events=200_000, seed=7)


def test_sizes_are_those_asked_for(events):
    users, items, times = events
    assert len(users) == len(items) == len(times) == 200_000
    counts = np.bincount(users)
    assert len(counts) == 3000
    assert counts.min() >= 5
    assert items.min() >= 0
    assert items.max() < 2000
    assert (users.dtype, items.dtype, times.dtype) == (np.int32, np.int32, np.int64)


def test_every_user_stands_once_in_order_of_time(events):
    users, _, times = events
    assert (np.diff(users) >= 0).all()
    assert (np.diff(times)[np.diff(users) == 0] >= 0).all()
    assert times.min() >= synthetic.FIRST_SECOND
    assert times.max() <= synthetic.LAST_SECOND


def test_popularity_is_a_power_law(events):
    _, items, _ = events
    counts = np.sort(np.bincount(items, minlength=2000))[::-1]
    rank = np.arange(1, 2001)
    middle = slice(100, 1500)
    slope = np.polyfit(np.log(rank[middle]), np.log(counts[middle]), 1)[0]
    assert -1.15 < slope < -0.85
    assert counts[:20].sum() > 0.05 * counts.sum()


def test_numbers_of_items_do_not_tell_popularity(events):
    _, items, _ = events
    counts = np.bincount(items, minlength=2000)
    assert abs(np.corrcoef(np.arange(2000), counts)[0, 1]) < 0.1


def test_activity_is_heavy_tailed(events):
    counts = np.bincount(events[0])
    log = np.log(counts - 4)
    assert 0.9 < log.std() < 1.3
    assert counts.max() > 10 * np.median(counts)


def test_events_come_in_sessions_with_ties(events):
    users, _, times = events
    gaps = np.diff(times)[np.diff(users) == 0]
    assert 0.1 < (gaps == 0).mean() < 0.3
    assert np.median(gaps) < 120
    assert 0.04 < (gaps > 86_400).mean() < 0.1
    assert np.quantile(gaps, 0.99) > 10 * 86_400


def test_same_seed_same_events_other_seed_others(events):
    again = generate(users=3000, items=2000, events=200_000, seed=7)
    other = generate(users=3000, items=2000, events=200_000, seed=8)
    for one, two, three in zip(events, again, other, strict=True):
        assert (one == two).all()
        assert not (one == three).all()


def test_blocks_are_whole_users_and_together_all_events(monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_EVENTS", 500)
    parts = list(synthetic.blocks(users=100, items=50, events=5000, seed=1))
    assert len(parts) > 5
    for before, after in pairwise(parts):
        assert after.user.iloc[0] == before.user.iloc[-1] + 1
    assert sum(len(part) for part in parts) == 5000


@pytest.mark.parametrize(("users", "items", "number"), [(10, 5, 49), (0, 5, 10), (3, 0, 100)])
def test_impossible_sizes_are_refused(users, items, number):
    with pytest.raises(ValueError, match=r"must be at least one|at least 5 events each need"):
        generate(users=users, items=items, events=number)


def test_file_holds_the_events_and_recbole_reads_it(tmp_path, monkeypatch):
    from recbole.config import Config
    from recbole.data import create_dataset

    monkeypatch.chdir(tmp_path)
    path = synthetic.write(tmp_path, "made", users=40, items=30, events=900, seed=3, progress=False)
    users, items, times = generate(users=40, items=30, events=900, seed=3)
    head, *rows = path.read_text().splitlines()
    assert head == "user_id:token\titem_id:token\ttimestamp:float"
    cells = np.array([row.split("\t") for row in rows], dtype=np.int64)
    assert (cells[:, 0] - 100 == users).all()
    assert (cells[:, 1] - 100 == items).all()
    assert (cells[:, 2] == times).all()
    config = Config(
        model="ADRRec",
        dataset="made",
        config_dict={"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "show_progress": False},
    )
    dataset = create_dataset(config)
    assert dataset.user_num - 1 == 40
    assert dataset.item_num - 1 == len(np.unique(items))
    assert len(dataset.build()[0].inter_feat) == 900 - 3 * 40


def test_no_file_is_left_when_writing_stops(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_lines", broken)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path, "made", users=10, items=10, events=100, progress=False)
    assert list((tmp_path / "made").iterdir()) == []


def test_command_line_writes_and_refuses(tmp_path, capsys):
    size = ["--users", "20", "--items", "10", "--events", "200", "--out", str(tmp_path), "--name", "made"]
    assert synthetic.main(size) == 0
    assert "200 events" in capsys.readouterr().out
    assert synthetic.main([*size, "--events", "20"]) == 2
    assert "20 users with at least 5 events each need 100" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        synthetic.main(["--users", "20"])
