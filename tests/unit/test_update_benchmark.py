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

    def train(options: Mapping[str, Any], model: str, test: bool) -> update.Outcome:
        given.append(options)
        epochs = options.get("epochs", 47)
        score = {0: 0.05, 4: 0.068, 47: 0.07}[epochs] if test else float("nan")
        return update.Outcome(f"{model}.pth", score, epochs, min(epochs, 37), epochs * 100)

    monkeypatch.setattr(update, "train", train)
    return given


def test_an_update_takes_a_tenth_of_the_epochs_and_starts_from_the_old_model(
    trained: list[Mapping[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--seeds", "1", "2", "--results", str(tmp_path)]
    assert update.main(given) == 0
    first, second = update.moments(0.5, 8)
    assert [iso(moment)[:10] for moment in (first, second)] == ["1998-01-05", "1998-03-02"]
    of_first_seed = trained[:4]
    assert [each["eval_args"]["split"]["GT"]["times"][1] for each in of_first_seed] == [first, *[second] * 3]
    assert [each.get("epochs") for each in of_first_seed] == [None, None, 0, 4]
    old = str(tmp_path / "1-before" / "ADRRec.pth")
    assert [each.get("init_from") for each in of_first_seed] == [None, None, old, old]
    printed = capsys.readouterr().out
    assert [" ".join(line.split()) for line in printed.splitlines()[4:]] == [
        f"| {name} | 0.0500 | 0.0700 | 0.0680 | 90% | 4,700 | 3,700 | 400 |" for name in ("1", "2", "mean")
    ]

    # What the folder holds is not trained again, and is not taken for other cuts.
    assert update.main(given) == 0
    assert len(trained) == 8
    assert capsys.readouterr().out == printed
    assert update.main([*given, "--weeks", "4"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_no_gain_has_no_share() -> None:
    assert update.share(0.07, 0.07, 0.08) is None
    assert update.share(0.05, 0.07, 0.075) == pytest.approx(1.25)
