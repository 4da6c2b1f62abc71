"""Checkpoints: plain data, written whole, and read without running anything that a file brings.

A checkpoint is one dict of tensors, numbers, strings, lists and dicts, which ``torch.load(weights_only=True)`` reads:

- ``format``, ``version``: of this layout, and of the package that wrote it;
- ``config``: ``model``, ``dataset``, ``options`` (all of them) and ``given`` (those that the user gave), as values;
- ``epoch``, ``cur_step``, ``best_valid_score``, ``state_dict``, ``other_parameter``, ``optimizer``: RecBole's entries;
- ``training``: what training goes on from (:mod:`recbole_adrrec.integration.trainer`);
- ``data``: names and events (:mod:`recbole_adrrec.integration.checkpoint_data`);
- ``fingerprint``: of all the others.
"""

from __future__ import annotations

import builtins
import copy
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_adrrec import options as rules
from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.version import __version__

FORMAT = 2
"""Of this layout; 1 was that of version 0.1, which pickled RecBole's ``Config``."""

ENUMS = {"MODEL_TYPE": "ModelType", "MODEL_INPUT_TYPE": "InputType", "eval_type": "EvaluatorType"}
"""Options whose values are enums of ``recbole.utils.enum_type``; they are stored by name."""

TENSOR_PARTS = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_tensor_v2|torch\.\w+Storage")
"""Classes and functions that the pickle of a checkpoint names."""

DEEPEST = 100
"""Values within one another, at most."""

MOST_REPEATS = 10
"""Times that the values of a file may be larger than it: weights that layers share stand in it once."""


def plain(value: Any, where: str) -> Any:
    """A value as nested lists, dicts, numbers, strings and tensors; ``where`` names it if it holds something else."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {plain(key, where): plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [plain(entry, where) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{where} is of type {type(value).__name__}, which checkpoints don't hold; train with saved=False"
    )


def plain_option(value: Any) -> Any:
    """The value of an option as it is stored and compared; what is no plain value by its text."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, int | float) else str(key): plain_option(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_option(entry) for entry in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def config_entry(config: Any) -> dict[str, Any]:
    """The entry ``config`` of a checkpoint, from RecBole's ``Config``."""
    return {
        "model": str(config.model),
        "dataset": str(config.dataset),
        "options": plain_option(config.final_config_dict),
        "given": plain_option(config.external_config_dict),
    }


def save_checkpoint(entries: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
    """Save a checkpoint, completely or not at all; what stands there stays until then.

    ``entries`` are everything but ``format``, ``version`` and ``fingerprint``.

    Raises
    ------
    OSError
        It can't be written, for instance since the disk is full.
    CheckpointError
        An entry is no plain data.
    """
    state = {**{name: plain(entry, name) for name, entry in entries.items()}, "format": FORMAT, "version": __version__}
    state.pop("fingerprint", None)
    state["fingerprint"] = fingerprint(state)
    try:
        with AtomicFile(os.fspath(file)) as handle:
            torch.save(state, handle)
    except RuntimeError as error:
        # torch speaks of its writer; the error of the disk stands behind it.
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__cause__ or reason.__context__
        if reason is None:
            raise
        raise OSError(reason.errno, reason.strerror, os.fspath(file)) from error


def load_checkpoint(file: str | os.PathLike[str], map_location: Any = None, **_: Any) -> dict[str, Any]:
    """Load the entries of a checkpoint; runs nothing that the file brings.

    ``map_location`` is as of ``torch.load``; whatever else is given is ignored.

    Raises
    ------
    CheckpointError
        There is no such file, it is truncated or was changed since it was saved, it is not a checkpoint of this
        package, or one of version 0.1 or of RecBole alone.
    """
    path = os.fspath(file)
    checkpoint = _read_archive(path, map_location)
    if not isinstance(checkpoint, dict) or type(checkpoint.get("format")) is not int:
        raise CheckpointError(f"{path}: not a checkpoint of recbole_adrrec")
    _check_plain(checkpoint, path)
    if checkpoint["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: saved by a later version, {checkpoint.get('version')}, in a format unknown to this one"
        )
    expected = checkpoint.pop("fingerprint", None)
    if fingerprint(checkpoint) != expected:
        raise CheckpointError(f"{path}: damaged, or changed since it was saved; take another copy or train again")
    if not _is_well_formed(checkpoint):
        raise CheckpointError(f"{path}: its options or weights are not what this package writes; train again")
    checkpoint["fingerprint"] = expected
    return checkpoint


def _read_archive(path: str, map_location: Any) -> Any:
    """Read a file by ``torch.load``, if that takes no more memory than the file has bytes."""
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        # Without an archive, torch would read an older format of its own, and take the room that the file asks for.
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            names = {member.filename.lower() for member in members}
            size = sum(member.file_size for member in members)
            if packed or len(names) < len(members) or size > os.path.getsize(path):
                raise CheckpointError(f"{path}: packed, as no checkpoint is; not loaded, since it may take any memory")
            for member in members:
                if member.filename.lower().endswith("data.pkl"):
                    _check_pickle(archive.read(member), path)
        return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, or a truncated one ({first_line(error)}); train again or take another copy"
        ) from error


def _check_pickle(pickled: bytes, path: str) -> None:
    """Refuse a pickle that names other functions and classes than those that tensors are made with.

    ``torch.load`` refuses those that run code, but has some that take any memory.
    """
    for code, argument, _ in pickletools.genops(pickled):
        name = str(argument).replace(" ", ".") if code.name in ("GLOBAL", "INST") else None
        if code.name == "FRAME" or (name is not None and name.startswith("recbole.config.")):
            raise CheckpointError(
                f"{path}: saved by version 0.1 or by RecBole alone, in a format that may run code when it is read; if "
                f"you trust the file, convert it once: python -m recbole_adrrec upgrade-checkpoint {path} -o NEW "
                "--trust"
            )
        if name is not None and not TENSOR_PARTS.fullmatch(name):
            raise CheckpointError(f"{path}: holds {name}, which checkpoints don't; not loaded, since it may run code")


def _check_plain(checkpoint: dict[str, Any], path: str) -> None:
    """Refuse values that :func:`plain` never makes, and those that are more than a file of this size holds.

    Whatever is done with all values of a checkpoint, such as taking its fingerprint, ends soon and needs little memory.
    """
    left = MOST_REPEATS * os.path.getsize(path) + 2**20
    waiting: list[tuple[Any, int]] = [(checkpoint, 0)]
    met = set()
    while waiting:
        value, depth = waiting.pop()
        if type(value) in (dict, list, tuple):
            if value and (id(value) in met or depth > DEEPEST):
                raise CheckpointError(f"{path}: its values stand in one another without end; not loaded")
            met.add(id(value))
            if type(value) is dict:
                waiting.extend((key, depth + 1) for key in value)
            waiting.extend((entry, depth + 1) for entry in (value.values() if type(value) is dict else value))
        elif type(value) is Tensor and _is_dense(value):
            left -= value.numel() * value.element_size()
        elif type(value) is str:
            left -= len(value)
        elif type(value) not in (int, float, bool, type(None)):
            raise CheckpointError(f"{path}: holds a {type(value).__name__} that checkpoints don't; not loaded")
        if left < 0:
            raise CheckpointError(f"{path}: its values are larger than the file; not loaded")


def _is_dense(tensor: Tensor) -> bool:
    """True for a tensor of numbers that all have their own place in memory."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_well_formed(checkpoint: dict[str, Any]) -> bool:
    config, weights = checkpoint.get("config"), checkpoint.get("state_dict")
    return (
        isinstance(config, dict)
        and all(isinstance(config.get(name), str) for name in ("model", "dataset"))
        and all(isinstance(config.get(name), dict) for name in ("options", "given"))
        and all(isinstance(name, str) for part in ("options", "given") for name in config[part])
        and all(config["options"].get(name, config[name]) == config[name] for name in ("model", "dataset"))
        and is_file_name(config["dataset"])  # a part of those of logs
        and isinstance(weights, dict)
        and all(isinstance(value, Tensor) for value in weights.values())
        and all(isinstance(name, str) and name.isprintable() for name in weights)
    )


def is_file_name(text: str) -> bool:
    """True for a name without a folder that a file can have."""
    plain_name = os.path.basename(text) == text not in ("", ".", "..") and text.isprintable()
    return plain_name and len(text.encode()) < 256


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the checkpoint in complaints about options that it brings."""
    try:
        yield
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}; the file was changed, or saved by another version") from error


def first_line(error: object) -> str:
    """The line of an error that says what is wrong."""
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = found[1] if found else (lines or [type(error).__name__])[0]
    return line.partition(". ")[0].rstrip(".")  # the first sentence; torch adds advice for its developers


def _device(stored: Any) -> torch.device:
    """A device by its name; a number would mean an accelerator, on some machines any."""
    if not isinstance(stored, str):
        raise TypeError(f"device: {stored!r} is not the name of a device")
    return torch.device(stored)


def restore_config(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> Any:
    """RecBole's ``Config`` with the options of a checkpoint; ``CheckpointError`` where one has an impossible value.

    It is made without its constructor, which passes every string to ``eval``.
    """
    from recbole.config import Config
    from recbole.utils import enum_type, get_model

    stored = copy.deepcopy(checkpoint["config"])
    options = stored["options"]
    try:
        for name, kind in ENUMS.items():
            if options.get(name) is not None:
                options[name] = getattr(enum_type, kind)[options[name]]
        options["device"] = _device(options["device"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its options can't be read ({first_line(error)}); train again") from error
    with named(path):
        rules.check_model(stored["model"])
        model_class = get_model(stored["model"])
        if stored["model"] in rules.MODEL_OPTIONS:
            rules.check_values(options, stored["model"])
    teacher = options.get("teacher")
    if teacher is not None and (not str(teacher).isidentifier() or hasattr(builtins, str(teacher))):
        # model/context_aware_recommender/kd_dagfm.py:44 evaluates it.
        raise CheckpointError(f"{path}: its option teacher is {teacher!r}, not the name of a model; not loaded")
    config = Config.__new__(Config)
    config.compatibility_settings()  # as its constructor does, for `np.float` and others that RecBole uses
    config._init_parameters_category()
    config.yaml_loader = config._build_yaml_loader()
    config.model, config.dataset = stored["model"], stored["dataset"]
    config.model_class = model_class
    config.file_config_dict, config.cmd_config_dict, config.internal_config_dict = {}, {}, {}
    config.variable_config_dict = config.external_config_dict = stored["given"]
    config.final_config_dict = options
    return config


def shape_difference(stored: Mapping[str, Any], model: torch.nn.Module) -> str | None:
    """The first parameter or buffer that has another shape in a model than in stored weights."""

    def shapes(state: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}

    have, want = shapes(stored), shapes(model.state_dict())
    for name in sorted({*have, *want}):
        if have.get(name) != want.get(name):
            return f"{name} is {have.get(name, 'absent')} there and {want.get(name, 'absent')} here"
    return None


def load_weights(model: Any, checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Load the weights of a checkpoint into a RecBole model, all of them or, with a ``CheckpointError``, none."""
    difference = shape_difference(checkpoint["state_dict"], model)
    if difference is not None:
        raise CheckpointError(
            f"{path} doesn't fit this {type(model).__name__}: {difference}; it was made for another model, with other "
            "data or other options"
        )
    other = checkpoint.get("other_parameter")
    other = {} if other is None else other
    if not isinstance(other, dict) or not {*other} <= {*(model.other_parameter() or {})}:
        raise CheckpointError(f"{path}: its other_parameter isn't that of a {type(model).__name__}; train again")
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(other)
