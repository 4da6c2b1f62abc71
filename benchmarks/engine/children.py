"""Work in processes of their own, so that memory and patches of RecBole are those of one piece of work alone.

``python -m engine.children MODULE:FUNCTION RESULT`` is the child's side: it reads one line of JSON from standard input,
passes it to the function and writes what is returned to the file RESULT. Nothing of this package is imported here, so
that the interpreter of another project can be the child.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")

BENCHMARKS = Path(__file__).resolve().parents[1]
ORPHANED = 75
"""Exit code of a child whose parent is gone."""
POLL_SECONDS = 0.2


class ChildError(RuntimeError):
    """A child process ended without a result; the text says why."""


class Child:
    """A function at work in a process of its own, in an empty working directory.

    ``function``, as ``module:name``, takes one dict that JSON can hold, ``given``, and returns another. ``folder`` is
    made anew for the child, and removed by :meth:`result` and :meth:`stop`; its output goes to the file ``log``. The
    environment is :func:`child_environment` by default.
    """

    def __init__(
        self,
        function: str,
        given: Mapping[str, Any],
        folder: Path,
        log: Path,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.log = folder, log
        self.environment = dict(child_environment() if environment is None else environment)
        self._result = folder / "result.json"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "work").mkdir(parents=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [python, "-m", "engine.children", function, str(self._result.resolve())],
                cwd=folder / "work",
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        try:
            # Left open: its end tells the child that this process is gone.
            self.process.stdin.write(json.dumps(given, default=str).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended at once; result() says why.

    @property
    def ended(self) -> bool:
        """True once the process is over."""
        return self.process.poll() is not None

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end of the process and return what the function returned.

        Raises
        ------
        ChildError
            The child failed, was killed, or took more than ``timeout`` seconds.
        """
        try:
            code = self.process.wait(timeout)
            if code == 0 and self._result.exists():
                return dict(json.loads(self._result.read_text(encoding="utf-8")))
            raise ChildError(self._died(code))
        except subprocess.TimeoutExpired:
            raise ChildError(f"stopped after {timeout:.0f} s") from None
        finally:
            self.stop()

    def _died(self, code: int) -> str:
        if code < 0:
            known = {each.value: each.name for each in signal.Signals}
            end = f"was killed by {known.get(-code, f'signal {-code}')}"
            if -code == signal.SIGKILL:
                end += " (often for want of memory)"
        else:
            end = f"ended with exit code {code}"
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if code > 0 and (errors := [line for line in lines if _ERROR.match(line)]):
            return errors[-1]
        return f"the process {end}" + (f"; last line of {self.log.name}: {lines[-1]}" if lines else "")

    def stop(self) -> None:
        """End the process, if it is still at work, and remove its folder."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with which a child finds the benchmarks and this checkout's package."""
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **(more or {})}


def call(
    function: str,
    given: Mapping[str, Any],
    *,
    threads: int,
    python: str = sys.executable,
    timeout: float | None = None,
    tree: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Call a function in a new process, as :class:`Child` does, and wait for what it returns.

    ``threads`` are those of torch and of the libraries below numpy. After ``timeout`` seconds the child is stopped.
    ``tree`` is the folder whose ``recbole_adrrec`` it imports, by default the installed one; ``environment`` has
    further variables, None takes one away.

    Raises
    ------
    ChildError
        The child failed, was killed, or took too long.
    """
    paths = os.pathsep.join(map(str, [BENCHMARKS] if tree is None else [tree, BENCHMARKS]))
    variables: dict[str, str | None] = {
        **os.environ,
        "PYTHONPATH": paths,
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        **(environment or {}),
    }
    with tempfile.TemporaryDirectory(prefix="child-") as folder:
        kept = {name: value for name, value in variables.items() if value is not None}
        child = Child(function, given, Path(folder, "child"), Path(folder, "log"), python, kept)
        return child.result(timeout)


# Several children at a time


AnyChild = TypeVar("AnyChild", bound=Child)


def run_children(
    start: Callable[[Mapping[str, str]], AnyChild | None],
    ended: Callable[[AnyChild], None],
    jobs: int,
    deadline: float | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Keep ``jobs`` children at work until there is nothing left to start, or time is up.

    ``start`` starts the next child with the variables given (threads, GPU), or returns None where none can start now;
    ``ended`` receives each child whose process is over; ``waiting`` is called while nothing ends, a few times a second.
    From ``deadline`` (``time.monotonic``) none starts, and those at work are stopped.
    """
    working: list[AnyChild] = []
    threads, gpus = threads_each(jobs), gpus_here()
    try:
        while deadline is None or time.monotonic() < deadline:
            while len(working) < jobs:
                child = start({**threads, **least_used(gpus, [each.environment for each in working])})
                if child is None:
                    break
                working.append(child)
            if not working:
                return
            over = [child for child in working if child.ended]
            for child in over:
                working.remove(child)
                ended(child)
            if not over:
                time.sleep(POLL_SECONDS)
                waiting()
    finally:
        for child in working:
            child.stop()


def threads_each(jobs: int) -> dict[str, str]:
    """Processors shared out among children, unless the user has set the number of threads."""
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


def least_used(gpus: list[str], working: list[dict[str, str]]) -> dict[str, str]:
    """The variable that gives a child the GPU with the fewest others; empty where there are none to choose from."""
    if len(gpus) < 2:
        return {}
    used = [environment.get("CUDA_VISIBLE_DEVICES") for environment in working]
    return {"CUDA_VISIBLE_DEVICES": min(gpus, key=used.count)}


# The child's side


def serve(function: str, result: Path, stream: TextIO) -> None:
    """Do the child's side of :class:`Child`."""
    given = json.loads(stream.readline())
    _end_with_parent(stream)
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(given)
    result.write_text(json.dumps(found), encoding="utf-8")


def _end_with_parent(stream: TextIO) -> None:
    """End this process when the one that started it is gone: a resumed study would start the same work beside it."""

    def watch() -> None:
        while os.read(stream.fileno(), 1):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), sys.stdin)
