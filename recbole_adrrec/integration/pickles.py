"""Saved datasets and dataloaders, read without running what is in them.

RecBole loads such files by itself when it finds one that looks fresh, and a pickle may call anything. Here a file may
only name what such files really contain: instances of listed classes, which are made empty and filled but never
constructed, and a few functions, most of them replaced by ones that check their arguments.
"""

from __future__ import annotations

import collections
import datetime
import importlib
import io
import logging
import pickle
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.files import open_atomic
from recbole_adrrec.integration.checkpoints import allowed_alone, is_model
from recbole_adrrec.integration.patching import overlay
from recbole_adrrec.integration.plain_numpy import Refused, plain_dtype, plain_scalar

DATA_UTILS = "recbole.data.utils"
DATASET = "recbole.data.dataset.dataset"
CONFIG = "recbole.config.configurator.Config"

INSTANCES: dict[str, tuple[str, ...]] = {
    "recbole.config.configurator": ("Config",),
    "recbole.data.interaction": ("Interaction",),
    "recbole.data.dataset.dataset": ("Dataset",),
    "recbole.data.dataset.sequential_dataset": ("SequentialDataset",),
    "recbole.data.dataset.kg_dataset": ("KnowledgeBasedDataset",),
    "recbole.data.dataset.kg_seq_dataset": ("KGSeqDataset",),
    "recbole.data.dataset.decisiontree_dataset": ("DecisionTreeDataset",),
    "recbole.data.dataset.customized_dataset": ("GRU4RecKGDataset", "KSRDataset", "DIENDataset"),
    "recbole.data.dataloader.general_dataloader": (
        "TrainDataLoader",
        "NegSampleEvalDataLoader",
        "FullSortEvalDataLoader",
    ),
    "recbole.data.dataloader.knowledge_dataloader": ("KGDataLoader", "KnowledgeBasedDataLoader"),
    "recbole.data.dataloader.user_dataloader": ("UserDataLoader",),
    "recbole.data.transform": (
        "Equal",
        "MaskItemSequence",
        "InverseItemSequence",
        "CropItemSequence",
        "ReorderItemSequence",
        "UserDefinedTransform",
    ),
    "recbole.sampler.sampler": ("Sampler", "KGSampler", "RepeatableSampler", "SeqSampler"),
    "torch.utils.data.sampler": ("RandomSampler", "SequentialSampler", "BatchSampler"),
}
"""Classes whose instances such files hold, by module."""

ENUMS = ("ModelType", "KGDataLoaderState", "EvaluatorType", "InputType", "FeatureType", "FeatureSource")
FOREIGN_ORDER = ">" if sys.byteorder == "little" else "<"
BOUND = ("collate_fn", "_neg_sample_by_pair_wise_sampling", "_neg_sample_by_point_wise_sampling")
"""Methods that a dataloader keeps bound to itself."""

_instances = {f"{module}.{name}": (module, name) for module, names in INSTANCES.items() for name in names}


def allow_pickled(module: str, name: str) -> None:
    """Let saved datasets and dataloaders hold instances of ``module.name``, imported when a file does.

    Parameters
    ----------
    module, name : str
        The class is filled by its ``__setstate__``, where it has one, or its ``__dict__``; it isn't constructed.
    """
    _instances[f"{module}.{name}"] = (module, name)


class _Mention:
    """What a file named. It can't be called, so that it does no harm wherever the file puts it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def make(self, *arguments: Any) -> Any:
        """What calling it gives, where that is allowed."""
        if self.path not in CALLS:
            raise Refused(f"a call of {self.path}")
        return CALLS[self.path](*arguments)

    def empty(self) -> Any:
        """An empty instance of the class, where that is allowed."""
        if self.path not in _instances:
            raise Refused(f"an instance of {self.path}")
        cls = self.resolve()
        return object.__new__(cls)

    def resolve(self) -> Any:
        """The class itself."""
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def _bound(owner: Any, name: Any) -> Any:
    if name not in BOUND or not isinstance(owner, torch.utils.data.DataLoader):
        raise Refused(f"getattr of {name!r}")
    return MethodType(getattr(type(owner), name), owner)


def _array(kind: _Mention, shape: tuple[int], code: bytes) -> np.ndarray:
    if kind.path != "numpy.ndarray" or shape != (0,):
        raise Refused(f"an array of {kind.path}")
    return np.ndarray(0, dtype=np.int8)


def _storage(data: bytes) -> Any:
    with allowed_alone():
        return torch.load(io.BytesIO(data), weights_only=True)


def _tensor(storage: Any, *layout: Any) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused("a tensor without a storage")
    return torch._utils._rebuild_tensor_v2(storage, *layout)


def _collection(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Make a collection of plain ones; an instance could pass for an iterable or a mapping of its own."""

    def make(*content: Any) -> Any:
        if any(type(part) not in (list, tuple, dict, int, type(None)) for part in content):
            raise Refused("a collection of something else than plain values")
        return kind(*content)

    return make


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    factories: dict[str, Callable[[], Any]] = {"builtins.int": int, "builtins.list": list, "builtins.set": set}
    if factory is None:
        return collections.defaultdict()
    return collections.defaultdict(factories[factory.path])


def _enum(name: str) -> Callable[[Any], Any]:
    return lambda value: getattr(importlib.import_module("recbole.utils.enum_type"), name)(value)


def rebuild_frame(names: list[str], columns: list[np.ndarray], index: np.ndarray | None) -> pd.DataFrame:
    """A frame from what :func:`dump` makes of one.

    Parameters
    ----------
    names : list of str
    columns : list of array, [n_rows] each
    index : array, [n_rows], optional
        Unset: the rows are numbered from 0.
    """
    return pd.DataFrame(dict(zip(names, columns, strict=True)), index=index, columns=names)


CALLS: dict[str, Callable[..., Any]] = {
    f"{__name__}.rebuild_frame": rebuild_frame,
    "builtins.getattr": _bound,
    "builtins.slice": _collection(slice),
    "builtins.range": _collection(range),
    "builtins.set": _collection(set),
    "builtins.frozenset": _collection(frozenset),
    "collections.OrderedDict": _collection(collections.OrderedDict),
    "collections.Counter": _collection(collections.Counter),
    "collections.defaultdict": _default_dict,
    "datetime.date": datetime.date,
    "datetime.datetime": datetime.datetime,
    "logging.getLogger": logging.getLogger,
    "numpy.dtype": plain_dtype,
    "numpy.core.multiarray.scalar": plain_scalar,
    "numpy._core.multiarray.scalar": plain_scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "torch.device": torch.device,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    **{f"recbole.utils.enum_type.{name}": _enum(name) for name in ENUMS},
}
"""Functions that such files call, as far as they may."""

NAMES = ("numpy.ndarray", "builtins.int", "builtins.list", "yaml.loader.FullLoader")
"""What is named only to be passed to those."""


class Unpickler(pickle._Unpickler):
    """Python's unpickler, with each way to run something narrowed to the lists above."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    metastack: list[list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        """The only way to anything outside the file."""
        path = f"{module}.{name}"
        if path in CALLS or path in _instances or path in NAMES or is_model(path):
            return _Mention(path)
        raise Refused(path)

    def get_extension(self, code: int) -> None:
        """Codes stand for names registered elsewhere."""
        raise Refused(f"extension code {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Such files hold no references to others."""
        raise Refused("a reference to another file")

    def load_reduce(self) -> None:
        """Call a listed function."""
        arguments = self.stack.pop()
        self.stack[-1] = _mention(self.stack[-1]).make(*arguments)

    def load_newobj(self) -> None:
        """Make an empty instance of a listed class."""
        arguments = self.stack.pop()
        if arguments:
            raise Refused("an instance made with arguments")
        self.stack[-1] = _mention(self.stack[-1]).empty()

    def load_build(self) -> None:
        """Fill such an instance, or an array."""
        state = self.stack.pop()
        _fill(self.stack[-1], state)

    def load_refused(self) -> None:
        """Ways that no file of RecBole goes."""
        raise Refused("an instruction that such files don't have")


def _mention(value: Any) -> _Mention:
    if type(value) is not _Mention:
        raise Refused(f"a call of {type(value).__name__}")
    return value


def _put(opcode: bytes, *kinds: type, marked: bool) -> None:
    """Let an instruction that puts items into something put them into these kinds alone.

    Python calls ``append`` and the like of whatever stands there, and an instance may bring its own.
    """
    plain: Callable[[Any], None] = pickle._Unpickler.dispatch[opcode[0]]

    def load(self: Unpickler) -> None:
        target = self.metastack[-1][-1] if marked else self.stack[-3 if opcode == pickle.SETITEM else -2]
        if type(target) not in kinds:
            raise Refused(f"items put into {type(target).__name__}")
        plain(self)

    Unpickler.dispatch[opcode[0]] = load


_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_put(pickle.APPEND, list, marked=False)
_put(pickle.APPENDS, list, marked=True)
_put(pickle.ADDITEMS, set, marked=True)
_put(pickle.SETITEM, *_DICTS, marked=False)
_put(pickle.SETITEMS, *_DICTS, marked=True)
Unpickler.dispatch[pickle.REDUCE[0]] = Unpickler.load_reduce
Unpickler.dispatch[pickle.NEWOBJ[0]] = Unpickler.load_newobj
Unpickler.dispatch[pickle.BUILD[0]] = Unpickler.load_build
for _opcode in (pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST, pickle.PERSID, pickle.BINPERSID):
    Unpickler.dispatch[_opcode[0]] = Unpickler.load_refused
for _opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
    Unpickler.dispatch[_opcode[0]] = Unpickler.load_refused


def _fill(instance: Any, state: Any) -> None:
    """Set the state of an instance that a file holds."""
    kind = type(instance)
    if kind is np.ndarray:
        _fill_array(instance, state)
        return
    if isinstance(instance, np.dtype):
        # It is numpy's own instance for its name (see `plain_dtype`), which is right unless its bytes are swapped.
        if state[1] == FOREIGN_ORDER:
            raise Refused("numbers in the other byte order")
        return
    path = f"{kind.__module__}.{kind.__qualname__}"
    if path not in _instances:
        raise Refused(f"a state for {path}")
    if getattr(kind, "__setstate__", None) is not None:
        instance.__setstate__(state)
        return
    if not isinstance(state, dict):
        raise Refused(f"a state of {path} that is no dict")
    for name, value in state.items():
        if path == CONFIG and name in ("model_class", "yaml_loader") and isinstance(value, _Mention):
            value = value.resolve()
        elif callable(getattr(kind, name, None)) and not (name in BOUND and isinstance(value, MethodType)):
            raise Refused(f"a {name} of its own in {path}")
        instance.__dict__[name] = value


def _fill_array(array: np.ndarray, state: Any) -> None:
    """Set shape, dtype and content, once it is sure that they fit each other."""
    _, shape, dtype, _, data = state
    if not isinstance(dtype, np.dtype) or dtype != plain_dtype(dtype.str.lstrip("<>|=")):
        raise Refused("an array of another kind than plain ones")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise Refused("an array of an impossible shape")
    size = 1
    for length in shape:
        size *= length
    kind, length = (list, size) if dtype.kind == "O" else (bytes, size * dtype.itemsize)
    if type(data) is not kind or len(data) != length:
        raise Refused("an array with too few or too many values")
    array.__setstate__(state)


class _Pickler(pickle.Pickler):
    """Writes frames column by column; how pandas pickles them differs between its versions, and reaches deep."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not pd.DataFrame:
            return NotImplemented
        numbered = isinstance(value.index, pd.RangeIndex) and value.index.equals(pd.RangeIndex(len(value)))
        columns = [np.asarray(value[name]) for name in value.columns]
        return rebuild_frame, (
            [str(name) for name in value.columns],
            columns,
            None if numbered else np.asarray(value.index),
        )


def dump(value: Any, file: Any) -> None:
    """Pickle a dataset or dataloaders in a form that :func:`load` reads."""
    _Pickler(file, protocol=4).dump(value)


def load(file: Any) -> Any:
    """Read a saved dataset, or saved dataloaders; runs nothing that the file brings.

    Parameters
    ----------
    file : binary file

    Raises
    ------
    CheckpointError
        The file is truncated or damaged, or holds something that such files don't.
    """
    path = getattr(file, "name", "saved dataset")
    remedy = "delete the file, and it is made anew from the data"
    try:
        value = Unpickler(file).load()
    except Refused as error:
        raise CheckpointError(f"{path}: holds {error}, which may run code; not loaded: {remedy}") from error
    except Exception as error:
        raise CheckpointError(f"{path}: truncated or damaged ({type(error).__name__}: {error}); {remedy}") from error
    dataset = importlib.import_module(DATASET).Dataset
    if not isinstance(value, dataset | list):
        raise CheckpointError(f"{path}: holds neither a dataset nor dataloaders; {remedy}")
    return value


def mend_saved_data() -> None:
    """Read and write saved datasets and dataloaders safely (data/utils.py:61, :99, :122; data/dataset/dataset.py:1886).

    RecBole passes whatever lies at ``saved/<dataset>-<class>.pth`` and the like to ``pickle.load``, which runs what the
    file says, and writes over the last good file in place.
    """
    for name in (DATA_UTILS, DATASET):
        module = importlib.import_module(name)
        module.open = open_atomic  # type: ignore[attr-defined]
        overlay(module, "pickle", load=load, dump=dump)


def count_as_dataset_argument(*names: str) -> None:
    """Let a saved dataset count as stale when one of these options differs (data/utils.py:63, :130).

    Parameters
    ----------
    *names : str
        Added to the list that RecBole compares, once.
    """
    arguments = importlib.import_module("recbole.utils.argument_list").dataset_arguments
    arguments.extend(name for name in names if name not in arguments)
