"""``benchmarks/pairs.py``: one entry beside others over several results folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pairs as program
import pytest
from scipy import stats
from simulated import LEAVE_ONE_OUT, write_run, write_settings
from study import pairs
from study.results import Results

from recbole_adrrec.errors import OptionError

UNSEEN = {**LEAVE_ONE_OUT, "seen": "unseen"}
SEEDS = (1, 2)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two studies: ADRRec better than SASRec in the first, level in the second, where HSTU has not been run."""
    first, second = tmp_path / "first", tmp_path / "second"
    for seed in SEEDS:
        write_run(first, "ADRRec", seed, shift=0.3, protocol=UNSEEN, dataset="one")
        write_run(first, "SASRec", seed, protocol=UNSEEN, dataset="one")
        write_run(first, "HSTU", seed, protocol=UNSEEN, dataset="one")
        write_run(first, "SASRec", seed, protocol=LEAVE_ONE_OUT, dataset="one")
        write_run(first, "ADRRec", seed, protocol={**UNSEEN, "candidates": "pop100"}, dataset="one")
        write_run(first, "SASRec", seed, protocol={**UNSEEN, "candidates": "pop100"}, dataset="one")
    write_run(second, "ADRRec", 1, protocol=UNSEEN, dataset="two")
    write_run(second, "SASRec", 1, protocol=UNSEEN, dataset="two")
    write_run(second, "SASRec", 2, protocol=UNSEEN, dataset="two")
    return [first, second]


def values(folder: Path, dataset: str, label: str, seed: int) -> np.ndarray:
    with np.load(folder / "runs" / f"{dataset}-{label}-leave_one_out-full-unseen-s{seed}.npz") as file:
        order = np.argsort(file["users"])
        return np.asarray(file["ndcg@10"][order])


def test_pairs_of_all_folders_are_corrected_together(folders: list[Path]) -> None:
    found = pairs.find(map(Results.read, folders), "ADRRec", ["SASRec", "HSTU"], "unseen")
    assert [(pair.table.dataset, pair.reference) for pair in found] == [
        ("one", "SASRec"),
        ("one", "HSTU"),
        ("two", "SASRec"),
    ]
    first, second = folders
    p = []
    for pair, folder, seeds in zip(found, (first, first, second), (SEEDS, SEEDS, (1,)), strict=True):
        ours, theirs = (
            np.mean([values(folder, pair.table.dataset, label, seed) for seed in seeds], 0)
            for label in ("ADRRec", pair.reference)
        )
        assert pair.mean == pytest.approx(ours.mean())
        assert pair.beside == pytest.approx(theirs.mean())
        assert pair.comparison.difference == pytest.approx((ours - theirs).mean())
        p.append(stats.wilcoxon(ours - theirs, method="approx", correction=False).pvalue)
    assert [pair.comparison.p_users for pair in found] == pytest.approx(p, rel=0.02)
    order = np.argsort(p)
    holm = np.minimum(np.maximum.accumulate(np.array(p)[order] * [3, 2, 1]), 1)
    assert [found[place].comparison.p_users_holm for place in order] == pytest.approx(holm, rel=0.02)


def test_the_table_is_printed_and_the_picture_drawn(folders: list[Path], tmp_path: Path, capsys) -> None:
    figure = tmp_path / "pairs.svg"
    assert program.main([*map(str, folders), "--of", "ADRRec", "--against", "SASRec", "--figure", str(figure)]) == 0
    text = capsys.readouterr().out
    assert "over the 2 rows" in text
    assert "| one, leave-one-out | ADRRec 0." in text
    assert "300 / 2 | better |" in text
    assert "300 / 1 | no difference shown |" in text
    assert figure.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--against", "BERT4Rec"], "--of 'ADRRec', --against 'BERT4Rec'.*ADRRec; HSTU; SASRec"),
        (["--seen", "all"], "items ranked: all"),
        (["--figure", "pairs.gif"], "--figure: pairs.gif should end in .svg or .png"),
        (["--figure", "nowhere/pairs.svg"], "--figure: there is no folder nowhere"),
    ],
)
def test_what_cannot_be_compared_is_named(folders: list[Path], given: list[str], message: str, capsys) -> None:
    assert program.main([*map(str, folders), *given]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_folders_with_different_metrics_are_refused(folders: list[Path], capsys) -> None:
    write_settings(folders[1], metric="recall@10")
    assert program.main([*map(str, folders)]) == 2
    assert "ndcg@10, recall@10" in capsys.readouterr().err


def test_a_baseline_of_another_study_of_the_same_data(folders: list[Path], tmp_path: Path) -> None:
    third, tuned = tmp_path / "third", tmp_path / "tuned"
    for folder in (third, tuned):
        write_run(folder, "TiSASRec", 1, protocol=UNSEEN, dataset="one")
        write_run(folder, "SASRec", 1, shift=0.2, protocol=UNSEEN, dataset="one")
    write_run(tuned, "ADRRec", 1, protocol=UNSEEN, dataset="one")
    (tuned / "study.json").write_text(json.dumps({"study": {"tuned": {"one/ADRRec": {"n_layers": 1}}}}))
    read = [Results.read(folder) for folder in (*folders, third, tuned)]
    found = {
        (pair.where, pair.reference): pair for pair in pairs.find(read, "ADRRec", ["SASRec", "TiSASRec"], "unseen")
    }
    one, two = "one, leave-one-out", "two, leave-one-out"
    assert set(found) == {
        (one, "SASRec"),
        (one, "TiSASRec"),
        (two, "SASRec"),
        *((f"{one}, tuned", name) for name in ("SASRec", "TiSASRec")),
    }
    ours, theirs = values(folders[0], "one", "ADRRec", 1), values(third, "one", "TiSASRec", 1)
    assert found[one, "TiSASRec"].comparison.difference == pytest.approx((ours - theirs).mean())
    assert found[one, "SASRec"].beside == pytest.approx(
        np.mean([values(folders[0], "one", "SASRec", s) for s in SEEDS])
    )
    (third / "study.json").write_text(json.dumps({"study": {"data": {"one": "other events"}}}))
    other = pairs.find([Results.read(folders[0]), Results.read(third)], "ADRRec", ["SASRec", "TiSASRec"], "unseen")
    assert [pair.reference for pair in other] == ["SASRec"]


def test_without_a_shared_seed_there_is_no_pair(tmp_path: Path) -> None:
    write_run(tmp_path, "ADRRec", 1, protocol=UNSEEN)
    write_run(tmp_path, "SASRec", 2, protocol=UNSEEN)
    with pytest.raises(OptionError, match="no two of them"):
        pairs.find([Results.read(tmp_path)], "ADRRec", ["SASRec"], "unseen")
