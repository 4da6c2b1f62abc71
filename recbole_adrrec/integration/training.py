"""Training that can be broken off at any moment and continued to the same weights.

RecBole saves the best epoch's model. Beside it, in ``<best>-last.pth``, stands here what the last whole epoch left
behind: weights, optimizer, counters, and the state of every source of randomness.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_adrrec.errors import CheckpointError, OptionError, UserError
from recbole_adrrec.integration import checkpoints
from recbole_adrrec.integration.digests import digest

KEY = "training"
"""Where a checkpoint keeps what continuing takes beyond RecBole's own entries."""

FORMAT = 1

LAST = "-last"

MAY_DIFFER = frozenset(
    {
        # How long, where to, what is shown.
        *("resume", "epochs", "stopping_step", "checkpoint_dir", "checkpoint_last", "checkpoint_data"),
        *(
            "show_progress",
            "show_user",
            "state",
            "log_wandb",
            "wandb_project",
            "loss_decimal_place",
            "metric_decimal_place",
            "config_files",
            "debug",
        ),
        # Which data: their content is compared.
        *("data_path", "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"),
        # Where it runs.
        *("gpu_id", "use_gpu", "device", "ip", "port", "offset", "group_offset", "nproc", "local_rank", "help"),
        *("eval_batch_size",),
    }
)
"""Options that don't change what an epoch does to the weights."""

OF_A_RUN = frozenset(
    {
        "resume",
        "config_files",
        "debug",
        "help",
        *("local_rank", "world_size", "nproc", "offset", "group_offset", "ip", "port"),
    }
)
"""Options that belong to one call of the program, and are not taken over by the next."""


class TrainingError(UserError):
    """Training can't go on; the text says what was saved."""


# What a checkpoint keeps


def random_state(loaders: Mapping[str, Any]) -> dict[str, Any]:
    """The state of every source of randomness of this process, of plain values and tensors."""
    _, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"numbers": torch.tensor(numbers), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(cached)],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loaders": {name: loader.generator.get_state() for name, loader in loaders.items()},
    }


def set_random_state(state: Mapping[str, Any], loaders: Mapping[str, Any]) -> None:
    """Make every source of randomness go on as it was when ``state`` was taken."""
    random.setstate((3, tuple(state["python"]["numbers"].tolist()), state["python"]["gauss"]))
    numpy_state = state["numpy"]
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy_state["name"], keys, *numpy_state["rest"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    for name, loader in loaders.items():
        if name in state["loaders"]:
            loader.generator.set_state(state["loaders"][name].cpu())


def data_digest(loader: Any) -> str:
    """What tells one training set from another: a digest of its events and of which of them are predicted."""
    rows = loader._dataset.inter_feat
    events = getattr(rows, "events", None)
    columns = events.columns if events is not None else rows.interaction
    return digest([dict(columns), getattr(rows, "targets", None)])


def versions() -> dict[str, str]:
    """Versions of what decides over weights."""
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy", "recbole")}


def last_file(best: str | os.PathLike[str]) -> Path:
    """Where the last state is kept, beside the best model."""
    path = Path(best)
    return path.with_name(f"{path.stem}{LAST}{path.suffix}")


# Reading


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint that training can be continued from, and refuse any other.

    Returns
    -------
    dict
        RecBole's entries, and ``training``.

    Raises
    ------
    CheckpointError
        It is missing, damaged, changed since it was saved, or holds no state to continue from.
    """
    checkpoint = checkpoints.load(file, map_location="cpu")
    training = checkpoint.get(KEY)
    if not isinstance(training, dict) or training.get("format") != FORMAT or checkpoints.DIGEST not in checkpoint:
        raise CheckpointError(
            f"resume: {file} holds a model, but not the state that training goes on from; name a file that "
            f"recbole_adrrec saved, as <model>-<time>{LAST}.pth, or train anew"
        )
    return checkpoint


def saved_options(file: str | os.PathLike[str]) -> dict[str, Any]:
    """What the user gave for the run that left a checkpoint: options, ``model`` and ``dataset``.

    Raises
    ------
    CheckpointError
        See :func:`read`.
    """
    config = read(file)["config"]
    given = {name: value for name, value in config.external_config_dict.items() if name not in OF_A_RUN}
    return {**given, "model": config.model, "dataset": config.dataset}


def check(config: Any) -> None:
    """Refuse to continue where it could not lead to the weights of an unbroken run.

    Parameters
    ----------
    config : Config
        Of the run that shall continue; its option ``resume`` names the file.

    Raises
    ------
    CheckpointError
        The file can't be used; see :func:`read`.
    OptionError
        An option differs from those of the checkpoint, or the model trains in a way of its own.
    """
    file = config["resume"]
    trainer_class = importlib.import_module("recbole.utils").get_trainer(config["MODEL_TYPE"], config["model"])
    if not issubclass(trainer_class, ContinuedTraining):
        raise OptionError(
            f"resume: {config['model']} trains in a way of its own, which can't be continued; leave it out"
        )
    checkpoint = read(file)
    _compare(config, checkpoint["config"], str(file))
    _best_file(checkpoint, file)


def _compare(config: Any, saved: Any, file: str) -> None:
    now, before = config.final_config_dict, saved.final_config_dict
    for name in ("model", "dataset", *sorted({*now, *before} - {"model", "dataset"})):
        if name in MAY_DIFFER or _plain(now.get(name)) == _plain(before.get(name)):
            continue
        if (
            (name in now and name in before)
            or name in config.external_config_dict
            or name in saved.external_config_dict
        ):
            raise OptionError(
                f"resume: {file} was trained with {name} {_plain(before.get(name))!r}, this run has "
                f"{_plain(now.get(name))!r}; give {name} as it was, or train anew without resume"
            )


def _plain(value: Any) -> Any:
    """A value as it compares: tuples as lists, what is no plain value by its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _best_file(checkpoint: Mapping[str, Any], file: str | os.PathLike[str]) -> Path:
    """The best model that goes with a checkpoint; where it goes, if there is none yet."""
    training = checkpoint[KEY]
    best = Path(file).with_name(Path(training["best_file"]).name)
    if training["has_best"] and not best.is_file():
        raise CheckpointError(
            f"resume: {file} goes with the best model so far, {best}, which is not there; put it back, or train anew"
        )
    return best


# Training


@functools.cache
def continuing(trainer_class: type) -> type:
    """A trainer that keeps its last state and continues from one; others that train epochs in their own way as are."""
    base = importlib.import_module("recbole.trainer").Trainer
    own = [getattr(trainer_class, name, None) is not getattr(base, name) for name in ("fit", "_train_epoch")]
    if any(own):
        return trainer_class
    return type(trainer_class.__name__, (ContinuedTraining, trainer_class), {"__module__": trainer_class.__module__})


class ContinuedTraining:
    """What :func:`continuing` lays over a trainer of RecBole's."""

    config: Any
    model: Any
    optimizer: Any
    logger: Any
    saved_model_file: str
    start_epoch: int
    cur_step: int
    epochs: int
    stopping_step: int
    best_valid_score: float
    best_valid_result: Any
    train_loss_dict: dict[int, float]
    enable_scaler: bool

    _loaders: dict[str, Any]
    _pending: dict[str, Any] | None = None
    _valid_result: Any = None
    _has_best = False
    _whole_epochs = 0
    _saves = False
    _data = ""

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """RecBole's ``fit``; with the option ``resume`` it continues.

        Raises
        ------
        CheckpointError
            The file of ``resume`` can't be used, or holds the state of training on other data.
        TrainingError
            The loss or the weights are no longer finite, or a model could not be saved.
        """
        self._loaders = {"train": train_data}
        if valid_data:
            self._loaders["valid"] = valid_data
        self._saves = saved
        self._data = data_digest(train_data)
        if self.config["resume"]:
            self.resume_checkpoint(self.config["resume"])
            self.config["resume"] = None
        if self._pending is not None:
            self._check_data()
            self._whole_epochs = self.start_epoch
            if self.start_epoch >= self.epochs or self.cur_step > self.stopping_step:
                self._restore_randomness()
                self.logger.info(f"Training had ended after {self.start_epoch} epochs: nothing to continue")
                return self.best_valid_score, self.best_valid_result
        result: tuple[float, Any] = super().fit(  # type: ignore[misc]
            train_data, valid_data, verbose, saved, show_progress, callback_fn
        )
        if self._whole_epochs:
            self._save_last()
        return result

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        # What the epoch before left behind is complete only here: RecBole validates and saves after this method.
        every = self.config["checkpoint_last"] or 0
        if self._pending is not None:
            self._restore_randomness()
        elif every and epoch_idx > self.start_epoch and epoch_idx % every == 0:
            self._save_last()
        loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)  # type: ignore[misc]
        self._check_weights(epoch_idx)
        self._whole_epochs = epoch_idx + 1
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        score, self._valid_result = super()._valid_epoch(*args, **kwargs)  # type: ignore[misc]
        return score, self._valid_result

    # Saving

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        last = "saved_model_file" in kwargs
        result = self.best_valid_result if last else self._valid_result
        state = self._state(epoch, result, self._has_best or not last)
        try:
            with checkpoints.adding({KEY: state}):
                super()._save_checkpoint(epoch, verbose, **kwargs)  # type: ignore[misc]
        except OSError as error:
            file = kwargs.get("saved_model_file", self.saved_model_file)
            raise TrainingError(
                f"{file}: could not be saved ({error.strerror}); what stood there is whole; make "
                f"room or choose another checkpoint_dir{self.where_to_go_on()}"
            ) from error
        self._has_best = self._has_best or not last

    def _save_last(self) -> None:
        """Keep what training goes on from; where that fails, training is worth more than the file."""
        if not (self._saves and self.config["checkpoint_last"]):
            return
        try:
            self._save_checkpoint(
                self._whole_epochs - 1, verbose=False, saved_model_file=str(last_file(self.saved_model_file))
            )
        except TrainingError as error:
            self.logger.warning(f"{error}. Training goes on without it")

    def _state(self, epoch: int, best_valid_result: Any, has_best: bool) -> dict[str, Any]:
        mine = random_state(getattr(self, "_loaders", {}))
        everyone = [mine]
        if not self.config["single_spec"]:
            everyone = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        return {
            "format": FORMAT,
            "whole_epochs": epoch + 1,
            "best_file": Path(self.saved_model_file).name,
            "has_best": has_best,
            "best_valid_result": None if best_valid_result is None else dict(best_valid_result),
            "train_loss": {int(number): float(loss) for number, loss in self.train_loss_dict.items()},
            "random": everyone,
            "data": self._data,
            "versions": versions(),
        }

    def where_to_go_on(self) -> str:
        """How to continue, for a message; empty where no state was kept."""
        file = last_file(self.saved_model_file)
        return f"; go on with --resume={file}" if file.is_file() else ""

    # Continuing

    def resume_checkpoint(self, resume_file: str | os.PathLike[str]) -> None:
        """Continue from a checkpoint: all of it, or nothing where it doesn't fit.

        A checkpoint without the state of training, RecBole's own, is taken as RecBole does.
        """
        checkpoint = checkpoints.load(resume_file, map_location="cpu")
        if KEY not in checkpoint:
            if self.config["resume"]:
                read(resume_file)
            super().resume_checkpoint(resume_file)  # type: ignore[misc]
            return
        checkpoint = read(resume_file)
        _compare(self.config, checkpoint["config"], str(resume_file))
        best = _best_file(checkpoint, resume_file)
        training = checkpoint[KEY]
        self._check_fit(checkpoint, resume_file)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.saved_model_file = str(best)
        self.start_epoch = training["whole_epochs"]
        self.cur_step = checkpoint["cur_step"]
        self.best_valid_score = checkpoint["best_valid_score"]
        self.best_valid_result = training["best_valid_result"]
        self.train_loss_dict = dict(training["train_loss"])
        self._has_best = training["has_best"]
        self._pending = training
        if training["versions"] != versions():
            self.logger.warning(
                f"{resume_file}: saved with {training['versions']}, this is {versions()}; the last digits may differ"
            )
        self.logger.info(f"Training continues from {resume_file}, after {self.start_epoch} epochs")

    def _check_fit(self, checkpoint: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
        """See that weights and optimizer fit before either is touched: torch loads what fits of a part that doesn't."""

        def shapes(state: Mapping[str, Any]) -> dict[str, Any]:
            return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}

        have, want = shapes(checkpoint["state_dict"]), shapes(self.model.state_dict())
        for name in sorted({*have, *want}):
            if have.get(name) != want.get(name):
                raise CheckpointError(
                    f"resume: {file} doesn't fit: {name} is {have.get(name, 'absent')} there and "
                    f"{want.get(name, 'absent')} here; it was made with other data or other options"
                )
        ours = [len(group["params"]) for group in self.optimizer.state_dict()["param_groups"]]
        theirs = [len(group["params"]) for group in checkpoint["optimizer"]["param_groups"]]
        if ours != theirs:
            raise CheckpointError(f"resume: {file} doesn't fit: its optimizer has other parameters")

    def _check_data(self) -> None:
        assert self._pending is not None
        if self._pending["data"] != self._data:
            raise CheckpointError(
                "resume: the training events are not those of the checkpoint; give the same data file, or train anew"
            )

    def _restore_randomness(self) -> None:
        assert self._pending is not None
        everyone = self._pending["random"]
        rank = 0 if self.config["single_spec"] else torch.distributed.get_rank()
        set_random_state(everyone[rank % len(everyone)], self._loaders)
        self._pending = None

    # Faults

    def _check_nan(self, loss: Tensor) -> None:
        # A scaler meets infinities on purpose and skips their step.
        if torch.isnan(loss) or (torch.isinf(loss) and not self.enable_scaler):
            raise TrainingError(self._diverged(f"the training loss is {loss.item()}"))

    def _check_weights(self, epoch: int) -> None:
        for name, weights in self.model.named_parameters():
            if not bool(torch.isfinite(weights).all()):
                raise TrainingError(self._diverged(f"{name} is no longer finite after epoch {epoch}"))

    def _diverged(self, what: str) -> str:
        rate, clip = self.config["learning_rate"], self.config["clip_grad_norm"]
        remedies = [f"a lower learning_rate (now {rate})"]
        if not clip:
            remedies.append("clip_grad_norm: {max_norm: 5}")
        if self.config["enable_amp"]:
            remedies.append("enable_amp: false")
        kept = Path(self.saved_model_file)
        whole = f"; {kept} has the best model so far" if self._has_best and kept.is_file() else ""
        return f"{what}: training diverged; try {' or '.join(remedies)}{whole}"
