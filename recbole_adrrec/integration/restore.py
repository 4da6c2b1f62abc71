"""A model and its weights from a checkpoint, without the data it was trained on."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.integration import patches as compat
from recbole_adrrec.integration.carried import Carried


class _NotCarriedError(AttributeError):
    pass


class StandIn:
    """Stands for the data set when a model is made again: the few facts that models read of it.

    Parameters
    ----------
    config : Config
        Options of the run.
    carried : Carried
        What the checkpoint carries.
    state : dict of str to Tensor
        Its weights; buffers that models read off the data are among them.
    """

    def __init__(self, config: Any, carried: Carried, state: dict[str, Tensor]) -> None:
        self.dataset_name = carried.dataset
        self.uid_field, self.iid_field, self.time_field = carried.user_field, carried.item_field, carried.time_field
        self.user_num, self.item_num = carried.n_users, len(carried.items)
        self.field2seqlen = {f"{self.iid_field}{config['LIST_SUFFIX']}": config["MAX_ITEM_LIST_LENGTH"]}
        self._days, self._state = carried.days, state

    def num(self, name: str) -> int:
        """Number of users or items, padding included."""
        sizes = {self.uid_field: self.user_num, self.iid_field: self.item_num}
        if name not in sizes:
            raise _NotCarriedError(f"num({name!r})")
        return sizes[name]

    def trained_days(self, include_targets: bool) -> Tensor:
        """The days of training, as the weights have them."""
        found = self._buffer("trained_days")
        if found is not None:
            return found
        # Those of a trend may be fewer than those carried, which count the times of targets always.
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

    def _buffer(self, name: str) -> Tensor | None:
        return next((value for key, value in self._state.items() if key.rpartition(".")[2] == name), None)

    def __getattr__(self, name: str) -> Any:
        raise _NotCarriedError(name)


def restore(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[Any, Any, Carried]:
    """Make the model of a checkpoint again, on ``device``, in evaluation mode.

    Returns
    -------
    tuple
        Model, ``Config``, and what the checkpoint carries.

    Raises
    ------
    CheckpointError, OptionError
        See :func:`recbole_adrrec.tools.recommend.load`.
    """
    path = os.fspath(checkpoint)
    stored = compat.load_checkpoint(path, map_location="cpu")
    carried = Carried.of(stored, path)
    config = stored["config"]
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device: {device} can't be used here ({_first_line(error)}); try cpu") from error
    config["device"], config["single_spec"], config["local_rank"] = place, True, 0
    if config["compile"]:
        config["compile"] = False  # a few answers don't repay it, and explanations look into what it would fuse
    return _build(path, config, carried, stored).to(place).eval(), config, carried


def _build(path: str, config: Any, carried: Carried, stored: dict[str, Any]) -> Any:
    """The model of a checkpoint, with its weights."""
    name, state = config["model"], stored["state_dict"]
    get_model = importlib.import_module("recbole.utils").get_model
    try:
        # Weights are drawn only to be replaced; the caller's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            model = get_model(name)(config, StandIn(config, carried, state))
    except _NotCarriedError as error:
        raise CheckpointError(
            f"{path}: {name} reads {error} of its data, which checkpoints don't carry; answer with "
            "recbole.quick_start.load_data_and_model and the raw data"
        ) from error
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: {name} can't be made from the options in it ({_first_line(error)}); the file was changed, or "
            "saved by another version"
        ) from error
    try:
        model.load_state_dict(state)
        model.load_other_parameter(stored.get("other_parameter"))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its weights don't fit its own options and its {len(carried.items) - 1:,} items "
            f"({_first_line(error)}); the file was put together from others, or saved by another version"
        ) from error
    return model


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = lines[1:2] if lines and lines[0].endswith(":") else lines[:1]
    return (detail or [type(error).__name__])[0]
