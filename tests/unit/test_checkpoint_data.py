"""Checkpoints hold the data they were trained on: whatever was changed in it is refused, and so are other data."""

from pathlib import Path

import pytest
import torch
from conftest import read_events, write_dataset
from trained import saved, stored, train

import recbole_adrrec
from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.integration import carried
from recbole_adrrec.integration import register as plugin


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    """A trained ADRRec."""
    with plugin.command_line({}, strict=False):
        return train("ADRRec", small_data, tmp_path_factory.mktemp("saved"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_checkpoints_without_names_say_what_to_do(run):
    old = saved(run.path, lambda checkpoint: checkpoint.pop(carried.KEY))
    with pytest.raises(CheckpointError, match=r"carries no names of users and items.*train it again"):
        recbole_adrrec.load(old)


def rename(checkpoint):
    checkpoint[carried.KEY]["items"]["text"] = "x" + checkpoint[carried.KEY]["items"]["text"][1:]


def swap_items(checkpoint):
    items = checkpoint[carried.KEY]["histories"]["items"]
    items[:2] = items[:2].flip(0) if items[0] != items[1] else items[:2] % 7 + 1


def shorten(checkpoint):
    checkpoint[carried.KEY]["histories"]["times"] = checkpoint[carried.KEY]["histories"]["times"][:-1]


def grow_items(checkpoint):
    packed = carried._pack([*carried._unpack(checkpoint[carried.KEY]["items"], "items"), "one more"])
    checkpoint[carried.KEY]["items"] = packed
    prints = checkpoint[carried.KEY]["fingerprint"]
    prints["items"] = carried._hash_names(packed)
    prints["names"] = carried._hash_names(checkpoint[carried.KEY]["users"], packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "items don't match their fingerprint"),
        (swap_items, "events don't match their fingerprint"),
        (shorten, "events don't match their fingerprint"),
        (grow_items, "weights don't fit its own options and its [0-9,]+ items"),
        (lambda checkpoint: checkpoint[carried.KEY].pop("days"), "a part of what it carries is missing"),
        (lambda checkpoint: checkpoint[carried.KEY].update(format=99), "saved by a later version"),
        (lambda checkpoint: checkpoint[carried.KEY].update(days=[5, 3]), "days of training"),
        (lambda checkpoint: checkpoint[carried.KEY].update(n_users=7), "another number of users"),
        (lambda checkpoint: checkpoint[carried.KEY].update(users=3), "names of users can't be read"),
        (lambda checkpoint: checkpoint.update({carried.KEY: "text"}), "not what this package writes"),
        (lambda checkpoint: checkpoint["state_dict"].popitem(), "weights don't fit"),
        (
            lambda checkpoint: checkpoint["config"].final_config_dict.update(n_layers=0.5),
            "can't be made from the options",
        ),
    ],
)
def test_what_was_changed_is_refused(run, change, message):
    with pytest.raises(CheckpointError, match=message) as refused:
        recbole_adrrec.load(saved(run.path, change))
    assert "\n" not in str(refused.value)


def test_what_is_carried_is_plain_data(run):
    Path("plain.pth").parent.mkdir(exist_ok=True)
    torch.save(stored(run.path)[carried.KEY], "plain.pth")
    found = torch.load("plain.pth", weights_only=True)
    assert found["version"] == recbole_adrrec.__version__
    assert found["histories"]["items"].dtype == torch.int32


# Weights of other data


def swapped_items(folder):
    """The same numbers of everything, with two items that changed names."""
    head, rows = read_events()
    users = dict.fromkeys(row[0] for row in rows)
    kept = set(list(users)[:60])
    rows = [row for row in rows if row[0] in kept]
    names = list(dict.fromkeys(row[1] for row in rows))
    swap = {names[0]: names[1], names[1]: names[0]}
    write_dataset(folder, "small", head, [[row[0], swap.get(row[1], row[1]), *row[2:]] for row in rows])
    return folder


def test_weights_are_refused_with_other_data_of_the_same_size(run, small_data, tmp_path):
    other = swapped_items(tmp_path / "other")
    with plugin.command_line({}, strict=False):
        stranger = train("ADRRec", other, tmp_path / "elsewhere", epochs=1)
        with pytest.raises(CheckpointError, match=r"made for other data: .* other names"):
            stranger.trainer.evaluate(stranger.test_data, model_file=str(run.path))
        friend = train("ADRRec", small_data, tmp_path / "same", epochs=1)
    assert friend.trainer.evaluate(friend.test_data, model_file=str(run.path))


def test_loading_with_raw_data_that_changed_is_refused(run, tmp_path):
    load = __import__("recbole.quick_start", fromlist=["x"]).load_data_and_model
    other = swapped_items(tmp_path / "other") / "small"
    moved = saved(
        run.path,
        lambda checkpoint: checkpoint["config"].final_config_dict.update(data_path=str(other)),
    )
    with plugin.command_line({}, strict=False), pytest.raises(CheckpointError, match="made for other data"):
        load(str(moved))


def test_other_events_of_the_same_users_and_items_are_told_apart(run):
    found = stored(run.path)[carried.KEY]
    assert carried.other_data(found, run.train_data._dataset) is None
    found["fingerprint"]["events"] = "0"
    assert "other events" in carried.other_data(found, run.train_data._dataset)
    found["fingerprint"]["names"] = "0"
    assert "other names" in carried.other_data(found, run.train_data._dataset)
    assert carried.other_data(None, run.train_data._dataset) is None


@pytest.mark.parametrize("names", [[], [""], ["a", "", "b\nc\td", "Ünïcødé ☃", "a\0b"]])
def test_names_of_any_kind_are_kept(names):
    assert carried._unpack(carried._pack(names), "users") == names


def test_two_of_one_name_are_refused():
    with pytest.raises(carried.Damaged, match="one name"):
        carried._unpack(carried._pack(["a", "a"]), "items")
