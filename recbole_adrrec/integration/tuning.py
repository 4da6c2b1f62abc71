"""RecBole without ray, and with a current one."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from recbole_adrrec.integration.patching import original, override_everywhere

QUICK_START = "recbole.quick_start.quick_start"


class TuneStandIn(ModuleType):
    """What RecBole gets as ``ray.tune``: the one function of it that RecBole calls."""

    @staticmethod
    def report(**metrics: Any) -> None:
        """Hand the metrics of a trial on to ray, in the form that its version takes; do nothing outside a trial.

        ``objective_function`` reports also under hyperopt, where there is no ray to report to.
        """
        tune = sys.modules.get("ray.tune")
        if tune is None or isinstance(tune, TuneStandIn) or not in_session():
            return
        if "metrics" in inspect.signature(tune.report).parameters:
            tune.report(metrics)
            return
        train = sys.modules.get("ray.train")
        if train is not None and "metrics" in inspect.signature(getattr(train, "report", tune.report)).parameters:
            train.report(metrics)  # between 2.7 and 2.42, where `tune.report` only says that it is gone
        else:
            tune.report(**metrics)


def in_session() -> bool:
    """Whether this process runs a trial of ray. Asks only what is imported already."""
    enabled = getattr(sys.modules.get("ray.tune"), "is_session_enabled", None)
    if enabled is not None and enabled():
        return True
    session = sys.modules.get("ray.train._internal.session")
    return session is not None and session.get_session() is not None


def import_quick_start() -> None:
    """Import ``recbole.quick_start`` without ray.

    quick_start/quick_start.py:20 has ``from ray import tune`` for the sake of one ``tune.report`` (:223). RecBole 1.2.1
    asks for ray up to 2.6.3, which no longer imports with setuptools 82 (no ``pkg_resources``) or numpy 2 (no
    ``bool8``), and which Python 3.12 lacks; since ray 2.7 ``report(**metrics)`` is ``report(metrics)``.
    """
    if QUICK_START not in sys.modules:
        with _stand_ins():
            importlib.import_module(QUICK_START)
    quick_start: Any = sys.modules[QUICK_START]
    if not isinstance(quick_start.tune, TuneStandIn):
        quick_start.tune = TuneStandIn("ray.tune")


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let ``from ray import tune`` work without ray; a later ``import ray`` finds the real one again."""
    tune, ray = TuneStandIn("ray.tune"), ModuleType("ray")
    ray.tune = tune  # type: ignore[attr-defined]
    # What somebody has imported already stays in its place: ray may be at work in other threads.
    absent = {name: fake for name, fake in (("ray", ray), ("ray.tune", tune)) if sys.modules.get(name) is None}
    blocked = [name for name in absent if name in sys.modules]
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]


def mend_objective() -> None:
    """Let trials of ray register first: their processes import ``objective_function`` (:196), and nothing of ours."""
    override_everywhere(importlib.import_module(QUICK_START), "objective_function", lambda _: objective_function)


def objective_function(config_dict: Any = None, config_file_list: Any = None, saved: bool = True) -> dict[str, Any]:
    """RecBole's ``objective_function``, with our models known in whatever process it runs.

    Parameters
    ----------
    config_dict, config_file_list, saved
        As RecBole's.
    """
    importlib.import_module("recbole_adrrec").register()
    objective: Any = original(objective_function)
    return objective(config_dict=config_dict, config_file_list=config_file_list, saved=saved)
