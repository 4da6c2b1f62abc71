"""A study's folder and its runs: each once, failures recorded, other studies refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import compare
import pytest
from engine import children
from studies import OPTIONS, Instant, command, plan_of, use
from study import command_line, grid, runs, session, tied_timestamps
from study import plan as plans

from recbole_adrrec.errors import OptionError


def record(plan: plans.Plan, spec: plans.RunSpec, status: str = "done", value: float = 0.5) -> None:
    """A run's file as if it had run."""
    facts = {"status": status, "metrics": {"ndcg@10": value}, "data": {"ties": {"users": 9, "tied_gaps": 0.25}}}
    identity = runs.identity(spec, "now")
    runs.write_record(plan.results, spec, {**identity, "valid_metric": "NDCG@10", **facts}, {})


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
    # ids[2] is of ADRRec: what is not chosen keeps its record.
    other = grid.run_all(plan, retry_failed=True, only=frozenset({("small", "SASRec")}))
    assert instant.started == ids
    assert (other.done, other.failed, other.skipped) == (5, (ids[2],), 6)
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


class FakeRay:
    """Stands for Ray on one machine: ``lost`` names how often a run's worker dies before it has written its record."""

    class exceptions:  # noqa: N801 - as Ray calls it
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        class WorkerCrashedError(RayError):
            pass

    def __init__(self, lost: dict[str, int], error: type[Exception]) -> None:
        self.lost, self.error = dict(lost), error
        self.begun: list[str] = []
        self.settings: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2}

    def remote(self, **settings: Any) -> Any:
        self.settings = settings

        def begin(spec: dict[str, Any], results: str, environment: dict[str, str]) -> Any:
            self.begun.append(plans.RunSpec.of(spec).id)
            return len(self.begun) - 1, spec, results, environment

        return lambda function: SimpleNamespace(remote=lambda *given: Task(*begin(*given), function))

    def wait(self, working: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return working[:num_returns], working[num_returns:]

    def get(self, task: Any) -> str:
        name = self.begun[task.number]
        if self.lost.get(name, 0):
            self.lost[name] -= 1
            raise self.error("the node went")
        return task.function(task.spec, task.results, task.environment)


class Task(NamedTuple):
    """A call that a worker of the fake Ray is to make."""

    number: int
    spec: dict[str, Any]
    results: str
    environment: dict[str, str]
    function: Any

    def __hash__(self) -> int:
        return self.number


def test_the_run_of_a_lost_worker_is_repeated_and_that_of_a_failed_one_is_not(
    small_data: Path,
    tmp_path: Path,
    instant: type[Instant],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, error, losses, failed in (
        ("lost", FakeRay.exceptions.WorkerCrashedError, 1, 0),
        ("lost often", FakeRay.exceptions.WorkerCrashedError, grid.REPEATS, 0),
        ("lost always", FakeRay.exceptions.WorkerCrashedError, grid.REPEATS + 1, 1),
        ("a fault of the run", FakeRay.exceptions.RayTaskError, 1, 1),
    ):
        instant.started = []
        plan = plan_of(small_data, tmp_path / folder, models=["ADRRec", "SASRec"])
        first, second = (spec.id for spec in plan.specs())
        ray = FakeRay({first: losses}, error)
        monkeypatch.setattr(grid, "import_ray", lambda ray=ray: ray)
        outcome = grid.run_all(plan, ray=True)
        assert outcome.failed == (first,) * failed, folder
        assert outcome.done == 2 - failed
        repeats = min(losses, grid.REPEATS) if error is not FakeRay.exceptions.RayTaskError else 0
        assert Counter(ray.begun) == {first: 1 + repeats, second: 1}
        assert Counter(instant.started) == Counter([*([first] * (1 - failed)), second])
        assert capsys.readouterr().out.count("its machine was lost; the run is repeated") == repeats
        assert ray.settings["max_retries"] == 0


def test_entries_and_data_sets_are_chosen_by_name(instant: type[Instant], small_data: Path, tmp_path: Path) -> None:
    data = ["small", {"name": "small", "label": "small again", "data_path": "."}]
    models = ["ADRRec", "SASRec", {"label": "SASRec, wide", "model": "SASRec"}]
    plan = plan_of(small_data, tmp_path / "r", datasets=data, models=models)
    assert command_line.only_of({}, plan) is None
    assert command_line.only_of({"only": "SASRec"}, plan) == {(each, "SASRec") for each in plan.datasets}
    assert command_line.only_of({"only": "wide; ADR", "only_data": "small"}, plan) == {
        ("small", "SASRec, wide"),
        ("small", "ADRRec"),
    }
    for flags, words in (({"only": "TiSAS"}, "only: 'TiSAS' is in no"), ({"only_data": "again"}, "only_data: 'again'")):
        with pytest.raises(OptionError, match=words):
            command_line.only_of(flags, plan)
    outcome = grid.run_all(plan, only=command_line.only_of({"only": "ADRRec", "only_data": "small again"}, plan))
    assert (outcome.done, outcome.left) == (1, 5)
    (chosen,) = (spec.id for spec in plan.specs() if (spec.dataset, spec.label) == ("small again", "ADRRec"))
    assert instant.started == [chosen]
    told = compare.described(plan, {"only": "SASRec"})
    assert "6 runs, 2 of them to do, 3 left for later (--only, --only_data):" in told
    assert f"  done   {chosen}" in told
    assert [line.split()[:2] for line in told.splitlines()].count(["to", "do"]) == 2


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
    assert session.given_options(plan.specs()[0], tmp_path).get("gpu_id") == visible


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


def test_references_of_a_study_go_into_its_report(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["SASRec", {"model": "ADRRec", "reference": "SASRec"}]
    plan = plan_of(small_data, tmp_path / "r", models=models)
    monkeypatch.setattr(compare, "run_missing", lambda *_: grid.Outcome(2, (), 0))
    monkeypatch.setattr(compare, "reported", lambda *_: 0)
    assert compare.run(plan, {}) == 0
    assert json.loads((plan.results / "report.json").read_text())["references"] == {"ADRRec": "SASRec"}
