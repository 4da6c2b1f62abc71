"""All runs of a study: each once, in a process of its own, on this machine or on a Ray cluster.

A folder of results belongs to one study. ``study.json`` says which; runs that are recorded there are never
repeated, and a study that was killed goes on where it was.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_adrrec.errors import OptionError
from recbole_adrrec.files import AtomicFile
from study import plan as plans
from study import runs
from study.plan import Plan, RunSpec

STUDY_FILE = "study.json"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """What became of a study's runs."""

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
    only: frozenset[str] | None = None,
) -> Outcome:
    """Run what a study still lacks.

    Parameters
    ----------
    plan : Plan
        The study; its ``results`` folder is made, or continued if it is the same study's.
    jobs : int
        How many runs at a time on this machine.
    ray : str or bool, optional
        Address of a Ray cluster (``auto``: the one that is up); True: one that is started on this machine with
        ``jobs`` processors. On a cluster of several machines the results, the data and this checkout must lie under the
        same paths everywhere.
    retry_failed : bool
        Whether runs that are recorded as failed are run again.
    gpus : float
        How many GPUs, or what part of one, each run takes of a Ray cluster.
    deadline : float, optional
        Moment (``time.monotonic``) from which no run starts, and runs at work are stopped, to be repeated by the next
        call. Not with Ray.
    only : frozenset of str, optional
        Labels of the entries to run; the others' runs are left.

    Returns
    -------
    Outcome
        ``left`` counts the runs that the deadline or ``only`` left out.

    Raises
    ------
    OptionError
        The folder holds another study or is in use, or Ray is not there.
    """
    if jobs < 1:
        raise OptionError(f"jobs: {jobs} at a time are none; choose at least 1")
    if ray and deadline is not None:
        raise OptionError("minutes: runs on a Ray cluster are not stopped in time; leave minutes out, or use --jobs")
    ray_module = import_ray() if ray else None
    with claimed(plan):
        specs = plan.specs()
        if retry_failed:
            for spec in specs:
                if status(plan.results, spec) == "failed":
                    runs.record_path(plan.results, spec).unlink()
        missing = [
            spec for spec in specs if (only is None or spec.label in only) and status(plan.results, spec) is None
        ]
        with tqdm(
            total=len(specs),
            initial=sum(status(plan.results, spec) is not None for spec in specs),
            desc=plan.name,
            unit="run",
            dynamic_ncols=True,
        ) as bar:
            bar.refresh()
            if ray_module is not None:
                _run_on_ray(ray_module, plan, missing, jobs, ray, gpus, bar)
            else:
                _run_here(plan, missing, jobs, bar, deadline)
        ended = {spec.id: status(plan.results, spec) for spec in specs}
        failed = tuple(name for name, how in ended.items() if how == "failed")
        left = sum(how is None for how in ended.values())
        return Outcome(len(specs) - len(failed) - left, failed, len(specs) - len(missing), left)


def status(results: Path, spec: RunSpec) -> str | None:
    """``done``, ``failed``, or None for a run that is not over."""
    path = runs.record_path(results, spec)
    if not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["status"])


def check(plan: Plan) -> None:
    """Refuse options that a model of the study could not run with, before anything runs.

    Every model is configured once for each data set and protocol, as its runs will be.

    Raises
    ------
    OptionError
        Naming the model, the option, its value and what would be right.
    """
    seen = set()
    for spec in plan.specs():
        key = (spec.label, spec.dataset, spec.protocol)
        if key not in seen:
            seen.add(key)
            try:
                with runs.devices_unchanged():
                    runs.configure(spec, plan.results / "scratch")
            except (ValueError, NotImplementedError, RuntimeError) as error:
                raise OptionError(f"models: {spec.label} on {spec.dataset}: {error}") from error


# The folder


@contextmanager
def claimed(plan: Plan) -> Iterator[None]:
    """Hold a results folder for this study and this process alone.

    Raises
    ------
    OptionError
        It holds another study, or something else, or a process is at work in it.
    """
    check_folder(plan)
    plan.results.mkdir(parents=True, exist_ok=True)
    with locked(plan.results, "results"):
        check_folder(plan)
        path = plan.results / STUDY_FILE
        if not path.is_file():
            stated = {
                "format": runs.FORMAT,
                "hash": plan.hash,
                "study": plan.stated(),
                "command": plan.command,
                "commit": runs.commit(),
                "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            with AtomicFile(path) as file:
                file.write((json.dumps(stated, indent=1) + "\n").encode())
        for folder in ("runs", "logs", "scratch"):
            (plan.results / folder).mkdir(exist_ok=True)
        # What a killed study leaves behind: nobody else is at work here now.
        for left in (plan.results / "runs").glob(".*.tmp"):
            left.unlink()
        for folder_left in (plan.results / "scratch").iterdir():
            shutil.rmtree(folder_left, ignore_errors=True)
        yield


def check_folder(plan: Plan) -> None:
    """Refuse a results folder that is not this study's, nor new.

    Raises
    ------
    OptionError
        Naming what differs.
    """
    folder, path = plan.results, plan.results / STUDY_FILE
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"results: {folder} is not a folder; choose another")
    if path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            hash_there, theirs = held["hash"], held["study"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"results: {path} can't be read ({error}); choose another folder") from error
        if hash_there != plan.hash:
            what = "; ".join(plans.differences(plan.stated(), theirs)) or "versions of the study's format"
            raise OptionError(
                f"results: {folder} holds another study, which differs in {what}; choose another folder by "
                "--results, or state the same study"
            )
    elif folder.is_dir() and any(each.name != ".lock" for each in folder.iterdir()):
        raise OptionError(f"results: {folder} is not empty and holds no study; choose another folder")


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Hold a folder for this process alone; ``key`` is the option that names it.

    Raises
    ------
    OptionError
        Another process is at work in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; two studies in one folder are then the user's care.
        yield
        return
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise OptionError(f"{key}: {folder} is in use by process {lock.read().strip() or '?'}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


# This machine


def threads_each(jobs: int) -> dict[str, str]:
    """Processors shared out among runs, unless the user has said how many threads there shall be."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs))}


def gpus_here() -> list[str]:
    """This machine's GPUs, as far as this process may use them."""
    count = int(importlib.import_module("torch").cuda.device_count())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [str(place) for place in range(count)]
    return names[:count]


def least_used(gpus: Sequence[str], working: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The variable that gives a run the GPU with the fewest runs at work; empty where there are none to choose from."""
    if len(gpus) < 2:
        return {}
    used = [environment.get("CUDA_VISIBLE_DEVICES") for environment in working]
    return {"CUDA_VISIBLE_DEVICES": min(gpus, key=used.count)}


def _run_here(plan: Plan, missing: Sequence[RunSpec], jobs: int, bar: Any, deadline: float | None = None) -> None:
    waiting = list(missing)
    working: list[runs.Child] = []
    environment, gpus = threads_each(jobs), gpus_here()
    try:
        while (waiting or working) and (deadline is None or time.monotonic() < deadline):
            while waiting and len(working) < jobs:
                gpu = least_used(gpus, [child.environment for child in working])
                working.append(runs.Child(waiting.pop(0).to_json(), str(plan.results), {**environment, **gpu}))
                _show(bar, [child.spec.id for child in working])
            ended = [child for child in working if child.process.poll() is not None]
            for child in ended:
                working.remove(child)
                _count(bar, child.spec, child.finish())
            if not ended:
                tick(bar)
    finally:
        for child in working:
            child.stop()


def tick(bar: Any) -> None:
    """Wait a moment; on a terminal, let the bar show that time passes."""
    time.sleep(POLL_SECONDS)
    if not bar.disable and bar.fp.isatty():
        bar.refresh()


def _show(bar: Any, working: Sequence[str]) -> None:
    more = f" and {len(working) - 1} more" if len(working) > 1 else ""
    bar.set_postfix_str(f"{working[0]}{more}" if working else "", refresh=True)


def _count(bar: Any, spec: RunSpec, ended: str) -> None:
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
    if importlib.util.find_spec("ray") is None:
        raise OptionError('ray: it is not installed; install it with: pip install "ray>=2.30", or use --jobs')
    try:
        ray = importlib.import_module("ray")
        if not hasattr(ray, "remote"):
            raise ImportError("it lacks ray.remote")
    except Exception as error:
        raise OptionError(
            f"ray: the installed one can't be imported ({error}); install a current one with: "
            'pip install "ray>=2.30", or use --jobs'
        ) from error
    return ray


def _run_on_ray(
    ray: Any, plan: Plan, missing: Sequence[RunSpec], jobs: int, address: str | bool | None, gpus: float, bar: Any
) -> None:
    if isinstance(address, str):
        _refuse_silence(address)
    paths = runs.child_environment()["PYTHONPATH"]
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = {"address": address} if isinstance(address, str) else {"num_cpus": jobs}
        if where == {"num_cpus": jobs}:
            where["include_dashboard"] = False
        try:
            ray.init(
                **where, runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, logging_level="ERROR"
            )
        except Exception as error:
            raise OptionError(f"ray: no cluster at {address!r} ({error})") from error
    try:
        # A run whose machine is lost is recorded as failed; Ray must not start it again beside the record.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_on_a_node)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        working = {remote.remote(spec.to_json(), str(plan.results), environment): spec for spec in missing}
        started = datetime.now(timezone.utc)
        begin = time.perf_counter()
        bar.set_postfix_str(f"Ray, {int(ray.cluster_resources().get('CPU', 0))} processors", refresh=True)
        while working:
            ended, _ = ray.wait(list(working), num_returns=1, timeout=1.0)
            for each in ended:
                spec = working.pop(each)
                try:
                    result = ray.get(each)
                except Exception as error:
                    runs.write_failure(
                        plan.results, spec, f"Ray: {error}".strip(), started, time.perf_counter() - begin
                    )
                    result = "failed"
                _count(bar, spec, result)
            if not bar.disable and bar.fp.isatty():
                bar.refresh()
    finally:
        if ours:
            ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Refuse an address at which nobody answers: Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise OptionError(f"ray: no cluster answers at {address} ({error.strerror or error})") from error


def _on_a_node(spec_text: str, results: str, environment: dict[str, str]) -> str:
    """What a worker of Ray does: the same as this machine would, in a process of its own."""
    return runs.execute(spec_text, results, environment)
