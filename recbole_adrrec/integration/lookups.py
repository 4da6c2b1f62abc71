"""RecBole's look-up of models, and how it reads values."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from recbole_adrrec.errors import OptionError
from recbole_adrrec.integration import checkpoints
from recbole_adrrec.integration.patching import overlay, override, override_everywhere

UTILS = "recbole.utils.utils"


def mend_get_model() -> None:
    """Say that a model is unknown, and which names are near (utils/utils.py:55).

    The last place RecBole looks in imports lightgbm, so that any unknown name ended in ``No module named 'lightgbm'``;
    a name that differs in case only ended in an ``AttributeError``.
    """
    override_everywhere(importlib.import_module(UTILS), "get_model", _saying_unknown)


def _saying_unknown(original: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.wraps(original)
    def get_model(model_name: str) -> Any:
        try:
            model = original(model_name)
        except (ImportError, ValueError, AttributeError) as error:
            names = checkpoints.model_names()
            if model_name in names:
                raise
            by_case = {name.lower(): name for name in names}
            near = difflib.get_close_matches(str(model_name).lower(), by_case, n=3)
            hint = f"; names like it: {', '.join(by_case[name] for name in near)}" if near else ""
            raise OptionError(f"model: there is no model {model_name!r}{hint}") from error
        _load_pretrained_safely(model)
        return model

    return get_model


def _load_pretrained_safely(model: Any) -> None:
    """Let models that start from a checkpoint load it by our rules (as model/sequential_recommender/s3rec.py:120)."""
    module = importlib.import_module(model.__module__)
    if model.__module__.startswith("recbole.model.") and hasattr(module, "torch"):
        overlay(module, "torch", load=checkpoints.load)


def mend_values() -> None:
    """Keep a string that can't be evaluated (config/configurator.py:127-147).

    RecBole evaluates every string among the options and expects three kinds of errors: ``1/0``, an unfinished number
    such as ``0777`` in a list, or ``[1][2]`` end the program.
    """
    override(importlib.import_module("recbole.config.configurator").Config, "_convert_config_dict", _keeping_strings)


def _keeping_strings(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def convert_config_dict(self: Any, config_dict: dict[str, Any]) -> dict[str, Any]:
        for name, value in list(config_dict.items()):
            if isinstance(value, str):
                try:
                    config_dict[name] = original(self, {name: value})[name]
                except Exception:
                    config_dict[name] = value
        return config_dict

    return convert_config_dict


def warns_of_scaler() -> bool:
    """Whether torch has the name that replaces the deprecated one (since 2.3)."""
    return hasattr(torch.amp, "GradScaler")


def mend_scaler() -> None:
    """Use today's name of ``torch.cuda.amp.GradScaler`` (trainer/trainer.py:235), which warns since torch 2.4."""
    if warns_of_scaler():
        overlay(importlib.import_module("recbole.trainer.trainer"), "amp", GradScaler=_scaler)


def _scaler(*args: Any, **kwargs: Any) -> Any:
    return torch.amp.GradScaler("cuda", *args, **kwargs)
