"""One run: its figures are RecBole's, its files are whole, and its end is recorded, whatever the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine.children import child_environment
from engine.store import read_json, write_json
from recbole.config import Config
from recbole.evaluator.evaluator import Evaluator
from recbole.quick_start import run_recbole
from studies import plan_of
from study import plan as plans
from study import runs, session, study_file
from study.plan import Protocol
from study.results import by_user

from recbole_adrrec.integration import register as plugin


@pytest.fixture(scope="module", autouse=True)
def recbole_for_todays_numpy() -> None:
    """RecBole's metrics want names of numpy that every ``Config`` of RecBole puts back."""
    with plugin.command_line({}):
        Config("SASRec", "ml-100k")


def spec_of(folder: Path, model: str = "ADRRec", **study: Any) -> plans.RunSpec:
    given = {"models": [model], "metrics": ["Recall", "NDCG", "MRR"], "topk": [5, 10], **study}
    given["options"] = {"epochs": 2, **study.get("options", {})}
    return plan_of(folder, folder / "results", **given).specs()[0]


def collected(ranks: list[list[int]], width: int, counts: list[int]) -> Any:
    """Results as RecBole collects them, for rows with hits at these ranks (from 1)."""
    hits = np.zeros((len(ranks), width + 1), dtype=np.int32)
    for row, each in enumerate(ranks):
        hits[row, [rank - 1 for rank in each if rank <= width]] = 1
        hits[row, -1] = counts[row]
    return SimpleNamespace(get={"rec.topk": torch.from_numpy(hits)}.__getitem__)


@pytest.mark.parametrize("places", [4, session.PLACES])
def test_rows_have_the_mean_that_recbole_reports_to_its_last_digit(places: int) -> None:
    generator = np.random.default_rng(0)
    ranks = [sorted(generator.choice(60, generator.integers(1, 9), replace=False) + 1) for _ in range(501)]
    struct = collected(ranks, 20, [len(each) for each in ranks])
    names = ["Recall", "MRR", "NDCG", "Hit", "MAP", "Precision"]
    assert sorted(names) == sorted(study_file.ACCURACY)
    config = {"metrics": names, "topk": [1, 5, 20], "metric_decimal_place": places}
    evaluator = Evaluator(config)
    theirs, ours = evaluator.evaluate(struct), session.per_row(evaluator, struct)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert round(float(ours[name].mean()), places) == pytest.approx(value, abs=10.0 ** -(places + 2))
        assert len(ours[name]) == 501


def test_rows_have_the_values_of_the_definitions() -> None:
    ranks = [1, 3, 7, 30]
    struct = collected([[rank] for rank in ranks], 10, [1] * 4)
    config = {"metrics": ["Recall", "MRR", "NDCG", "Hit"], "topk": [5, 10], "metric_decimal_place": 4}
    found = session.per_row(Evaluator(config), struct)
    for k in (5, 10):
        inside = [float(rank <= k) for rank in ranks]
        assert found[f"recall@{k}"].tolist() == found[f"hit@{k}"].tolist() == inside
        assert found[f"mrr@{k}"] == pytest.approx([hit / rank for hit, rank in zip(inside, ranks, strict=True)])
        assert found[f"ndcg@{k}"] == pytest.approx(
            [hit / np.log2(rank + 1) for hit, rank in zip(inside, ranks, strict=True)]
        )


def test_users_with_several_rows_count_once() -> None:
    users = np.array(["b", "a", "b", "c", "b"])
    values = np.array([1.0, 0.5, 0.0, 0.25, 0.5])
    found = by_user(users, {"ndcg@10": values})
    assert found["users"].tolist() == ["a", "b", "c"]
    assert found["ndcg@10"].tolist() == [0.5, 0.5, 0.25]
    single = by_user(users[1:4], {"ndcg@10": values[1:4]})
    assert (single["users"].tolist(), single["ndcg@10"].tolist()) == (["a", "b", "c"], [0.5, 0.0, 0.25])


@pytest.mark.parametrize("model", ["SASRec", "ADRRec"])
def test_a_run_gives_what_recbole_itself_gives(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = ["Novelty", "IntraListDiversity", "ItemCoverage", "GiniIndex"]
    spec = spec_of(small_data, model, keep_models=True, metrics=["Recall", "NDCG", "MRR", *beside])
    runs.run_one(spec, tmp_path)
    record = json.loads(runs.record_path(tmp_path, spec).read_text())
    given = session.given_options(spec, tmp_path / "again")
    with plugin.command_line(given):
        theirs = run_recbole(model=model, dataset="small")
    assert record["metrics"] == pytest.approx(dict(theirs["test_result"]), abs=1e-11)
    assert record["best_valid"] == theirs["best_valid_score"]
    arrays = np.load(runs.record_path(tmp_path, spec).with_suffix(".npz"))
    of_all = {f"{name}@{k}" for name in ("itemcoverage", "giniindex") for k in (5, 10)}
    assert set(arrays.files) == {"users", *record["metrics"]} - of_all
    for name, value in record["metrics"].items():
        if name in of_all:
            continue
        assert arrays[name].dtype == np.float64
        assert float(arrays[name].mean()) == value
    assert len(set(arrays["users"])) == len(arrays["users"]) == record["data"]["test_users"]
    assert record["n_parameters"] > 1000
    assert [point["epoch"] for point in record["curve"]] == [0, 1]
    assert record["best_valid"] == max(point["valid"] for point in record["curve"])
    assert record["curve"][record["best_epoch"]]["valid"] == record["best_valid"]
    assert 0 < record["curve"][0]["train_s"] < record["train_s"] < record["wall_s"]
    assert (record["command"], record["status"], record["query_time"]) == ("the command", "done", False)
    assert {"python", "torch", "recbole", "recbole_adrrec", "numpy", "pandas"} <= set(record["versions"])
    assert {"cpu", "cores", "gpu", "ram_gib"} <= set(record["hardware"])
    assert Path(record["saved"]) == tmp_path / "models" / f"{spec.id}.pth"
    assert torch.load(record["saved"], weights_only=False)["config"]["model"] == model


def test_one_training_is_ranked_under_two_protocols(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unseen, everything = "leave_one_out-full-unseen", "leave_one_out-full-all"
    study = {"protocols": [unseen], "also_ranked": [unseen, everything], "topk": [50, 100]}
    spec = spec_of(small_data, "SASRec", valid_metric="NDCG@50", options={"epochs": 1}, **study)
    assert spec.also_ranked == [everything]
    runs.run_one(spec, tmp_path)
    alone = replace(spec, protocol=Protocol.of(everything), also_ranked=(), suffix="-alone")
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    own, other = found[spec.id], found[spec.id.replace("unseen", "all")]
    assert len(found) == 2
    assert (other["protocol"]["seen"], other["trained_by"], other["curve"]) == ("all", spec.id, own["curve"])
    assert other["metrics"]["mrr@100"] < own["metrics"]["mrr@100"]  # items seen before rank above some targets
    users = [np.load(tmp_path / "runs" / f"{name}.npz")["users"].tolist() for name in found]
    assert users[0] == users[1]
    runs.run_one(alone, tmp_path)
    assert json.loads(runs.record_path(tmp_path, alone).read_text())["metrics"] == other["metrics"]


def test_the_epoch_named_best_is_the_one_that_is_tested(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = spec_of(small_data, keep_models=True, options={"learning_rate": 1e-30})
    runs.run_one(spec, tmp_path)
    record = json.loads(runs.record_path(tmp_path, spec).read_text())
    assert record["curve"][0]["valid"] == record["curve"][1]["valid"]
    assert record["best_epoch"] == torch.load(record["saved"], weights_only=False)["epoch"]


def test_a_trial_never_ranks_the_test_data(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(_: Any) -> None:
        raise AssertionError("the test data was ranked")

    monkeypatch.setattr(session.Session, "test", refuse)
    spec = replace(spec_of(small_data), test=False)
    runs.run_one(spec, tmp_path)
    record = json.loads(runs.record_path(tmp_path, spec).read_text())
    assert record["metrics"] == {}
    assert record["best_valid"] == max(point["valid"] for point in record["curve"])
    assert not runs.record_path(tmp_path, spec).with_suffix(".npz").exists()


def test_successive_targets_give_each_user_one_value(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = spec_of(small_data, protocols=["temporal"], temporal={"targets": "successive"})
    runs.run_one(spec, tmp_path)
    record = json.loads(runs.record_path(tmp_path, spec).read_text())
    users = np.load(runs.record_path(tmp_path, spec).with_suffix(".npz"))["users"]
    assert record["data"]["test_rows"] > record["data"]["test_users"] == len(users) == len(set(users))
    assert record["data"]["split"]["cold_items"] > 0
    assert record["data"]["test_targets_never_trained"] == 0  # cold items are dropped


def test_a_run_that_cannot_be_is_recorded_with_its_error(small_data: Path, tmp_path: Path) -> None:
    spec = spec_of(small_data, options={"user_inter_num_interval": "[5000,inf)"})
    assert runs.RunChild(spec, tmp_path).finish() == "failed"
    record = json.loads(runs.record_path(tmp_path, spec).read_text())
    assert record["error"].startswith("small: filtering left nothing")
    assert (record["label"], record["metrics"], record["status"]) == ("ADRRec", {}, "failed")
    assert not list((tmp_path / "scratch").iterdir())


def test_a_killed_run_is_recorded_and_leaves_nothing_half(small_data: Path, tmp_path: Path) -> None:
    spec = spec_of(small_data, options={"epochs": 1000, "stopping_step": 1000})
    child = runs.RunChild(spec, tmp_path)
    saved = runs.scratch_of(tmp_path, spec) / "saved"
    wait_for(lambda: list(saved.glob("*-last.pth")))
    os.kill(child.process.pid, signal.SIGKILL)
    assert child.finish() == "failed"
    record = json.loads(runs.record_path(tmp_path, spec).read_text())
    assert record["error"].startswith("the process was killed by SIGKILL")
    assert [each.name for each in (tmp_path / "runs").iterdir()] == [f"{spec.id}.json"]
    runs.sweep(tmp_path)
    assert list(saved.glob("*-last.pth"))  # --retry_failed goes on from it


@pytest.mark.parametrize("model", ["ADRRec", "SASRec"])
def test_a_run_that_was_broken_off_ends_as_an_unbroken_one(small_data: Path, tmp_path: Path, model: str) -> None:
    spec = spec_of(small_data, model, keep_models=True, options={"epochs": 30, "stopping_step": 30})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert runs.RunChild(spec, whole).finish() == "done"
    saved = runs.scratch_of(broken, spec) / "saved"
    for epochs in (2, 5):
        child = runs.RunChild(spec, broken)
        wait_for(lambda epochs=epochs: len((read_json(saved / runs.PROGRESS) or {"curve": []})["curve"]) > epochs)  # type: ignore[misc]
        child.stop()
        runs.sweep(broken)
    kept = read_json(saved / runs.PROGRESS)
    assert "Training continues from" in child.log.read_text()
    assert runs.RunChild(spec, broken).finish() == "done"
    one, other = (read_json(runs.record_path(folder, spec)) for folder in (whole, broken))
    # Seconds are those of all parts together: the epochs before the last break have the times of their parts.
    assert other["curve"][:4] == kept["curve"][:4]
    assert other["train_s"] == other["curve"][-1]["train_s"]
    assert (other["started"], other["wall_s"] > kept["wall_s"]) == (kept["started"], True)
    for facts in (one, other):
        for name in ("wall_s", "train_s", "started", "saved", "hardware"):
            del facts[name]
        for point in facts["curve"]:
            del point["train_s"]
    assert other == one
    with np.load(whole / "runs" / f"{spec.id}.npz") as mine, np.load(broken / "runs" / f"{spec.id}.npz") as yours:
        assert all(np.array_equal(mine[name], yours[name]) for name in mine.files)
    weights = [torch.load(folder / "models" / f"{spec.id}.pth")["state_dict"] for folder in (whole, broken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list((broken / "scratch").iterdir())


def test_a_run_begun_by_other_code_starts_over(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    monkeypatch.chdir(tmp_path)
    spec = spec_of(small_data)
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "test", stop)
        with pytest.raises(Stop):
            runs.run_one(spec, tmp_path)
    progress = runs.scratch_of(tmp_path, spec) / "saved" / runs.PROGRESS
    kept = read_json(progress)
    assert len(kept["curve"]) == 2
    shutil.copytree(tmp_path / "scratch", tmp_path / "same" / "scratch")
    runs.run_one(spec, tmp_path / "same")  # had come to the test
    assert read_json(runs.record_path(tmp_path / "same", spec))["curve"] == kept["curve"]
    write_json(progress, {**kept, "origin": {**kept["origin"], "commit": "another"}})
    runs.run_one(spec, tmp_path)
    assert "starts over: commit, versions or processor" in capsys.readouterr().out
    assert read_json(runs.record_path(tmp_path, spec))["curve"][0]["train_s"] != kept["curve"][0]["train_s"]


def test_a_run_ends_with_the_process_that_started_it(small_data: Path, tmp_path: Path) -> None:
    spec = spec_of(small_data, options={"epochs": 1000, "stopping_step": 1000})
    (tmp_path / "spec.json").write_text(json.dumps(asdict(spec)))
    starter = (
        "import json, pathlib, sys, time; from study import plan, runs; "
        "spec = plan.RunSpec.of(json.loads(pathlib.Path(sys.argv[1]).read_text())); "
        "child = runs.RunChild(spec, pathlib.Path(sys.argv[2])); "
        "print(child.process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, str(tmp_path / "spec.json"), str(tmp_path)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    log = tmp_path / "logs" / f"{spec.id}.log"
    wait_for(lambda: log.exists() and "epoch 0 training" in log.read_text(errors="replace"))
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child))
    assert not runs.record_path(tmp_path, spec).exists()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
