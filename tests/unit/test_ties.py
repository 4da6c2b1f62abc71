"""Events of equal time: their order in the file, a random one, and what the order tells."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset
from scipy.stats import chisquare

from recbole_adrrec.data.ties import name_hashes, random_keys, tie_statistics
from recbole_adrrec.errors import OptionError
from recbole_adrrec.layers.draws import TieOrder
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.meantime import MEANTIME


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


# A new order for each training row


TIMES = torch.tensor([[5, 5, 5, 8, 9, 9, 0], [1, 2, 3, 4, 5, 6, 7], [4, 4, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([6, 7, 2])


def test_only_events_that_tie_change_places_and_each_order_is_as_likely():
    valid = torch.arange(7) < LENGTHS.unsqueeze(1)
    draw, rows = TieOrder(2020), torch.tensor([3, 4, 5])
    drawn = torch.stack([draw(TIMES, valid, rows) for _ in range(1200)])
    assert (drawn[:, 1] == torch.arange(7)).all()
    assert (drawn[:, 0, [3, 6]] == torch.tensor([3, 6])).all()
    assert (drawn[:, 2, 2:] == torch.arange(2, 7)).all()
    orders, counts = drawn[:, 0].unique(dim=0, return_counts=True)
    assert len(orders) == 6 * 2
    assert chisquare(counts.numpy()).pvalue > 1e-3
    assert chisquare(drawn[:, 2, :2].unique(dim=0, return_counts=True)[1].numpy()).pvalue > 1e-3


def test_a_row_gets_its_order_in_whatever_batch_it_comes():
    valid, rows = torch.arange(7) < LENGTHS.unsqueeze(1), torch.tensor([3, -4, 5 << 50])
    together = TieOrder(1)(TIMES, valid, rows)
    for number in range(3):
        part = slice(number, number + 1)
        assert torch.equal(TieOrder(1)(TIMES[part], valid[part], rows[part])[0], together[number])
    assert len({tuple(TieOrder(1)(TIMES[:1], valid[:1], torch.tensor([row]))[0].tolist()) for row in range(99)}) == 12
    assert len({tuple(TieOrder(seed)(TIMES[:1], valid[:1], rows[:1])[0].tolist()) for seed in range(99)}) == 12


def test_orders_go_on_where_they_were():
    valid, rows = torch.arange(7) < LENGTHS.unsqueeze(1), torch.tensor([3, 4, 5])
    draw, other = TieOrder(1), TieOrder(1)
    first = [draw(TIMES, valid, rows) for _ in range(20)]
    assert len({tuple(order[0].tolist()) for order in first}) > 1
    other.load_state_dict(draw.state_dict())
    assert torch.equal(draw(TIMES, valid, rows), other(TIMES, valid, rows))


def window(targets):
    """A window of seven places, six events and one to predict behind them; the last three tie, as do two others."""
    events, when = torch.arange(11, 18), torch.tensor([5, 5, 6, 7, 9, 9, 9]) * 86400
    given = torch.cat([events, torch.zeros(1, dtype=torch.int64)])
    shift = int(targets == "causal")
    length = 6 if shift else 7
    shown = torch.arange(7) < length
    return {
        "user_id": torch.tensor([1]),
        "item_id_list": (given[:7] * shown).unsqueeze(0),
        "timestamp_list": (when * shown).unsqueeze(0),
        "item_length": torch.tensor([length]),
        "item_id": (given[shift : 7 + shift] * shown).unsqueeze(0),
        "timestamp": (torch.cat([when, when[-1:]])[shift : 7 + shift] * shown).unsqueeze(0),
    }


def test_a_window_predicts_the_events_of_its_own_order():
    model = helpers.build(ADRRec, reorder_ties="always", use_query_time=True)
    plain = helpers.build(ADRRec, reorder_ties="never", use_query_time=True)
    rows = window("causal")
    rows["item_id"][0, 2] = 0  # a place that another window has trained
    orders = set()
    for _ in range(60):
        batch, fixed = model._training_batch(rows), plain._training_batch(rows)
        assert torch.equal(batch.times.key_time, fixed.times.key_time)
        assert torch.equal(batch.times.query_time, fixed.times.query_time)
        items, targets = batch.items[0].tolist(), batch.targets[0].tolist()
        assert (sorted(items[:2]), items[2:4], targets[2]) == ([11, 12], [13, 14], 0)
        assert [target for place, target in enumerate(targets[:5]) if place != 2] == [items[1], items[2], *items[4:6]]
        assert sorted([*items[4:6], targets[5]]) == [15, 16, 17]
        orders.add((*items, targets[5]))
    assert len(orders) == 2 * 6


def test_masked_events_are_those_of_the_new_order():
    model = helpers.build(MEANTIME, reorder_ties="always")
    orders = set()
    for _ in range(40):
        batch = model._training_batch(window("cloze"))
        shown, targets = batch.items[0], batch.targets[0]
        items = torch.where(targets > 0, targets, shown).tolist()
        assert (sorted(items[:2]), items[2:4], sorted(items[4:])) == ([11, 12], [13, 14], [15, 16, 17])
        assert ((shown == model.mask_token) == (targets > 0)).all()
        orders.add(tuple(items))
    assert len(orders) > 6


def test_without_ties_nothing_changes():
    rows = helpers.rows([7, 4], targets="causal")
    loss, other = (
        helpers.build(ADRRec, reorder_ties=each).train().calculate_loss(rows).item() for each in ("never", "always")
    )
    assert loss == other


def test_rows_of_one_order_are_refused():
    given = {"data_path": "nowhere", "train_rows": "prefix", "reorder_ties": "always"}
    with pytest.raises(OptionError, match=r"reorder_ties: 'always' means nothing with train_rows prefix"):
        Config(model="ADRRec", dataset="ml-100k", config_dict=given)


@pytest.mark.parametrize("orderly", [False, True])
def test_auto_reorders_ties_that_stand_in_no_order(orderly):
    data = helpers.dataset()
    data.ties_are_orderly = orderly
    assert helpers.build(ADRRec, data=data, reorder_ties="auto").reorders_ties is not orderly
    assert not helpers.build(ADRRec, data=data, reorder_ties="never").reorders_ties
    assert helpers.build(ADRRec, data=data, reorder_ties="always").reorders_ties
    assert not helpers.build(ADRRec, data=data, reorder_ties="auto", train_rows="prefix").reorders_ties


@pytest.mark.parametrize("orderly", [False, True])
def test_a_data_set_knows_whether_its_ties_stand_in_an_order(tmp_path, orderly):
    random = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(60):
        items = sorted(random.choice(12, 6, replace=False)) if orderly else random.choice(12, 6, replace=False)
        rows += [f"u{user}\ti{item}\t{86400 * user}" for item in items]
    (tmp_path / "tied").mkdir()
    (tmp_path / "tied" / "tied.inter").write_text("\n".join(rows) + "\n")
    made = Config(model="ADRRec", dataset="tied", config_dict={"data_path": str(tmp_path)})
    data = create_dataset(made)
    assert data.build()[0].ties_are_orderly is orderly
