"""Models made again from checkpoints: with their data set, as RecBole does, or without it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.integration.checkpoint import (
    first_line,
    load_checkpoint,
    load_weights,
    restore_config,
    shape_difference,
)
from recbole_adrrec.integration.checkpoint_data import CheckpointData, check_same_data


def load_data_and_model(model_file: str | os.PathLike[str]) -> tuple[Any, Any, Any, Any, Any, Any]:
    """RecBole's ``load_data_and_model`` (quick_start/quick_start.py:232), on whatever machine it is now.

    Gives config, model, dataset, and the loaders for training, validation and test. ``CheckpointError`` as of
    :func:`load_checkpoint`, and where the file doesn't fit the model or the data.
    """
    checkpoint = load_checkpoint(model_file, map_location="cpu")
    config = restore_config(checkpoint, model_file)
    try:
        return _with_data(config, checkpoint, model_file)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{model_file}: its model and data can't be made again ({first_line(error)}); the data files moved, or the "
            "file was changed, or saved by another version"
        ) from error


def _with_data(config: Any, checkpoint: Mapping[str, Any], model_file: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    from recbole.quick_start import quick_start as recbole

    if config["device"].type == "cuda" and not torch.cuda.is_available():
        config["device"] = torch.device("cpu")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        config["single_spec"], config["local_rank"] = True, 0
    # What the run of the file began with is no matter of its model.
    config["resume"] = config["init_from"] = None
    recbole.init_seed(config["seed"], config["reproducibility"])
    recbole.init_logger(config)
    recbole.getLogger().info(config)

    dataset = recbole.create_dataset(config)
    recbole.getLogger().info(dataset)
    train_data, valid_data, test_data = recbole.data_preparation(config, dataset)
    check_same_data(checkpoint, train_data._dataset, model_file)

    recbole.init_seed(config["seed"], config["reproducibility"])
    with no_more_than(checkpoint["state_dict"], config):
        model = recbole.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    load_weights(model, checkpoint, model_file)
    return config, model, dataset, train_data, valid_data, test_data


@contextmanager
def no_more_than(weights: Mapping[str, Tensor], config: Any) -> Iterator[None]:
    """While this lasts, no module of this thread gets many more parameters than there are weights.

    Options of a changed file may ask for any size; a parameter is refused before its numbers are drawn. RecBole's
    Transformer copies its layers, which registers nothing: their number is looked at before.
    """
    layers = config["n_layers"]
    if isinstance(layers, int) and layers > len(weights):
        raise ValueError(f"n_layers: {layers} layers, and {len(weights)} weights in the file")
    thread, met = threading.get_ident(), dict[int, int]()
    most = 2 * sum(weight.numel() for weight in weights.values()) + 10**6

    def count(module: torch.nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None and threading.get_ident() == thread:
            met[id(parameter)] = parameter.numel()
            if sum(met.values()) > most or len(met) > 2 * len(weights) + 100:
                raise ValueError("it has more parameters than the file has weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class _NotStoredError(AttributeError):
    pass


class DatasetStandIn:
    """Stands for the data set when a model is made again: the few facts that models read of it.

    They come from the options of the run, ``config``, the checkpoint's data, and its weights, ``state``: buffers that
    models read off the data are among them.
    """

    def __init__(self, config: Any, data: CheckpointData, state: Mapping[str, Tensor]) -> None:
        self.dataset_name = data.dataset
        self.uid_field, self.iid_field, self.time_field = data.user_field, data.item_field, data.time_field
        self.user_num, self.item_num = data.n_users, len(data.items)
        self.field2seqlen = {f"{self.iid_field}{config['LIST_SUFFIX']}": config["MAX_ITEM_LIST_LENGTH"]}
        self._days, self._state = data.days, state

    def num(self, name: str) -> int:
        """Number of users or items, padding included."""
        sizes = {self.uid_field: self.user_num, self.iid_field: self.item_num}
        if name not in sizes:
            raise _NotStoredError(f"num({name!r})")
        return sizes[name]

    def trained_days(self, include_targets: bool) -> Tensor:
        """The days of training, as the weights have them."""
        found = self._buffer("trained_days")
        if found is not None:
            return found
        # Those of a trend may be fewer than those of the checkpoint, which count the times of targets always.
        first, last = self._days if (ends := self._buffer("trained_range")) is None else ends.tolist()
        return torch.arange(first, last + 1)

    def smallest_training_gaps(self) -> Tensor:
        """Each user's smallest gap in training, as the weights have them."""
        found = self._buffer("smallest_gaps")
        return torch.ones(self.user_num, dtype=torch.int64) if found is None else found

    def time_scale(self, include_targets: bool) -> tuple[float, float]:
        """Resolution and span of the training times, as the weights have them."""
        found = self._buffer("clock")
        return (1.0, 2.0) if found is None else (float(found[0]), float(found[0] * found[1]))

    def shown_events(self, include_targets: bool, *fields: str) -> tuple[Tensor, ...]:
        """Items and times of the training events, as Popularity's weights have them."""
        named = {self.iid_field: "event_item", self.time_field: "event_time"}
        found = [self._buffer(named[field]) for field in fields]
        return tuple(torch.zeros(0, dtype=torch.int64) if column is None else column for column in found)

    def _buffer(self, name: str) -> Tensor | None:
        return next((value for key, value in self._state.items() if key.rpartition(".")[2] == name), None)

    def __getattr__(self, name: str) -> Any:
        raise _NotStoredError(name)


def restore(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[Any, Any, CheckpointData]:
    """Model, ``Config`` and data of a checkpoint, made again on ``device``, in evaluation mode.

    Errors as of :func:`recbole_adrrec.tools.recommend.load`.
    """
    path = os.fspath(checkpoint)
    stored = load_checkpoint(path, map_location="cpu")
    data = CheckpointData.of(stored, path)
    config = restore_config(stored, path)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device: {device} can't be used here ({first_line(error)}); try cpu") from error
    config["device"], config["single_spec"], config["local_rank"] = place, True, 0
    if config["compile"]:
        config["compile"] = False  # a few answers don't repay it, and explanations look into what it would fuse
    return _build(path, config, data, stored).to(place).eval(), config, data


def _build(path: str, config: Any, data: CheckpointData, stored: Mapping[str, Any]) -> Any:
    """The model of a checkpoint, with its weights."""
    name, state = config["model"], stored["state_dict"]
    try:
        # Weights are drawn only to be replaced; the caller's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]), no_more_than(state, config):
            model = config.model_class(config, DatasetStandIn(config, data, state))
    except _NotStoredError as error:
        raise CheckpointError(
            f"{path}: {name} reads {error} of its data, which checkpoints don't carry; answer with "
            "recbole.quick_start.load_data_and_model and the raw data"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: {name} can't be made from the options in it ({first_line(error)}); the file was changed, or "
            "saved by another version"
        ) from error
    difference = shape_difference(state, model)
    if difference is not None:
        raise CheckpointError(
            f"{path}: its weights don't fit its own options and its {len(data.items) - 1:,} items ({difference}); the "
            "file was put together from others, or saved by another version"
        )
    load_weights(model, stored, path)
    return model
