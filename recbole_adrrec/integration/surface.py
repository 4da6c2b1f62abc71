"""What of RecBole's insides this package builds on, checked before anything is changed."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from types import ModuleType

from recbole_adrrec.integration import tuning

SURFACE: dict[str, dict[str, tuple[str, ...] | None]] = {
    "recbole.config.configurator": {
        "Config._load_internal_config_dict": ("self", "model", "model_class", "dataset"),
        "Config._load_variable_config_dict": ("self", "config_dict"),
        "Config._load_cmd_line": ("self",),
        "Config._get_final_config_dict": ("self",),
        "Config._set_default_parameters": ("self",),
        "Config._convert_config_dict": ("self", "config_dict"),
        "Config._init_device": ("self",),
        "Config.compatibility_settings": ("self",),
    },
    "recbole.utils.utils": {"get_model": ("model_name",), "get_trainer": ("model_type", "model_name")},
    "recbole.utils.argument_list": {"dataset_arguments": None},
    "recbole.utils.url": {"ur": None, "decide_download": ("url",), "download_url": ("url", "folder")},
    "recbole.utils.enum_type": {
        "ModelType": None,
        "InputType": None,
        "EvaluatorType": None,
        "FeatureType": None,
        "FeatureSource": None,
        "KGDataLoaderState": None,
    },
    "recbole.data.utils": {
        "pickle": None,
        "create_dataset": ("config",),
        "get_dataloader": ("config", "phase"),
        "load_split_dataloaders": ("config",),
        "save_split_dataloaders": ("config", "dataloaders"),
    },
    "recbole.data.dataset.dataset": {
        "pd": None,
        "pickle": None,
        "decide_download": ("url",),
        "download_url": ("url", "folder"),
        "extract_zip": ("path", "folder"),
        "rename_atomic_files": ("folder", "old_name", "new_name"),
        "Dataset._fill_nan": ("self",),
        "Dataset._download": ("self",),
        "Dataset._load_data": ("self", "token", "dataset_path"),
        "Dataset.save": ("self",),
    },
    "recbole.data.dataset": {"SequentialDataset": None},
    "recbole.data.dataloader.abstract_dataloader": {
        "AbstractDataLoader.__init__": ("self", "config", "dataset", "sampler", "shuffle"),
    },
    "recbole.data.dataloader": {"FullSortEvalDataLoader": None, "NegSampleEvalDataLoader": None},
    "recbole.data.interaction": {"Interaction": ("interaction",)},
    "recbole.evaluator.collector": {"Collector.get_data_struct": ("self",)},
    "recbole.trainer.trainer": {
        "torch": None,
        "amp": None,
        "AbstractTrainer.__init__": ("self", "config", "model"),
        "Trainer.__init__": ("self", "config", "model"),
        "Trainer._save_checkpoint": ("self", "epoch", "verbose", "kwargs"),
        "Trainer._map_reduce": ("self", "result", "num_sample"),
        "Trainer.resume_checkpoint": ("self", "resume_file"),
        "Trainer.evaluate": ("self", "eval_data", "load_best_model", "model_file", "show_progress"),
    },
    "recbole.quick_start.quick_start": {
        "tune": None,
        "run": (
            "model",
            "dataset",
            "config_file_list",
            "config_dict",
            "saved",
            "nproc",
            "world_size",
            "ip",
            "port",
            "group_offset",
        ),
        "run_recbole": ("model", "dataset", "config_file_list", "config_dict", "saved", "queue"),
        "run_recboles": ("rank", "args"),
        "objective_function": ("config_dict", "config_file_list", "saved"),
        "load_data_and_model": ("model_file",),
        "create_dataset": None,
        "data_preparation": None,
        "get_model": None,
        "get_trainer": None,
        "init_logger": None,
        "init_seed": None,
    },
}
"""Module, attribute, and the names of its parameters (None: anything)."""


def check() -> None:
    """Make sure that RecBole is as this package expects it.

    Raises
    ------
    RuntimeError
        Something is missing or takes other arguments; the message names it and the version of RecBole.
    """
    try:
        version = importlib.metadata.version("recbole")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    for module_name, attributes in SURFACE.items():
        module = _module(module_name, version)
        for path, parameters in attributes.items():
            _check_attribute(module, path, parameters, version)


def _module(name: str, version: str) -> ModuleType:
    try:
        if name == tuning.QUICK_START:
            tuning.import_quick_start()
        return importlib.import_module(name)
    except ImportError as error:
        if name.startswith(str(error.name or "?")):
            raise RuntimeError(_text(version, f"has no module {name}")) from error
        raise RuntimeError(
            _text(version, f"can't be imported ({name}: {error}); installing what is missing may help")
        ) from error


def _check_attribute(module: ModuleType, path: str, parameters: tuple[str, ...] | None, version: str) -> None:
    value: object = module
    for name in path.split("."):
        if name not in vars(value):
            raise RuntimeError(_text(version, f"has no {module.__name__}.{path}"))
        value = vars(value)[name]
    if parameters is not None:
        found = tuple(inspect.signature(value).parameters)  # type: ignore[arg-type]
        if found != parameters:
            raise RuntimeError(
                _text(version, f"has {module.__name__}.{path}({', '.join(found)}), not ({', '.join(parameters)})")
            )


def _text(version: str, what: str) -> str:
    return f"recbole_adrrec works with recbole 1.2.0 and 1.2.1; the installed recbole {version} {what}"
