"""Tuning: spaces are checked, every model gets as many trials, and a search that was cut goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tune
import yaml
from studies import Instant, command, plan_of, use
from study import command_line, runs, search, study_file
from study import plan as plans

from recbole_adrrec.errors import OptionError

SPACE: dict[str, Any] = {
    "every": {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}},
    "models": {"ADRRec": {"absolute_kernels": [["position"], ["day"]], "n_layers": {"low": 1, "high": 2}}},
}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"evry": {}}, "unknown key evry; did you mean every"),
        ({"models": {"SASReck": {}}}, "models: 'SASReck' is unknown; did you mean SASRec"),
        ({"every": {"learning_rat": [1]}}, "unknown option learning_rat; did you mean learning_rate"),
        ({"every": {"seed": [1, 2]}}, "seed is set by the study itself"),
        ({"every": {"lni_weight": [0.1]}}, "SASRec does not read lni_weight"),
        ({"every": {"learning_rate": {"low": 1, "hgih": 2}}}, "did you mean high"),
        ({"every": {"learning_rate": {"low": 2, "high": 1}}}, "should be a list of values, or a range"),
        ({"every": {"learning_rate": []}}, "should be a list of values, or a range"),
        ({"every": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "learning_rate: .*low"),
        ({"models": {"ADRRec": {"learning_rate": [0.1]}}}, "nothing is left to search for SASRec"),
    ],
)
def test_a_wrong_space_is_refused(small_data: Path, tmp_path: Path, space: dict[str, Any], message: str) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    plan = plan_of(small_data, tmp_path / "r", models=["ADRRec", "SASRec"])
    with pytest.raises(OptionError, match=message):
        search.read_spaces(tmp_path / "space.yaml", plan)


def test_every_model_gets_as_many_trials_and_the_best_is_written(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[plans.RunSpec] = []

    class Scored(Instant):
        def finish(self) -> str:
            told.append(self.spec)
            assert not self.spec.test
            if len(told) == 2:
                facts: dict[str, Any] = {"status": "failed", "error": "an error"}
            else:
                facts = {"status": "done", "best_valid": float(self.spec.options["learning_rate"])}
            runs.write_record(self.results, self.spec, facts, {})
            return str(facts["status"])

    use(monkeypatch, Scored)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    study = command(small_data, tmp_path / "r", "--learning_rate=0.004")
    study[study.index("ADRRec")] = "ADRRec,SASRec"
    given = [*study, "--space", str(tmp_path / "space.yaml"), "--tuned", str(tmp_path / "tuned")]
    # The options of the study are the first trial; what is forced on the command line is searched all the same.
    assert tune.main([*given, "--trials", "3"]) == 0
    by_label = {label: [spec for spec in told if spec.label == label] for label in ("ADRRec", "SASRec")}
    assert [len(each) for each in by_label.values()] == [3, 3]
    assert by_label["SASRec"][0].options["learning_rate"] == 0.004
    assert tune.main([*given, "--trials", "5"]) == 0
    assert len(told) == 10
    for label in by_label:
        (file,) = (tmp_path / "tuned").glob(f"small-{label}-*.yaml")
        chosen = yaml.safe_load(file.read_text())
        best = max(
            (spec for spec in told if spec.label == label), key=lambda spec: float(spec.options["learning_rate"])
        )
        done = [spec for place, spec in enumerate(told) if spec.label == label and place != 1]
        best = max(done, key=lambda spec: float(spec.options["learning_rate"]))
        assert chosen["value"] == chosen["options"]["learning_rate"] == best.options["learning_rate"]
        assert (chosen["trials"], chosen["failed"]) == (5, int(label == told[1].label))
    kernels = yaml.safe_load(next((tmp_path / "tuned").glob("small-ADRRec-*.yaml")).read_text())["options"]
    assert kernels["absolute_kernels"] in (["position"], ["day"])
    study_of_it = {
        "datasets": ["small"],
        "models": ["SASRec"],
        "data_path": str(small_data),
        "tuned": str(tmp_path / "tuned"),
    }
    plan = study_file.load(None, {**study_of_it, "metrics": "NDCG", "topk": 10})
    assert plan.specs()[0].options["learning_rate"] > 0.004
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"every": SPACE["every"]}))
    assert tune.main(given) == 2  # another search's folder


def test_a_cut_search_proposes_what_an_uncut_one_does(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    plan = plan_of(small_data, tmp_path / "r", seeds=1)
    spaces = search.read_spaces(tmp_path / "space.yaml", plan)
    proposed: dict[str, list[Any]] = {}

    class Cut(Exception):  # noqa: N818
        pass

    class Scored(Instant):
        cut_at = -1

        def finish(self) -> str:
            mine = proposed.setdefault(self.results.parent.name, [])
            if len(mine) == Scored.cut_at:
                Scored.cut_at = -1
                raise Cut
            mine.append(dict(self.spec.options))
            runs.write_record(
                self.results, self.spec, {"status": "done", "best_valid": self.spec.options["learning_rate"] ** 0.5}, {}
            )
            return "done"

        def stop(self) -> None:
            pass

    use(monkeypatch, Scored)
    search.search(plan, spaces, 14, tmp_path / "whole")
    Scored.cut_at = 12
    with pytest.raises(Cut):
        search.search(plan, spaces, 14, tmp_path / "cut")
    search.search(plan, spaces, 14, tmp_path / "cut")
    assert proposed["cut"] == proposed["whole"]
    assert len(proposed["whole"]) == 14
    with pytest.raises(OptionError, match="holds another search, which differs in seeds"):
        search.search(plan_of(small_data, tmp_path / "r", seeds=2), spaces, 3, tmp_path / "cut")


def test_settings_are_tried_once_while_others_are_left(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[float, int]] = []

    class Scored(Instant):
        def finish(self) -> str:
            ran.append((self.spec.options["hidden_dropout_prob"], self.spec.options["n_layers"]))
            runs.write_record(self.results, self.spec, {"status": "done", "best_valid": 0.5}, {})
            return "done"

    use(monkeypatch, Scored)
    space = {"every": {"hidden_dropout_prob": [0.2, 0.5], "n_layers": [1, 2]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    plan = plan_of(small_data, tmp_path / "r", models=["SASRec"], seeds=1)
    search.search(plan, search.read_spaces(tmp_path / "space.yaml", plan), 6, tmp_path / "tuned")
    assert len(ran) == 6
    assert len(set(ran[:4])) == 4


def test_few_epochs_first_and_the_best_two_to_their_end(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short trials prefer a large step size, whole trainings the smaller of the two finalists."""
    ran: list[plans.RunSpec] = []

    class Scored(Instant):
        def finish(self) -> str:
            ran.append(self.spec)
            rate = float(self.spec.options["learning_rate"])
            value = rate if self.spec.options["epochs"] == 1 else -rate
            runs.write_record(self.results, self.spec, {"status": "done", "best_valid": value}, {})
            return "done"

    use(monkeypatch, Scored)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"every": SPACE["every"]}))
    study = [*command(small_data, tmp_path / "r", "--space", str(tmp_path / "space.yaml")), "--trials", "5"]
    study = [each for each in study if not each.startswith("--epochs")]
    given = [*study, "--epochs=7", "--first_epochs=1", "--tuned", str(tmp_path / "tuned")]
    assert tune.main([*given, "--minutes", "0.00001"]) == command_line.EXIT_UNFINISHED
    assert not list((tmp_path / "tuned").glob("*.yaml"))
    assert tune.main(given) == 0
    short, final = ([spec for spec in ran if spec.options["epochs"] == epochs] for epochs in (1, 7))
    assert (len(short), len(final)) == (5, 2)
    rates = sorted(float(spec.options["learning_rate"]) for spec in short)
    assert sorted(float(spec.options["learning_rate"]) for spec in final) == rates[-2:]
    assert not any(spec.test for spec in ran)
    (file,) = (tmp_path / "tuned").glob("*.yaml")
    chosen = yaml.safe_load(file.read_text())
    assert chosen["options"]["learning_rate"] == rates[-2] == -chosen["value"]
    text = file.read_text()
    assert tune.main(given) == 0
    assert len(ran) == 7
    assert file.read_text() == text
    assert "7/7" in capsys.readouterr().err
    assert tune.main([each for each in given if not each.startswith("--first_epochs")]) == 2
    assert "holds another search" in capsys.readouterr().err


def test_a_search_of_some_entries_which_others_join_later(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--only`` leaves out an entry that cannot be searched, too; the folder takes the others later."""
    ran: list[plans.RunSpec] = []

    class Scored(Instant):
        def finish(self) -> str:
            ran.append(self.spec)
            runs.write_record(self.results, self.spec, {"status": "done", "best_valid": 0.5}, {})
            return "done"

    use(monkeypatch, Scored)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"every": {"hidden_dropout_prob": [0.2, 0.5]}}))
    study = [
        "--datasets",
        "small",
        "--data_path",
        str(small_data),
        "--models",
        "ADRRec,SASRec,Popularity",
        "--epochs=1",
    ]
    study += ["--trials=2", "--space", str(tmp_path / "space.yaml"), "--tuned", str(tmp_path / "tuned")]
    assert tune.main(study) == command_line.EXIT_USER_ERROR
    assert tune.main([*study, "--only", "ADRRec"]) == 0
    assert {spec.label for spec in ran} == {"ADRRec"}
    assert tune.main([*study, "--only", "Rec", "--only_data", "small"]) == 0
    assert [spec.label for spec in ran] == ["ADRRec"] * 2 + ["SASRec"] * 2
    assert len(list((tmp_path / "tuned").glob("*.yaml"))) == 2
