"""Training that can be broken off at any moment and continued to the same weights.

RecBole saves the best epoch's model. Beside it, in ``<best>-last.pth``, stands here what the last whole epoch left
behind: weights, optimizer, counters, and the state of every source of randomness.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recbole.trainer.trainer import Trainer
from torch import Tensor

from recbole_adrrec.collectives import barrier
from recbole_adrrec.errors import CheckpointError, UserError
from recbole_adrrec.integration import checkpoint_data, init_from, ranking, resume
from recbole_adrrec.integration.checkpoint import (
    config_entry,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    shape_difference,
)


class TrainingError(UserError):
    """Training can't go on; the text says what was saved."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class _FirstBatches:
    """The first batches of each pass over a loader, as a loader."""

    def __init__(self, loader: Any, most: int) -> None:
        self._loader, self._most = loader, most

    def __len__(self) -> int:
        return min(self._most, len(self._loader))

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@functools.cache
def with_checkpoints(trainer_class: type) -> type:
    """A trainer of RecBole's under :class:`ResumableTrainer`."""
    if trainer_class is Trainer:
        return ResumableTrainer
    own = any(getattr(trainer_class, name) is not getattr(Trainer, name) for name in ("fit", "_train_epoch"))
    names = {"__module__": trainer_class.__module__, "resumable": not own}
    return type(trainer_class.__name__, (ResumableTrainer, trainer_class), names)


class ResumableTrainer(Trainer):
    """RecBole's trainer with safe checkpoints, from which training goes on, and ranking by blocks of rows.

    It repairs these faults of RecBole 1.2.1 (trainer/trainer.py): a format that torch 2.6 doesn't load, and that runs
    code before 2.6 (:308, :323, :583, :770); a failed write destroys the last file; each of several processes looks for
    a file of its own name, before the first has written it (:132, :289); and weights of other data are taken without a
    word.
    """

    resumable = True
    """True where training can be continued: not that of trainers with epochs of their own."""
    evaluated: Any = None
    """The loader that was evaluated last."""
    saved_model_file: str
    start_epoch: int
    cur_step: int
    best_valid_score: float
    best_valid_result: Any
    train_loss_dict: dict[int, float]

    _dataset: Any = None  # of training
    _data: dict[str, Any] | None = None  # of the checkpoint, once it was made
    _data_fingerprint = ""
    _resumed: tuple[Any, dict[str, Any]] | None = None  # the file to continue from, and its data
    _pending: dict[str, Any] | None = None  # its state of training, until the first epoch begins
    _valid_result: Any = None
    _has_best = False
    _whole_epochs = 0
    _saves = False

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.eval_collector = ranking.RowCollector(config)
        self._loaders: dict[str, Any] = {}
        if not config["single_spec"]:
            name = [self.saved_model_file]
            torch.distributed.broadcast_object_list(name, src=0)
            self.saved_model_file = name[0]

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """RecBole's ``fit``; with the option ``resume`` it continues, with ``init_from`` it starts as a trained model.

        Raises
        ------
        CheckpointError
            The file of either can't be used, or that of ``resume`` holds the state of training on other data.
        TrainingError
            The loss or the weights are no longer finite, or a model could not be saved.
        """
        self._dataset, self._data, self._saves = train_data._dataset, None, saved
        if self.config["init_from"]:
            init_from.fill(self.model, self._dataset, self.config["init_from"], self.logger)
            self.config["init_from"] = None
        if self.resumable:
            self._loaders = {"train": train_data, **({"valid": valid_data} if valid_data else {})}
            self._data_fingerprint = checkpoint_data.training_fingerprint(train_data)
            if self.config["resume"]:
                self.resume_checkpoint(self.config["resume"])
                self.config["resume"] = None
        if self._resumed is not None:
            self._check_data(*self._resumed)
            self._resumed = None
        if self._pending is not None:
            self._whole_epochs = self.start_epoch
            if self.start_epoch >= self.epochs or self.cur_step > self.stopping_step:
                self._restore_randomness()
                self.eval_collector.data_collect(train_data)
                self.logger.info(f"Training had ended after {self.start_epoch} epochs: nothing to continue")
                return self.best_valid_score, self.best_valid_result
        result: tuple[float, Any] = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        if self._whole_epochs:
            self._save_last()
        return result

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.config["epoch_steps"]:
            train_data = _FirstBatches(train_data, self.config["epoch_steps"])
        if not self.resumable:
            return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
        # What the epoch before left behind is complete only here: RecBole validates and saves after this method.
        every = self.config["checkpoint_last"] or 0
        if self._pending is not None:
            self._restore_randomness()
        elif every and epoch_idx > self.start_epoch and epoch_idx % every == 0:
            self._save_last()
        loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
        self._check_weights(epoch_idx)
        self._whole_epochs = epoch_idx + 1
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        score, self._valid_result = super()._valid_epoch(*args, **kwargs)
        return score, self._valid_result

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """RecBole's ``evaluate``; ``CheckpointError`` where the file can't be used, or is of another model or data."""
        self.evaluated = eval_data
        if eval_data and load_best_model:
            file = model_file or self.saved_model_file
            checkpoint = load_checkpoint(file, map_location=self.device)
            checkpoint_data.check_same_data(checkpoint, eval_data._dataset, file)
            load_weights(self.model, checkpoint, file)
            self.logger.info(f"Loading model structure and parameters from {file}")
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        whole = self.config["MODEL_TYPE"].name != "SEQUENTIAL" or self.eval_collector.register.need("rec.score")
        score = super()._full_sort_batch_eval
        return score(batched_data) if whole else ranking.score_by_rows(self, score, batched_data)

    def _map_reduce(self, result: Any, num_sample: int) -> Any:
        """The result alone: what all processes collected was put together before."""
        return result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        file = kwargs.get("saved_model_file", self.saved_model_file)
        self._save(file, epoch, self._valid_result, best=True)
        self._has_best = True
        if verbose:
            self.logger.info(f"Saving current: {file}")

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """RecBole's ``save_pretrained_model``, of models that are trained twice."""
        self._save(saved_model_file, epoch, None, best=True)
        self.saved_model_file = saved_model_file

    def _save_last(self) -> None:
        """Keep what training goes on from; where that fails, training is worth more than the file."""
        if not (self._saves and self.config["checkpoint_last"]):
            return
        file = resume.last_file(self.saved_model_file)
        try:
            self._save(file, self._whole_epochs - 1, self.best_valid_result, best=False)
        except TrainingError as error:
            self.logger.warning(f"{error}. Training goes on without it")

    def _save(self, file: str | os.PathLike[str], epoch: int, valid_result: Any, best: bool) -> None:
        """Save the state after an epoch: of the best model, with its data, or of the last, to train on."""
        other = self.model.other_parameter() or {}
        state: dict[str, Any] = {
            "config": config_entry(self.config),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "state_dict": self.model.state_dict(),
            # Modules among them have their weights in the state_dict.
            "other_parameter": {name: each for name, each in other.items() if not isinstance(each, torch.nn.Module)},
            "optimizer": self.optimizer.state_dict(),
        }
        if self.resumable:
            state["training"] = self._training_state(epoch, valid_result, self._has_best or best)
        if best and self._dataset is not None:
            self._data = self._data or checkpoint_data.data_entry(self.config, self._dataset)
            state |= {} if self._data is None else {"data": self._data}
        try:
            if self.config["single_spec"] or self.config["local_rank"] == 0:
                save_checkpoint(state, file)
        except OSError as error:
            raise TrainingError(
                f"{file}: could not be saved ({error.strerror}); what stood there is whole; make "
                f"room or choose another checkpoint_dir{self.where_to_go_on()}"
            ) from error
        barrier()

    def _training_state(self, epoch: int, valid_result: Any, has_best: bool) -> dict[str, Any]:
        mine = resume.random_state(self._loaders)
        everyone = [mine]
        if not self.config["single_spec"]:
            everyone = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        return {
            "whole_epochs": epoch + 1,
            "best_file": Path(self.saved_model_file).name,
            "has_best": has_best,
            "best_valid_result": None if valid_result is None else dict(valid_result),
            "train_loss": {int(number): float(loss) for number, loss in self.train_loss_dict.items()},
            "random": everyone,
            "data": self._data_fingerprint,
            "versions": resume.versions(),
        }

    def where_to_go_on(self) -> str:
        """Words on how to continue, for a message; empty where no state was kept."""
        file = resume.last_file(self.saved_model_file)
        return f"; go on with --resume={file}" if file.is_file() else ""

    def resume_checkpoint(self, resume_file: str | os.PathLike[str]) -> None:
        """Continue from a checkpoint: all of it, or nothing where it doesn't fit.

        A checkpoint without the state of training is taken as RecBole does.
        """
        load = resume.load_training if self.config["resume"] else functools.partial(load_checkpoint, map_location="cpu")
        checkpoint = load(resume_file)
        missing = [name for name in ("epoch", "cur_step", "best_valid_score", "optimizer") if name not in checkpoint]
        if missing:
            raise CheckpointError(f"{resume_file}: holds no {missing[0]}; train anew")
        counts = [checkpoint[name] for name in ("epoch", "cur_step")]
        best_score = checkpoint["best_valid_score"]  # infinite without validation
        if not all(type(each) is int and each >= -1 for each in counts) or not (
            _is_number(best_score) or best_score in (-math.inf, math.inf)
        ):
            raise CheckpointError(f"resume: {resume_file}: its counts of epochs can't be read; train anew")
        training = checkpoint.get("training") if self.resumable else None
        best = Path(resume_file)
        if training is not None:
            resume.compare_options(self.config, checkpoint, resume_file)
            best = resume.best_file(checkpoint, resume_file)
        self._check_fit(checkpoint, resume_file)
        if training is not None:
            self._check_training(training, resume_file)
        load_weights(self.model, checkpoint, resume_file)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.saved_model_file = str(best)
        self.start_epoch = checkpoint["epoch"] + 1
        self.cur_step = checkpoint["cur_step"]
        self.best_valid_score = checkpoint["best_valid_score"]
        self._resumed = resume_file, {"data": checkpoint.get("data")}
        if training is not None:
            self.best_valid_result = training["best_valid_result"]
            self.train_loss_dict = dict(training["train_loss"])
            self._has_best = training["has_best"]
            self._pending = training
            if training["versions"] != resume.versions():
                self.logger.warning(
                    f"{resume_file}: saved with {training['versions']}, this is {resume.versions()}; the last digits "
                    "may differ"
                )
        self.logger.info(f"Training continues from {resume_file}, after {self.start_epoch} epochs")

    def _check_fit(self, checkpoint: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
        """See that weights and optimizer fit before either is touched: torch loads what fits of a part that doesn't."""
        difference = shape_difference(checkpoint["state_dict"], self.model)
        if difference is None and not self._is_ours(checkpoint["optimizer"]):
            difference = "its optimizer has other parameters"
        if difference is not None:
            raise CheckpointError(
                f"resume: {file} doesn't fit: {difference}; it was made with other data or other options"
            )

    def _is_ours(self, stored: Any) -> bool:
        """True for the state of an optimizer as ours, with numbers of its own."""
        ours = self.optimizer.state_dict()
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        # What it keeps of a parameter shows after a step.
        one = torch.nn.Parameter(torch.zeros(1))
        one.grad = torch.zeros(1).to_sparse() if isinstance(self.optimizer, torch.optim.SparseAdam) else torch.zeros(1)
        example = self._build_optimizer(params=[one])
        example.step()
        kept = {name: each.shape for name, each in example.state[one].items()}
        try:
            groups, state = stored["param_groups"], stored["state"]
            same = len(groups) == len(ours["param_groups"]) and all(
                group[name] == value or (type(value) is float and _is_number(group[name]))
                for mine, group in zip(ours["param_groups"], groups, strict=True)
                for name, value in mine.items()
                if name in group or name == "params"
            )
            return same and all(
                type(number) is int
                and 0 <= number < len(parameters)
                and {name: each.shape for name, each in entries.items()}
                == {name: parameters[number].shape if shape else shape for name, shape in kept.items()}
                for number, entries in state.items()
            )
        except (TypeError, LookupError, AttributeError, RuntimeError):
            return False

    def _check_training(self, training: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
        """See that the state of training can be gone on from, its random numbers by taking them for a moment."""
        before = resume.random_state(self._loaders)
        try:
            best, losses = training["best_valid_result"], training["train_loss"]
            whole = (
                all(map(_is_number, [*losses.values(), *(best or {}).values()]))
                and all(type(number) is int for number in losses)
                and type(training["has_best"]) is bool
                and all(isinstance(training[name], kind) for name, kind in (("data", str), ("versions", dict)))
            )
            for state in training["random"] if whole else []:
                resume.set_random_state(state, self._loaders)
            whole = whole and len(training["random"]) > 0
        except Exception:
            whole = False
        finally:
            resume.set_random_state(before, self._loaders)
        if not whole:
            raise CheckpointError(
                f"resume: {file}: its state of training can't be read; take another copy, or train anew"
            )

    def _check_data(self, file: Any, checkpoint: Mapping[str, Any]) -> None:
        if self._pending is not None and self._pending["data"] != self._data_fingerprint:
            raise CheckpointError(
                f"resume: the training events are not those of {file}; give the same data file, or train anew"
            )
        checkpoint_data.check_same_data(checkpoint, self._dataset, file)

    def _restore_randomness(self) -> None:
        assert self._pending is not None
        everyone = self._pending["random"]
        rank = 0 if self.config["single_spec"] else torch.distributed.get_rank()
        resume.set_random_state(everyone[rank % len(everyone)], self._loaders)
        self._pending = None

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
