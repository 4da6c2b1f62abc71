"""Models that start from a trained one on newer data: each row with whom it belongs to, other files refused."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_events, write_dataset
from recbole.quick_start import run_recbole
from test_distributed import TRAIN_SCRIPT, free_port
from test_resume import files
from trained import Trained, saved, train

import recbole_adrrec
from recbole_adrrec import cli
from recbole_adrrec.errors import CheckpointError, OptionError, UserError
from recbole_adrrec.integration import init_from
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.layers.heads import Trend
from recbole_adrrec.layers.kernels import DayKernel, SmoothDayKernel
from recbole_adrrec.layers.relative_kernels import Clock, KernelSettings
from recbole_adrrec.options import MODEL_OPTIONS, load_properties
from recbole_adrrec.times import SECONDS_A_DAY

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ADRRec": ("ADRRec", {"trend_rank": 3}),
    "ADRRec, a row a day": ("ADRRec", {"day_spacing": None, "item_head": "projected", "use_query_time": True}),
    "AWRSR": ("AWRSR", {}),
    "AWRSR on TiSASRec": ("AWRSR", {"backbone": "tisasrec", "refinement": "simple"}),
    "BERT4Rec": ("AWRSR", {"refinement": "none", "objective": "cloze", "item_head": "projected"}),
    "HSTU": ("HSTU", {"trend_rank": 3, "trend_spacing": 9.5}),
    "MEANTIME": ("MEANTIME", {}),
    "STOSA": ("STOSA", {}),
    "TiSASRec": ("TiSASRec", {}),
}

Events = list[list[str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study.py"])
    monkeypatch.setattr("psutil.cpu_percent", lambda **_: 0.0)  # RecBole measures for a second


@pytest.fixture(scope="module")
def events(small_data: Path) -> tuple[str, Events]:
    """Header and events of the data set ``small``."""
    return read_events(small_data / "small" / "small.inter")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, events: tuple[str, Events]) -> Path:
    """A folder with ``small``, the same in another order of users, and two overlapping parts of its time."""
    folder, (head, rows) = tmp_path_factory.mktemp("newer"), events
    write_dataset(folder, "small", head, rows)
    users = sorted({row[0] for row in rows})
    random.Random(7).shuffle(users)
    write_dataset(folder, "relabelled", head, sorted(rows, key=lambda row: users.index(row[0])))
    by_time = sorted(rows, key=lambda row: int(row[3]))
    for name, part in (("older", by_time[: len(rows) * 7 // 10]), ("newer", by_time[len(rows) * 4 // 10 :])):
        many = {user for user, count in Counter(row[0] for row in part).items() if count >= 5}
        write_dataset(folder, name, head, [row for row in part if row[0] in many])
    return folder


def scores(trained: Trained) -> dict[str, dict[str, float]]:
    """Score of each item for each user's test history, by name."""
    dataset = trained.train_data._dataset
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    found = {}
    for batch in trained.test_data:
        with torch.no_grad():
            rows = trained.model.full_sort_predict(batch[0])
        for user, row in zip(batch[0]["user_id"].tolist(), rows.tolist(), strict=True):
            found[users[user]] = dict(zip(items[1:], row[1:], strict=True))
    return found


def state(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_relabelled_data_gets_the_same_scores(variant: str, data: Path, tmp_path: Path) -> None:
    model, options = VARIANTS[variant]
    before = train(model, data, tmp_path / "before", epochs=1, **options)
    after = train(model, data, tmp_path / "after", "relabelled", init_from=str(before.path), **options)
    ids = [trained.train_data._dataset.field2token_id["item_id"] for trained in (before, after)]
    assert ids[0] != ids[1]
    assert set(ids[0]) == set(ids[1])
    expected, found = scores(before), scores(after)
    assert set(expected) == set(found)
    for user, of_items in expected.items():
        assert found[user] == pytest.approx(of_items, rel=1e-6, abs=1e-6)
    untrained = scores(train(model, data, tmp_path / "untrained", "relabelled", **options))
    assert any(untrained[user] != pytest.approx(expected[user], rel=1e-3, abs=1e-3) for user in expected)


@pytest.mark.parametrize("variant", ["ADRRec", "MEANTIME", "STOSA"])
def test_rows_of_newer_data_follow_the_rule(
    variant: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, options = VARIANTS[variant]
    before = train(model, data, tmp_path / "before", "older", epochs=1, **options)
    with caplog.at_level(logging.INFO):
        after = train(model, data, tmp_path / "after", "newer", init_from=str(before.path), **options)
    tokens = [list(each.train_data._dataset.field2id_token["item_id"]) for each in (before, after)]
    old, new = [{str(token): row for row, token in enumerate(each)} for each in tokens]
    met = met_with(data / "newer" / "newer.inter", {*old})
    lonely = [item for item in new if item not in old and not met[item]]
    assert sum(bool(met[item]) for item in new) > 20
    assert lonely

    tables = {name: value for name, value in state(after).items() if name.startswith("item_embedding.weight")}
    tables |= {name: value for name, value in state(after).items() if name in ("head.bias", "head.trend.items")}
    assert len(tables) == {"ADRRec": 2, "MEANTIME": 2, "STOSA": 1}[variant]
    for name, table in tables.items():
        trained = state(before)[name]
        for item, row in new.items():
            if item in old:
                expected = trained[old[item]]
            elif met[item]:
                expected = torch.stack([trained[old[other]] for other in met[item].elements()]).mean(0)
            else:
                expected = trained[1 : len(old)].mean(0)
            torch.testing.assert_close(table[row], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(table[len(new) :], trained[len(old) :])  # the row of the mask token

    (line,) = [message for message in caplog.messages if message.startswith("init_from: ")]
    users = [set(each.train_data._dataset.field2id_token["user_id"][1:]) for each in (before, after)]
    kept, near = len(old.keys() & new.keys()) - 1, sum(bool(met[item]) for item in new)
    assert (
        f"items: {kept:,} kept, {len(new) - 1 - kept:,} new ({near:,} from the items they are met with, "
        f"{len(lonely):,} from the mean of all), {len(old) - 1 - kept:,} dropped"
    ) in line
    assert f"users: {counts(*users)}" in line
    days = [each.train_data._dataset.trained_days(True) for each in (before, after)]
    ranges = [set(range(int(each[0]), int(each[-1]) + 1)) for each in days]
    assert min(len(ranges[0] - ranges[1]), len(ranges[1] - ranges[0])) > 9
    assert f"days from the first to the last: {counts(*ranges)}" in line
    assert ("kernels of time keep their unit, " in line) == (variant != "STOSA")

    assert recbole_adrrec.load(after.path).recommend(users=[sorted(users[1])[0]], top=3).frame().shape == (3, 4)
    # The clock is the first model's, and goes on to a third one.
    third = train(model, data, tmp_path / "third", "small", init_from=str(after.path), **options)
    clocks = [{name: each[name] for name in each if name.endswith(".clock")} for each in map(state, (before, third))]
    assert clocks[0].keys() == clocks[1].keys()
    assert bool(clocks[0]) == (variant != "STOSA")
    assert all(torch.equal(clocks[0][name], clocks[1][name]) for name in clocks[0])


def met_with(file: Path, known: set[str]) -> dict[str, Counter[str]]:
    """Known items within two places of each new one in training: all but the users' last two events."""
    _, rows = read_events(file)
    histories: dict[str, list[str]] = {}
    for user, item, *_ in sorted(rows, key=lambda row: int(row[3])):
        histories.setdefault(user, []).append(item)
    found: dict[str, Counter[str]] = {item: Counter() for items in histories.values() for item in items}
    found["[PAD]"] = Counter()
    for items in histories.values():
        shown = items[:-2]
        for place, item in enumerate(shown):
            if item not in known:
                near = shown[max(0, place - 2) : place] + shown[place + 1 : place + 3]
                found[item].update(other for other in near if other in known)
    return found


def counts(before: set[Any], now: set[Any]) -> str:
    return f"{len(before & now):,} kept, {len(now - before):,} new, {len(before - now):,} dropped"


def test_users_that_are_not_named_are_said_to_be(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = train("TiSASRec", data, tmp_path / "before", "older", checkpoint_data=False)
    with caplog.at_level(logging.INFO):
        after = train("TiSASRec", data, tmp_path / "after", "newer", init_from=str(before.path))
    assert "users: not named in the file" in caplog.text
    # A user's unit is read off the newer data.
    assert torch.equal(state(after)["kernels.smallest_gaps"], after.train_data._dataset.smallest_training_gaps())


def settings(first: int, last: int, spacing: int) -> KernelSettings:
    return KernelSettings(4, 9, lambda: torch.arange(first, last + 1), lambda: Clock(1.0, 2.0), spacing)


def at(kernel: Any, days: Any) -> torch.Tensor:
    return kernel.vectors_of(torch.as_tensor(days)).detach()


def test_knots_of_days_keep_what_was_learned() -> None:
    old = SmoothDayKernel(settings(100, 130, 7))
    # The same first day: knots coincide, up to the one behind the last day; later ones take the last day's vector.
    later = SmoothDayKernel(settings(100, 160, 7))
    assert later.row_days.tolist() == [100, 107, 114, 121, 128, 135, 142, 149, 156, 163]
    assert torch.equal(at(old, later.row_days[:6]), old.embedding.weight)
    last = old.embed(torch.tensor([130 * SECONDS_A_DAY]))
    torch.testing.assert_close(at(old, later.row_days[6:]), last.expand(4, 4))
    # Between knots it is the old function; before the first day, the first vector.
    days = torch.tensor([90, 100, 103, 111, 130])
    torch.testing.assert_close(at(old, days), old.embed(days * SECONDS_A_DAY))
    # A row a day from knots, and knots from rows.
    rows = DayKernel(settings(120, 140, 1))
    with torch.no_grad():
        rows.embedding.weight.copy_(at(old, rows.row_days))
    torch.testing.assert_close(rows.embed(torch.tensor([125 * SECONDS_A_DAY])), at(old, [125]))
    assert torch.equal(at(rows, [100, 120, 150]), rows.embedding.weight[[0, 0, -1]])


@pytest.mark.parametrize("days", [31, 29])  # the last knot lies behind the last day, and on it
def test_knots_of_a_trend_keep_what_was_learned(days: int) -> None:
    def trend(length: int) -> Trend:
        made = Trend(5, 3, torch.arange(200, 200 + length), spacing=3.5, decay=0.0)
        torch.nn.init.normal_(made.knots.weight)
        return made

    old, new = trend(days), trend(60)
    with torch.no_grad():
        new.knots.weight.copy_(at(old, new.row_days))
    moments = torch.arange(200 * SECONDS_A_DAY, (199 + days) * SECONDS_A_DAY, 40_000)
    torch.testing.assert_close(new(moments), old(moments))
    torch.testing.assert_close(new(moments[-1:] + 25 * SECONDS_A_DAY), old(moments[-1:] + 25 * SECONDS_A_DAY))


@pytest.fixture(scope="module", name="plain")
def plain_model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("ADRRec", data, tmp_path_factory.mktemp("plain")).path


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "ADRRec",
            {"hidden_size": 32},
            "was trained with hidden_size 16, this run has hidden_size 32; give --hidden_size=16, or",
        ),
        (
            "ADRRec",
            {"n_layers": 1, "relative_kernels": ["log1p"]},
            r"was trained with n_layers 2, relative_kernels \['sinusoid', 'gap_bias', 'distance_bias'\], this run has "
            r"n_layers 1, relative_kernels \['log1p'\]; give --n_layers=2 "
            r"--relative_kernels=\[sinusoid,gap_bias,distance_bias\], or train anew",
        ),
        (
            "ADRRec",
            {"time_unit": 60.0},
            r"was trained with time_unit [\d.]+, this run has time_unit 60\.0; give --time_unit=\d",
        ),
        (
            "ADRRec",
            {"MAX_ITEM_LIST_LENGTH": 50},
            "was trained with MAX_ITEM_LIST_LENGTH 12, this run has MAX_ITEM_LIST_LENGTH 50; give --M",
        ),
        ("ADRRec", {"resume": "x.pth"}, ", resume: .* leave one of the two out"),
        ("HSTU", {}, "was trained with model ADRRec, this run has HSTU; give --model=ADRRec"),
        ("Popularity", {}, "Popularity can't start from a trained model; leave it out, or choose one of ADRRec, AWRSR"),
        ("SASRec", {}, "SASRec can't start from a trained model"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_is_read(
    model: str, options: dict[str, Any], message: str, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f"^init_from.*{message}"):
        train(model, tmp_path, tmp_path, "nowhere", init_from=str(plain), **options)


def test_files_without_a_model_are_refused_before_data_is_read(
    data: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("ADRRec", data, tmp_path / "saved", epochs=1)
    last = files(tmp_path / "saved")[1]
    (tmp_path / "text.pth").write_text("text")
    torch.save({"a": 1}, "other.pth")
    nameless = saved(plain, lambda checkpoint: checkpoint.pop("data"))
    for file, message in (
        ("nowhere.pth", "there is no such checkpoint"),
        ("text.pth", "not a checkpoint"),
        ("other.pth", "not a checkpoint of recbole_adrrec"),
        (str(last), "carries no names; ask the best model"),
        (str(nameless), "carries no names of users and items"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train("ADRRec", tmp_path, tmp_path, "nowhere", init_from=file)
    assert cli.main(["--init_from=nowhere.pth"]) == 2
    assert "nowhere.pth: there is no such checkpoint" in capsys.readouterr().err
    assert cli.main([f"--init_from={plain}", f"--resume={last}"]) == 2
    assert init_from.EXCLUDES_RESUME in capsys.readouterr().err


def test_an_option_that_is_a_call_is_never_called(plain: Path, data: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    for name in ("wandb_project", "learning_rate", "valid_metric", "teacher", "device", "n_layers"):

        def call_in(checkpoint: dict[str, Any], name: str = name) -> None:
            for part in ("options", "given"):
                checkpoint["config"][part][name] = code

        file = saved(plain, call_in)
        with contextlib.suppress(UserError):
            train("ADRRec", data, tmp_path / "run", init_from=str(file))
        assert not marker.exists(), name


def test_options_that_may_differ_are_options() -> None:
    named = {name for model in MODEL_OPTIONS for name in load_properties("model", model)}
    assert named >= init_from.FREE_OPTIONS
    assert named >= {*init_from.CLOCK}


def test_how_a_model_is_trained_may_differ(data: Path, tmp_path: Path) -> None:
    """Counters of random draws come and go with these options, and start anew."""
    shared = {"loss_type": "sampled_softmax", "negatives": "shared", "n_negatives": 8, "lni_weight": 0.1}
    plain = {"reorder_ties": "never", "day_spacing": 3, "hidden_dropout_prob": 0.0}
    before = train("ADRRec", data, tmp_path / "before", epochs=1, reorder_ties="always", **shared)
    after = train("ADRRec", data, tmp_path / "after", init_from=str(before.path), **plain)
    again = train("ADRRec", data, tmp_path / "again", init_from=str(after.path), reorder_ties="always", **shared)
    assert int(state(before)["noise.step"]) > 0
    assert {int(value) for name, value in state(again).items() if name.endswith(".step")} == {0}
    assert torch.equal(state(before)["item_embedding.weight"], state(again)["item_embedding.weight"])


def test_an_updated_run_is_broken_off_and_resumed(data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    before = train("ADRRec", data, tmp_path / "before", "older", epochs=1)
    options = {**small, "n_layers": 2, "n_heads": 2, "data_path": str(data), "init_from": str(before.path)}
    for name, epochs in (("whole", 2), ("broken", 1)):
        run_recbole(
            model="ADRRec",
            dataset="newer",
            config_dict={**options, "checkpoint_dir": str(tmp_path / name), "epochs": epochs},
        )
    assert cli.main([f"--resume={files(tmp_path / 'broken')[1]}", "--epochs=2", f"--data_path={data}"]) == 0
    whole, resumed = (load_checkpoint(files(tmp_path / name)[1])["state_dict"] for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = load_checkpoint(before.path)["state_dict"]["encoder.layers.0.attention.query.weight"]
    assert not torch.equal(start, whole["encoder.layers.0.attention.query.weight"])


@pytest.mark.slow
def test_two_processes_start_from_the_same_model(data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    before = train("ADRRec", data, tmp_path / "before", "older", epochs=1)
    options = {
        **small,
        **{"n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "reorder_ties": "never"},
        **{"data_path": str(data), "init_from": str(before.path), "learner": "sgd", "eval_step": 0, "use_gpu": False},
    }
    script = tmp_path / "script.py"
    script.write_text(TRAIN_SCRIPT)
    told = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        given = json.dumps(options | {"checkpoint_dir": str(folder)})
        command = [sys.executable, str(script), "ADRRec", given, free_port(), str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr
        told.append(torch.load(folder / "told.pt")["weights"])
    for name, weights in told[0].items():
        torch.testing.assert_close(told[1][name], weights, rtol=1e-3, atol=1e-5)
