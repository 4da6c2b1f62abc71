"""Benchmarks against another commit and beside busy processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import efficiency
import pytest
import synthetic
from engine import children
from engine.store import MeasurementStore, read_json
from measure import against, busy, session, tables
from measure.variants import common_options

from recbole_adrrec.options import load_properties

MACHINE = {"hardware": {"cpu": "one", "cores": 2, "ram_gib": 1.0, "gpu": None}, "versions": {"torch": "2"}}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package of one file, committed once and changed since."""
    root = tmp_path / "checkout"
    for part in against.PARTS:
        (root / part).mkdir(parents=True)
        (root / part / "__init__.py").write_text("")
    (root / "recbole_adrrec" / "version.py").write_text("__version__ = 'committed'")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(root)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (root / "recbole_adrrec" / "version.py").write_text("__version__ = 'edited'")
    monkeypatch.setattr(against, "ROOT", root)
    return root


def test_a_commit_and_the_checkout_are_copied_with_defaults_inside_the_package(checkout: Path, tmp_path: Path) -> None:
    before, here = against.tree_of("HEAD", tmp_path / "a"), against.tree_of(None, tmp_path / "b")
    versions = [(tree.folder / "recbole_adrrec" / "version.py").read_text() for tree in (before, here)]
    assert versions == ["__version__ = 'committed'", "__version__ = 'edited'"]
    assert all((tree.folder / "recbole_adrrec" / "properties" / "__init__.py").is_file() for tree in (before, here))
    assert (before.name, here.name) == ("before", "here")
    assert before.digest != here.digest == against.tree_of(None, tmp_path / "c").digest
    assert (checkout / "properties").is_dir()
    with pytest.raises(ValueError, match="--against: nowhere is no commit of"):
        against.tree_of("nowhere", tmp_path / "d")


def given_for(tree: against.Tree, folder: Path) -> dict[str, Any]:
    """One step of SASRec with the package of a tree."""
    synthetic.write(folder, "made", users=60, items=40, events=1500, seed=1, progress=False)
    options, _ = against.options_for(against.ROWS[0], tree, None)
    given = {"source": "ours", "model": "AWRSR", "dataset": "made", "epochs": 1, "steps": 1, "evaluate": True}
    options = {**common_options("made", 10, 64, "cpu"), **options}
    return {**given, "ranked": "valid", "options": options, "data_path": str(folder), "tree_folder": str(tree.folder)}


def test_a_package_of_the_first_layout_can_be_measured(tmp_path: Path) -> None:
    first = "dbb29bed4428e64ce061587fb4eef0eb2a8d5e9b"
    if subprocess.run(["git", "cat-file", "-e", first], cwd=against.ROOT, capture_output=True).returncode:
        pytest.skip("the history is not here")
    tree = against.tree_of(first, tmp_path / "tree")
    assert (tree.folder / "recbole_adrrec" / "plugin.py").exists()
    found = children.call("measure.training:measure", given_for(tree, tmp_path), threads=1, tree=tree.folder)
    assert found["targets"] == 1500 - 3 * 60
    assert found["loss"] > 0
    assert set(found["metrics"]) == {"ndcg@10"}


def test_a_child_measures_the_package_of_its_own_tree(tmp_path: Path) -> None:
    tree = against.tree_of(None, tmp_path / "tree")
    given = {**given_for(tree, tmp_path), "tree_folder": str(tmp_path / "other")}
    with pytest.raises(children.ChildError, match=r"measured would be .*, which is not in"):
        children.call("measure.training:measure", given, threads=1, tree=tree.folder)


def test_options_that_a_package_lacks_are_left_out_of_it(tmp_path: Path) -> None:
    tree = against.tree_of(None, tmp_path / "tree")
    adrrec = against.ROWS[1]
    assert against.options_for(adrrec, tree, None) == (adrrec.options, [])
    assert set(load_properties("model", "ADRRec")) < tree.options("ADRRec")
    file = tree.folder / "recbole_adrrec" / "properties" / "model" / "ADRRec.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("mixture:")))
    options, missing = against.options_for(adrrec, tree, 0.5)
    assert missing == ["mixture"]
    assert "train_neg_sample_args" in options  # RecBole's own
    names = [name for name in options if name.endswith("dropout_prob")]
    assert {options[name] for name in names} == {0.5}
    assert against.options_for(against.ROWS[0], tree, 0.5)[0]["inner_dropout_prob"] == 0
    assert against.options_for(against.DEFAULTS, tree, 0.5)[0] == against.CE


def one(variant: str, tree: str, run: int, epochs: list[float], rank: float, **more: Any) -> dict[str, Any]:
    result = {"epoch_s": epochs, "eval_s": rank, "loss": 7.0, "peak_mib": 100.0, "metrics": {"ndcg@10": 0.05}, **more}
    return {"variant": variant, "run": run, "given": {"tree": tree}, "result": result, "error": None}


def test_the_table_takes_pairs_of_runs_and_leaves_first_epochs_out() -> None:
    sasrec, adrrec = (row.name for row in against.ROWS)
    measured = [
        one(sasrec, "before", 0, [99.0, 10.0, 12.0, 14.0], 8.0),
        one(sasrec, "here", 0, [99.0, 6.0], 2.0, loss=6.5),
        one(sasrec, "before", 1, [99.0, 20.0], 8.0),
        one(sasrec, "here", 1, [99.0, 5.0], 4.0),
        one(sasrec, "before", 2, [99.0, 1.0], 8.0),  # its partner is not there
        one(adrrec, "before", 0, [30.0], 9.0),
        {**one(adrrec, "here", 0, [1.0], 1.0), "result": None, "error": "killed by signal 9"},
        one(against.DEFAULTS.name, "here", 0, [15.0], 3.0),
    ]
    rows = against.table(measured)
    assert [row["variant"] for row in rows] == [
        *(f"{sasrec}, before", f"{sasrec}, here", f"{adrrec}, before", f"{adrrec}, here"),
        f"{against.DEFAULTS.name}, here",
    ]
    before, here, _, failed, defaults = rows
    assert (before["runs"], before["later_epoch_s"], before["loss"]) == (3, 12.0, 7.0)
    assert (here["runs"], here["later_epoch_s"], here["loss"]) == (2, 5.5, 6.75)
    assert here["epoch_ratio"] == pytest.approx((6 / 12 + 5 / 20) / 2)
    assert here["eval_ratio"] == pytest.approx((0.25 + 0.5) / 2)
    assert (failed["runs"], failed["epoch_ratio"], failed["error"]) == (0, None, "killed by signal 9")
    assert defaults["epoch_ratio"] == 0.5
    text = tables.text(rows, against.COLUMNS)
    assert f"- {adrrec}, here: killed by signal 9" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_both_packages_are_measured_by_turns_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def pretend(function: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
        assert given["tree_folder"] == str(more["tree"])
        calls.append((more["tree"].name, given["options"]))
        result: dict[str, Any] = one("", "", 0, [3.0, 2.0], 1.0)["result"]
        return result

    def options(tree: against.Tree, model: str) -> set[str]:
        own = {"backbone", "refinement", "lni_weight", "hidden_dropout_prob"}
        return own if tree.name == "before" else own | {"norm_order", "inner_dropout_prob"}

    monkeypatch.setattr(session, "call", pretend)
    monkeypatch.setattr(against, "tree_of", lambda commit, folder: against.Tree(folder.name, folder, "0"))
    monkeypatch.setattr(against.Tree, "options", options)
    command = ["--against", "HEAD", "--runs", "2", "--json", str(tmp_path / "out.json"), "--dropout", "0"]
    assert efficiency.main(command) == 0
    first_run = ["before", "here", "before", "here", "here"]
    assert [name for name, _ in calls] == [*first_run, "here", "before", "here", "before", "here"]
    assert all(given["hidden_dropout_prob"] == 0 for _, given in calls[:4])
    assert ["norm_order" in given for _, given in calls[:2]] == [False, True]
    assert "hidden_dropout_prob" not in calls[4][1]
    assert "ADRRec, one head for each kernel, before: absolute_kernels" in capsys.readouterr().out
    assert efficiency.main(command) == 0
    assert len(calls) == 10
    assert {each["given"]["tree"] for each in read_json(tmp_path / "out.json")["measurements"]} == {"before", "here"}


# Beside busy processes


def test_busy_processes_are_there_meanwhile_and_gone_afterwards() -> None:
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy.subprocess, "Popen", Noted)
        with busy.busy_processes(2, cores=1):
            assert [process.poll() for process in started] == [None, None]
            assert not before or len(os.sched_getaffinity(0)) == 1
    assert all(process.poll() is not None for process in started)
    assert not before or os.sched_getaffinity(0) == before


def test_a_busy_process_ends_with_its_parent() -> None:
    starts = (
        "import os, subprocess, sys; sys.path.insert(0, sys.argv[1]); from measure import busy\n"
        "call = [sys.executable, '-c', busy.BUSY, str(os.getpid())]\n"
        "print(subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    folder = str(Path(efficiency.__file__).parent)
    done = subprocess.run([sys.executable, "-c", starts, folder], capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it is still at work")


def test_busy_table_compares_with_idle_under_the_same_policy() -> None:
    def measured(policy: str, count: int, seconds: list[float] | None) -> dict[str, Any]:
        result = None if seconds is None else {"epoch_s": seconds}
        given = {"busy": count, "wait": policy}
        return {"variant": "a", "given": given, "result": result, "error": None if seconds else "stopped after 9 s"}

    runs = [measured("unset", 0, [2.0]), measured("unset", 1, [30.0, 50.0])]
    runs += [measured("passive", 0, [4.0]), measured("passive", 1, None)]
    rows = {row["variant"]: row for row in busy.table(runs)}
    assert (rows["a, OMP_WAIT_POLICY unset, 1 busy"]["epoch_s"], len(rows)) == (40.0, 4)
    assert rows["a, OMP_WAIT_POLICY unset, 1 busy"]["over_idle"] == 20.0
    assert rows["a, OMP_WAIT_POLICY passive, 0 busy"]["over_idle"] == 1.0
    assert rows["a, OMP_WAIT_POLICY passive, 1 busy"]["over_idle"] is None
    assert rows["a, OMP_WAIT_POLICY passive, 1 busy"]["error"] == "stopped after 9 s"


def test_the_wait_policy_reaches_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []

    def pretend(function: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
        found.append((given["model"], more["environment"]))
        return {"epoch_s": [1.0]}

    monkeypatch.setattr(session, "call", pretend)
    arguments = efficiency.parse(["--busy", "0", "--wait", "unset", "passive", "--runs", "1"])
    assert "passive" in busy.report(session.Session(arguments, MeasurementStore(None, MACHINE), tmp_path))
    policies: list[dict[str, str | None]] = [
        {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None},
        {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": None},
    ]
    assert found == [("AWRSR", each) for each in policies] + [("ADRRec", each) for each in policies]
