"""Ablations: what is listed, what each entry changes, and that every entry can run."""

import json

import ablate
import pytest
from study import ablations, command_line, measurements
from study.ablations import Choices, ablation
from study.session import load_trained

from recbole_adrrec import options
from recbole_adrrec.errors import CheckpointError, OptionError

BASE = {
    "MAX_ITEM_LIST_LENGTH": 50,
    **options.load_properties("model", "ADRRec"),
    "mixture": "heads",
    "absolute_kernels": ["position", "day"],
    "relative_kernels": ["sinusoid", "distance"],
    "lni_weight": 0.01,
}


def listed(*groups, **choices):
    base = {**BASE, **choices.pop("base", {})}
    return ablation(Choices(groups=groups, base=base, **choices))


def by_label(found):
    return {each.label: dict(each.options) for each in found.entries}


def references_of(found):
    return {each.label: each.reference for each in found.entries if each.reference}


def test_each_kernel_gives_way_to_a_head_that_sees_items_alone():
    found = listed("kernels")
    assert by_label(found) == {
        "ADRRec": {},
        "ADRRec -position": {"absolute_kernels": ["day", "constant"], "relative_kernels": ["sinusoid", "distance"]},
        "ADRRec -day": {"absolute_kernels": ["position", "constant"], "relative_kernels": ["sinusoid", "distance"]},
        "ADRRec -sinusoid": {"absolute_kernels": ["position", "day", "constant"], "relative_kernels": ["distance"]},
        "ADRRec -distance": {"absolute_kernels": ["position", "day", "constant"], "relative_kernels": ["sinusoid"]},
        "ADRRec -absolute heads": {
            "absolute_kernels": ["constant", "constant"],
            "relative_kernels": ["sinusoid", "distance"],
        },
        "ADRRec -relative heads": {
            "absolute_kernels": ["position", "day", "constant", "constant"],
            "relative_kernels": [],
        },
    }
    assert set(references_of(found).values()) == {"ADRRec"}
    assert "constant head" in found.notes[0]


def test_a_kernel_of_the_adaptive_mixture_leaves_every_head():
    found = listed("kernels", base={"mixture": "adaptive"})
    assert by_label(found) == {
        "ADRRec": {},
        "ADRRec -position": {"absolute_kernels": ["day"], "relative_kernels": ["sinusoid", "distance"]},
        "ADRRec -day": {"absolute_kernels": ["position"], "relative_kernels": ["sinusoid", "distance"]},
        "ADRRec -sinusoid": {"absolute_kernels": ["position", "day"], "relative_kernels": ["distance"]},
        "ADRRec -distance": {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid"]},
        "ADRRec -absolute kernels": {"absolute_kernels": [], "relative_kernels": ["sinusoid", "distance"]},
        "ADRRec -relative kernels": {"absolute_kernels": ["position", "day"], "relative_kernels": []},
    }
    assert "gone from every head" in found.notes[0]
    alone = listed("kernels", base={"mixture": "adaptive", "absolute_kernels": [], "relative_kernels": ["gap_bias"]})
    assert by_label(alone) == {"ADRRec": {}, "ADRRec -gap_bias": {"absolute_kernels": [], "relative_kernels": []}}


def test_dropped_heads_leave_a_width_that_all_can_share():
    found = listed("kernels", removal="drop")
    for given in by_label(found).values():
        kernels = [*given.get("absolute_kernels", ["position", "day"]), *given.get("relative_kernels", ["a", "b"])]
        assert given["hidden_size"] == 60
        assert given["hidden_size"] % len(kernels) == 0
        assert "constant" not in kernels
    assert "hidden_size is 60 in all entries" in found.notes[0]


def test_groups_share_entries_and_each_label_comes_once():
    found = listed(*ablations.USUAL)
    labels = [each.label for each in found.entries]
    assert len(set(labels)) == len(labels)
    assert set(found.groups) == set(ablations.USUAL)
    assert {label for group in found.groups.values() for label in group} == set(labels)
    assert set(references_of(found)) | set(references_of(found).values()) <= set(labels)
    assert not set(references_of(found).values()) & set(references_of(found))
    assert found.measured == {
        "ADRRec": {"robustness", "heads"},
        "ADRRec -LNI": {"robustness"},
        "SASRec": {"robustness"},
        "AWRSR sasrec": {"heads"},
        "AWRSR sasrec simple": {"heads"},
    }


def test_noise_is_added_where_the_full_model_has_none():
    found = by_label(listed("noise", base={**BASE, "lni_weight": 0}))
    assert "ADRRec -LNI" not in found
    assert found.pop("ADRRec") == {}
    assert all(given["lni_weight"] > 0 for given in found.values())
    assert found["ADRRec LNI weight 0.01"] == {"lni_weight": 0.01}
    assert found["ADRRec LNI uniform"] == {"lni_weight": 0.01, "lni_noise": "uniform"}


def test_no_two_entries_of_a_model_are_the_same():
    found = listed(*ablations.USUAL, lengths=[10, 20])
    told = [json.dumps([each.model, each.options], sort_keys=True) for each in found.entries]
    assert len(set(told)) == len(told)


def test_the_issue_of_each_group_is_covered():
    found = by_label(listed(*ablations.USUAL))
    assert found["ADRRec -LNI"] == {"lni_weight": 0}
    assert {given.get("lni_noise") for given in found.values()} == {None, "uniform", "in_manifold"}
    assert {given.get("lni_weight") for given in found.values()} == {None, 0, 0.001, 0.1}
    assert {given.get("lni_sigma") for given in found.values()} == {None, 0.03, 0.3}
    assert found["ADRRec LNI layer 1 alone"]["lni_layers"] == [1]
    assert found["ADRRec LNI with stop-gradient"] == {"lni_stop_gradient": True}
    assert found["ADRRec, query time"] == {"use_query_time": True}
    assert found["ADRRec cloze"] == {"objective": "cloze"}
    for backbone in ("sasrec", "stosa", "tisasrec", "mix"):
        kinds = {given["refinement"] for given in found.values() if given.get("backbone") == backbone}
        assert kinds == {"none", "simple", "value", "additive", "stochastic"}
    assert {given.get("MAX_ITEM_LIST_LENGTH") for given in found.values()} == {None, 10, 25, 50, 100, 200}


@pytest.mark.parametrize(
    ("change", "label", "wanted"),
    [
        ({"lni_weight": 0.001}, "ADRRec LNI weight 0.1", {"lni_weight": 0.1}),
        ({"lni_noise": "uniform"}, "ADRRec LNI gaussian", {"lni_noise": "gaussian"}),
        ({"lni_stop_gradient": True}, "ADRRec LNI without stop-gradient", {"lni_stop_gradient": False}),
    ],
)
def test_what_the_full_model_has_is_not_a_variant(change, label, wanted):
    found = by_label(listed("noise", base=change))
    assert found[label] == wanted
    assert {**change} not in list(found.values())


def test_rows_are_compared_model_by_model():
    found = listed("rows")
    assert by_label(found)["ADRRec prefix rows"] == {"train_rows": "prefix"}
    assert references_of(found) == {"ADRRec prefix rows": "ADRRec", "AWRSR sasrec prefix rows": "AWRSR sasrec"}


def test_other_kernels_are_taken_away_too():
    found = by_label(
        listed("kernels", base={"absolute_kernels": ["hour"], "relative_kernels": ["log1p", "exponential"]})
    )
    assert set(found) == {"ADRRec", "ADRRec -hour", "ADRRec -log1p", "ADRRec -exponential", "ADRRec -relative heads"}


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"groups": ["kernel"]}, "groups: 'kernel' is none of .*did you mean kernels"),
        ({"groups": ["kernels"], "removal": "cut"}, "removal: 'cut' is none of constant, drop"),
        (
            {"groups": ["kernels"], "removal": "drop", "base": {**BASE, "mixture": "adaptive"}},
            "removal: drop: with mixture: adaptive a removed kernel leaves no head",
        ),
        ({"groups": ["refinement"], "backbones": ["gru"]}, "backbones: 'gru'"),
        ({"groups": ["parts"]}, "compare.py --config benchmarks/configs/parts.yaml"),
        ({"groups": ["length"], "lengths": [0]}, "lengths: 0"),
        (
            {"groups": ["kernels"], "base": {**BASE, "absolute_kernels": ["day"], "relative_kernels": []}},
            "takes away one of several",
        ),
    ],
)
def test_wrong_choices_are_refused(choices, words):
    with pytest.raises(OptionError, match=words):
        ablation(Choices(**{"base": BASE, **choices}))


def planned(tmp_path, *arguments):
    given = [*arguments, "--datasets", "ml-100k", "--results", str(tmp_path / "results")]
    return planned_from(given)


@pytest.mark.parametrize("by_head", [False, True])
def test_every_entry_is_configured_as_its_runs_will_be(tmp_path, by_head):
    from study import grid

    groups = "kernels,query_time,noise,objective,refinement"
    given = ["--mixture", "heads", "--relative_kernels", "[sinusoid,distance]", "--removal", "drop"] if by_head else []
    _, plan = planned(tmp_path, "--seeds", "1", "--groups", groups, "--backbones", "mix", *given)
    assert len(plan.models) > 20
    grid.check(plan)


def test_options_that_vary_are_those_of_the_full_models(tmp_path):
    found, plan = planned(
        tmp_path,
        "--groups",
        "kernels,noise",
        "--lni_weight",
        "0.05",
        "--absolute_kernels",
        "[hour,day]",
        "--epochs",
        "3",
    )
    given = {entry.label: dict(entry.options) for entry in plan.models}
    assert given["ADRRec"] == {"lni_weight": 0.05, "absolute_kernels": ["hour", "day"]}
    assert given["ADRRec -LNI"]["lni_weight"] == 0
    assert given["ADRRec -hour"]["absolute_kernels"] == ["day"]
    assert plan.options == {"epochs": 3}
    assert not plan.keep_models
    assert "ADRRec -hour" in references_of(found)
    assert next(entry for entry in plan.models if entry.label == "ADRRec -hour").reference == "ADRRec"


def test_models_are_kept_where_they_are_measured(tmp_path):
    _, plan = planned(tmp_path, "--groups", "robustness", "--baselines", "SASRec,TiSASRec", "--lni_weight", "0.1")
    assert plan.keep_models
    assert [entry.label for entry in plan.models] == ["ADRRec", "ADRRec -LNI", "SASRec", "TiSASRec"]


def test_a_dry_run_prints_the_list_and_does_nothing(tmp_path, capsys):
    results = tmp_path / "results"
    arguments = ["--groups", "kernels", "--datasets", "ml-100k", "--seeds", "3", "--results", str(results), "--dry-run"]
    arguments += ["--absolute_kernels", "[position,day]", "--relative_kernels", "[sinusoid,distance]"]
    assert ablate.main(arguments) == 0
    told = capsys.readouterr().out
    assert "ADRRec -relative kernels" in told
    assert "against ADRRec" in told
    assert "21 runs, 21 of them to do" in told
    assert not results.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--groups", "kernles"], "did you mean kernels"),
        (["--groups"], "argument --groups: expected one argument"),
        (["--models", "SASRec"], "models: an ablation sets it by itself"),
        (["--keep_models", "true"], "keep_models: an ablation sets it by itself"),
        (["--shares", "10"], "shares: 10 is not a number above 0 and of at most 1"),
        (["--groups", "robustness", "--baselines", "SASRek"], "SASRec"),
        (["--lni_wieght", "1"], "did you mean lni_weight"),
    ],
)
def test_wrong_input_is_refused_in_one_line(tmp_path, capsys, arguments, words):
    given = [*arguments, "--datasets", "ml-100k", "--results", str(tmp_path / "results")]
    assert ablate.main(given) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_help_names_groups(capsys):
    assert ablate.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(group in told for group in ablations.GROUPS)


@pytest.fixture(scope="module")
def small_study(small_data, tmp_path_factory):
    """A small ablation that ran and was measured, and the arguments that made it."""
    results = tmp_path_factory.mktemp("ablation") / "results"
    arguments = [
        *("--groups", "robustness,heads,length", "--datasets", "small", "--data_path", str(small_data)),
        *("--seeds", "1", "--results", str(results), "--lengths", "4,8", "--shares", "0.5", "--jobs", "2"),
        *("--epochs", "1", "--hidden_size", "16", "--inner_size", "16", "--MAX_ITEM_LIST_LENGTH", "8"),
        *("--load_col", "{inter: [user_id, item_id, timestamp]}", "--lni_weight", "0.01"),
    ]
    assert ablate.main(arguments) == 0
    return results, arguments


@pytest.mark.slow
def test_an_ablation_runs_and_is_measured(small_study):
    results, _ = small_study
    names = {path.stem for path in (results / "measurements").glob("*.json")}
    assert len(names) == 5
    text = (results / "report" / "report.md").read_text(encoding="utf-8")
    for words in ("# Robustness", "noise in the layers", "# Heads", "Length of the history"):
        assert words in text
    told = json.loads((results / "measurements" / "small-ADRRec-leave_one_out-full-all-s2020.json").read_text())
    run = json.loads((results / "runs" / "small-ADRRec-leave_one_out-full-all-s2020.json").read_text())
    assert all(row["clean"] == pytest.approx(run["metrics"]["ndcg@10"], abs=1e-9) for row in told["robustness"])
    assert [(row["kind"], row["share"]) for row in told["robustness"]] == [
        ("replace", 0.5),
        ("drop", 0.5),
        ("jitter", 0.5),
        ("noise", 0.5),
    ]
    defaults = options.load_properties("model", "ADRRec")
    assert (defaults["mixture"], defaults["n_heads"]) == ("adaptive", None)
    kernels = {f"{name} kernel" for name in (*defaults["absolute_kernels"], *defaults["relative_kernels"])}
    places = [(row["layer"], row["head"]) for row in told["heads"]]
    layers = range(1, defaults["n_layers"] + 1)
    wanted = {(layer, head) for layer in layers for head in {"head 1", "head 2", *kernels}}
    assert set(places) == wanted | {
        ("all", head) for head in {"all absolute kernels", "all relative kernels", *kernels}
    }
    assert len(places) == len(set(places))
    sasrec = json.loads((results / "measurements" / "small-SASRec-leave_one_out-full-all-s2020.json").read_text())
    assert len(sasrec["robustness"]) == 3
    assert "heads" not in sasrec


@pytest.mark.slow
def test_nothing_is_run_or_measured_twice(small_study):
    results, arguments = small_study
    files = [*results.glob("runs/*"), *results.glob("measurements/*"), *results.glob("models/*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert ablate.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.slow
def test_a_model_that_is_not_the_runs_is_refused(small_study, tmp_path):
    results, arguments = small_study
    _, plan = planned_from(arguments)
    spec = next(spec for spec in plan.specs() if spec.label == "ADRRec")
    with pytest.raises(CheckpointError, match="no such file; run the study with keep_models"):
        load_trained(spec, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"made for another model|not a model of small-ADRRec-"):
        load_trained(spec, results / "models" / "small-SASRec-leave_one_out-full-all-s2020.pth")
    other = results.parent / "other"
    (other / "runs").mkdir(parents=True)
    (other / "models").mkdir()
    (other / "models" / f"{spec.id}.pth").symlink_to(results / "models" / f"{spec.id}.pth")
    (other / "runs" / f"{spec.id}.json").write_text(json.dumps({"metrics": {"ndcg@10": 0.9}}))
    with pytest.raises(CheckpointError, match=r"the saved model gives ndcg@10 0\.\d+, the run had 0\.900000"):
        measurements.measure(spec, other, "", ["robustness"], [0.1])


def planned_from(arguments):
    return ablate.planned(*command_line.parse(arguments, command_line.parser_of("ablate.py", "", ablate.FLAGS)))
