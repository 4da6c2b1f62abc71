"""The one place that adds ours to RecBole's look-ups: models, options, data, trainers, metrics, processes.

RecBole finds things by name in its own folders. Each hook below adds ours to one such look-up and leaves what was
there as it was; faults of RecBole are repaired in :mod:`recbole_adrrec.integration.patches` instead. Its modules are
imported where they are used: ``recbole.quick_start`` only once it is patched.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError
from recbole_adrrec.integration import patches
from recbole_adrrec.integration.patching import override
from recbole_adrrec.integration.resume import PROCESS_OPTIONS, check_resume
from recbole_adrrec.models import MODULES

RUNNERS = ("pytest", "py.test", "ipykernel_launcher.py", "ipykernel")
"""Programs whose command line is never meant for RecBole."""

MANY_NEGATIVES = ("sampled_softmax", "gBCE")
"""Losses that take ``n_negatives`` where ``train_neg_sample_args`` is unset; others take RecBole's one."""

MODEL_SPECIFIC_OPTIONS = ("objective", "use_query_time", "trend_rank")
"""Options that data, rules and report act on: from a file for several models they must not reach one without them."""

_given: dict[str, Any] | None = None  # stands for the command line, where that isn't the host program's
_strict = False  # every name given must be known, as on our own command line
_registered = False


class Parsed(dict[str, Any]):
    """Options whose values have their types already, so that RecBole's ``eval`` of strings leaves them alone."""


def register() -> None:
    """Patch RecBole, then add our models, options, dataset, loader and trainer to its look-ups. Harmless when repeated.

    ``RuntimeError`` where the installed version of RecBole is not one that this package works with.
    """
    global _registered
    if _registered:
        return
    patches.check_version()
    patches.apply_patches()
    _hook_models()
    _hook_config()
    _hook_data()
    _hook_trainers()
    _hook_metrics()
    _hook_processes()
    _registered = True


@contextmanager
def command_line(given: Mapping[str, Any], strict: bool = True) -> Iterator[None]:
    """While this lasts, ``given`` is the command line that every ``Config`` reads, and ``sys.argv`` is not.

    The values of ``given`` have their types already. ``strict`` refuses every unknown option, here and in configuration
    files; else only near-misses of our own are.
    """
    global _given, _strict
    before = _given, _strict
    _given, _strict = dict(given), strict
    try:
        yield
    finally:
        _given, _strict = before


@contextmanager
def watch_trainers() -> Iterator[list[Any]]:
    """Collect the trainers that ``run_recbole`` makes meanwhile."""
    from recbole.quick_start import quick_start

    original = quick_start.get_trainer
    trainers: list[Any] = []

    def get_trainer(model_type: Any, model_name: str) -> Callable[..., Any]:
        def make(config: Any, model: Any) -> Any:
            trainers.append(original(model_type, model_name)(config, model))
            return trainers[-1]

        return make

    quick_start.get_trainer = get_trainer
    try:
        yield trainers
    finally:
        quick_start.get_trainer = original


def _hook_models() -> None:
    """``get_model`` looks for ``recbole.model.sequential_recommender.<name in lower case>`` (utils/utils.py:55)."""
    for name, path in MODULES.items():
        sys.modules[f"recbole.model.sequential_recommender.{name.lower()}"] = importlib.import_module(path)


def _hook_config() -> None:
    """Lay our options over RecBole's own, below the user's (config/configurator.py:239), and check all of them."""
    from recbole.config.configurator import Config
    from recbole.utils.enum_type import InputType

    @override(Config, "_load_cmd_line")
    def load_command_line(original: Any, self: Any) -> dict[str, Any]:
        return dict(_given) if _given is not None else _foreign_command_line()

    @override(Config, "_load_variable_config_dict")
    def load_dict(original: Any, self: Any, given: Any) -> Any:
        return dict(given) if isinstance(given, Parsed) else original(self, given)

    @override(Config, "_load_internal_config_dict")
    def load_internal(original: Any, self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        if _is_sequential(model_class):
            self.internal_config_dict.update(_our_options(self, model, dataset))

    @override(Config, "_get_final_config_dict")
    def merge(original: Any, self: Any) -> dict[str, Any]:
        final: dict[str, Any] = original(self)
        if _is_sequential(self.model_class):
            _follow_loss(self, final)
        for name in MODEL_SPECIFIC_OPTIONS:
            if self.model in MODULES and name not in options.load_properties("model", self.model):
                final.pop(name, None)
        if _strict or self.model in MODULES:
            given = {**dict(_foreign_arguments()), **self.external_config_dict}
            given = {name: value for name, value in given.items() if name not in PROCESS_OPTIONS}
            options.check_names(given, self.model, strict=_strict, where="the options given")
            options.check_values(final, self.model)
        return final

    @override(Config, "_set_default_parameters")
    def set_defaults(original: Any, self: Any) -> None:
        original(self)
        final = self.final_config_dict
        if self.model in MODULES and final["loss_type"] != "CE":
            # RecBole knows no other losses than CE and BPR; all of ours take negatives as BPR does, if not their own.
            own = _draws_its_own(self.model, final)
            final["MODEL_INPUT_TYPE"] = InputType.POINTWISE if own else InputType.PAIRWISE


def _our_options(config: Any, model: str, dataset: str) -> dict[str, Any]:
    """Our defaults for a sequential model on a data set, over RecBole's; last what was tuned for the pair."""
    ours = options.load_properties("overall", "overall") | options.load_properties("model", model)
    ours |= options.load_properties("dataset", dataset) | options.load_tuned(model, dataset)
    theirs = config.internal_config_dict.get("load_col")
    if isinstance(theirs, dict) and isinstance(ours.get("load_col"), dict):
        # RecBole's models that use features of items or users go on loading them.
        ours["load_col"] = {**theirs, **ours["load_col"]}
    if "load_col" not in ours:
        # RecBole's default reads no times.
        fields = {**config.internal_config_dict, **config.external_config_dict}
        names = [fields[option] for option in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
        ours["load_col"] = {**(theirs or {}), "inter": names}
    return ours


def _follow_loss(config: Any, final: dict[str, Any]) -> None:
    """Where nobody set the negatives of a model with a choice of losses, give it those that its loss takes."""
    model, loss = config.model, final.get("loss_type")
    given = {**_our_options(config, model, config.dataset), **config.external_config_dict}
    if "train_neg_sample_args" in given or hasattr(config.model_class, "input_type"):
        return
    if loss == "CE" or _draws_its_own(model, final):
        final["train_neg_sample_args"] = None
    elif loss in MANY_NEGATIVES and model in MODULES:
        final["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": final["n_negatives"]}


def _draws_its_own(model: str, config: Mapping[str, Any]) -> bool:
    """True for a model of ours that draws its negatives itself, once a batch."""
    return model in MODULES and config.get("negatives") == "shared"


def _is_sequential(model_class: Any) -> bool:
    from recbole.utils.enum_type import ModelType

    return getattr(model_class, "type", None) == ModelType.SEQUENTIAL


def _foreign_arguments() -> Iterator[tuple[str, str]]:
    """Arguments of somebody else's program that have RecBole's own form, ``--key=value``."""
    program = sys.argv[0] if sys.argv else ""
    if _given is not None or any(part in RUNNERS for part in program.split(os.sep)[-2:]):
        return
    for argument in sys.argv[1:]:
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and equals and name not in PROCESS_OPTIONS:
            yield name, text


def _foreign_command_line() -> dict[str, Any]:
    """Options among the arguments of somebody else's program.

    RecBole reads the host program's ``sys.argv`` always, and warns about, or evaluates, whatever else stands there.
    Here unknown names and other forms are left to the program they were meant for.
    """
    found: dict[str, Any] = {}
    known = options.known_options()
    for name, text in _foreign_arguments():
        if name in known:
            value = options.parse_value(text)
            if name in found and found[name] != value:
                raise OptionError(f"{name}: given twice, as {found[name]!r} and {value!r}; give it once")
            found[name] = value
    return found


def _hook_data() -> None:
    """Give every sequential model our dataset, and windows their loader (data/utils.py:40, :296)."""
    from recbole.data import dataset as dataset_module
    from recbole.data import utils as data_utils

    from recbole_adrrec.data.dataset import SequenceDataset
    from recbole_adrrec.data.loader import WindowTrainDataLoader
    from recbole_adrrec.data.mapped import MappedDataset
    from recbole_adrrec.integration import init_from

    @override(data_utils, "create_dataset")
    def create_dataset(original: Any, config: Any) -> Any:
        if config["init_from"]:
            init_from.prepare(config)
        if config["resume"]:
            check_resume(config)
        if config["event_store"] == "mapped":
            return MappedDataset(config)
        name = f"{config['model']}Dataset"
        if not hasattr(dataset_module, name) and config["MODEL_TYPE"].name == "SEQUENTIAL":
            setattr(dataset_module, name, SequenceDataset)
        return original(config)

    @override(data_utils, "get_dataloader")
    def get_dataloader(original: Any, config: Any, phase: str) -> Any:
        windows = phase == "train" and config["train_rows"] == "sequence"
        return WindowTrainDataLoader if windows else original(config, phase)


def _hook_trainers() -> None:
    """Put every trainer of ``recbole.trainer`` under ours, where ``get_trainer`` finds it (utils/utils.py:88)."""
    from recbole import trainer as package
    from recbole.quick_start import quick_start

    from recbole_adrrec.integration.restore import load_data_and_model
    from recbole_adrrec.integration.trainer import with_checkpoints

    base = package.Trainer
    for name, value in list(vars(package).items()):
        if isinstance(value, type) and issubclass(value, base):
            setattr(package, name, with_checkpoints(value))
    override(quick_start, "load_data_and_model")(lambda _, model_file: load_data_and_model(model_file))


def _hook_metrics() -> None:
    """Add metrics of lists to RecBole's (evaluator/register.py:62)."""
    from recbole.evaluator import register as metrics

    from recbole_adrrec.integration.ranking import IntraListDiversity, Novelty

    for metric in (Novelty, IntraListDiversity):
        name = metric.__name__.lower()
        metrics.metrics_dict[name] = metric
        metrics.metric_information[name] = metric.metric_need
        metrics.metric_types[name] = metric.metric_type


def _hook_processes() -> None:
    """``run`` spawns processes that import RecBole alone (quick_start/quick_start.py:81): let them register too."""
    from recbole.config.configurator import Config
    from recbole.quick_start import quick_start

    @override(quick_start, "run")
    def run(
        original: Any,
        model: Any,
        dataset: Any,
        config_file_list: list[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        saved: bool = True,
        nproc: int = 1,
        world_size: int = -1,
        **where: Any,
    ) -> Any:
        if nproc > 1 or world_size > 0:
            # The children don't read a command line: they get this process's, above the dict as always.
            typed = dict(config_dict or {})
            if not isinstance(config_dict, Parsed):
                typed = Config._convert_config_dict(None, typed)
            config_dict = Parsed(typed | (dict(_given) if _given is not None else _foreign_command_line()))
        return original(model, dataset, config_file_list, config_dict, saved, nproc, world_size, **where)

    quick_start.run_recboles = run_child


def run_child(rank: int, *args: Any) -> None:
    """Body of each process of ``--nproc``: register, then RecBole's ``run_recbole`` as the given rank."""
    register()
    from recbole.quick_start import quick_start

    *positional, keywords = args
    keywords["config_dict"] = Parsed(keywords.get("config_dict", {}) | {"local_rank": rank})
    with command_line({}, strict=False):
        quick_start.run_recbole(*positional[:3], **keywords)
