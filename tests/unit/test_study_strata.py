"""Users by what their test event is like, and the section of the report that compares models on each group."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import report
import torch
from simulated import write_run
from study import strata
from study.analysis import analyse
from study.document import Figure, Table
from study.results import Results
from test_study_kept import KEPT

from recbole_adrrec.data.rows import Events

DAY = 86400


def data() -> tuple[SimpleNamespace, SimpleNamespace]:
    """Training and test data of three users, the third with two test events."""
    columns = {
        "user": torch.tensor([1, 1, 1, 2, 2, 2, 3, 3, 3]),
        "item": torch.tensor([1, 2, 2, 2, 1, 3, 1, 2, 4]),
        "time": torch.tensor([0, 10, 10, 40, 41, 50, 0, 5, 6]) * DAY,
    }
    events = Events.from_sorted(columns, "user", 4)
    trained = [0, 1, 3, 4, 6]

    def shown(include_targets: bool, *fields: str) -> tuple[torch.Tensor, ...]:
        assert include_targets
        return tuple(events.column(field, torch.tensor(trained)) for field in fields)

    names = {"uid_field": "user", "iid_field": "item", "time_field": "time", "item_num": 5}
    train = SimpleNamespace(**names, shown_events=shown)
    rows = SimpleNamespace(events=events, targets=torch.tensor([2, 5, 7, 8]))
    return train, SimpleNamespace(**names, inter_feat=rows, field2id_token={"user": ["[PAD]", "ann", "bob", "cid"]})


def test_a_users_test_event_is_described() -> None:
    found = strata.describe(*data())
    assert found["users"].tolist() == ["ann", "bob"]  # cid has two
    assert found["gap"].tolist() == [0, 9 * DAY]
    assert found["history"].tolist() == [2, 2]
    assert found["popularity"].tolist() == [2, 0]
    assert found["age"].tolist() == [0, -np.inf]


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("gap", 0, "none"),
        ("gap", 1, "less than a day"),
        ("gap", DAY, "1 to 7 days"),
        ("gap", 1000 * DAY, "182 days and more"),
        ("history", 5, "up to 5"),
        ("history", 6, "6 to 10"),
        ("popularity", 300, "101 to 300"),
        ("age", -np.inf, "not yet met"),
        ("age", -1, "not yet met"),
        ("age", 0, "less than 30 days"),
    ],
)
def test_groups(key: str, value: float, name: str) -> None:
    (attribute,) = (each for each in strata.ATTRIBUTES if each.key == key)
    assert attribute.groups([float(value)])[0] == name


def test_each_group_is_compared_with_the_reference(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, "ADRRec", seed, shift=0.3)
        write_run(tmp_path, "SASRec", seed)
    results = Results.read(tmp_path)
    (key,) = results.tables
    names = np.array([f"u{number}" for number in range(250)])
    some = {each.key: np.full(250, 3.0) for each in strata.ATTRIBUTES}
    some["gap"][:200] = 0
    some["gap"][200:205] = 8 * DAY
    path = strata.path_of(tmp_path, key)
    path.parent.mkdir()
    np.savez(path, users=names, **some)
    blocks = list(strata.strata_blocks(analyse(results)))
    tables = [block for block in blocks if isinstance(block, Table)]
    rows = {row[0]: row for row in tables[0].rows}
    assert list(rows) == ["none", "less than a day", "7 to 30 days"]
    assert tables[0].header[-1] == "ADRRec - SASRec"
    by_label = {
        label: np.mean([run.by_user("ndcg@10").loc[names] for run in results.tables[key][label]], axis=0)
        for label in ("ADRRec", "SASRec")
    }
    for name, chosen in (("none", slice(200)), ("less than a day", slice(205, 250)), ("7 to 30 days", slice(200, 205))):
        means = {label: by_label[label][chosen].mean() for label in by_label}
        at = dict(zip(tables[0].header, rows[name], strict=True))
        assert (at["ADRRec"], at["SASRec"]) == (f"{means['ADRRec']:.4f}", f"{means['SASRec']:.4f}")
        assert at["ADRRec - SASRec"].startswith(f"{means['ADRRec'] - means['SASRec']:+.4f}")
        assert ("[" in at["ADRRec - SASRec"]) == (name != "7 to 30 days")  # five users have no interval
    assert sum(isinstance(block, Figure) for block in blocks) == 1


def test_baselines_alone_have_means_and_no_differences(tmp_path: Path) -> None:
    write_run(tmp_path, "SASRec", 1)
    results = Results.read(tmp_path)
    (key,) = results.tables
    path = strata.path_of(tmp_path, key)
    path.parent.mkdir()
    np.savez(path, users=["u1", "u2"], **{each.key: [3.0, 3.0] for each in strata.ATTRIBUTES})
    blocks = list(strata.strata_blocks(analyse(results)))
    headers = [block.header[1:] for block in blocks if isinstance(block, Table)]
    assert headers == [("Users", "Share", "SASRec")] * len(strata.ATTRIBUTES)
    assert not any(isinstance(block, Figure) for block in blocks)


def test_a_folder_of_results_is_described_once_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(KEPT, tmp_path / "kept"))
    assert report.main(["results", "--strata", "--data_path", "data"]) == 0
    (path,) = Path("results", "users").glob("*.npz")
    with np.load(path) as file:
        users = file["users"]
    run = next(iter(Path("results", "runs").glob("*.npz")))
    with np.load(run) as file:
        assert sorted(users) == sorted(file["users"])
    text = Path("results", "report", "report.md").read_text()
    assert "Where they differ" in text
    before = path.stat().st_mtime_ns
    assert report.main(["results", "--strata", "--data_path", "nowhere"]) == 0
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert report.main(["results"]) == 0
    assert "Where they differ" not in Path("results", "report", "report.md").read_text()
