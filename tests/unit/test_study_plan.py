"""A study's statement: what stands where, what goes above what, and what is refused at the start."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine.store import differences
from study import command_line, study_file
from study import plan as plans
from study.plan import Entry, Protocol, RunSpec

from recbole_adrrec.errors import OptionError, UserError

CONFIGS = Path(__file__).resolve().parents[2] / "benchmarks" / "configs"
SMALL: dict[str, Any] = {"datasets": ["ml-100k"], "models": ["ADRRec", "SASRec"], "seeds": 2}


def load(**given: Any) -> plans.Plan:
    return study_file.load(None, {**SMALL, **given})


def write(path: Path, **study: Any) -> Path:
    path.write_text(yaml.safe_dump(study))
    return path


def test_every_combination_is_run_once_seed_by_seed() -> None:
    plan = load(protocols=["leave_one_out", "temporal-full-unseen"], shuffled_ties=1)
    ids = [spec.id for spec in plan.specs()]
    assert len(ids) == len(set(ids)) == 2 * 2 * 2 + 2 * 2
    assert ids[0] == "ml-100k-ADRRec-leave_one_out-full-all-s2020"
    assert [spec.seed for spec in plan.specs()] == [2020] * 4 + [2021] * 4 + [2020] * 4
    assert [spec.shuffle_ties for spec in plan.specs()] == [False] * 8 + [True] * 4
    assert ids[-1] == "ml-100k-SASRec-temporal-full-unseen-ties-s2020"


def test_a_run_survives_json() -> None:
    spec = load(options={"epochs": 3}, temporal={"times": ["1998-01-01", "1998-02-01"]}).specs()[0]
    again = RunSpec.of(json.loads(json.dumps(asdict(spec))))
    assert (again.id, again.protocol, again.options) == (spec.id, spec.protocol, {"epochs": 3})
    assert again.temporal == {"times": [883612800, 886291200]}


def test_the_command_line_goes_above_the_file_and_an_entry_above_the_rest(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine.yaml",
        datasets=["ml-100k"],
        models=["SASRec", {"label": "ours", "model": "ADRRec", "options": {"epochs": 4, "n_layers": 1}}],
        options={"epochs": 2, "hidden_size": 8},
        dataset_options={"ml-100k": {"epochs": 3, "hidden_size": 16}},
        seeds=3,
    )
    plan = study_file.load(file)
    sasrec, ours = plan.specs()[:2]
    assert plan.name == "mine"
    assert dict(sasrec.options) == {"epochs": 3, "hidden_size": 16}
    assert dict(ours.options) == {"epochs": 4, "hidden_size": 16, "n_layers": 1}
    forced = study_file.load(file, {"models": ["ours"], "seeds": [7], "options": {"epochs": 1}})
    (only,) = forced.specs()
    assert (only.label, only.model, only.seed) == ("ours", "ADRRec", 7)
    assert dict(only.options) == {"epochs": 1, "hidden_size": 16, "n_layers": 1}


def test_the_hash_is_of_what_decides_the_numbers(tmp_path: Path) -> None:
    plan = load()
    assert plan.hash == load(results=str(tmp_path), data_path="elsewhere").hash
    changes: list[dict[str, Any]] = [
        {"seeds": 3},
        {"options": {"epochs": 1}},
        {"models": ["ADRRec"]},
        {"metrics": ["NDCG"]},
        {"protocols": ["temporal"]},
        {"temporal": {"targets": "first"}},
        {"shuffled_ties": 1},
        {"topk": [10]},
    ]
    assert len({plan.hash, *(load(**change).hash for change in changes)}) == len(changes) + 1
    assert replace(plan, data={"ml-100k": "other"}).hash != plan.hash
    assert differences(load(seeds=3).stated(), plan.stated()) == ["seeds ([2020, 2021] there, [2020, 2021, 2022] here)"]


def test_options_tuned_for_a_pair_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load(models=["AWRSR", "HSTU"])
    before = plan.hash
    assert "properties" not in plan.stated()
    tuned = {("HSTU", "ml-100k"): {"n_layers": 3}}
    monkeypatch.setattr(plans, "load_tuned", lambda model, dataset: tuned.get((model, dataset), {}))
    assert plan.stated()["properties"] == {"HSTU.ml-100k": {"n_layers": 3}}
    assert plan.hash != before
    assert load(models=["AWRSR"]).stated().get("properties") is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modles": []}, "unknown key modles; did you mean models"),
        ({"models": ["SASReck"]}, "models: there is no model 'SASReck'; did you mean SASRec"),
        ({"models": [{"model": "ADRRec", "option": {}}]}, "did you mean options"),
        ({"models": [{"model": "ADRRec", "reference": "SASReck"}]}, "reference: 'SASReck' is none of ADRRec"),
        ({"models": ["ADRRec", "ADRRec"]}, "ADRRec is listed twice"),
        ({"models": []}, "models: nothing is named"),
        ({"datasets": ["ml-100kk"]}, "ml-100kk.*did you mean ml-100k"),
        ({"datasets": []}, "datasets: nothing is named"),
        ({"datasets": [{"label": "a"}]}, "names no data set; give its name"),
        ({"datasets": [{"name": "ml-100k", "labl": "a"}]}, "unknown key labl; did you mean label"),
        ({"datasets": [{"name": "ml-100k", "data_path": 3}]}, "data_path: 3 is not a text"),
        ({"datasets": ["ml-100k", {"name": "ml-100k"}]}, "ml-100k is listed twice"),
        ({"test": "perhaps"}, "test: 'perhaps' is neither true nor false"),
        ({"metrics": ["NDGC"]}, "did you mean NDCG"),
        ({"metrics": ["GAUC"]}, "metrics: 'GAUC' is none of Recall"),
        ({"valid_metric": "NDCG@7"}, "valid_metric: 'NDCG@7' is none of Recall@5"),
        ({"topk": [0]}, "topk: .*at least 1"),
        ({"seeds": 0}, "seeds: 0 is not a whole number of at least 1"),
        ({"seeds": [1, 1]}, "seeds: 1 is listed twice"),
        ({"shuffled_ties": 3}, "shuffled_ties: 3 .* 0 to 2"),
        ({"options": {"epoch": 1}}, "unknown option epoch; did you mean epochs"),
        ({"options": {"seed": 1}}, "seed is set by the study itself; set it by seeds"),
        ({"options": {"eval_args": {}}}, "set it by protocols"),
        ({"dataset_options": {"ml-1k": {}}}, "did you mean ml-100k"),
        ({"protocols": [{"split": "leave-one-out"}]}, "did you mean leave_one_out"),
        ({"protocols": [{"spilt": "temporal"}]}, "did you mean split"),
        ({"protocols": ["temporal-pop10"]}, "did you mean pop100"),
        ({"protocols": ["temporal-full-all-more"]}, "unknown key a fourth part"),
        ({"protocols": ["temporal", {"split": "temporal"}]}, "listed twice"),
        ({"also_ranked": ["temporal"]}, "also_ranked: temporal-full-all: split: 'temporal' is none of leave_one_out"),
        ({"temporal": {"target": "last"}}, "did you mean targets"),
        ({"keep_models": "maybe"}, "keep_models: 'maybe' is neither true nor false"),
        ({"tuned": "no-such-folder"}, "there is no folder .*no-such-folder"),
    ],
)
def test_what_no_study_could_use_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(**given)


def test_a_wrong_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"study file .*mine.yaml: unknown key dataset; did you mean datasets"):
        study_file.load(write(tmp_path / "mine.yaml", dataset=["ml-100k"]))


def test_tuned_settings_lie_under_an_entrys_own(tmp_path: Path) -> None:
    protocol = Protocol()
    for label, chosen in (("SASRec", {"n_heads": 4}), ("ADRRec", {"n_layers": 3, "time_unit": 1})):
        file = study_file.tuned_file(tmp_path, "ml-100k", label, protocol)
        file.write_text(yaml.safe_dump({"options": chosen, "value": 0.1}))
    models = ["SASRec", "ADRRec", {"label": "flat", "model": "ADRRec", "options": {"n_layers": 1}}]
    plan = load(models=models, tuned=str(tmp_path), options={"n_layers": 2, "epochs": 5})
    assert [dict(spec.options) for spec in plan.specs()[:3]] == [
        {"n_layers": 2, "epochs": 5, "n_heads": 4},
        {"n_layers": 2, "epochs": 5, "time_unit": 1},  # the options given go above what was tuned
        {"n_layers": 2, "epochs": 5, "time_unit": 1},
    ]
    with pytest.raises(OptionError, match="no settings of TiSASRec on ml-100k"):
        load(models=["TiSASRec"], tuned=str(tmp_path))
    study_file.tuned_file(tmp_path, "ml-100k", "SASRec", protocol).write_text("options: {n_hed: 4}")
    with pytest.raises(OptionError, match="unknown option n_hed; did you mean n_heads"):
        load(models=["SASRec"], tuned=str(tmp_path))


def test_a_study_file_lets_tuning_go_above_its_options(tmp_path: Path) -> None:
    study_file.tuned_file(tmp_path, "ml-100k", "ADRRec", Protocol()).write_text("options: {n_layers: 3}")
    file = write(
        tmp_path / "mine.yaml",
        datasets="ml-100k",
        models=["ADRRec", {"label": "flat", "model": "ADRRec", "options": {"n_layers": 1}}],
        options={"n_layers": 2},
        tuned=str(tmp_path),
    )
    assert [spec.options["n_layers"] for spec in study_file.load(file).specs()[:2]] == [3, 1]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_that_come_along_are_sound(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if file.stem == "space":
        from study import search

        search.read_spaces(
            file, load(models=["ADRRec", "AWRSR", "SASRec", "BERT4Rec", "TiSASRec", "MEANTIME", "STOSA", "HSTU"])
        )
        return
    monkeypatch.setattr(study_file, "fingerprint", lambda plan, dataset: "")
    if file.stem == "results-space":
        from study import search

        first = CONFIGS / "results-1.yaml"
        study = study_file.load(first)
        trained = {("ml-100k", entry.label) for entry in study.models if entry.model != "Popularity"}
        search.read_spaces(file, study, trained)
        return
    plan = study_file.load(file, read_tuned=False)
    assert plan.name == file.stem
    assert plan.specs()


def test_labels_make_safe_names_of_files() -> None:
    plan = load(models=[Entry("ADRRec, query time/known", "ADRRec")])
    assert plan.specs()[0].id == "ml-100k-ADRRec_query_time_known-leave_one_out-full-all-s2020"


def test_one_data_set_can_stand_in_a_study_under_two_labels(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "small").symlink_to(small_data / "small")
    copy = tmp_path / "other" / "small"
    copy.mkdir()
    text = (small_data / "small" / "small.inter").read_text()
    (copy / "small.inter").write_text(text + text.splitlines()[-1] + "\n")
    twice = {
        "datasets": ["small", {"name": "small", "label": "small copy", "data_path": "other"}],
        "data_path": str(tmp_path),
        "models": ["SASRec"],
        "seeds": 1,
    }
    shared, own = {"epochs": 3, "n_layers": 1}, {"epochs": 4}
    plan = load(**twice, dataset_options={"small": shared, "small copy": own})
    first, second = plan.specs()
    assert (first.id, first.data_name, first.data_path) == (
        "small-SASRec-leave_one_out-full-all-s2020",
        "",
        str(tmp_path),
    )
    assert second.id == "small_copy-SASRec-leave_one_out-full-all-s2020"
    assert (second.dataset, second.data_name) == ("small copy", "small")
    assert second.data_path == str(tmp_path / "other")
    assert dict(first.options) == shared
    assert dict(second.options) == {**shared, **own}
    assert plan.data["small"] != plan.data["small copy"]
    assert plan.stated()["sources"] == {"small copy": "small"}
    assert str(tmp_path) not in str(plan.stated())


def test_references_are_compared_and_not_measured() -> None:
    models = [{"model": "ADRRec", "reference": "SASRec"}, "SASRec"]
    assert load(models=models).hash == load(models=["ADRRec", "SASRec"]).hash


def test_what_was_added_later_is_stated_where_it_is_used() -> None:
    assert not {"sources", "test", "also_ranked"} & set(load().stated())
    assert load(also_ranked=["leave_one_out-full-unseen"]).hash != load().hash
    assert load(test=False).stated()["test"] is False
    assert load(test=False).hash != load().hash
    assert [spec.test for spec in load(test=False).specs()] == [False] * 4


def test_the_command_in_results_has_no_folder_of_this_machine() -> None:
    given = [
        "--data_path",
        "/home/ann/data",
        "--results=/home/ann/r",
        "--config",
        "benchmarks/configs/quick.yaml",
        "--a",
        "b c",
    ]
    told = command_line.command_of("compare.py", given)
    assert told == (
        "python benchmarks/compare.py --data_path data --results=r --config benchmarks/configs/quick.yaml --a 'b c'"
    )
