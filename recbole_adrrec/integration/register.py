"""The one place that touches RecBole's look-ups: models, options, data sets, loaders, processes.

RecBole finds things by name in its own folders. Each hook below adds ours to one such look-up and leaves what was
there as it was; faults of RecBole are mended in :mod:`recbole_adrrec.integration.patches` instead.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recbole_adrrec import options
from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.integration import checkpoints
from recbole_adrrec.integration import patches as compat
from recbole_adrrec.integration.patching import override
from recbole_adrrec.models import MODULES

RUNNERS = ("pytest", "py.test", "ipykernel_launcher.py", "ipykernel")
"""Programs whose command line is never meant for RecBole."""

MANY_NEGATIVES = ("sampled_softmax", "gBCE")
"""Losses that take ``n_negatives`` where ``train_neg_sample_args`` is unset; others take RecBole's one."""

MODEL_SPECIFIC_OPTIONS = ("objective", "use_query_time", "trend_rank")
"""Options that data, rules and report act on: from a file for several models they must not reach one without them."""

PROCESS_OPTIONS = frozenset({"local_rank", "world_size", "nproc", "offset", "group_offset", "ip", "port"})
"""Set by RecBole for its processes; launchers such as torchrun have arguments of the same names."""

_given: dict[str, Any] | None = None  # what stands for the command line, where that isn't the host program's
_strict = False  # whether every name given must be known, as on our own command line
_registered = False


class Parsed(dict[str, Any]):
    """Options whose values have their types already, so that RecBole's ``eval`` of strings leaves them alone."""


def register() -> None:
    """Mend RecBole, then add our models, options, dataset and loader to its look-ups. Harmless when repeated.

    Raises
    ------
    RuntimeError
        RecBole's insides are not as expected; the message names the attribute and the version.
    """
    global _registered
    if _registered:
        return
    compat.check()
    compat.apply()
    _hook_models()
    _hook_config()
    _hook_data()
    _hook_checkpoints()
    _hook_trainers()
    _hook_evaluation()
    _hook_processes()
    _registered = True


@contextmanager
def command_line(given: Mapping[str, Any], strict: bool = True) -> Iterator[None]:
    """While this lasts, ``given`` is the command line that every ``Config`` reads, and ``sys.argv`` is not.

    Parameters
    ----------
    given : mapping of str to object
        Options with their values already of their types.
    strict : bool
        Refuse every unknown option, here and in configuration files; else only near-misses of our own.
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
    """Collect the trainers that ``run_recbole`` makes meanwhile, each with what it evaluated last as ``evaluated``."""
    quick_start: Any = importlib.import_module("recbole.quick_start.quick_start")
    original = quick_start.get_trainer
    trainers: list[Any] = []

    def get_trainer(model_type: Any, model_name: str) -> Callable[..., Any]:
        trainer_class = original(model_type, model_name)

        def make(config: Any, model: Any) -> Any:
            trainer = trainer_class(config, model)
            evaluate = trainer.evaluate

            def remember(eval_data: Any, *args: Any, **kwargs: Any) -> Any:
                trainer.evaluated = eval_data
                return evaluate(eval_data, *args, **kwargs)

            trainer.evaluate = remember
            trainers.append(trainer)
            return trainer

        return make

    quick_start.get_trainer = get_trainer
    try:
        yield trainers
    finally:
        quick_start.get_trainer = original


# Models


def _hook_models() -> None:
    """``get_model`` looks for ``recbole.model.sequential_recommender.<name in lower case>`` (utils/utils.py:55)."""
    for name, path in MODULES.items():
        module = importlib.import_module(path)
        sys.modules[f"recbole.model.sequential_recommender.{name.lower()}"] = module
        compat.allow(getattr(module, name))


# Options


def _hook_config() -> None:
    """Lay our options over RecBole's own, below the user's (config/configurator.py:239), and check all of them."""
    config_class = importlib.import_module("recbole.config.configurator").Config
    load_internal = config_class._load_internal_config_dict
    load_variable = config_class._load_variable_config_dict
    merge = config_class._get_final_config_dict
    set_defaults = config_class._set_default_parameters

    def load_command_line(self: Any) -> dict[str, Any]:
        return dict(_given) if _given is not None else _foreign_command_line()

    @functools.wraps(load_variable)
    def load_variable_config_dict(self: Any, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        return dict(config_dict) if isinstance(config_dict, Parsed) else load_variable(self, config_dict)

    @functools.wraps(load_internal)
    def load_internal_config_dict(self: Any, model: str, model_class: type, dataset: str) -> None:
        load_internal(self, model, model_class, dataset)
        if _is_sequential(model_class):
            ours = options.load_properties("overall", "overall")
            ours.update(options.load_properties("model", model))
            ours.update(options.load_properties("dataset", dataset))
            theirs = self.internal_config_dict.get("load_col")
            if isinstance(theirs, dict) and isinstance(ours.get("load_col"), dict):
                # RecBole's models that use features of items or users go on loading them.
                ours["load_col"] = {**theirs, **ours["load_col"]}
            if "load_col" not in ours:
                # RecBole's default reads no times.
                fields = {**self.internal_config_dict, **self.external_config_dict}
                names = [fields[option] for option in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
                ours["load_col"] = {**(theirs or {}), "inter": names}
            self.internal_config_dict.update(ours)
            if "train_neg_sample_args" not in ours and "train_neg_sample_args" not in self.external_config_dict:
                self._follow_loss = not hasattr(model_class, "input_type")

    @functools.wraps(merge)
    def get_final_config_dict(self: Any) -> dict[str, Any]:
        final: dict[str, Any] = merge(self)
        if self.__dict__.pop("_follow_loss", False):
            loss = final.get("loss_type")
            if loss == "CE" or _draws_its_own(self.model, final):
                final["train_neg_sample_args"] = None
            elif loss in MANY_NEGATIVES and self.model in MODULES:
                final["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": final["n_negatives"]}
        for name in MODEL_SPECIFIC_OPTIONS:
            if self.model in MODULES and name not in options.load_properties("model", self.model):
                final.pop(name, None)
        if _strict or self.model in MODULES:
            given = {**dict(_foreign_arguments()), **self.external_config_dict}
            given = {name: value for name, value in given.items() if name not in PROCESS_OPTIONS}
            options.check_names(given, self.model, strict=_strict, where="the options given")
            options.check_values(final, self.model)
        return final

    @functools.wraps(set_defaults)
    def set_default_parameters(self: Any) -> None:
        set_defaults(self)
        final = self.final_config_dict
        if self.model in MODULES and final["loss_type"] != "CE":
            # RecBole knows no other losses than CE and BPR; all of ours take negatives as BPR does, if not their own.
            kinds = importlib.import_module("recbole.utils.enum_type").InputType
            final["MODEL_INPUT_TYPE"] = kinds.POINTWISE if _draws_its_own(self.model, final) else kinds.PAIRWISE

    config_class._load_cmd_line = load_command_line
    config_class._set_default_parameters = set_default_parameters
    config_class._load_variable_config_dict = load_variable_config_dict
    config_class._load_internal_config_dict = load_internal_config_dict
    config_class._get_final_config_dict = get_final_config_dict


def _draws_its_own(model: str, config: Mapping[str, Any]) -> bool:
    """Whether a model of ours draws its negatives itself, once a batch."""
    return model in MODULES and config.get("negatives") == "shared"


def _is_sequential(model_class: Any) -> bool:
    model_type = importlib.import_module("recbole.utils.enum_type").ModelType
    return getattr(model_class, "type", None) == model_type.SEQUENTIAL


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


# Data


def _hook_data() -> None:
    """Give every sequential model our dataset, and windows their loader (data/utils.py:40, :296)."""
    data_utils = importlib.import_module("recbole.data.utils")
    dataset_module = importlib.import_module("recbole.data.dataset")
    ours = importlib.import_module("recbole_adrrec.data.dataset").SequenceDataset
    loader = importlib.import_module("recbole_adrrec.data.loader").WindowTrainDataLoader
    create, get_loader = data_utils.create_dataset, data_utils.get_dataloader

    @functools.wraps(create)
    def create_dataset(config: Any) -> Any:
        name = f"{config['model']}Dataset"
        if not hasattr(dataset_module, name) and config["MODEL_TYPE"].name == "SEQUENTIAL":
            setattr(dataset_module, name, ours)
        return create(config)

    @functools.wraps(get_loader)
    def get_dataloader(config: Any, phase: str) -> Any:
        if phase == "train" and config["train_rows"] == "sequence":
            return loader
        return get_loader(config, phase)

    compat.replace_everywhere(create, create_dataset)
    compat.replace_everywhere(get_loader, get_dataloader)
    overall = options.load_properties("overall", "overall")
    compat.count_as_dataset_argument("data_path", "objective", "eval_args", *overall)
    compat.allow_pickled("recbole_adrrec.data.dataset", "SequenceDataset")
    compat.allow_pickled("recbole_adrrec.data.loader", "WindowTrainDataLoader")
    for name in ("Events", "PrefixRows", "WindowRows"):
        compat.allow_pickled("recbole_adrrec.data.rows", name)


# Checkpoints


def _hook_checkpoints() -> None:
    """Let checkpoints carry names and events (trainer/trainer.py:279), and refuse those of other data.

    RecBole compares shapes alone, so weights of other data, or of other filters, would be taken for others' items.
    """
    trainer = importlib.import_module("recbole.trainer.trainer").Trainer
    carried = importlib.import_module("recbole_adrrec.integration.carried")

    def refuse_other(file: Any, found: Any, dataset: Any) -> None:
        difference = carried.other_data(found, dataset)
        if difference is not None:
            raise CheckpointError(
                f"{file}: made for other data: it knows {difference}, than {dataset.dataset_name} has now; restore the "
                "data file and its filters, or train again"
            )

    def fit(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def fit_remembering(self: Any, train_data: Any, *args: Any, **kwargs: Any) -> Any:
            self._adrrec_data = train_data._dataset
            resumed = self.__dict__.pop("_adrrec_resumed", None)
            if resumed is not None:
                refuse_other(resumed[0], resumed[1], self._adrrec_data)
            return original(self, train_data, *args, **kwargs)

        return fit_remembering

    def save_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def save_with_data(self: Any, *args: Any, **kwargs: Any) -> Any:
            # The last state is there to train on; names and events would make every epoch write them.
            last = "saved_model_file" in kwargs
            dataset = None if last else getattr(self, "_adrrec_data", None)
            found = None if dataset is None else carried.collect(self.config, dataset)
            with checkpoints.adding({} if found is None else {carried.KEY: found}):
                return original(self, *args, **kwargs)

        return save_with_data

    def resume(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def resume_checked(self: Any, resume_file: Any) -> Any:
            # The data come with `fit`, so they are compared there.
            def remember(file: str, checkpoint: dict[str, Any]) -> None:
                self._adrrec_resumed = file, checkpoint.get(carried.KEY)

            with checkpoints.checking(remember):
                return original(self, resume_file)

        return resume_checked

    def evaluate(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def evaluate_checked(self: Any, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
            dataset = getattr(eval_data, "_dataset", None)
            with checkpoints.checking(lambda file, found: refuse_other(file, found.get(carried.KEY), dataset)):
                return original(self, eval_data, *args, **kwargs)

        return evaluate_checked

    for name, make in (
        ("fit", fit),
        ("_save_checkpoint", save_checkpoint),
        ("resume_checkpoint", resume),
        ("evaluate", evaluate),
    ):
        override(trainer, name, make)
    compat.check_data_by(lambda file, checkpoint, dataset: refuse_other(file, checkpoint.get(carried.KEY), dataset))


# Trainers


def _hook_trainers() -> None:
    """Let training be continued from its last whole epoch (utils/utils.py:88), and refuse early where it can't be."""
    training = importlib.import_module("recbole_adrrec.integration.training")
    get = importlib.import_module("recbole.utils.utils").get_trainer
    create = importlib.import_module("recbole.data.utils").create_dataset

    @functools.wraps(get)
    def get_trainer(model_type: Any, model_name: str) -> Any:
        return training.continuing(get(model_type, model_name))

    @functools.wraps(create)
    def create_dataset(config: Any) -> Any:
        if config["resume"]:
            training.check(config)
        return create(config)

    compat.replace_everywhere(get, get_trainer)
    compat.replace_everywhere(create, create_dataset)


# Processes


def _hook_evaluation() -> None:
    """Rank sequential models by blocks of rows (trainer/trainer.py:527; collector.py:124)."""
    from recbole_adrrec.integration import ranking as evaluation

    trainer = importlib.import_module("recbole.trainer.trainer").Trainer
    collector = importlib.import_module("recbole.evaluator.collector").Collector
    score, collect = trainer._full_sort_batch_eval, collector.eval_batch_collect

    @functools.wraps(score)
    def full_sort_batch_eval(self: Any, batched_data: Any) -> Any:
        whole = self.config["MODEL_TYPE"].name != "SEQUENTIAL" or self.eval_collector.register.need("rec.score")
        return score(self, batched_data) if whole else evaluation.score_by_rows(self, score, batched_data)

    @functools.wraps(collect)
    def eval_batch_collect(self: Any, scores_tensor: Any, interaction: Any, positive_u: Any, positive_i: Any) -> None:
        if isinstance(scores_tensor, evaluation.RowScores):
            evaluation.collect(self, scores_tensor, positive_u, positive_i)
        else:
            collect(self, scores_tensor, interaction, positive_u, positive_i)

    trainer._full_sort_batch_eval = full_sort_batch_eval
    collector.eval_batch_collect = eval_batch_collect


def _hook_processes() -> None:
    """``run`` spawns processes that import RecBole alone (quick_start/quick_start.py:81): let them register too."""
    quick_start: Any = importlib.import_module("recbole.quick_start.quick_start")
    run = quick_start.run

    @functools.wraps(run)
    def run_registered(
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
                config_class = importlib.import_module("recbole.config.configurator").Config
                typed = config_class._convert_config_dict(None, typed)
            config_dict = Parsed(typed | (dict(_given) if _given is not None else _foreign_command_line()))
        return run(model, dataset, config_file_list, config_dict, saved, nproc, world_size, **where)

    compat.replace_everywhere(run, run_registered)
    quick_start.run_recboles = run_child


def run_child(rank: int, *args: Any) -> None:
    """What each process of ``--nproc`` runs: register, then RecBole's ``run_recbole`` as the given rank."""
    register()
    quick_start: Any = importlib.import_module("recbole.quick_start.quick_start")
    *positional, keywords = args
    keywords["config_dict"] = Parsed(keywords.get("config_dict", {}) | {"local_rank": rank})
    with command_line({}, strict=False):
        quick_start.run_recbole(*positional[:3], **keywords)
