"""Checkpoints hold the data they were trained on: whatever was changed in it is refused, and so are other data."""

import pytest
import torch
from conftest import read_events, write_dataset
from recbole.quick_start import load_data_and_model
from trained import saved, train

import recbole_adrrec
from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.integration import register as plugin
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.checkpoint_data import (
    CheckpointData,
    CorruptCheckpoint,
    check_same_data,
    pack,
    unpack,
)


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    """A trained ADRRec."""
    with plugin.command_line({}, strict=False):
        return train("ADRRec", small_data, tmp_path_factory.mktemp("saved"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_data_are_those_of_training(run):
    data = CheckpointData.of(load_checkpoint(run.path), str(run.path))
    events, dataset = run.train_data._dataset.inter_feat.events, run.train_data._dataset
    everything = torch.arange(len(events))
    for field in (data.user_field, data.item_field, data.time_field):
        assert torch.equal(data.events.column(field, everything), events.column(field, everything))
    assert data.users == list(dataset.field2id_token["user_id"])
    assert data.items == list(dataset.field2id_token["item_id"])
    assert data.n_users == dataset.user_num
    assert torch.equal(data.events.starts, events.starts)


def test_checkpoints_without_names_say_what_to_do(run):
    old = saved(run.path, lambda checkpoint: checkpoint.pop("data"))
    with pytest.raises(CheckpointError, match=r"carries no names of users and items.*train it again"):
        recbole_adrrec.load(old)


def grow_items(checkpoint):
    checkpoint["data"]["items"] = pack([*unpack(checkpoint["data"]["items"], "items"), "one more"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grow_items, "weights don't fit its own options and its [0-9,]+ items"),
        (lambda checkpoint: checkpoint["state_dict"].popitem(), "weights don't fit"),
        (
            lambda checkpoint: checkpoint["config"]["options"].update(n_layers=0.5),
            "n_layers: 0.5 is not a whole number",
        ),
        (lambda checkpoint: checkpoint["data"].pop("days"), "a part of its data is missing"),
        (lambda checkpoint: checkpoint["data"].update(days=[5, 3]), "days of training"),
        (lambda checkpoint: checkpoint["data"].update(n_users=7), "another number of users"),
        (lambda checkpoint: checkpoint["data"].update(users=3), "names of users can't be read"),
        (lambda checkpoint: checkpoint["data"].update(dataset=3), "not what this package writes"),
        (lambda checkpoint: checkpoint["data"]["events"].update(times=torch.zeros(1)), "events name items or users"),
        (lambda checkpoint: checkpoint["data"]["events"]["items"].fill_(9999), "events name items or users"),
        (lambda checkpoint: checkpoint["data"]["events"].update(items="text"), "events can't be read"),
        (lambda checkpoint: checkpoint.update(data="text"), "a part of its data is missing"),
    ],
)
def test_data_that_make_no_sense_are_refused(run, change, message):
    with pytest.raises(CheckpointError, match=message) as refused:
        recbole_adrrec.load(saved(run.path, change))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["items", "counts", "times", "text", "days"])
def test_a_changed_name_event_or_day_is_found_by_the_fingerprint(run, part):
    checkpoint = load_checkpoint(run.path)
    data = checkpoint["data"]
    if part == "text":
        data["items"]["text"] = "x" + data["items"]["text"][1:]
    elif part == "days":
        data["days"][1] += 1
    else:
        data["events"][part][0] += 1
    torch.save(checkpoint, "edited.pth")
    with pytest.raises(CheckpointError, match=r"edited\.pth: damaged, or changed since it was saved"):
        recbole_adrrec.load("edited.pth")


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
        stranger = train("ADRRec", other, tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=r"made for other data: .* other names"):
            stranger.trainer.evaluate(stranger.test_data, model_file=str(run.path))
        friend = train("ADRRec", small_data, tmp_path / "same")
        assert friend.trainer.evaluate(friend.test_data, model_file=str(run.path))
        moved = saved(
            run.path, lambda checkpoint: checkpoint["config"]["options"].update(data_path=str(other / "small"))
        )
        with pytest.raises(CheckpointError, match="made for other data"):
            load_data_and_model(moved)
        # Without the state of training, its digest of the events doesn't help.
        plain = saved(run.path, lambda checkpoint: checkpoint.pop("training"))
        stranger.trainer.resume_checkpoint(plain)
        with pytest.raises(CheckpointError, match="made for other data"):
            stranger.trainer.fit(stranger.train_data)


def test_other_events_of_the_same_users_and_items_are_told_apart(run):
    checkpoint, dataset = load_checkpoint(run.path), run.train_data._dataset
    check_same_data(checkpoint, dataset, "x.pth")
    for part, message in (("events", "other events"), ("names", "other names")):
        checkpoint["data"]["fingerprint"][part] = "0"
        with pytest.raises(CheckpointError, match=rf"x\.pth: made for other data: .*{message}"):
            check_same_data(checkpoint, dataset, "x.pth")
    check_same_data({}, dataset, "x.pth")


@pytest.mark.parametrize("names", [[], [""], ["a", "", "b\nc\td", "Ünïcødé ☃", "a\0b"]])
def test_names_of_any_kind_are_kept(names):
    assert unpack(pack(names), "users") == names


def test_two_of_one_name_are_refused():
    with pytest.raises(CorruptCheckpoint, match="one name"):
        unpack(pack(["a", "a"]), "items")
