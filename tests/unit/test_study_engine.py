"""Children of the benchmarks: results come back, and every other end is named in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from engine.children import ChildError, call, child_environment

WORK = """
import os, signal, time

def double(given): return {"twice": 2 * given["number"], "threads": os.environ["OMP_NUM_THREADS"], "here": os.listdir()}
def fail(given): print("before"); raise ValueError(given["why"])
def die(given): os.kill(os.getpid(), signal.SIGKILL)
def leave(given): print("nothing to say"); os._exit(7)
def sleep(given): time.sleep(60)
def variable(given): return {"value": os.environ.get("VARIABLE_OF_THIS_TEST")}
"""


@pytest.fixture
def work(tmp_path: Path) -> dict[str, Any]:
    """Arguments with which a child finds the module ``work``."""
    (tmp_path / "work.py").write_text(WORK)
    paths = f"{tmp_path}:{child_environment()['PYTHONPATH']}"
    return {"threads": 3, "environment": {"PYTHONPATH": paths, "NO_SUCH": None}}


def test_a_child_gives_what_its_function_returns(work: dict[str, Any]) -> None:
    assert call("work:double", {"number": 4}, **work) == {"twice": 8, "threads": "3", "here": []}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fail", "^ValueError: too small$"),
        ("die", r"^the process was killed by SIGKILL \(often for want of memory\)$"),
        ("leave", "^the process ended with exit code 7; last line of log: nothing to say$"),
        ("unknown", "^AttributeError: .*unknown"),
    ],
)
def test_an_end_without_a_result_is_named(work: dict[str, Any], function: str, words: str) -> None:
    with pytest.raises(ChildError, match=words):
        call(f"work:{function}", {"why": "too small"}, **work)


def test_a_child_that_takes_too_long_is_stopped(work: dict[str, Any]) -> None:
    with pytest.raises(ChildError, match="stopped after 1 s"):
        call("work:sleep", {}, timeout=1, python=sys.executable, **work)


@pytest.mark.parametrize(("given", "value"), [({}, "1"), ({"VARIABLE_OF_THIS_TEST": "2"}, "2"),
                                              ({"VARIABLE_OF_THIS_TEST": None}, None)])  # fmt: skip
def test_a_child_has_this_environment_and_what_is_given(
    work: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given: dict[str, str | None], value: str | None
) -> None:
    monkeypatch.setenv("VARIABLE_OF_THIS_TEST", "1")
    assert call("work:variable", {}, threads=1, environment={**work["environment"], **given}) == {"value": value}
