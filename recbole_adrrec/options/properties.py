"""YAML: our defaults in ``properties/``, what their comments say, and configuration files of users."""

import copy
import functools
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from recbole_adrrec.errors import OptionError

Kind = Literal["overall", "model", "dataset"]


class _Loader(yaml.SafeLoader):
    """YAML as RecBole's configuration files mean it: ``1e-3`` is a number, ``None`` is null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a key that stands in it twice, or is glued to its value, as in ``{a:5}``, is refused."""
        seen: set[str] = set()
        for key, value in node.value:
            problem = ""
            if isinstance(key, yaml.ScalarNode) and key.value in seen - {"<<"}:
                problem = f"{key.value!r} stands there twice"
            elif re.fullmatch(r"\w+:\S+", str(key.value)) and value.value == "":
                problem = f"put a space after the colon of {key.value!r}"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# PyYAML itself wants a dot in every float, and a sign in its exponent.
_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


def load_yaml(text: str, where: str) -> Any:
    """Value of a YAML text; ``where`` begins the message of an ``OptionError``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        raise OptionError(f"{where}{line}: not valid YAML ({problem})") from error


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Options of a configuration file of RecBole's form; raises OptionError where it is missing or holds others."""
    where = f"config file {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OptionError(f"{where}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{where}: cannot be read ({error})") from error
    options = load_yaml(text, where)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise OptionError(f"{where}: holds no options of the form 'name: value'")
    for name in options:
        if not isinstance(name, str):
            raise OptionError(f"{where}: {name!r} is not the name of an option")
    return options


@functools.cache
def _folder(kind: Kind) -> Path:
    """The folder of defaults: in the package where it is installed, or beside it in a checkout."""
    installed, beside = (Path(__file__).resolve().parents[number] / "properties" for number in (1, 2))
    return (installed if installed.is_dir() else beside) / ("" if kind == "overall" else kind)


def _text(kind: Kind, name: str) -> str:
    file = _folder(kind) / f"{name}.yaml"
    return file.read_text(encoding="utf-8") if re.fullmatch(r"[\w.+ -]+", name) and file.is_file() else ""


@functools.cache
def _parsed(kind: Kind, name: str) -> dict[str, Any]:
    return load_yaml(_text(kind, name), f"properties of {name}") or {}


def load_properties(kind: Kind, name: str = "overall") -> dict[str, Any]:
    """Our defaults of every run, of a model or of a data set: a fresh copy, empty where there are none."""
    return copy.deepcopy(_parsed(kind, name))


def load_tuned(model: str, dataset: str) -> dict[str, Any]:
    """Options tuned for a model on a data set, from ``properties/model/<Model>.<dataset>.yaml``; a fresh copy."""
    return load_properties("model", f"{model}.{dataset}")


@functools.cache
def _file_names(kind: Kind) -> list[str]:
    return sorted(file.stem for file in _folder(kind).glob("*.yaml"))


def property_names(kind: Kind) -> list[str]:
    """Names of the models or data sets whose defaults are ours, sorted."""
    return [name for name in _file_names(kind) if kind != "model" or "." not in name]


def tuned_names() -> list[tuple[str, str]]:
    """Models, ours or RecBole's, and data sets that have options tuned for the pair, sorted."""
    return [(model, dataset) for model, dot, dataset in (name.partition(".") for name in _file_names("model")) if dot]


def comments(kind: Kind, name: str = "overall") -> dict[str, str]:
    """Meaning of each option of a file in ``properties/``, from the comment beside it."""
    return _comments(_text(kind, name))


def _comments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    option = None
    for line in text.splitlines():
        start = re.match(r"(\w+):.*?\s#\s*(.*)", line)
        more = re.match(r"\s+#\s*(.*)", line)
        if start:
            option = start[1]
            found[option] = start[2].strip()
        elif more and option:
            found[option] += f" {more[1].strip()}"
        else:
            option = None
    return found


def describe_options(model: str) -> list[tuple[str, Any, str]]:
    """Name, default and meaning of the options that a model, ours or RecBole's, has beyond those of every run."""
    text = _text("model", model)
    if not text and (file := model_yaml(model)).is_file():
        text = file.read_text(encoding="utf-8")
    meanings = _comments(text)
    defaults = load_yaml(text, f"properties of {model}") or {}
    return [(name, default, meanings.get(name, "")) for name, default in defaults.items()]


@functools.cache
def recbole_folder() -> Path:
    """RecBole's folder, found without importing it; raises OptionError where RecBole is not installed."""
    spec = importlib.util.find_spec("recbole")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        script = Path(".venv", "bin", "activate")
        remedy = f"it may be in .venv: run . {script}" if script.is_file() else "run pip install . in a checkout"
        raise OptionError(f"recbole is not installed for {sys.executable}; {remedy}")
    return Path(places[0])


def model_yaml(model: str) -> Path:
    """RecBole's own file of a model's defaults, which need not exist."""
    return recbole_folder() / "properties" / "model" / f"{model}.yaml"
