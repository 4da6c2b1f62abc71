"""Names of options and models: which are known, and which known one a misspelt one is nearest to.

Works without importing RecBole: its options are those of its YAML files and argument lists, and a few beside them.
"""

import difflib
import functools
import re
import runpy
from collections.abc import Iterable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options.properties import load_properties, model_yaml, property_names, recbole_folder

RUN_OPTIONS = frozenset(
    {
        *("model", "dataset", "config_files", "help", "debug"),
        *("nproc", "world_size", "ip", "port", "group_offset"),
    }
)
"""Options of a run rather than of a model or data set, as RecBole's ``run_recbole.py`` has them."""

SOURCE_OPTIONS = frozenset(
    {
        *("encoding", "eta", "local_rank", "offset", "tail_ratio", "token_num_threshold", "xgb_early_stopping_rounds"),
        *("neg_sampling", "training_neg_sample_num", "valid_neg_sample_args", "test_neg_sample_args"),
        *("cin", "contrast", "feature_num", "has_residual", "norm", "sim", "use_filter"),
    }
)
"""Options that RecBole 1.2 reads and lists nowhere."""


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The candidate most like ``name``, if any is near; case and ``-`` for ``_`` don't count."""
    plain = {candidate.lower(): candidate for candidate in sorted(candidates)}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def suggestion(name: str, candidates: Iterable[str], cutoff: float = 0.7) -> str:
    """``"; did you mean X?"`` for the candidate nearest to ``name``, or nothing."""
    near = nearest(name, candidates, cutoff)
    return f"; did you mean {near}?" if near else ""


WITHOUT_YAML = ("LightGBM", "Random", "XGBoost")
"""Models of RecBole without a YAML file by their name."""


@functools.cache
def _keys(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^(\w+)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE))


@functools.cache
def general_options() -> frozenset[str]:
    """RecBole's options that belong to no model."""
    properties = recbole_folder() / "properties"
    files = [properties / "overall.yaml", *(properties / "quick_start_config").glob("*.yaml")]
    files += [properties / "dataset" / f"{name}.yaml" for name in ("sample", "ml-100k")]
    arguments = runpy.run_path(str(recbole_folder() / "utils" / "argument_list.py"))
    listed = {name for key, names in arguments.items() if key.endswith("_arguments") for name in names}
    # RecBole lists config_file and reads it nowhere: who writes it means config_files.
    return SOURCE_OPTIONS.union(RUN_OPTIONS, listed, *map(_keys, files)) - {"config_file"}


def _model_files() -> list[Path]:
    return list((recbole_folder() / "properties" / "model").glob("*.yaml"))


@functools.cache
def _recbole_options() -> frozenset[str]:
    return general_options().union(*map(_keys, _model_files()))


@functools.cache
def _our_options() -> frozenset[str]:
    models = (set(load_properties("model", name)) for name in property_names("model"))
    return frozenset(load_properties("overall")).union(*models)


def known_options() -> frozenset[str]:
    """Every option: RecBole's, those of its models, and ours. A file is often shared between models."""
    return _recbole_options() | _our_options()


@functools.cache
def model_names() -> list[str]:
    """Names of all models that can be run, ours and RecBole's, sorted."""
    theirs = {file.stem for file in _model_files()}
    return sorted({*property_names("model"), *(theirs - {"lightgbm", "xgboost"}), *WITHOUT_YAML})


def check_model(name: Any) -> str:
    """Refuse a model that nobody knows with an OptionError that names the nearest one that exists."""
    if name in model_names():
        return str(name)
    near = suggestion(str(name), model_names(), cutoff=0.5)
    ours = ", ".join(property_names("model"))
    raise OptionError(f"model: there is no model {name!r}{near} (ours: {ours}; RecBole's others)")


def check_names(given: Mapping[str, Any], model: str, strict: bool, where: str, warn: bool = True) -> None:
    """Refuse misspelt option names with an OptionError, and warn of options that the model doesn't read.

    Parameters
    ----------
    given : Mapping
        Options as the user gave them, without defaults.
    strict : bool
        True for our own command line and the files given to it: an unknown name is refused. False inside other
        programs, which may have options of their own: only near-misses of our own options are refused.
    where : str
        Where the options stood, for the message: ``"command line"``, ``"config file a.yaml"``.
    """
    ours = set(load_properties("model", model))
    own = ours if model in property_names("model") else _keys(model_yaml(model)) if model in model_names() else None
    known, overall = known_options(), set(load_properties("overall"))
    read = {*general_options(), *overall, *(own or ())}
    for name in given:
        if name in known or not isinstance(name, str):
            continue
        if strict:
            near = nearest(name, read) or nearest(name, known)
        else:
            near = nearest(name, (overall | ours) - _recbole_options(), cutoff=0.85)
        if strict or near:
            raise OptionError(f"{where}: unknown option {name}" + (f"; did you mean {near}?" if near else ""))
    if warn and own is not None:
        # What a RecBole model makes of RecBole's options is RecBole's matter; ours are ours.
        concerned = known if model in property_names("model") else _our_options()
        unread = sorted(name for name in given if name in concerned and name not in read)
        if unread:
            getLogger().warning("warning: %s: %s does not read %s (no effect)", where, model, ", ".join(unread))
