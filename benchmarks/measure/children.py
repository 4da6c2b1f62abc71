"""Work in a process of its own, so that its memory and its patches of RecBole are its own too.

``python -m measure.children MODULE:FUNCTION RESULT`` is the child's side: it reads one JSON object from standard
input, gives it to the function and writes what comes back to the file RESULT. Nothing of this package is imported here,
so that the interpreter of another project can be the child.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")

BENCHMARKS = Path(__file__).resolve().parent.parent


class ChildError(RuntimeError):
    """A child process ended without a result; the text is its last line that names an error."""


def call(
    function: str,
    given: dict[str, Any],
    *,
    threads: int,
    python: str = sys.executable,
    timeout: float | None = None,
    tree: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Call a function in a new process, in an empty working directory.

    Parameters
    ----------
    function : str
        ``module:name``; takes one dict that JSON can hold and gives another.
    given : dict
        The function's argument.
    threads : int
        Threads of torch and of the libraries below numpy.
    python : str
        The interpreter.
    timeout : float, optional
        Seconds after which the child is stopped.
    tree : Path, optional
        Folder whose ``recbole_adrrec`` the child imports; by default the installed one.
    environment : mapping, optional
        Further variables of the child's environment; None takes one away.

    Returns
    -------
    dict
        What the function gave.

    Raises
    ------
    ChildError
        The child failed, was killed, or took too long.
    """
    paths = os.pathsep.join(map(str, [BENCHMARKS] if tree is None else [tree, BENCHMARKS]))
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        variables[name] = str(threads)
    given_variables = {name: value for name, value in {**variables, **(environment or {})}.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        result = Path(folder, "result.json")
        work = Path(folder, "work")
        work.mkdir()
        command = [python, "-m", "measure.children", function, str(result)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(given),
                cwd=work,
                env=given_variables,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise ChildError(f"stopped after {timeout:.0f} s") from None
        if done.returncode == 0 and result.exists():
            return dict(json.loads(result.read_text()))
    if done.returncode < 0:
        raise ChildError(f"killed by signal {-done.returncode} (9 is what a machine without memory sends)")
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if _ERROR.match(line)]
    raise ChildError((errors or lines)[-1])


def serve(function: str, result: Path) -> None:
    """Do the child's side of :func:`call`."""
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(json.load(sys.stdin))
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
