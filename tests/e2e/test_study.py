"""A whole study: killed half-way and resumed, on several processes, and on a Ray cluster, it ends the same."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine.children import child_environment
from study import grid

from recbole_adrrec.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "benchmarks" / "configs" / "quick.yaml"
OF_THE_MOMENT = ("wall_s", "train_s", "started", "command", "commit", "saved")
"""Entries in which two runs of the same study may differ."""


def compare(results: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--config", str(QUICK), "--results"]
    return subprocess.Popen(
        [*arguments, str(results), *more],
        env=child_environment({"OMP_NUM_THREADS": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(results: Path, *more: str) -> str:
    process = compare(results, *more)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    return told


def record(path: Path) -> dict[str, Any]:
    facts = json.loads(path.read_text())
    for name in OF_THE_MOMENT:
        facts.pop(name, None)
    for point in facts["curve"]:
        point.pop("train_s")
    return dict(facts)


def assert_same(one: Path, other: Path) -> None:
    names = sorted(path.name for path in (one / "runs").iterdir())
    assert names == sorted(path.name for path in (other / "runs").iterdir())
    for path in sorted((one / "runs").glob("*.json")):
        twin = other / "runs" / path.name
        assert record(path) == record(twin)
        assert record(path)["status"] == "done"
        mine, yours = np.load(path.with_suffix(".npz")), np.load(twin.with_suffix(".npz"))
        assert mine.files == yours.files
        for name in mine.files:
            assert np.array_equal(mine[name], yours[name])
    for table in ("results.csv", "comparisons.csv"):
        assert (one / "report" / table).read_text() == (other / "report" / table).read_text()


def children(results: Path) -> list[int]:
    """Processes that are at work on runs of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if "study.runs:run_recorded" in words and any(word.startswith(str(results)) for word in words):
            found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_study_killed_half_way_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finished(whole)
    process = compare(cut)
    deadline = time.monotonic() + 600
    while True:
        assert time.monotonic() < deadline
        over = len(list((cut / "runs").glob("*.json"))) if (cut / "runs").is_dir() else 0
        begun = {last.parents[1].name for last in cut.glob("scratch/*/saved/*-last.pth")}
        begun -= {path.stem for path in cut.glob("runs/*.json")}
        if over == 4 and begun:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while children(cut):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = {path: path.stat().st_mtime_ns for path in (cut / "runs").glob("*.json")}
    assert len(before) == 4
    assert "9 runs done (4 were there before), 0 failed" in finished(cut)
    assert "Training continues from" in (cut / "logs" / f"{begun.pop()}.log").read_text()
    assert not list((cut / "scratch").iterdir())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(whole, cut)
    assert "9 runs done (9 were there before), 0 failed" in finished(cut)


@pytest.mark.slow
def test_jobs_beside_each_other_and_a_failing_one_change_nothing(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = ("--seeds", "1", "--epochs", "1")
    finished(one, *more)
    finished(two, *more, "--jobs", "3")
    assert_same(one, two)
    failing = tmp_path / "failing"
    models = "--models=[ADRRec, SASRec, {label: impossible, model: ADRRec, options: {learning_rate: 1.0e+30}}]"
    process = compare(failing, *more, models)
    told, _ = process.communicate()
    assert process.returncode == 1, told
    assert "2 runs done (0 were there before), 1 failed" in told
    facts = json.loads(next((failing / "runs").glob("*impossible*.json")).read_text())
    assert facts["status"] == "failed"
    assert "nan" in facts["error"].lower()


def works() -> bool:
    try:
        return bool(grid.import_ray())
    except OptionError:
        return False


@pytest.mark.skipif(works(), reason="a Ray that works is installed")
def test_ray_that_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    process = compare(tmp_path / "r", "--ray")
    told, _ = process.communicate()
    assert process.returncode == 2
    assert told.startswith("error: ray: ")
    assert "pip install" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.skipif(not works(), reason='no Ray that works is installed (pip install "ray>=2.30")')
def test_a_local_ray_cluster_ends_as_this_machine_does(tmp_path: Path) -> None:
    here, cluster = tmp_path / "here", tmp_path / "cluster"
    more = ("--seeds", "1", "--epochs", "1")
    finished(here, *more)
    assert "3 runs done (0 were there before), 0 failed" in finished(cluster, *more, "--ray", "--jobs", "2")
    assert_same(here, cluster)
    assert "3 runs done (3 were there before), 0 failed" in finished(cluster, *more, "--ray")


@pytest.mark.slow
@pytest.mark.skipif(not works(), reason='no Ray that works is installed (pip install "ray>=2.30")')
def test_a_cluster_that_is_up_is_used_by_its_address(tmp_path: Path) -> None:
    one = ("--seeds", "1", "--epochs", "1", "--models", "ADRRec")
    head = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        assert "1 runs done (0 were there before), 0 failed" in finished(tmp_path / "r", *one, "--ray", head.address)
    finally:
        head.shutdown()
