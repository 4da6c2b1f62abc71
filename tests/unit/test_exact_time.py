"""Times from the file to the model, against an exact stable sort and against RecBole's own loading."""

import numpy as np
import pytest
import torch
from conftest import ML_100K, read_events, write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import SequentialDataset

from recbole_adrrec.data import SequenceDataset
from recbole_adrrec.errors import DataError

UNFILTERED = {"user_inter_num_interval": None, "item_inter_num_interval": None}


def make(dataset="ml-100k", model="ADRRec", **changes):
    return create_dataset(Config(model=model, dataset=dataset, config_dict=changes))


def exact_histories() -> dict[str, list[tuple[str, int]]]:
    """Each user's items and times of ml-100k, by an exact stable sort of the file's own lines."""
    _, rows = read_events(ML_100K)
    histories: dict[str, list[tuple[str, int]]] = {}
    for user, item, _rating, time in rows:
        histories.setdefault(user, []).append((item, int(time)))
    return {user: sorted(events, key=lambda event: event[1]) for user, events in histories.items()}


@pytest.fixture(scope="module")
def ml_100k():
    dataset = make(**UNFILTERED)
    return dataset, dataset.build()


def test_every_history_and_held_out_item_of_ml_100k_is_exact(ml_100k):
    dataset, (train, valid, test) = ml_100k
    expected = exact_histories()
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    found = 0
    for user, item_ids, times in dataset.histories():
        history = expected[users[user]]
        assert items[item_ids.numpy()].tolist() == [item for item, _ in history]
        assert times.tolist() == [time for _, time in history]
        found += 1
    assert found == len(expected) == 943
    for part, place in ((test, -1), (valid, -2)):
        rows = part.inter_feat
        for user, item, time in zip(rows["user_id"], rows["item_id"], rows["timestamp"], strict=True):
            assert (items[item], int(time)) == expected[users[user]][place]
    assert len(test) == len(valid) == 943
    assert train.windows.n_targets == 97_171


def test_the_model_is_handed_whole_seconds(ml_100k):
    _, (train, _, test) = ml_100k
    batch = test[[0, 1, 2]]
    assert batch["timestamp_list"].dtype == batch["timestamp"].dtype == torch.int64
    assert train[[0]]["timestamp"].dtype == torch.int64
    gaps = torch.cat([times.diff() for _, _, times in test.histories()])
    assert int((gaps == 1).sum()) > 0


def test_recboles_own_loading_misorders_what_ours_does_not():
    """The figures of the README, and that ``exact_time: false`` gives RecBole's samples back, batch by batch."""
    settings = {"normalize_all": False, **UNFILTERED}
    config = Config(model="SASRec", dataset="ml-100k", config_dict={**settings, "exact_time": False})
    theirs, ours = SequentialDataset(config).build(), SequenceDataset(config).build()
    exact = make(model="SASRec", **settings).build()
    for their, our in zip(theirs, ours, strict=True):
        built = our.inter_feat.build()
        assert built.columns == their.inter_feat.columns
        for name in built:
            assert built[name].dtype == their.inter_feat[name].dtype
            assert torch.equal(built[name], their.inter_feat[name])
    rounded, right = (part[part["user_id"].argsort()] for part in (ours[2].inter_feat, exact[2].inter_feat))
    assert f"{(rounded['item_id'] != right['item_id']).double().mean():.1%}" == "15.8%"
    shown = right["item_id_list"] > 0
    differ = rounded["item_id_list"] != right["item_id_list"]
    assert f"{differ[shown].double().mean():.1%}" == "42.5%"


def test_batches_equal_recboles_under_the_same_seed():
    changes = {"exact_time": False, "normalize_all": False, "train_batch_size": 512}
    config = Config(model="SASRec", dataset="ml-100k", config_dict=changes)
    loaders = []
    for dataset in (SequentialDataset(config), SequenceDataset(config)):
        torch.manual_seed(0)
        loaders.append(data_preparation(config, dataset))
    for theirs, ours in zip(loaders[0], loaders[1], strict=True):
        for their, our in zip(theirs, ours, strict=True):
            their, our = (batch if hasattr(batch, "columns") else batch[0] for batch in (their, our))
            assert set(their.columns) == set(our.columns)
            for name in their:
                assert torch.equal(their[name], our[name])


def test_normalising_leaves_time_alone(ml_100k):
    dataset = make(normalize_all=True, **UNFILTERED)
    dataset.build()
    assert torch.equal(dataset.inter_feat["timestamp"].sort().values, ml_100k[0].inter_feat["timestamp"].sort().values)
    with pytest.raises(DataError, match="normalize_field"):
        make(normalize_field=["timestamp"])


HEAD = "user_id:token\titem_id:token\ttimestamp:float"


def tiny(folder, rows, head=HEAD, **changes):
    write_dataset(folder, "tiny", head, rows)
    return make("tiny", data_path=str(folder), **{"topk": [1], "valid_metric": "MRR@1", **changes})


def events(*times, user="a"):
    return [[user, f"i{number}", str(time)] for number, time in enumerate(times)]


def names_in_order(dataset):
    dataset.build()
    tokens = dataset.field2id_token["item_id"]
    return {
        dataset.field2id_token["user_id"][user]: tokens[items.numpy()].tolist()
        for user, items, _ in dataset.histories()
    }


def test_ties_keep_the_order_of_the_file(tmp_path):
    rows = events(7, 5, 7, 5, 7)
    assert names_in_order(tiny(tmp_path, rows)) == {"a": ["i1", "i3", "i0", "i2", "i4"]}


@pytest.mark.parametrize("keep", ["first", "last"])
def test_dropping_duplicates_keeps_ties_in_file_order(tmp_path, keep):
    rows = [["a", item, str(time)] for item, time in zip("dcbabcd" * 30, [8, 5] * 105, strict=True)]
    ordered = [item for _, item, _ in sorted(rows, key=lambda row: int(row[2]))]
    kept = dict.fromkeys(ordered) if keep == "first" else reversed(dict.fromkeys(reversed(ordered)))
    assert names_in_order(tiny(tmp_path, rows, rm_dup_inter=keep)) == {"a": list(kept)}


def test_fractions_order_events_and_are_cut_off(tmp_path, caplog):
    dataset = tiny(tmp_path, events(5.75, 5.5, 5.25, 3))
    assert names_in_order(dataset) == {"a": ["i3", "i2", "i1", "i0"]}
    (_, _, times), *_ = dataset.histories()
    assert times.tolist() == [3, 5, 5, 5]
    assert "have a fraction" in caplog.text


def test_equal_fractions_keep_the_order_of_the_file(tmp_path):
    rows = events(*[5.5, 5.25] * 100)
    expected = [f"i{number}" for number in (*range(1, 200, 2), *range(0, 200, 2))]
    assert names_in_order(tiny(tmp_path, rows)) == {"a": expected}


def test_milliseconds_are_asked_about_then_read(tmp_path):
    times = [1_700_000_000_900, 1_700_000_000_100, 1_700_000_001_000]
    with pytest.raises(DataError, match=r"tiny.inter: 3 of 3 .*time_unit_in: ms"):
        tiny(tmp_path, events(*times))
    dataset = tiny(tmp_path, events(*times), time_unit_in="ms")
    assert names_in_order(dataset) == {"a": ["i1", "i0", "i2"]}
    (_, _, seconds), *_ = dataset.histories()
    assert seconds.tolist() == [1_700_000_000, 1_700_000_000, 1_700_000_001]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (events(5, "yesterday"), "timestamp is not a number at line 3, 'yesterday'"),
        (events(5, ""), "no timestamp"),
        (events(5, -7), "negative"),
        ([], "no events|empty"),
        (events(5) + events(6, user="b"), "no user has two events"),
    ],
)
def test_times_that_cannot_be_used_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        tiny(tmp_path, rows).build()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("user_id:token\titem_id:token", "no column 'timestamp'"),
        ("user_id\titem_id\ttimestamp", "not of the form name:type"),
        ("user_id:token,item_id:token,timestamp:float", "field_separator"),
        ("user_id:token\titem_id:token\ttimestamp:token", "declare it as timestamp:float"),
        ("user:token\titem_id:token\ttimestamp:float", "no column 'user_id'"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(tmp_path, head, message):
    columns = head.count(":") if "\t" in head else 3
    with pytest.raises(DataError, match=message):
        tiny(tmp_path, [row[:columns] for row in events(5, 6, 7)], head=head)


def test_missing_and_empty_files_are_named(tmp_path):
    (tmp_path / "tiny").mkdir()
    with pytest.raises(DataError, match=r"there is no file .*tiny.inter"):
        make("tiny", data_path=str(tmp_path))
    (tmp_path / "tiny" / "tiny.inter").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        make("tiny", data_path=str(tmp_path))


def test_filters_that_leave_nothing_are_named(tmp_path):
    with pytest.raises(DataError, match="user_inter_num_interval"):
        tiny(tmp_path, events(5, 6), user_inter_num_interval="[9,inf)")


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (events(5, 6), {}, "one event to predict in all"),
        (events(5, 6) + events(7, 8, user="b"), {}, "no user has three events"),
        (events(5, 6, 7, 8), {"topk": [5], "valid_metric": "MRR@5"}, "topk: 5 is more than the 4 items"),
    ],
)
def test_data_too_small_for_a_test_are_refused(tmp_path, rows, changes, message):
    with pytest.raises(DataError, match=message):
        tiny(tmp_path, rows, **changes).build()


def test_own_data_load_their_times_without_being_told(tmp_path):
    dataset = tiny(tmp_path, [[*row, "3"] for row in events(5, 6, 7)], head=HEAD + "\trating:float")
    assert list(dataset.inter_feat.columns) == ["user_id", "item_id", "timestamp"]
    with pytest.raises(
        DataError, match="the file has user_id:token, item_id:token, time:float; name one of them by TIME"
    ):
        tiny(tmp_path, events(5, 6, 7), head="user_id:token\titem_id:token\ttime:float")
    renamed = tiny(tmp_path, events(5, 6, 7), head="user_id:token\titem_id:token\ttime:float", TIME_FIELD="time")
    assert "time" in renamed.inter_feat


def test_encodings_that_do_not_fit_are_named(tmp_path):
    path = write_dataset(tmp_path, "tiny", "\ufeff" + HEAD, events(5, 6, 7))
    with pytest.raises(DataError, match="utf-8-sig"):
        make("tiny", data_path=str(tmp_path))
    path.write_bytes((HEAD + "\ncaf\xe9\ti\t5\n").encode("latin-1"))
    with pytest.raises(DataError, match="not readable as utf-8"):
        make("tiny", data_path=str(tmp_path))


def test_single_events_and_duplicates_are_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = events(5, 6, 6) + events(9, user="b") + [["a", "i0", "5"]]
    dataset = tiny(tmp_path, rows)
    assert names_in_order(dataset) == {"a": ["i0", "i0", "i1", "i2"], "b": ["i0"]}
    assert "1 users have a single event" in caplog.text
    assert "1 events repeat an earlier one" in caplog.text
    assert "66.7% of the gaps" in caplog.text
    assert set(dataset.inter_feat["user_id"].tolist()) == {int(dataset.token2id("user_id", "a"))}


def test_rows_answer_what_recbole_asks_of_a_dataset(ml_100k):
    dataset, (train, _, test) = ml_100k
    single = dataset[torch.tensor([1])]
    assert single["item_id_list"].shape == (1, 50)
    assert len(test[[3, 5]]) == 2
    matrix = dataset.inter_matrix(form="csr")
    assert matrix.sum() == 100_000
    assert matrix.shape == (dataset.user_num, dataset.item_num)
    assert sum(train.item_counter.values()) == 97_171
    assert np.isclose(dataset.avg_actions_of_users, (100_000 - 943) / 943)


@pytest.mark.parametrize("include", [False, True])
def test_trained_days_are_those_that_training_sees(tmp_path, include):
    day = 86_400
    rows = events(0, day, 2 * day, 9 * day, 20 * day) + events(4 * day, 5 * day, 6 * day, 7 * day, user="b")
    dataset = tiny(tmp_path, rows)
    train = dataset.build()[0]
    shown = [0, 1, 2, 4, 5] if include else [0, 1, 4]
    assert train.trained_days(include).tolist() == shown


def test_cloze_models_train_on_windows_of_events_to_mask(ml_100k):
    train = make(model="MEANTIME", **UNFILTERED).build()[0]
    assert train.windows.n_targets == 97_171 + 943  # a user's first event can be masked too
    batch = train[[0]]
    has_target = batch["item_id"] > 0
    assert torch.equal(batch["item_id"][has_target], batch["item_id_list"][has_target])


@pytest.mark.parametrize("rows", ["sequence", "prefix"])
def test_loader_processes_give_the_same_batches(small, rows):
    """``worker: 2``: rows are built in two processes, in the order of one."""
    drawn = []
    for worker in (0, 2):
        options = {**small, "train_rows": rows, "worker": worker, "train_batch_size": 300, "loss_type": "CE"}
        made = Config(model="ADRRec", dataset="small", config_dict=options)
        train, valid, _ = data_preparation(made, create_dataset(made))
        drawn.append([[dict(batch.interaction) for batch in train], [dict(part[0].interaction) for part in valid]])
    for alone, parallel in zip(*drawn, strict=True):
        assert len(alone) == len(parallel) > 0
        for one, other in zip(alone, parallel, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
