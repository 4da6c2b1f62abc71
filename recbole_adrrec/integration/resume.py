"""The state that training goes on from, and the runs that may go on from it."""

from __future__ import annotations

import importlib.metadata
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.integration.checkpoint import is_file_name, load_checkpoint, named, plain_option
from recbole_adrrec.options import MODEL_OPTIONS, check_model, check_names, check_values, load_properties

LAST = "-last"

PROCESS_OPTIONS = frozenset({"local_rank", "world_size", "nproc", "offset", "group_offset", "ip", "port"})
"""Set by RecBole for its processes; launchers such as torchrun have arguments of the same names."""

RESUME_IGNORED_OPTIONS = frozenset(
    {
        # How long, where to, what is shown.
        *("resume", "init_from", "epochs", "stopping_step", "checkpoint_dir", "checkpoint_last", "checkpoint_data"),
        *("show_progress", "show_user", "state", "log_wandb", "wandb_project", "config_files", "debug"),
        *("loss_decimal_place", "metric_decimal_place"),
        # Which data: their content is compared.
        *("data_path", "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"),
        # Where it runs: the number of processes matters, not how they are started.
        *(PROCESS_OPTIONS - {"world_size"}),
        *("gpu_id", "use_gpu", "device", "help", "eval_batch_size"),
    }
)
"""Options that don't change what an epoch does to the weights."""

OF_A_RUN = PROCESS_OPTIONS | {"resume", "init_from", "config_files", "debug", "help"}
"""Options that belong to one call of the program, and are not taken over by the next."""


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


def versions() -> dict[str, str]:
    """Versions of the libraries that weights depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy", "recbole")}


def last_file(best: str | os.PathLike[str]) -> Path:
    """The file of the last state, beside the best model."""
    path = Path(best)
    return path.with_name(f"{path.stem}{LAST}{path.suffix}")


def load_training(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint that training can be continued from; a ``CheckpointError`` refuses any other."""
    checkpoint = load_checkpoint(file, map_location="cpu")
    training = checkpoint.get("training")
    if not isinstance(training, dict):
        raise CheckpointError(
            f"resume: {file} holds a model, but not the state that training goes on from; name a file that "
            f"recbole_adrrec saved, as <model>-<time>{LAST}.pth, or train anew"
        )
    best = training.get("best_file")
    if not isinstance(best, str) or not is_file_name(best):
        raise CheckpointError(f"resume: {file} names no file of its best model; take another copy, or train anew")
    return checkpoint


def saved_options(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Options of the run that left a checkpoint: those that the user gave, and defaults that have changed since.

    ``model`` and ``dataset`` are among them; see :func:`load_training` for what is refused.
    """
    config = load_training(file)["config"]
    given = {name: value for name, value in config["given"].items() if name not in OF_A_RUN}
    model, stored = config["model"], config["options"]
    with named(file):
        check_model(model)
        check_names(given, model, strict=True, where=f"{file}", warn=False)
        check_values({**stored, **given}, model)
    defaults = load_properties("model", model) if model in MODEL_OPTIONS else {}
    changed = {name: stored[name] for name in defaults if name in stored and stored[name] != defaults[name]}
    return {**changed, **given, "model": model, "dataset": config["dataset"]}


def check_resume(config: Any) -> None:
    """Refuse, before data is read, to continue where it could not lead to the weights of an unbroken run.

    Raises
    ------
    CheckpointError
        The file that ``config["resume"]`` names can't be used; see :func:`load_training`.
    OptionError
        An option differs from those of the checkpoint, or the model trains in a way of its own.
    """
    from recbole.utils import get_trainer

    file = config["resume"]
    trainer_class = get_trainer(config["MODEL_TYPE"], config["model"])
    if not getattr(trainer_class, "resumable", False):
        raise OptionError(
            f"resume: {config['model']} trains in a way of its own, which can't be continued; leave it out"
        )
    checkpoint = load_training(file)
    compare_options(config, checkpoint, file)
    best_file(checkpoint, file)


def compare_options(config: Any, checkpoint: Mapping[str, Any], file: Any) -> None:
    """Refuse options of a run that would lead elsewhere than those of a checkpoint."""
    saved = checkpoint["config"]
    now, before = plain_option(config.final_config_dict), saved["options"]
    given = {*config.external_config_dict, *saved["given"]}
    for name in ("model", "dataset", *sorted({*now, *before} - {"model", "dataset"})):
        if name in RESUME_IGNORED_OPTIONS or now.get(name) == before.get(name):
            continue
        if (name in now and name in before) or name in given:
            raise OptionError(
                f"resume: {file} was trained with {name} {before.get(name)!r}, this run has {now.get(name)!r}; give "
                f"{name} as it was, or train anew without resume"
            )


def best_file(checkpoint: Mapping[str, Any], file: str | os.PathLike[str]) -> Path:
    """The best model that goes with a checkpoint; where it goes, if there is none yet."""
    training = checkpoint["training"]
    best = Path(file).with_name(Path(training["best_file"]).name)
    if training.get("has_best") is True and not best.is_file():
        raise CheckpointError(
            f"resume: {file} goes with the best model so far, {best}, which is not there; put it back, or train anew"
        )
    return best
