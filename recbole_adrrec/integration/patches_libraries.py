"""Patches for numpy 2, ray and torch, and of RecBole's look-up of models and reading of values."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
import torch

from recbole_adrrec import options
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.patching import original, overlay, override, patch, replace_everywhere

QUICK_START = "recbole.quick_start.quick_start"

NAMES = {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}
LACKING = tuple(name for name in NAMES if name not in vars(np))
"""Names that numpy 2 dropped, absent before any patch."""


@patch(
    "numpy names",
    "config/configurator.py:630-635",
    "np.float_, np.complex_ and np.unicode_ are gone since numpy 2",
    lambda: bool(LACKING),
)
def patch_numpy_names() -> None:
    """Add the names where they are absent."""
    for name in LACKING:
        setattr(np, name, getattr(np, NAMES[name]))


class TuneStandIn(ModuleType):
    """Stands for ``ray.tune`` in RecBole, which calls one function of it."""

    @staticmethod
    def report(**metrics: Any) -> None:
        """Pass the metrics of a trial to ray, in the form that its version takes; do nothing outside a trial.

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
    """True in a process that runs a trial of ray, as far as what is imported shows."""
    enabled = getattr(sys.modules.get("ray.tune"), "is_session_enabled", None)
    if enabled is not None and enabled():
        return True
    session = sys.modules.get("ray.train._internal.session")
    return session is not None and session.get_session() is not None


@patch(
    "ray",
    "quick_start/quick_start.py:20, :223",
    "imports ray, of which 2.6.3 breaks with setuptools 82 and numpy 2 and is not there for Python 3.12; reports in a "
    "form that ray dropped in 2.7",
)
def patch_ray() -> None:
    """Import ``recbole.quick_start`` without ray."""
    if QUICK_START not in sys.modules:
        with _stand_ins():
            importlib.import_module(QUICK_START)
    sys.modules[QUICK_START].tune = TuneStandIn("ray.tune")  # type: ignore[attr-defined]


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


@patch(
    "trials of ray",
    "quick_start/quick_start.py:196",
    "the processes of ray import RecBole without our models and these patches",
)
def patch_objective() -> None:
    """Let trials register first: their processes import ``objective_function``, and nothing else of ours."""
    from recbole.quick_start import quick_start

    # Not by `override`, which would give it RecBole's module, where ray looks for it.
    objective_function.__wrapped__ = quick_start.objective_function  # type: ignore[attr-defined]
    replace_everywhere(quick_start.objective_function, objective_function)


def objective_function(config_dict: Any = None, config_file_list: Any = None, saved: bool = True) -> dict[str, Any]:
    """RecBole's ``objective_function``, with our models known in whatever process it runs."""
    import recbole_adrrec

    recbole_adrrec.register()
    objective: Any = original(objective_function)
    return objective(config_dict=config_dict, config_file_list=config_file_list, saved=saved)


@patch(
    "anomaly detection",
    "model/sequential_recommender/sine.py:25",
    "importing any sequential model makes torch trace every operation of every model: several times the time",
)
def patch_anomaly_detection() -> None:
    """Import RecBole's sequential models and leave torch's setting as it was."""
    before = torch.is_anomaly_enabled()
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(before)


@patch(
    "gradient scaler",
    "trainer/trainer.py:235",
    "torch.cuda.amp.GradScaler is deprecated, which warns in each epoch since torch 2.4",
)
def patch_scaler() -> None:
    """Use today's name."""
    from recbole.trainer import trainer

    overlay(trainer, "amp", GradScaler=functools.partial(torch.amp.GradScaler, "cuda"))


@patch(
    "unknown and pretrained models",
    "utils/utils.py:55; model/sequential_recommender/s3rec.py:120",
    "any unknown name ends in No module named 'lightgbm'; pretrained weights are loaded in a format that torch 2.6 "
    "refuses, or by running what the file says",
)
def patch_get_model() -> None:
    """Say that a model is unknown and which name is near, and let models that start from a checkpoint load ours."""
    from recbole.utils import utils

    @override(utils, "get_model")
    def get_model(original: Any, model_name: str) -> Any:
        try:
            model = original(model_name)
        except (ImportError, ValueError, AttributeError):
            options.check_model(model_name)
            raise
        module = importlib.import_module(model.__module__)
        if model.__module__.startswith("recbole.model.") and hasattr(module, "torch"):
            overlay(module, "torch", load=load_checkpoint)
        return model


@patch(
    "values that can't be evaluated", "config/configurator.py:127-147", "strings such as 1/0 or [1][2] end the program"
)
def patch_values() -> None:
    """Keep a string that can't be evaluated."""
    from recbole.config.configurator import Config

    @override(Config, "_convert_config_dict")
    def convert(original: Any, self: Any, config_dict: dict[str, Any]) -> dict[str, Any]:
        for name, value in config_dict.items():
            if isinstance(value, str):
                with suppress(Exception):
                    config_dict[name] = original(self, {name: value})[name]
        return config_dict


@patch(
    "streams wrapped again",
    "utils/logger.py:74",
    "each load_data_and_model wraps stdout and stderr once more, until a print exceeds Python's depth of recursion",
)
def patch_streams() -> None:
    """Wrap the streams of the process once."""
    from recbole.utils import logger

    wrapper = importlib.import_module("colorama.ansitowin32").StreamWrapper

    @override(logger, "init")
    def init(original: Any, **given: Any) -> None:
        if not any(isinstance(stream, wrapper) for stream in (sys.stdout, sys.stderr)):
            original(**given)
