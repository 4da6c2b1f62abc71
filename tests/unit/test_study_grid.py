"""A study's folder and its runs: each once, failures recorded, other studies refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import compare
import pytest
import tune
import yaml
from engine import children
from study import command_line, grid, runs, search, study_file, tied_timestamps
from study import plan as plans

from recbole_adrrec.errors import OptionError

OPTIONS = {
    "hidden_size": 8,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 10,
    "epochs": 1,
    "user_inter_num_interval": "[20,60]",
}


def plan_of(folder: Path, results: Path, **study: Any) -> plans.Plan:
    given = {"datasets": ["small"], "models": ["ADRRec"], "seeds": 1, "metrics": ["NDCG"], "topk": [10], "name": "tiny"}
    options = {**OPTIONS, **study.pop("options", {})}
    return study_file.load(
        None, {**given, **study, "options": options, "data_path": str(folder), "results": str(results)}, "the command"
    )


def record(plan: plans.Plan, spec: plans.RunSpec, status: str = "done", value: float = 0.5) -> None:
    """A run's file as if it had run."""
    facts = {"status": status, "metrics": {"ndcg@10": value}, "data": {"ties": {"users": 9, "tied_gaps": 0.25}}}
    identity = runs.identity(spec, "now")
    runs.write_record(plan.results, spec, {**identity, "valid_metric": "NDCG@10", **facts}, {})


class Instant:
    """In place of a child process: the run is over at once; ``bad`` names runs that fail."""

    started: ClassVar[list[str]] = []
    bad: ClassVar[tuple[str, ...]] = ()
    ended = True

    def __init__(self, spec: plans.RunSpec, results: Path, environment: Any = None) -> None:
        self.spec, self.results, self.environment = spec, results, dict(environment or {})
        type(self).started.append(self.spec.id)

    def finish(self) -> str:
        status = "failed" if self.spec.id in self.bad else "done"
        facts = {"status": status, "error": "an error", "metrics": {}, "best_valid": float(self.spec.seed)}
        runs.write_record(self.results, self.spec, facts, {})
        return status

    def stop(self) -> None:
        raise AssertionError("nothing was at work")


def use(monkeypatch: pytest.MonkeyPatch, child: type[Instant]) -> type[Instant]:
    monkeypatch.setattr(child, "started", [])
    monkeypatch.setattr(child, "bad", ())
    for module in (grid, search):
        monkeypatch.setattr(module, "RunChild", child)
    return child


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> type[Instant]:
    return use(monkeypatch, Instant)


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_run_is_run_once_and_never_again(
    small_data: Path, tmp_path: Path, instant: type[Instant], jobs: int
) -> None:
    plan = plan_of(small_data, tmp_path / "r", models=["ADRRec", "SASRec"], seeds=3)
    ids = [spec.id for spec in plan.specs()]
    instant.bad = (ids[2],)
    outcome = grid.run_all(plan, jobs=jobs)
    assert instant.started == ids
    assert (outcome.done, outcome.failed, outcome.skipped) == (5, (ids[2],), 0)
    again = grid.run_all(plan)
    assert instant.started == ids
    assert (again.done, again.failed, again.skipped) == (5, (ids[2],), 6)
    instant.bad = ()
    third = grid.run_all(plan, retry_failed=True)
    assert instant.started == [*ids, ids[2]]
    assert (third.done, third.failed, third.skipped) == (6, (), 5)


def test_after_the_deadline_nothing_starts_and_what_is_at_work_is_stopped(
    small_data: Path, tmp_path: Path, instant: type[Instant], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small_data, tmp_path / "r", models=["ADRRec", "SASRec"], seeds=2)
    ids = [spec.id for spec in plan.specs()]
    clock = [0.0]
    stopped = []
    monkeypatch.setattr(children.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(grid, "tick", lambda bar: clock.__setitem__(0, 99.0))
    monkeypatch.setattr(Instant, "ended", property(lambda self: self.spec.id != ids[1] or clock[0] >= 500))
    monkeypatch.setattr(Instant, "stop", lambda self: stopped.append(self.spec.id))
    outcome = grid.run_all(plan, deadline=60.0)
    assert (outcome.done, outcome.failed, outcome.skipped, outcome.left) == (1, (), 0, 3)
    assert instant.started == ids[:2]
    assert stopped == [ids[1]]
    clock[0] = 500.0
    again = grid.run_all(plan, deadline=1000.0)
    assert (again.done, again.skipped, again.left) == (4, 1, 0)
    assert instant.started == [*ids[:2], *ids[1:]]
    with pytest.raises(OptionError, match="minutes: runs on a Ray cluster"):
        grid.run_all(plan, ray="auto", deadline=1.0)


def test_minutes_give_an_exit_code_of_their_own(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["--datasets", "small", "--data_path", str(small_data), "--models", "ADRRec", "--seeds", "2"]
    arguments = [*study, "--results", str(tmp_path / "r"), *(f"--{name}={value}" for name, value in OPTIONS.items())]
    assert compare.main([*arguments, "--minutes", "0.001"]) == command_line.EXIT_UNFINISHED
    assert "2 runs are left (--minutes, --only)" in capsys.readouterr().out
    assert not list((tmp_path / "r" / "runs").glob("*.json"))
    assert compare.main([*arguments, "--minutes", "0"]) == 2
    assert "minutes: 0 is not a number above 0" in capsys.readouterr().err


def test_a_cut_study_does_what_it_lacks_and_sweeps_up(small_data: Path, tmp_path: Path, instant: type[Instant]) -> None:
    plan = plan_of(small_data, tmp_path / "r", seeds=3)
    first, second, third = plan.specs()
    with grid.claimed(plan):
        record(plan, first)
        runs.record_path(plan.results, second).with_suffix(".npz").write_bytes(b"half")
        (plan.results / "runs" / ".x.json.abc.tmp").write_bytes(b"half")
        (plan.results / "scratch" / second.id).mkdir()
    grid.run_all(plan)
    assert instant.started == [second.id, third.id]
    assert not list((plan.results / "scratch").iterdir())
    assert not list((plan.results / "runs").glob(".*"))


def test_another_studys_folder_is_refused(small_data: Path, tmp_path: Path, instant: type[Instant]) -> None:
    plan = plan_of(small_data, tmp_path / "r")
    grid.run_all(plan)
    before = {path: path.read_bytes() for path in plan.results.rglob("*") if path.is_file() and path.name != ".lock"}
    for changed, what in (
        ({"seeds": 2}, "seeds"),
        ({"options": {"epochs": 9}}, "options"),
        ({"name": "other"}, "name"),
    ):
        with pytest.raises(OptionError, match=f"holds another study, which differs in {what} "):
            grid.run_all(plan_of(small_data, plan.results, **changed))
    with pytest.raises(OptionError, match="differs in data"):
        grid.run_all(replace(plan, data={"small": "of yesterday"}))
    assert before == {path: path.read_bytes() for path in before}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="not empty and holds no study"):
        grid.run_all(plan_of(small_data, tmp_path / "full"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / grid.STUDY_FILE).write_text("{")
    with pytest.raises(OptionError, match="can't be read"):
        grid.run_all(plan_of(small_data, tmp_path / "broken"))


def test_a_folder_in_use_is_refused(small_data: Path, tmp_path: Path, instant: type[Instant]) -> None:
    plan = plan_of(small_data, tmp_path / "r")
    holder = (
        "import sys, engine.store as s; from pathlib import Path\n"
        "with s.locked(Path(sys.argv[1]), 'results'): print('held', flush=True); input()"
    )
    plan.results.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(plan.results)],
        env=children.child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    with pytest.raises(OptionError, match=f"in use by process {process.pid}"):
        grid.run_all(plan)
    process.communicate("\n")
    assert grid.run_all(plan).done == 1


def test_options_are_checked_with_every_model_before_anything_runs(
    small_data: Path, tmp_path: Path, instant: type[Instant]
) -> None:
    grid.check(plan_of(small_data, tmp_path, models=["ADRRec", "SASRec"], protocols=["leave_one_out", "temporal"]))
    with pytest.raises(OptionError, match="SASRec on small: train_rows: SASRec has no loss at every position"):
        grid.check(plan_of(small_data, tmp_path, models=["ADRRec", "SASRec"], options={"train_rows": "sequence"}))
    with pytest.raises(OptionError, match="ADRRec on small: hidden_size: 9"):
        grid.check(plan_of(small_data, tmp_path, options={"hidden_size": 9}))
    assert instant.started == []


def test_jobs_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(children.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [children.threads_each(jobs)["OMP_NUM_THREADS"] for jobs in (1, 3, 20)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert children.threads_each(2) == {}


def test_a_silent_address_is_refused_at_once() -> None:
    with pytest.raises(OptionError, match=r"ray: no cluster answers at 127.0.0.1:1 \(Connection refused\)"):
        grid._run_on_ray(None, None, [], 1, "127.0.0.1:1", 0, None)  # type: ignore[arg-type]


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert children.gpus_here() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert children.gpus_here() == ["4", "7"]
    working: list[dict[str, str]] = []
    for _ in range(4):
        working.append(children.least_used(["4", "7"], working))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in working] == ["4", "7", "4", "7"]
    assert children.least_used(["0"], []) == {}


@pytest.mark.parametrize("visible", [None, "", "3"])
def test_checking_a_study_leaves_the_choice_of_gpus_alone(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    plan = plan_of(small_data, tmp_path)
    grid.check(plan)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert runs.given_options(plan.specs()[0], tmp_path).get("gpu_id") == visible


def test_shuffled_ties_are_summed_up(small_data: Path, tmp_path: Path) -> None:
    plan = plan_of(small_data, tmp_path / "r", models=["ADRRec", "SASRec"], seeds=2, shuffled_ties=2)
    values = {"ADRRec": (0.5, 0.6, 0.4, 0.65), "SASRec": (0.3, 0.3, 0.31, 0.32)}
    for spec in plan.specs():
        place = 2 * spec.shuffle_ties + (spec.seed - 2020)
        record(plan, spec, value=values[spec.label][place])
    (facts,) = tied_timestamps.summarise(plan.results).values()
    assert (facts["users"], facts["tied_gaps"], facts["runs_shuffled"]) == (9, 0.25, 4)
    assert facts["ndcg@10_mean_shift"] == pytest.approx((-0.1 + 0.05 + 0.01 + 0.02) / 4)
    assert facts["ndcg@10_largest_shift"] == pytest.approx(-0.1)
    assert facts["ndcg@10_largest_shift_of_a_mean"] == pytest.approx(-0.025)
    assert json.loads((plan.results / "ties.json").read_text())["small"] == facts


# The command lines


def command(small_data: Path, results: Path, *more: str) -> list[str]:
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    study = ["--datasets", "small", "--models", "ADRRec", "--seeds", "1", "--metrics", "NDCG", "--topk", "10"]
    return [*study, *options, "--data_path", str(small_data), "--results", str(results), *more]


def test_a_dry_run_tells_the_plan_and_makes_nothing(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(command(small_data, tmp_path / "r", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "1 runs, 1 of them to do" in told
    assert "to do  small-ADRRec-leave_one_out-full-all-s2020" in told
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sedds", "3"], "unknown option sedds; did you mean seeds"),
        (["--dry-rnu"], "unknown option dry-rnu; did you mean dry_run"),
        (["--epcohs", "3"], "unknown option epcohs; did you mean epochs"),
        (["--seeds", "2"], "seeds: given twice on the command line, as 1 and 2"),
        (["--protocols", "temporl"], "did you mean temporal"),
        (["--jobs", "0"], "jobs: 0 is not a whole number of at least 1"),
        (["--config"], "argument --config: expected one argument"),
        (["ADRRec"], "'ADRRec' belongs to no option"),
        (["--config", "no-such.yaml"], "there is no such file"),
    ],
)
def test_slips_on_the_command_line_end_at_once(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert compare.main(command(small_data, tmp_path / "r", *more)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_values_of_the_command_line() -> None:
    parser = command_line.parser_of("compare.py", "", compare.FLAGS)
    line = "--models A,B --seeds 7,8 --jobs=2 --ray --keep-models --protocols=temporal,leave_one_out --topk=5"
    more = ["--learning_rate=1e-3", "--temporal={targets: first}", "--load_col", "{inter: [a, b]}", "--retry-failed"]
    flags, given = command_line.parse([*line.split(), *more], parser)
    assert flags == {"jobs": 2, "ray": True, "retry_failed": True}
    assert given == {
        "models": ["A", "B"],
        "seeds": [7, 8],
        "keep_models": True,
        "protocols": ["temporal", "leave_one_out"],
        "options": {"learning_rate": 0.001, "load_col": {"inter": ["a", "b"]}},
        "temporal": {"targets": "first"},
        "topk": 5,
    }
    assert command_line.parse(["--ray", "host:6379", "--seeds=3"], parser)[0] == {"ray": "host:6379"}


# Tuning

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
    assert tune.main(given) == 0
    assert len(ran) == 7
    assert tune.main([each for each in given if not each.startswith("--first_epochs")]) == 2
    assert "holds another search" in capsys.readouterr().err
