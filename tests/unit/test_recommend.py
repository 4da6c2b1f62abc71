"""Recommendations from a checkpoint alone: the same as the trained model's, and never those of other data."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trained import saved, train, train_once

import recbole_adrrec
from recbole_adrrec import cli
from recbole_adrrec.errors import CheckpointError, DataError, OptionError
from recbole_adrrec.integration import register as plugin
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.times import iso

LEARNED = {"epochs": 1, "learning_rate": 0.03}
"""Until something is learned, kernels have no say in ADRRec."""

MODELS = {
    "ADRRec": {},
    "ADRRec told": {"use_query_time": True, "relative_kernels": ["sinusoid", "log1p"], **LEARNED},
    "ADRRec inexact": {"exact_time": False},
    "ADRRec clock": {
        "relative_kernels": ["sinusoid", "log1p", "gap_bias", "distance_bias"],
        "day_spacing": 7,
        **LEARNED,
    },
    "ADRRec heads": {
        "mixture": "heads",
        "n_heads": None,
        "absolute_kernels": ["position", "day"],
        "relative_kernels": ["sinusoid", "distance"],
    },
    "ADRRec trend": {"trend_rank": 3, "epochs": 1, "absolute_kernels": ["position", "constant"]},
    "AWRSR": {"backbone": "mix", "refinement": "additive", **LEARNED},
    "AWRSR trend": {"trend_rank": 3, "trend_spacing": 3, "use_query_time": True, "epochs": 1, "temperature": 0.5},
    "MEANTIME": {},
    "STOSA": {},
    "HSTU": {},
    "HSTU told": {"use_query_time": True},
    "TiSASRec": {},
    "SASRec": {},
    "BERT4Rec": {},
    "GRU4Rec": {},
    "FPMC": {},
}
DAY = 86_400


@pytest.fixture(scope="session")
def checkpoints(small_data, tmp_path_factory):
    """Models by name, each trained when it is first asked for."""
    return train_once(MODELS, small_data, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="session")
def adrrec(checkpoints):
    """A recommender of ADRRec, not told of the moment."""
    return recbole_adrrec.load(checkpoints("ADRRec").path)


@pytest.fixture(scope="session")
def told(checkpoints):
    """A recommender of ADRRec that is told of the moment."""
    return recbole_adrrec.load(checkpoints("ADRRec told").path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test finds the raw data by where it runs."""
    monkeypatch.chdir(tmp_path)


# The same answers as the trained model's


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_trained_model_on_its_data(checkpoints, name):
    run = checkpoints(name)
    recommender = recbole_adrrec.load(run.path)
    data = run.test_data.dataset
    users = data.field2id_token["user_id"]
    compared = 0
    for row in range(len(data)):
        batch = run.test_data.transform(data, data[torch.tensor([row])])
        times = batch["timestamp_list"][0, : int(batch["item_length"])]
        moment = batch["timestamp"].clone() - (1 if MODELS[name].get("exact_time", True) else 128)
        if int(moment) < int(times[-1]):
            continue  # at the moment before the held-out event, as many events are known as the row has
        batch.interaction["timestamp"] = moment
        with torch.no_grad():
            scores = run.model.full_sort_predict(batch).view(-1).float()
        scores[0] = -torch.inf
        events = data.inter_feat.events
        target = int(data.inter_feat.targets[row])
        first = int(events.first(torch.tensor([target])))
        scores[events.column("item_id", torch.arange(first, target))] = -torch.inf
        best = scores.topk(10)
        user = users[int(batch["user_id"])]
        answer = recommender.recommend([user], at=int(moment), top=10)
        assert answer.items[0].tolist() == data.field2id_token["item_id"][best.indices.numpy()].tolist()
        np.testing.assert_allclose(answer.scores[0], best.values.numpy(), rtol=1e-4, atol=1e-5)
        compared += 1
        if compared == 8:
            break
    assert compared == 8


@pytest.mark.parametrize("name", ["ADRRec", "ADRRec told", "HSTU", "TiSASRec", "SASRec"])
def test_a_batch_answers_as_each_user_does_alone(checkpoints, name):
    recommender = recbole_adrrec.load(checkpoints(name).path)
    together = recommender.recommend(recommender.users, top=7)
    small = recommender.recommend(recommender.users, top=7, batch_size=5)
    assert together.users == recommender.users
    for place, user in enumerate(recommender.users):
        alone = recommender.recommend(user, top=7)
        np.testing.assert_allclose(together.scores[place], alone.scores[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(small.scores[place], alone.scores[0], rtol=1e-4, atol=1e-5)
        assert together.items[place].tolist() == alone.items[0].tolist() == small.items[place].tolist()


def test_loading_disturbs_no_random_numbers_and_needs_no_data(checkpoints):
    path = checkpoints("ADRRec").path
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    recommender = recbole_adrrec.load(str(path))
    assert torch.equal(torch.rand(3), want)
    assert len(recommender.users) == 60
    assert recommender.data.user_field == "user_id"


def test_a_checkpoint_keeps_the_clock_of_its_training_data(checkpoints):
    run = checkpoints("ADRRec clock")
    model, data = recbole_adrrec.load(run.path).model, run.train_data.dataset
    resolution, span = data.time_scale(False)
    assert resolution not in (1.0, DAY)
    found = [kernel.clock.tolist() for kernel in model.kernels.relative if hasattr(kernel, "clock")]
    assert found == [[resolution, span / resolution]] * 3
    batch, trained = next(iter(run.test_data))[0], run.model
    with torch.no_grad():
        scores = trained.full_sort_predict(batch)
        assert torch.equal(model.full_sort_predict(batch), scores)
        for kernel in model.kernels.relative:
            if hasattr(kernel, "clock"):
                kernel.clock[0] *= 10
        assert not torch.allclose(model.full_sort_predict(batch), scores)


# What is seen


def test_seen_items_are_left_out_unless_asked_for(adrrec):
    everything = len(adrrec.items)
    for user in adrrec.users[:5]:
        met = set(adrrec.history(user)[0])
        answer = dict(next(iter(adrrec.recommend(user, top=everything)))[1])
        assert not met & set(answer)
        assert set(answer) | met == set(adrrec.items)
        assert set(dict(next(iter(adrrec.recommend(user, top=everything, seen=True)))[1])) == set(adrrec.items)


def test_items_met_later_than_the_moment_are_not_seen_yet(adrrec):
    user = adrrec.users[0]
    items, times = adrrec.history(user)
    middle = int(times[len(times) // 2])
    before = {item for item, time in zip(items, times, strict=True) if time <= middle}
    answers = adrrec.recommend(user, at=middle, top=len(adrrec.items))
    offered = set(dict(next(iter(answers))[1]))
    assert offered == set(adrrec.items) - before
    assert len(before) < len(set(items))
    later = sum(int(time) > middle for time in times)
    assert f"at: {later:,} events are later than the moment" in answers.notes[0]


def test_equal_scores_come_in_the_order_of_items(adrrec, monkeypatch):
    monkeypatch.setattr(adrrec.model, "full_sort_predict", lambda rows: torch.zeros(len(rows), len(adrrec.items) + 1))
    answer = adrrec.recommend(adrrec.users[0], top=len(adrrec.items), seen=True)
    assert answer.items[0].tolist() == adrrec.items


def test_scores_that_are_no_numbers_are_refused(adrrec, monkeypatch):
    nan = torch.full((1, len(adrrec.items) + 1), torch.nan)
    monkeypatch.setattr(adrrec.model, "full_sort_predict", lambda rows: nan)
    with pytest.raises(CheckpointError, match="NaN"):
        adrrec.recommend(adrrec.users[0])


# The moment


def test_the_moment_reaches_models_that_are_told(told):
    user = told.users[0]
    last = int(told.history(user)[1][-1])
    soon, late = (told.recommend(user, at=last + gap) for gap in (60, 20 * DAY))
    assert told.knows_query_time
    assert not np.allclose(soon.scores, late.scores, atol=1e-6)
    assert soon.notes == ()


def test_the_moment_reaches_a_trend_that_is_told(checkpoints):
    run = checkpoints("AWRSR trend")
    with torch.no_grad():
        run.model.head.trend.items.normal_()
    recommender = recbole_adrrec.load(saved(run.path, lambda stored: stored.update(state_dict=run.model.state_dict())))
    assert recommender.knows_query_time
    since, user = min((int(recommender.history(user)[1][-1]), user) for user in recommender.users)
    last = int(run.model.head.trend.trained_range[1])
    soon, late = (recommender.recommend(user, at=at, top=5) for at in (since, last * DAY))
    assert soon.notes == ()
    assert not np.allclose(soon.scores, late.scores, atol=1e-3)
    # Beyond training its last moment serves.
    assert np.array_equal(late.scores, recommender.recommend(user, at=(last + 400) * DAY, top=5).scores)


def test_the_moment_reaches_a_time_bias_that_is_told(checkpoints):
    recommender = recbole_adrrec.load(checkpoints("HSTU told").path)
    user = recommender.users[0]
    last = int(recommender.history(user)[1][-1])
    soon, late = (recommender.recommend(user, at=last + gap) for gap in (60, 20 * DAY))
    assert not np.array_equal(soon.scores, late.scores)
    assert soon.notes == late.notes == ()
    untold = recbole_adrrec.load(checkpoints("HSTU").path)
    assert "was trained with use_query_time: false" in untold.recommend(user, at=last + 60).notes[0]


def test_models_that_are_not_told_say_so(adrrec, checkpoints):
    user = adrrec.users[0]
    last = int(adrrec.history(user)[1][-1])
    soon, late = (adrrec.recommend(user, at=last + gap) for gap in (60, 20 * DAY))
    assert np.array_equal(soon.scores, late.scores)
    assert "was trained with use_query_time: false" in late.notes[0]
    assert adrrec.recommend(user).notes == ()
    tisasrec = recbole_adrrec.load(checkpoints("TiSASRec").path)
    assert "TiSASRec has no part that reads times of questions" in tisasrec.recommend(user, at=last).notes[0]
    sasrec = recbole_adrrec.load(checkpoints("SASRec").path)
    assert "SASRec doesn't read times of questions" in sasrec.recommend(user, at=last).notes[0]


def test_a_moment_far_from_training_is_told(told, caplog):
    first, last = told.data.days
    answers = told.recommend(told.users[0], at=(last + 400) * DAY)
    assert f"400 days outside the days of training, {iso(first * DAY)} to {iso(last * DAY)}" in answers.notes[-1]
    assert answers.notes[-1] in caplog.text
    assert told.recommend(told.users[0], at=(last + 29) * DAY).notes == ()


def test_each_user_may_have_a_moment_and_the_default_is_the_last_event(told):
    users = told.users[:3]
    moments = [int(told.history(user)[1][-1]) + 5 * DAY for user in users]
    together = told.recommend(users, at=moments)
    for place, (user, moment) in enumerate(zip(users, moments, strict=True)):
        np.testing.assert_allclose(
            together.scores[place], told.recommend(user, at=moment).scores[0], rtol=1e-4, atol=1e-5
        )
    assert together.at.tolist() == moments
    assert told.recommend(users).at.tolist() == [max(int(told.history(user)[1][-1]) for user in told.users)] * 3
    with pytest.raises(OptionError, match="at: 2 moments for 3 users"):
        told.recommend(users, at=moments[:2])


# New events


@pytest.mark.parametrize("name", ["ADRRec", "ADRRec told", "MEANTIME", "SASRec"])
def test_a_new_user_with_the_same_events_gets_the_same_items(checkpoints, name):
    recommender = recbole_adrrec.load(checkpoints(name).path)
    known = recommender.users[3]
    items, times = recommender.history(known)
    more = recommender.append(["new one"] * len(items), items, times.tolist())
    first, second = more.recommend([known, "new one"], top=20)
    assert (first[0], second[0]) == (known, "new one")
    assert [item for item, _ in first[1]] == [item for item, _ in second[1]]
    assert "new one" in more.users
    assert "new one" not in recommender.users


def test_new_events_of_known_users_take_their_place_in_time(adrrec):
    user = adrrec.users[2]
    items, times = adrrec.history(user)
    fresh = [item for item in adrrec.items if item not in items][:3]
    between = int(times[4]) + 1
    more = adrrec.append([user] * 3, fresh, [int(times[-1]) + 7, between, int(times[-1]) + 5])
    got_items, got_times = more.history(user)
    assert sorted(got_times.tolist()) == got_times.tolist()
    assert got_items[-2:] == [fresh[2], fresh[0]]
    assert fresh[1] in got_items[4:7]
    assert len(got_items) == len(items) + 3
    assert adrrec.history(user)[0] == items
    offered = dict(next(iter(more.recommend(user, top=len(adrrec.items))))[1])
    assert not set(fresh) & set(offered)
    # What the model is shown: the latest twelve, with the moment of the last event.
    row = more.rows([user])
    names = [more.items[number - 1] for number in row["item_id_list"][0].tolist()]
    assert names == got_items[-12:]
    assert row["timestamp_list"][0].tolist() == got_times[-12:].tolist()


def test_appending_twice_is_as_appending_at_once(adrrec):
    users, items = ["ann", "bob", "ann", "ann"], adrrec.items[:4]
    times = [100, 200, 300, 250]
    once = adrrec.append(users, items, times)
    twice = adrrec.append(users[:2], items[:2], times[:2]).append(users[2:], items[2:], times[2:])
    for user in ("ann", "bob"):
        assert once.history(user)[0] == twice.history(user)[0]
        assert once.history(user)[1].tolist() == twice.history(user)[1].tolist()
    assert once.history("ann")[0] == [items[0], items[3], items[2]]


def test_events_that_are_known_count_once(adrrec):
    user = adrrec.users[1]
    items, times = adrrec.history(user)
    more = adrrec.append([user] * len(items), items, times.tolist())
    assert more.history(user)[0] == items
    assert f"{len(items)} of {len(items)} events are known already" in more.notes[0]


def test_unknown_items_are_refused_or_counted(adrrec):
    item = adrrec.items[0]
    with pytest.raises(DataError, match=f"1 of 2 events .* 1 items that the model doesn't know, the first '{item}x'"):
        adrrec.append(["ann", "ann"], [item, f"{item}x"], [1, 2])
    more = adrrec.append(["ann", "ann"], [item, f"{item}x"], [1, 2], skip_unknown=True)
    assert more.history("ann")[0] == [item]
    assert "they are left out" in more.notes[0]
    with pytest.raises(DataError, match="2 users, 1 items and 2 times"):
        adrrec.append(["ann", "ann"], [item], [1, 2])


def test_new_users_of_tisasrec_have_a_unit_of_time_of_their_own(checkpoints):
    recommender = recbole_adrrec.load(checkpoints("TiSASRec").path)
    gaps = recommender.model.kernels.smallest_gaps
    items = recommender.items[:4]
    slow = recommender.append(["slow"] * 4, items, [0, 10_000, 30_000, 40_000])
    quick = recommender.append(["quick"] * 4, items, [0, 10, 30, 40])
    with slow.units():
        assert slow.model.kernels.smallest_gaps.tolist() == [*gaps.tolist(), 10_000]
    assert recommender.model.kernels.smallest_gaps is gaps
    np.testing.assert_array_equal(slow.recommend("slow").scores, quick.recommend("quick").scores)


def test_models_that_learned_users_refuse_new_ones(checkpoints):
    recommender = recbole_adrrec.load(checkpoints("FPMC").path)
    more = recommender.append(["ann"], recommender.items[:1], [1])
    with pytest.raises(DataError, match="'ann' is not among the users of training"):
        more.recommend("ann")
    assert len(more.recommend(recommender.users[0])) == 1


# Refusals


def test_unknown_users_are_refused_with_similar_names_or_left_out(adrrec):
    user = adrrec.users[0]
    with pytest.raises(DataError, match=f"'{user}x' is unknown; did you mean {user}[?]"):
        adrrec.recommend(f"{user}x")
    answers = adrrec.recommend([f"{user}x", user, "other"], skip_unknown=True)
    assert answers.users == [user]
    assert "2 of 3 are unknown" in answers.notes[0]


def test_users_without_an_event_yet_are_refused_or_left_out(adrrec):
    first = {user: int(adrrec.history(user)[1][0]) for user in adrrec.users}
    latest = max(first, key=lambda user: first[user])
    earliest = min(first, key=lambda user: first[user])
    with pytest.raises(DataError, match="has no event up to"):
        adrrec.recommend([earliest, latest], at=first[latest] - 1)
    answers = adrrec.recommend([latest, earliest], at=first[latest] - 1, skip_unknown=True)
    assert answers.users == [earliest]


@pytest.mark.parametrize("wrong", [{"top": 0}, {"top": 1.5}, {"top": True}, {"batch_size": 0}])
def test_numbers_out_of_range_are_refused(adrrec, wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        adrrec.recommend(adrrec.users[:1], **wrong)


def test_more_items_than_there_are(adrrec):
    answer = adrrec.recommend(adrrec.users[:2], top=10**6)
    frame = answer.frame()
    assert list(frame) == ["user", "rank", "item", "score"]
    assert len(frame) == sum(len(adrrec.items) - len(set(adrrec.history(user)[0])) for user in adrrec.users[:2])
    assert frame["score"].notna().all()


def test_missing_and_truncated_files_are_refused(checkpoints):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        recbole_adrrec.load("nowhere.pth")
    Path("half.pth").write_bytes(checkpoints("ADRRec").path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"half\.pth"):
        recbole_adrrec.load("half.pth")


def test_a_compiled_model_answers_without_being_compiled(checkpoints, adrrec):
    path = saved(checkpoints("ADRRec").path, lambda checkpoint: checkpoint["config"]["options"].update(compile=True))
    recommender = recbole_adrrec.load(path)
    assert not recommender.model.compiled
    user = adrrec.users[0]
    assert recommender.recommend(user).items.tolist() == adrrec.recommend(user).items.tolist()


def test_models_that_read_more_of_their_data_are_refused(small_data, tmp_path):
    with plugin.command_line({}, strict=False):
        run = train("FEARec", small_data, tmp_path / "saved", train_neg_sample_args=None)
    with pytest.raises(CheckpointError, match="FEARec reads inter_feat of its data, which checkpoints don't carry"):
        recbole_adrrec.load(run.path)


def test_an_unknown_device_is_refused(checkpoints):
    with pytest.raises(OptionError, match="device: abacus"):
        recbole_adrrec.load(checkpoints("ADRRec").path, device="abacus")


def test_checkpoint_data_false_leaves_users_out(small_data, tmp_path):
    with plugin.command_line({}, strict=False):
        run = train("TiSASRec", small_data, tmp_path / "saved", checkpoint_data=False)
    found = load_checkpoint(run.path)["data"]
    assert found["users"] is None
    assert found["events"] is None
    recommender = recbole_adrrec.load(run.path)
    assert recommender.users == []
    with pytest.raises(DataError, match="checkpoint_data: false"):
        recommender.recommend("196")
    with pytest.raises(OptionError, match="say when"):
        recommender.recommend([])
    more = recommender.append(["196"] * 2, recommender.items[:2], [893_286_638, 893_286_700])
    assert len(more.recommend("196").frame()) == 10


# The command line


@pytest.fixture(scope="session")
def path(checkpoints):
    """Checkpoint of ADRRec, as an argument."""
    return str(checkpoints("ADRRec").path)


def run_cli(capsys, *argv):
    code = cli.main(["recommend", *map(str, argv)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_formats_say_the_same(capsys, path, adrrec):
    users = adrrec.users[:2]
    want = adrrec.recommend(users, top=3)
    code, text, _ = run_cli(capsys, "-c", path, "--user", *users, "--top", 3, "--format", "json")
    assert code == 0
    document = json.loads(text)
    assert [entry["user"] for entry in document["users"]] == users
    assert [[each["item"] for each in entry["items"]] for entry in document["users"]] == want.items.tolist()
    scores = np.array([[each["score"] for each in entry["items"]] for entry in document["users"]], dtype=np.float32)
    np.testing.assert_array_equal(scores, want.scores)
    code, text, _ = run_cli(capsys, "-c", path, "--user", *users, "--top", 3, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["item"] for row in rows] == want.items.ravel().tolist()
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert [np.float32(row["score"]) for row in rows] == want.scores.ravel().tolist()
    code, text, _ = run_cli(capsys, "-c", path, "--user", users[0], "--user", users[1], "--top", 3)
    lines = text.splitlines()
    assert lines[0].split() == ["user", "at", "rank", "item", "score"]
    assert [line.split()[-2] for line in lines[2:]] == want.items.ravel().tolist()
    assert [line.split()[0] for line in (lines[2], lines[5])] == users


def test_titles_and_output_files(capsys, path, adrrec):
    user = adrrec.users[0]
    Path("mine.item").write_text(
        "item_id:token\tmovie_title:token_seq\n" + "".join(f"{item}\tTitle, of $ {item}\n" for item in adrrec.items)
    )
    code, out, _ = run_cli(capsys, "-c", path, "-u", user, "--item_file", "mine.item", "-o", "top.csv")
    assert (code, out) == (0, "Wrote top.csv: 1 user\n")
    rows = list(csv.DictReader(io.StringIO(Path("top.csv").read_text())))
    assert all(row["title"] == f"Title, of $ {row['item']}" for row in rows)
    assert run_cli(capsys, "-c", path, "-u", user, "--item_file", "mine.item", "-o", "top.json")[0] == 0
    assert json.loads(Path("top.json").read_text())["users"][0]["items"][0]["title"].startswith("Title")
    code, _, err = run_cli(capsys, "-c", path, "-u", user, "--item_file", "none.item")
    assert (code, err) == (
        2,
        "error: --item_file: none.item: no such file; give an atomic file with item_id:token and "
        "movie_title or title or name\n",
    )


def test_files_of_users(capsys, path, adrrec, monkeypatch):
    users = adrrec.users[:4]
    Path("users.txt").write_text("\n".join(users) + "\n\n")
    code, text, _ = run_cli(capsys, "-c", path, "--users", "users.txt", "--format", "json", "--top", 1)
    assert [entry["user"] for entry in json.loads(text)["users"]] == users
    monkeypatch.setattr(sys, "stdin", io.StringIO(users[1]))
    code, text, _ = run_cli(capsys, "-c", path, "--users", "-", "--format", "json")
    assert (code, json.loads(text)["users"][0]["user"]) == (0, users[1])


EVENTS = {
    "events.csv": "user,item,time\nann,{0},2024-05-01T12:00+02:00\nann,{1},1714557601\n",
    "events.inter": "user_id:token\titem_id:token\ttimestamp:float\nann\t{0}\t1714557600.5\nann\t{1}\t1714557601\n",
    "events.jsonl": '{{"user": "ann", "item": "{1}", "timestamp": 1714557601}}\n'
    '{{"user": "ann", "item": "{0}", "timestamp": "2024-05-01T10:00"}}\n',
}


@pytest.mark.parametrize("name", EVENTS)
def test_files_of_events(capsys, path, adrrec, name):
    items = adrrec.items[:2]
    Path(name).write_text(EVENTS[name].format(*items))
    want = adrrec.append(["ann"] * 2, items, [1714557600, 1714557601]).recommend("ann")
    code, text, err = run_cli(capsys, "-c", path, "--events", name, "--format", "json")
    assert (code, err) == (0, "")
    (answer,) = json.loads(text)["users"]
    assert answer["user"] == "ann"
    assert answer["at"] == "2024-05-01T10:00:01Z"
    assert [each["item"] for each in answer["items"]] == want.items[0].tolist()


def test_notes_go_beside_the_answer(capsys, path, adrrec):
    code, out, err = run_cli(capsys, "-c", path, "-u", adrrec.users[0], "--at", "2024-05-01T12:00")
    assert code == 0
    notes = err.splitlines()
    assert notes[0].startswith("note: at: ADRRec was trained with use_query_time: false")
    assert "days outside the days of training" in notes[1]
    assert out.startswith("user")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--user", "1"], "the following arguments are required: --checkpoint"),
        (["-c", "none.pth", "--user", "1"], "error: none.pth: there is no such checkpoint"),
        (["-c", "PATH"], "error: recommend: no users"),
        (["-c", "PATH", "--user", "nobody"], "error: users: 'nobody' is unknown"),
        (["-c", "PATH", "--user", "1", "--at", "2024"], "error: at: '2024' may be a date or seconds"),
        (["-c", "PATH", "--user", "1", "--format", "xml"], "invalid choice: 'xml'"),
        (["-c", "PATH", "--user", "1", "--top", "0"], "error: top: 0 is not a whole number"),
        (["-c", "PATH", "--user", "1", "--top", "ten"], "invalid int value: 'ten'"),
        (["-c", "PATH", "--user", "1", "-o", "no/where.csv"], "error: --output: there is no folder"),
        (["-c", "PATH", "--user", "1", "-o", "."], "error: --output: . is a folder"),
        (["-c", "PATH", "--users", "none.txt"], "error: --users: none.txt: No such file"),
        (["-c", "PATH", "--users", "empty.txt"], "error: --users: empty.txt: the file is empty"),
        (["-c", "PATH", "--events", "none.csv"], "error: none.csv: No such file"),
        (["-c", "PATH", "--events", "bad.csv"], "error: bad.csv: line 2: time 'soon'"),
        (["-c", "PATH", "--events", "unknown.csv"], "items that the model doesn't know, the first 'nothing'"),
        (["-c", "PATH", "--user", "1", "--outputs", "x"], "did you mean --output?"),
        (["-c", "PATH", "--user", "1", "--device", "abacus"], "error: device: abacus"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, path, argv, message):
    Path("empty.txt").write_text("")
    Path("bad.csv").write_text("user,item,time\nann,1,soon\n")
    Path("unknown.csv").write_text("user,item,time\nann,nothing,5\n")
    before = set(Path.cwd().iterdir())
    code, out, err = run_cli(capsys, *[path if each == "PATH" else each for each in argv])
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert set(Path.cwd().iterdir()) == before


def test_a_file_that_cannot_be_replaced_stays_as_it_is(capsys, path, adrrec, monkeypatch):
    Path("top.csv").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = run_cli(capsys, "-c", path, "-u", adrrec.users[0], "-o", "top.csv")
    assert (code, err) == (
        2,
        "error: --output: top.csv can't be written (No space left on device); choose another place\n",
    )
    assert Path("top.csv").read_text() == "before"
    assert [file.name for file in Path.cwd().iterdir()] == ["top.csv"]


@pytest.mark.parametrize("command", ["recommend", "explain", "doctor"])
def test_help_is_there_at_once(command):
    code = (
        "import sys; from recbole_adrrec import cli; code = cli.main([sys.argv[1], '--help']);"
        "sys.exit(code or sum(name in sys.modules for name in ('torch', 'pandas', 'recbole', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert f"recbole_adrrec {command}" in done.stdout
    assert "example" in done.stdout


def test_python_m_runs_the_commands(path, adrrec):
    command = [sys.executable, "-m", "recbole_adrrec", "recommend", "-c", path, "-u", adrrec.users[0], "-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert str(adrrec.recommend(adrrec.users[0], top=1).items[0, 0]) in done.stdout.splitlines()[2].split()
