"""The table of what runs reached on validation."""

from __future__ import annotations

import json
from pathlib import Path

import compare
import pytest
import report as report_command
from simulated import write_run, write_settings
from study import study_file, validation

UNSEEN = {"split": "leave_one_out", "candidates": "full", "seen": "unseen"}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_spreads_and_changes_come_from_validation_alone(tmp_path: Path) -> None:
    for seed, plain, better in ((1, 0.05, 0.06), (2, 0.07, 0.07), (3, 0.5, None)):
        write_run(tmp_path, "SASRec", seed, valid=plain, protocol=UNSEEN)
        if better:
            write_run(tmp_path, "ADRRec", seed, valid=better, protocol=UNSEEN, shift=9.0)
    write_run(tmp_path, "ADRRec, timed", 1, valid=0.08, protocol=UNSEEN, query_time=True)
    write_run(tmp_path, "ADRRec, broken", 1, protocol=UNSEEN, error="no memory")
    write_settings(tmp_path, references={"ADRRec": "SASRec", "ADRRec, timed": "SASRec"})
    models = [{"label": label} for label in ("SASRec", "ADRRec", "ADRRec, timed", "ADRRec, broken")]
    stated = {"name": "parts", "models": models}
    (tmp_path / "study.json").write_text(json.dumps({"study": stated}))
    text = validation.write(tmp_path).read_text()
    head, _, sasrec, adrrec, timed = (cells(line) for line in text.splitlines() if line.startswith("|"))
    assert head[:2] == ["entry", "NDCG@10, mean (sd)"]
    assert sasrec[:4] == ["SASRec", "0.2067 (0.2542)", "–", "3"]
    # .065 against .06: the seeds that both have.
    assert adrrec[:4] == ["ADRRec", "0.0650 (0.0071)", "+8.3 % SASRec", "2"]
    assert timed[:4] == ["ADRRec, timed (query time known)", "0.0800", "+60.0 % SASRec", "1"]
    assert adrrec[4:] == ["7", "8.6", "123,456"]
    assert "## simulated\n\nleave-one-out, only items new to the user ranked\n" in text
    assert "Failed: " in text


def test_no_figure_of_the_test_is_in_it(tmp_path: Path) -> None:
    write_run(tmp_path, "SASRec", 1, valid=0.05)
    path = next((tmp_path / "runs").glob("*.json"))
    before = validation.write(tmp_path).read_text()
    path.with_suffix(".npz").unlink()
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "metrics": {}}))
    assert validation.write(tmp_path).read_text() == before


def test_a_study_on_validation_alone_tests_nothing(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "small").symlink_to(small_data / "small")
    file = tmp_path / "tiny.yaml"
    file.write_text(
        "datasets: [small, {name: small, label: again, data_path: there}]\nmodels: [ADRRec]\nseeds: 1\ntest: false\n"
        "metrics: [NDCG]\ntopk: [10]\nprotocols: [leave_one_out-full-unseen]\n"
        "options: {item_head: plain, hidden_size: 8, n_layers: 1, MAX_ITEM_LIST_LENGTH: 10, epochs: 1, "
        "load_col: {inter: [user_id, item_id, timestamp]}}\n"
    )
    (tmp_path / "small").symlink_to(small_data / "small")
    results = tmp_path / "results"
    arguments = ["--config", str(file), "--data_path", str(tmp_path), "--results", str(results)]
    assert compare.main(arguments) == 0, capsys.readouterr()
    assert not (results / "report").exists()
    assert not list(results.glob("runs/*.npz"))
    runs = {path.stem: json.loads(path.read_text()) for path in results.glob("runs/*.json")}
    assert {run["dataset"] for run in runs.values()} == {"small", "again"}
    assert all(run["metrics"] == {} for run in runs.values())
    first, second = (run["best_valid"] for run in runs.values())
    assert first == second > 0
    text = (results / validation.FILE).read_text()
    (results / validation.FILE).unlink()
    assert report_command.main([str(results)]) == 0
    assert (results / validation.FILE).read_text() == text
    assert not (results / "report").exists()
    assert "## again" in text
    assert "## small" in text
    assert "2 runs done" in capsys.readouterr().out
    assert study_file.load(str(file), {"data_path": str(tmp_path)}).source("again").name == "small"
