"""Events of equal time: their order in the file, a random one, and what the order tells."""

from __future__ import annotations

import numpy as np
import pytest
from recbole.config import Config
from recbole.data import create_dataset
from scipy.stats import chisquare

from recbole_adrrec.data.ties import name_hashes, random_keys, tie_statistics


def drawn_order(users, items, seed):
    return np.argsort(random_keys(name_hashes(users), name_hashes(items), seed), kind="stable")


def test_keys_are_those_of_every_machine():
    keys = random_keys(name_hashes(["ann", "bob"]), name_hashes(["tea", "milk"]), seed=1)
    assert [hex(key) for key in keys.tolist()] == ["0x7fc66daf7bf2ee6a", "0xc623a11eae6607fd"]


def test_each_order_is_as_likely_whatever_the_seed_and_the_user():
    items = name_hashes(["tea", "milk", "bread"])
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(20):
        for user in name_hashes(range(150)):
            order = tuple(np.argsort(random_keys(np.repeat(user, 3), items, seed)).tolist())
            counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_an_event_keeps_its_key_whatever_stands_beside_it():
    whole = random_keys(name_hashes("aab"), name_hashes("xyx"), seed=3)
    part = random_keys(name_hashes("ab"), name_hashes("yx"), seed=3)
    assert whole[1:].tolist() == part.tolist()
    assert len(set(whole.tolist())) == 3
    assert whole.tolist() != random_keys(name_hashes("aab"), name_hashes("xyx"), seed=4).tolist()


def test_statistics_of_ties_by_hand():
    #             user 0: 1 and 2 tie, then 3    user 1: 2 and 1 tie     user 2: 1 2 3, of which the last two tie
    users = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    items = np.array([1, 2, 3, 2, 1, 1, 2, 3])
    times = np.array([5, 5, 9, 7, 7, 1, 2, 2])
    found = tie_statistics(users, items, times)
    assert found.zero_gaps == pytest.approx(3 / 5)
    assert found.last_two_tie == pytest.approx(2 / 3)
    assert (found.repeated_pairs, found.consistency) == (1, 0.5)  # {1, 2} twice, once in either order
    assert found.by_chance == pytest.approx(0.75)
    assert not found.orderly
    assert found.warning() is None


def test_consistency_knows_a_common_order_from_a_random_one():
    generator = np.random.default_rng(0)
    n_users, length = 400, 8
    users = np.repeat(np.arange(n_users), length)
    baskets = [generator.choice(20, length, replace=False) for _ in range(n_users)]
    times = np.zeros(n_users * length, dtype=np.int64)
    random = tie_statistics(users, np.concatenate(baskets), times)
    common = tie_statistics(users, np.concatenate([np.sort(basket) for basket in baskets]), times)
    assert abs(random.consistency - random.by_chance) < 0.02
    assert not random.orderly
    assert common.consistency == 1
    assert common.orderly
    assert "tie_order" in str(common.warning())
    assert "1.000" in common.text()
    assert "100.0%" in common.text()


def test_no_ties_and_no_events():
    found = tie_statistics(np.array([0, 0]), np.array([1, 2]), np.array([1, 2]))
    assert (found.zero_gaps, found.last_two_tie, found.consistency) == (0.0, 0.0, None)
    assert "repeated" not in found.text()
    nothing = np.array([], dtype=np.int64)
    assert tie_statistics(nothing, nothing, nothing).zero_gaps == 0.0


def ordered(folder, **given):
    """Each user's items and times in the order that the options give them."""
    config = Config(
        model="ADRRec",
        dataset="tied",
        config_dict={"data_path": str(folder), "topk": [2], "valid_metric": "NDCG@2", **given},
    )
    dataset = create_dataset(config)
    train, *_ = dataset.build()
    users = train.field2id_token[train.uid_field]
    items = train.field2id_token[train.iid_field]
    return {users[user]: list(zip(items[each], times.tolist(), strict=True)) for user, each, times in train.histories()}


@pytest.fixture
def tied(tmp_path):
    """Twelve users with ten events on five days, two each day; the file in the order of ``lines``."""
    generator = np.random.default_rng(1)
    lines = [
        f"u{user}\ti{item}\t{86_400 * (place // 2)}"
        for user in range(12)
        for place, item in enumerate(generator.choice(15, 10, replace=False))
    ]

    def write(lines):
        (tmp_path / "tied").mkdir(exist_ok=True)
        text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines, ""])
        (tmp_path / "tied" / "tied.inter").write_text(text)
        return tmp_path

    return write, lines


def test_a_random_order_changes_ties_alone_and_is_of_its_own_seed(tied):
    write, lines = tied
    folder = write(lines)
    plain, one = ordered(folder), ordered(folder, tie_order="random", tie_seed=1)
    assert plain != one
    for user, events in plain.items():
        assert sorted(events) == sorted(one[user])
        assert [time for _, time in events] == [time for _, time in one[user]]
    assert ordered(folder, tie_order="random", tie_seed=1, seed=7) == one
    assert ordered(folder, tie_order="random", tie_seed=2) != one


def test_a_random_order_is_that_of_every_copy_of_the_data(tied):
    write, lines = tied
    one = ordered(write(lines), tie_order="random")
    shuffled = np.random.default_rng(2).permutation(lines).tolist()
    assert ordered(write(shuffled)) != ordered(write(lines))
    assert ordered(write(shuffled), tie_order="random") == one


def test_an_order_of_all_users_is_warned_of(tied, caplog):
    write, lines = tied
    ordered(write(lines))
    assert "tie consistency" not in caplog.text
    ordered(write(sorted(lines)))
    assert "tie consistency 1.000" in caplog.text
    assert "tie_order: random" in caplog.text
