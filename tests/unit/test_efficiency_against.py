"""Benchmarks against another commit and beside busy processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import efficiency
import pytest
from measure import against, busy, children, tables
from measure.ledger import Ledger
from measure.store import read_json

from recbole_adrrec import options

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


def test_a_child_measures_the_package_of_its_own_tree(tmp_path: Path) -> None:
    tree = against.tree_of(None, tmp_path / "tree")
    file = tree.folder / "recbole_adrrec" / "properties" / "model" / "ADRRec.yaml"
    file.write_text(file.read_text() + "option_of_this_tree: 1\n")
    given = {"tree": str(tree.folder), "model": "ADRRec"}
    found = children.call("measure.training:known", given, threads=1, tree=tree.folder)["options"]
    assert "option_of_this_tree" in found
    assert set(options.load_properties("model", "ADRRec")) < set(found)
    with pytest.raises(children.ChildError, match=r"measured would be .*, which is not in"):
        children.call("measure.training:known", {**given, "tree": str(tmp_path / "other")}, threads=1, tree=tree.folder)


def test_options_that_a_package_lacks_are_left_out_of_it() -> None:
    known = ["lni_weight", "n_layers"]
    given = {"lni_weight": 0, "mixture": "heads", "loss_type": "CE", "train_neg_sample_args": None}
    assert against.readable(given, known) == {"lni_weight": 0, "loss_type": "CE", "train_neg_sample_args": None}


def one(variant: str, tree: str, run: int, epochs: list[float], rank: float, **more: Any) -> dict[str, Any]:
    result = {"epoch_s": epochs, "eval_s": rank, "loss": 7.0, "peak_mib": 100.0, "targets": 600, **more}
    result.setdefault("metrics", {"ndcg@10": 0.05})
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
        {"variant": adrrec, "run": 0, "given": {"tree": "here"}, "result": None, "error": "killed by signal 9"},
        one(against.DEFAULTS.name, "here", 0, [15.0], 3.0),
    ]
    first, second, third = against.table(measured)
    assert first["runs"] == 2
    assert first["epoch_s"] == {"before": 16.0, "here": 5.5, "ratio": pytest.approx((6 / 12 + 5 / 20) / 2)}
    assert first["eval_s"]["ratio"] == pytest.approx((0.25 + 0.5) / 2)
    assert first["loss"] == {"before": 7.0, "here": 6.75}
    assert (second["runs"], second["error"]) == (0, "killed by signal 9")
    assert third["epoch_s"] == {"before": 30.0, "here": 15.0, "ratio": 0.5}
    text = against.table_text([first, second, third], "0123456789abcdef")
    assert "- ADRRec, one head for each kernel: killed by signal 9" in text
    assert "epoch s 0123456789ab " in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_targets_a_second_stand_beside_the_peers() -> None:
    peer = {**one("RecTools SASRec", "", 0, [10.0, 10.0], 1.0, targets=100), "given": {}}
    measured = [
        peer,
        one(against.ROWS[0].name, "before", 0, [1.0], 1.0),
        one(against.ROWS[0].name, "here", 0, [9.0, 5.0], 1),
    ]
    text = against.peer_text(measured, "RecTools SASRec")
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")[2:4]] == ["120", tables.shown(12.0)]


def test_both_packages_are_measured_by_turns_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def pretend(function: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
        if function.endswith(":known"):
            own = ["backbone", "refinement", "lni_weight", "hidden_dropout_prob"]
            return {"options": own if "before" in given["tree"] else [*own, "norm_order", "inner_dropout_prob"]}
        assert Path(given["tree"]) == more["tree"]
        calls.append((more["tree"].name, given["options"]))
        return one("", "", 0, [3.0, 2.0], 1.0)["result"]

    monkeypatch.setattr(against, "call", pretend)
    monkeypatch.setattr(against, "tree_of", lambda commit, folder: against.Tree(folder.name, folder, "0"))
    command = ["--against", "HEAD", "--runs", "2", "--json", str(tmp_path / "out.json"), "--dropout", "0"]
    assert efficiency.main(command) == 0
    first_run = ["before", "here", "before", "here", "here"]
    assert [name for name, _ in calls] == [*first_run, "here", "before", "here", "before", "here"]
    assert all(given["hidden_dropout_prob"] == 0 for _, given in calls[:4])
    assert ["norm_order" in given for _, given in calls[:2]] == [False, True]
    assert "hidden_dropout_prob" not in calls[4][1]
    text = capsys.readouterr().out
    assert "ADRRec, one head for each kernel, before: absolute_kernels" in text
    assert "no --peer_python" in text
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
        with busy.company(2, cores=1):
            assert [process.poll() for process in started] == [None, None]
            assert not before or len(os.sched_getaffinity(0)) == 1
    assert all(process.poll() is not None for process in started)
    assert not before or os.sched_getaffinity(0) == before


def test_a_busy_process_ends_with_its_parent() -> None:
    starts = (
        "import subprocess, sys; sys.path.insert(0, sys.argv[1]); from measure import busy\n"
        "print(subprocess.Popen([sys.executable, '-c', busy.BUSY], stdout=subprocess.DEVNULL).pid)"
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

    rows = busy.table(
        [
            measured("unset", 0, [2.0]),
            measured("unset", 1, [30.0, 50.0]),
            measured("passive", 0, [4.0]),
            measured("passive", 1, None),
        ]
    )
    assert rows[0]["epoch_s"] == {"0": 2.0, "1": 40.0}
    assert rows[0]["ratio"] == {"0": 1.0, "1": 20.0}
    assert rows[1]["ratio"] == {"0": 1.0, "1": None}
    text = busy.table_text(rows, [0, 1])
    assert "40.0 (20.0)" in text
    assert "- a, passive: stopped after 9 s" in text


def test_the_wait_policy_reaches_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []

    def pretend(function: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
        found.append((given["model"], more["environment"]))
        return {"epoch_s": [1.0]}

    monkeypatch.setattr(busy, "call", pretend)
    arguments = efficiency.parse(["--busy", "0", "--wait", "unset", "passive", "--runs", "1"])
    session = efficiency.Session(arguments, Ledger(None, MACHINE), tmp_path)
    assert "passive" in busy.report(session)
    policies: list[dict[str, str | None]] = [{"OMP_WAIT_POLICY": None}, {"OMP_WAIT_POLICY": "passive"}]
    assert found == [("AWRSR", each) for each in policies] + [("ADRRec", each) for each in policies]
    name = "variable_of_this_test"
    monkeypatch.setenv(name, "1")
    (tmp_path / "shows.py").write_text(f"import os\ndef one(given): return {{'value': os.environ.get('{name}')}}")
    for given, value in ((None, "1"), ({name: "2"}, "2"), ({name: None}, None)):
        shown = children.call("shows:one", {}, threads=1, tree=tmp_path, environment=given)
        assert SimpleNamespace(**shown).value == value
