"""All runs of a study: each once, in a process of its own, on this machine or on a Ray cluster.

A folder of results belongs to one study. ``study.json`` says which; runs that are recorded there are never
repeated, and a study that was killed goes on where it was: runs at work from their last whole epoch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.children import child_environment, run_children
from engine.provenance import commit
from engine.store import FORMAT, check_owner, now, owned
from tqdm import tqdm

from recbole_adrrec.errors import OptionError
from study import runs, session
from study.plan import Plan, RunSpec
from study.runs import RunChild, record_path, status

STUDY_FILE = "study.json"

REPEATS = 3
"""Times that a run is repeated whose machine in a cluster was lost."""


@dataclass(frozen=True)
class Outcome:
    """Numbers of runs that are done, were there before, and are left by a deadline or ``only``; ids of failed ones."""

    done: int
    failed: tuple[str, ...]
    skipped: int
    left: int = 0


def run_all(
    plan: Plan,
    jobs: int = 1,
    ray: str | bool | None = None,
    retry_failed: bool = False,
    gpus: float = 0,
    deadline: float | None = None,
    only: frozenset[tuple[str, str]] | None = None,
) -> Outcome:
    """Run what a study still lacks, in its ``results`` folder, which is made or continued.

    On this machine ``jobs`` runs work at a time. ``ray`` is the address of a Ray cluster (``auto``: the one that is
    up), or True for one that is started here with ``jobs`` processors; on several machines the results, the data and
    this checkout must lie under the same paths everywhere. Each run takes ``gpus``, or the part of one, of the cluster.
    From ``deadline`` (``time.monotonic``; not with Ray) no run starts, and runs at work are stopped; the next call goes
    on with them. ``only`` has the data sets and labels of the entries to run; the others' runs are left.

    Raises
    ------
    OptionError
        The folder holds another study or is in use, or Ray is not there.
    """
    if ray and deadline is not None:
        raise OptionError("minutes: runs on a Ray cluster are not stopped in time; leave minutes out, or use --jobs")
    ray_module = import_ray() if ray else None
    with claimed(plan):
        specs = plan.specs()
        chosen = [spec for spec in specs if only is None or (spec.dataset, spec.label) in only]
        if retry_failed:
            for spec in chosen:
                if status(plan.results, spec) == "failed":
                    record_path(plan.results, spec).unlink()
        over = {spec.id for spec in specs if status(plan.results, spec) is not None}
        missing = [spec for spec in chosen if spec.id not in over]
        with tqdm(total=len(specs), initial=len(over), desc=plan.name, unit="run", dynamic_ncols=True) as bar:
            bar.refresh()
            if ray_module is not None:
                _run_on_ray(ray_module, plan, missing, jobs, ray, gpus, bar)
            else:
                _run_here(plan, missing, jobs, bar, deadline)
        ended = {spec.id: status(plan.results, spec) for spec in specs}
        failed = tuple(name for name, how in ended.items() if how == "failed")
        left = sum(how is None for how in ended.values())
        return Outcome(len(specs) - len(failed) - left, failed, len(over), left)


def check(plan: Plan) -> None:
    """Refuse options that a model of the study could not run with, before anything runs.

    Every model is configured once for each data set and protocol, as its runs will be.

    Raises
    ------
    OptionError
        Naming the model, the option, its value and what would be right.
    """
    for spec in {(spec.label, spec.dataset, spec.protocol): spec for spec in plan.specs()}.values():
        try:
            with session.devices_unchanged():
                session.configure(spec, plan.results / "scratch")
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise OptionError(f"models: {spec.label} on {spec.dataset}: {error}") from error


# The folder


def _folder(plan: Plan) -> dict[str, Any]:
    stated = {"format": FORMAT, "hash": plan.hash, "study": plan.stated(), "command": plan.command}
    return {
        "folder": plan.results,
        "file": plan.results / STUDY_FILE,
        "content": {**stated, "commit": commit(), "started": now()},
        "read": lambda held: held["study"],
        "key": "results",
        "kind": "study",
    }


def check_folder(plan: Plan) -> None:
    """Refuse a results folder that is not this study's, nor new."""
    check_owner(**_folder(plan))


@contextmanager
def claimed(plan: Plan) -> Iterator[None]:
    """Hold a results folder for this study and this process alone."""
    with owned(**_folder(plan)):
        runs.sweep(plan.results)
        yield


# This machine


def _run_here(plan: Plan, missing: Sequence[RunSpec], jobs: int, bar: Any, deadline: float | None) -> None:
    waiting = list(missing)

    def start(environment: Mapping[str, str]) -> RunChild | None:
        if not waiting:
            return None
        child = RunChild(waiting.pop(0), plan.results, environment)
        bar.set_postfix_str(child.spec.id, refresh=True)
        return child

    run_children(start, lambda child: count(bar, child.spec, child.finish()), jobs, deadline, lambda: tick(bar))


def tick(bar: Any) -> None:
    """Let the bar of a terminal show that time passes."""
    if not bar.disable and bar.fp.isatty():
        bar.refresh()


def count(bar: Any, spec: RunSpec, ended: str) -> None:
    """Count a run that ended on the bar, and name it if it failed."""
    if ended == "failed":
        bar.write(f"failed: {spec.id} (the others go on)")
    bar.update(1)


# A Ray cluster


def import_ray() -> Any:
    """Ray, which is optional.

    Raises
    ------
    OptionError
        If it is not installed, or too old to work with today's libraries.
    """
    remedy = 'install a current one with: pip install "ray>=2.30", or use --jobs'
    if importlib.util.find_spec("ray") is None:
        raise OptionError(f"ray: it is not installed; {remedy}")
    try:
        ray = importlib.import_module("ray")
        if not hasattr(ray, "remote"):
            raise ImportError("it lacks ray.remote")
    except Exception as error:
        raise OptionError(f"ray: the installed one can't be imported ({error}); {remedy}") from error
    return ray


def _run_on_ray(
    ray: Any, plan: Plan, missing: Sequence[RunSpec], jobs: int, address: str | bool | None, gpus: float, bar: Any
) -> None:
    if isinstance(address, str):
        _refuse_silence(address)
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = {"address": address}
        if not isinstance(address, str):
            where = {"num_cpus": jobs, "include_dashboard": False}
        paths = {"PYTHONPATH": child_environment()["PYTHONPATH"]}
        try:
            ray.init(**where, runtime_env={"env_vars": paths}, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise OptionError(f"ray: no cluster at {address!r} ({error})") from error
    try:
        # Ray must not start a run again beside its record: it is we who repeat the run of a lost machine.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_on_a_node)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}

        def begin_run(spec: RunSpec) -> Any:
            return remote.remote(asdict(spec), str(plan.results), environment)

        working = {begin_run(spec): spec for spec in missing}
        lost: Counter[str] = Counter()
        started, begin = now(), time.perf_counter()
        bar.set_postfix_str(f"Ray, {int(ray.cluster_resources().get('CPU', 0))} processors", refresh=True)
        while working:
            ended, _ = ray.wait(list(working), num_returns=1, timeout=1.0)
            for each in ended:
                spec = working.pop(each)
                try:
                    result = ray.get(each)
                except Exception as error:
                    if _is_loss(ray, error) and lost[spec.id] < REPEATS and status(plan.results, spec) is None:
                        lost[spec.id] += 1
                        bar.write(f"{spec.id}: its machine was lost; the run is repeated")
                        working[begin_run(spec)] = spec
                        continue
                    seconds = time.perf_counter() - begin
                    runs.write_failure(plan.results, spec, f"Ray: {error}".strip(), started, seconds)
                    result = "failed"
                count(bar, spec, result)
            tick(bar)
    finally:
        if ours:
            ray.shutdown()


def _is_loss(ray: Any, error: Exception) -> bool:
    """True where a worker or its machine went, not where the function on it failed."""
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def _refuse_silence(address: str) -> None:
    """Refuse an address at which nobody answers: Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise OptionError(f"ray: no cluster answers at {address} ({error.strerror or error})") from error


def _on_a_node(spec: dict[str, Any], results: str, environment: dict[str, str]) -> str:
    """A worker of Ray does the same as this machine would, in a process of its own."""
    return RunChild(RunSpec.of(spec), Path(results), environment).finish()
