"""Checkpoints that are saved whole and loaded without running what is in them.

A checkpoint of RecBole pickles the ``Config``, whose constructor evaluates strings, and with it references to
classes. ``torch.load(weights_only=True)`` lets a file call whatever class is allowed, with any arguments, so allowing
``Config`` itself would let a file run code. What is allowed here are stand-ins: one for ``Config`` that takes no
arguments, and one per class that a checkpoint merely mentions, which can't be called. Real ones take their place once
the file is read.
"""

from __future__ import annotations

import builtins
import datetime
import functools
import importlib
import os
import pickle
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.integration.digests import digest
from recbole_adrrec.integration.patching import overlay, override, override_everywhere
from recbole_adrrec.integration.plain_numpy import Refused, plain_bytes, plain_dtype, plain_scalar
from recbole_adrrec.integration.tuning import QUICK_START

TRAINER = "recbole.trainer.trainer"
PARTS = ("config", "state_dict")
REFUSED = "Refused: "
DIGEST = "digest"
"""Where a checkpoint keeps the digest of all its other entries."""

_stand_ins: dict[str, Any] = {}  # by the full name that files use
_data_checks: list[Callable[[str, dict[str, Any], Any], None]] = []
_added: ContextVar[dict[str, Any]] = ContextVar("added")
_check: ContextVar[Callable[[str, dict[str, Any]], None] | None] = ContextVar("check", default=None)


class _Mention:
    """Stands for a class that a file mentions; it can't be called."""

    def __call__(self, *_: object) -> None:
        raise Refused(f"{REFUSED}a call of {self.__module__}.{self.__dict__['__name__']}")

    def resolve(self) -> Any:
        """The class itself."""
        return getattr(importlib.import_module(self.__module__), self.__dict__["__name__"])


class StoredConfig:
    """Stands for ``Config`` while a file is read; it is made without being called, and then filled."""

    def __init__(self, *_: object) -> None:
        raise Refused(f"{REFUSED}a call of Config")


def _stand_in(value: Any, module: str, name: str) -> None:
    """Let files say ``module.name`` and get ``value``, to which torch matches the name by these attributes."""
    value.__module__, value.__name__, value.__qualname__ = module, name, name
    _stand_ins[f"{module}.{name}"] = value


def _function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of ``function`` that can be given another name."""
    return types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)


def allow(*classes: type) -> None:
    """Let checkpoints mention these classes, as the model class that their ``Config`` names.

    Parameters
    ----------
    *classes : type
        Known to files by ``__module__`` and ``__qualname__``. A file can't call them.
    """
    for cls in classes:
        _stand_in(_Mention(), cls.__module__, cls.__qualname__)


def check_data_by(check: Callable[[str, dict[str, Any], Any], None]) -> None:
    """Have :func:`load_data_and_model` call ``check`` with the file, the checkpoint and the data set it is to fit."""
    _data_checks.append(check)


@functools.cache
def _recbole_models() -> tuple[tuple[str, str], ...]:
    """Module and name of RecBole's own models, read from the files; importing them all would take long."""
    root = Path(str(importlib.import_module("recbole").__file__)).parent
    found = []
    for path in sorted(root.glob("model/*_recommender/*.py")):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        names = re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found += [(module, name) for name in names if name.lower() == path.stem]
    return tuple(found)


def _by_value(enum: Any) -> Callable[[Any], Any]:
    """Look a member up; with the class itself allowed, a file could change the members."""
    return lambda value: enum(value)


def allow_what_recbole_saves() -> None:
    """Allow what RecBole's checkpoints were seen to hold beyond tensors and plain values."""
    enums = importlib.import_module("recbole.utils.enum_type")
    for name in ("ModelType", "InputType", "EvaluatorType"):
        _stand_in(_by_value(getattr(enums, name)), "recbole.utils.enum_type", name)
    _stand_in(StoredConfig, "recbole.config.configurator", "Config")
    _stand_in(_Mention(), "yaml.loader", "FullLoader")
    for module, name in _recbole_models():
        _stand_in(_Mention(), module, name)
    for core in ("numpy._core.multiarray", "numpy.core.multiarray"):  # since and until numpy 2
        _stand_in(_function(plain_scalar), core, "scalar")
    _stand_in(_function(plain_dtype), "numpy", "dtype")
    _stand_in(_function(plain_bytes), "_codecs", "encode")  # allowed by torch itself since 2.5
    for cls in {type(np.dtype(code)) for code in "?bhilqBHILQefd"}:
        _stand_ins[f"{cls.__module__}.{cls.__qualname__}"] = cls
    for kind in (datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone):
        _stand_ins[f"datetime.{kind.__name__}"] = kind


def is_model(path: str) -> bool:
    """Whether files may mention the class of this full name."""
    return isinstance(_stand_ins.get(path), _Mention)


def model_names() -> list[str]:
    """Names of RecBole's models and those given to :func:`allow`."""
    return sorted(path.rpartition(".")[2] for path in _stand_ins if is_model(path) and path != "yaml.loader.FullLoader")


@contextmanager
def allowed_alone(*values: Any) -> Iterator[None]:
    """Let ``torch.load`` allow these beyond its own, but not what others allowed, while this lasts."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(values))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def load(file: Any, map_location: Any = None, **_: Any) -> Any:
    """Load a checkpoint of RecBole; runs nothing that the file brings.

    Parameters
    ----------
    file : str or path-like
    map_location
        As of ``torch.load``; whatever else is given is ignored.

    Returns
    -------
    dict
        ``config`` (``Config``), ``epoch``, ``state_dict``, ``optimizer`` and more.

    Raises
    ------
    CheckpointError
        There is no such file, it is truncated or was changed since it was saved, it is not a checkpoint, or it holds a
        class that isn't allowed.
    """
    path = os.fspath(file)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with allowed_alone(*_stand_ins.values()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_reason(str(error))}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, or a truncated one ({_first_line(error)}); train again or take another copy"
        ) from error
    if not isinstance(checkpoint, dict) or not all(part in checkpoint for part in PARTS):
        raise CheckpointError(f"{path}: not a checkpoint of RecBole, which holds {', '.join(PARTS)}")
    checkpoint["config"] = _real_config(path, checkpoint["config"])
    # torch checks no sums of what it reads; files of RecBole without this plugin have no digest.
    if DIGEST in checkpoint and checkpoint[DIGEST] != _digest(checkpoint):
        raise CheckpointError(f"{path}: damaged, or changed since it was saved; take another copy or train again")
    check = _check.get()
    if check is not None:
        check(path, checkpoint)
    return checkpoint


def _digest(checkpoint: dict[str, Any]) -> str:
    return digest({name: value for name, value in checkpoint.items() if name != DIGEST})


def _reason(text: str) -> str:
    """What ``torch.load`` objects to, in one line."""
    found = re.search(rf"GLOBAL (\S+) was not an allowed global|unsupported GLOBAL (\S+)|{REFUSED}(.*)", text)
    if found:
        what = found[1] or found[2] or found[3]
        return f"holds {what}, which checkpoints of RecBole don't; not loaded, since it may run code"
    if "operand 149" in text:
        return (
            "saved by RecBole without this plugin, in a format that can't be loaded safely; train again or, if you "
            "trust the file, save it anew: torch.save(torch.load(file, weights_only=False), file)"
        )
    return f"not a checkpoint of RecBole, or a damaged one ({_first_line(text)})"


def _first_line(error: object) -> str:
    """The line of an error that says what is wrong."""
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = found[1] if found else (lines or [type(error).__name__])[0]
    return line.partition(". ")[0].rstrip(".")  # the first sentence; torch adds advice for its developers


def _real_config(path: str, stored: Any) -> Any:
    """The ``Config`` that a stand-in was filled for."""
    if type(stored) is not StoredConfig or not isinstance(vars(stored).get("final_config_dict"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of RecBole; its config is something else")
    config_class = importlib.import_module("recbole.config.configurator").Config
    config = config_class.__new__(config_class)
    config.compatibility_settings()  # as its constructor does, for `np.float` and others that RecBole uses
    for name, value in vars(stored).items():
        if hasattr(config_class, name):
            raise CheckpointError(f"{path}: its config has a {name} of its own; not loaded")
        config.__dict__[name] = value.resolve() if isinstance(value, _Mention) else value
    teacher = config["teacher"]
    if teacher is not None and (not str(teacher).isidentifier() or hasattr(builtins, teacher)):
        # model/context_aware_recommender/kd_dagfm.py:44 evaluates it.
        raise CheckpointError(f"{path}: its option teacher is {teacher!r}, not the name of a model; not loaded")
    return config


@contextmanager
def adding(entries: dict[str, Any]) -> Iterator[None]:
    """Have every checkpoint that is saved meanwhile hold these entries too: plain data and tensors."""
    token = _added.set({**_added.get({}), **entries})
    try:
        yield
    finally:
        _added.reset(token)


@contextmanager
def checking(check: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Call ``check`` with the file and the checkpoint of every one that is loaded meanwhile."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def save(state: Any, file: Any, **_: Any) -> None:
    """Save a checkpoint in torch's default format with a digest of its entries, completely or not at all.

    Parameters
    ----------
    state : object
    file : str or path-like
        What stands there stays until the new file is complete.

    Raises
    ------
    OSError
        It can't be written, for instance since the disk is full.
    """
    if isinstance(state, dict) and all(part in state for part in PARTS):
        state = {**state, **_added.get({})}
        state[DIGEST] = _digest(state)
    try:
        with AtomicFile(os.fspath(file)) as handle:
            torch.save(state, handle)
    except RuntimeError as error:
        # torch tells of its writer, not of the disk.
        reason = _os_error(error)
        if reason is None:
            raise
        raise OSError(reason.errno, reason.strerror, os.fspath(file)) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind another one."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def mend_trainer() -> None:
    """Save and load checkpoints in one format, without trusting them (trainer/trainer.py:308, :323, :583, :770, :999).

    RecBole saves with ``pickle_protocol=4``, which ``weights_only=True``, torch's default since 2.6, can't read
    (``Unsupported operand 149``); it loads by that default, which refuses ``Config``; before 2.6 the default ran
    whatever a file said. A write that failed left half a file in the place of the last good one.
    """
    allow_what_recbole_saves()
    module = importlib.import_module(TRAINER)
    overlay(module, "torch", save=save, load=load)
    override(module.Trainer, "resume_checkpoint", _fitting)
    override(module.Trainer, "evaluate", _fitting_best)


def _fitting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def resume_checkpoint(self: Any, resume_file: Any) -> None:
        with _fits(resume_file, self.config["model"]):
            try:
                original(self, resume_file)
            except KeyError as error:
                raise CheckpointError(f"{resume_file}: holds no {error.args[0]}; train anew") from error

    return resume_checkpoint


def _fitting_best(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def evaluate(
        self: Any, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        with _fits(model_file or self.saved_model_file, self.config["model"]):
            return original(self, eval_data, load_best_model, model_file, show_progress)

    return evaluate


@contextmanager
def _fits(file: Any, model: str) -> Iterator[None]:
    """Say in one line that a checkpoint was made for another model, or other data."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "state_dict" not in str(error) and "state dict" not in str(error):
            raise
        detail = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), _first_line(error))
        raise CheckpointError(
            f"{file}: made for another model, other options or other data than {model}: {detail}"
        ) from error


def mend_load_data_and_model() -> None:
    """Load a saved model by the same rules (quick_start/quick_start.py:250), on whatever machine it is now.

    The function imports torch by itself, so that it has to be replaced as a whole. Besides, a model trained on a GPU,
    or by several processes, couldn't be loaded without one, or by a single one.
    """
    module = importlib.import_module(QUICK_START)
    override_everywhere(module, "load_data_and_model", lambda _: load_data_and_model)


def load_data_and_model(model_file: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """RecBole's ``load_data_and_model``.

    Parameters
    ----------
    model_file : str or path-like
        A checkpoint.

    Returns
    -------
    tuple
        Config, model, dataset, and the loaders for training, validation and test.

    Raises
    ------
    CheckpointError
        See :func:`load`; also where model and file don't fit each other.
    """
    recbole = importlib.import_module(QUICK_START)
    checkpoint = load(model_file, map_location="cpu")
    config = checkpoint["config"]
    _bring_home(config)
    recbole.init_seed(config["seed"], config["reproducibility"])
    recbole.init_logger(config)
    recbole.getLogger().info(config)

    dataset = recbole.create_dataset(config)
    recbole.getLogger().info(dataset)
    train_data, valid_data, test_data = recbole.data_preparation(config, dataset)
    for check in _data_checks:
        check(os.fspath(model_file), checkpoint, train_data._dataset)

    recbole.init_seed(config["seed"], config["reproducibility"])
    model = recbole.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    with _fits(model_file, config["model"]):
        model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))
    return config, model, dataset, train_data, valid_data, test_data


def _bring_home(config: Any) -> None:
    """Forget the GPU and the other processes that are not here."""
    if torch.device(config["device"]).type == "cuda" and not torch.cuda.is_available():
        config["device"] = torch.device("cpu")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        config["single_spec"], config["local_rank"] = True, 0
