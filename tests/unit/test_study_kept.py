"""Results, studies and chosen settings that an earlier version wrote still open, resume and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import compare
import pandas as pd
import pytest
import report
import tune
import yaml
from study import search, study_file

KEPT = Path(__file__).resolve().parents[1] / "kept_study"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kept study, as working directory."""
    monkeypatch.chdir(shutil.copytree(KEPT, tmp_path / "kept"))
    return Path.cwd()


def test_results_give_the_same_report(kept: Path) -> None:
    tables = [kept / "results" / "report" / name for name in ("results.csv", "comparisons.csv")]
    before = [pd.read_csv(table) for table in tables]
    assert report.main(["results"]) == 0
    for was, table in zip(before, tables, strict=True):
        pd.testing.assert_frame_equal(pd.read_csv(table), was, rtol=1e-12, atol=1e-12)  # numpy's sums differ by version
    text = (kept / "results" / "report" / "report.md").read_text()
    assert "| ADRRec | SASRec, windows | no difference shown |" in text
    assert "Drop in NDCG@5, items replaced" in text
    assert "Heads of ADRRec, 1 seed" in text


def test_a_study_goes_on_with_the_settings_that_were_chosen(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated = json.loads((kept / "results" / "study.json").read_text())
    plan = study_file.load("study.yaml", {"data_path": "data"})
    assert plan.hash == stated["hash"]
    assert plan.stated() == stated["study"]
    path = kept / "results" / "runs" / f"{plan.specs()[-1].id}.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert compare.main(["--config", "study.yaml", "--data_path", "data", "--results", "results"]) == 0
    assert "4 runs done (3 were there before), 0 failed" in capsys.readouterr().out
    after = json.loads(path.read_text())
    assert list(after) == list(before)
    assert (after["status"], after["options"]) == ("done", before["options"])
    ties, known = after["data"].pop("ties"), before["data"].pop("ties")
    assert after["data"] == before["data"]
    assert {name: ties[name] for name in known} == pytest.approx(known)


def test_a_search_goes_on(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a trial was repeated")

    monkeypatch.setattr(search, "RunChild", refuse)
    before = {path.name: yaml.safe_load(path.read_text())["options"] for path in Path("tuned").glob("*.yaml")}
    given = ["--config", "study.yaml", "--space", "space.yaml", "--data_path", "data", "--trials", "2"]
    assert tune.main(given) == 0
    assert len(before) == 2
    assert before == {path.name: yaml.safe_load(path.read_text())["options"] for path in Path("tuned").glob("*.yaml")}
