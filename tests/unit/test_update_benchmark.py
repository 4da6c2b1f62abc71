"""The benchmark of updating: what it trains on what, its table, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import update

from recbole_adrrec.times import iso


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Options of every training that was run; none really is."""
    given: list[Mapping[str, Any]] = []

    def train(options: Mapping[str, Any], model: str, test: bool, most_steps: int | None) -> update.Outcome:
        given.append({**options, "most_steps": most_steps})
        if options.get("epochs") == 0:
            return update.Outcome(f"{model}.pth", 0.05, 0, 0, 0)
        score = 0.07 if most_steps is None else 0.068
        return update.Outcome(f"{model}.pth", score if test else float("nan"), 47, 37, most_steps or 4700)

    monkeypatch.setattr(update, "train", train)
    return given


def test_an_update_takes_a_tenth_of_the_steps_and_starts_from_the_old_model(
    trained: list[Mapping[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--seeds", "1", "2", "--results", str(tmp_path)]
    assert update.main(given) == 0
    first, second = update.moments(0.5, 8)
    assert [iso(moment)[:10] for moment in (first, second)] == ["1998-01-05", "1998-03-02"]
    before, anew, kept, on_all, on_new = trained[:5]
    splits = [each["eval_args"]["split"]["GT"] for each in trained[:5]]
    assert [split["times"][1] for split in splits] == [first, *[second] * 4]
    assert [split.get("train_from") for split in splits] == [None] * 4 + [splits[0]["times"][0]]
    assert [each["most_steps"] for each in (before, anew, on_all, on_new)] == [None, None, 470, 470]
    assert kept["epochs"] == 0
    old = str(tmp_path / "1-before" / "ADRRec.pth")
    assert [each.get("init_from") for each in trained[:5]] == [None, None, old, old, old]
    printed = capsys.readouterr().out
    assert [" ".join(line.split()) for line in printed.splitlines()[4:]] == [
        "| not updated | 0.0500 | 0.0500 | 0.0500 | 0 |",
        "| anew | 0.0700 (100%) | 0.0700 (100%) | 0.0700 (100%) | 4,700 |",
        "| updated on all events | 0.0680 (90%) | 0.0680 (90%) | 0.0680 (90%) | 470 |",
        "| updated on new events | 0.0680 (90%) | 0.0680 (90%) | 0.0680 (90%) | 470 |",
    ]

    # What the folder holds is not trained again, and is not taken for other cuts.
    assert update.main(given) == 0
    assert len(trained) == 10
    assert capsys.readouterr().out == printed
    assert update.main([*given, "--weeks", "4"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_no_gain_has_no_share() -> None:
    assert update.share(0.07, 0.07, 0.08) is None
    assert update.share(0.05, 0.07, 0.075) == pytest.approx(1.25)
