"""Options: their defaults, how they are written, and which names are known.

Everything here works before RecBole is imported: its own options are found in the text of its
files. Values are judged by :mod:`recbole_adrrec.options.rules`.
"""

import ast
import copy
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Literal

import yaml

from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.options.rules import MODEL_RULES, OVERALL_RULES, RECBOLE_RULES, check_values, nearest, suggestion

__all__ = [
    "CommandLine",
    "check_data",
    "check_model",
    "check_names",
    "check_values",
    "comments",
    "describe_options",
    "known_options",
    "load_properties",
    "missing_data",
    "model_names",
    "parse_command_line",
    "parse_value",
    "property_names",
    "read_config_file",
]

Kind = Literal["overall", "model", "dataset"]

RUN_OPTIONS = frozenset(
    {
        *("model", "dataset", "config_files", "help", "debug"),
        *("nproc", "world_size", "ip", "port", "group_offset"),
    }
)
"""Options of a run rather than of a model or data set, as RecBole's ``run_recbole.py`` has them."""

TEXT_OPTIONS = frozenset(
    {
        *("model", "dataset", "ip", "port", "gpu_id", "data_path", "checkpoint_dir", "resume"),
        *("field_separator", "seq_separator"),
        *("user_inter_num_interval", "item_inter_num_interval"),
        *("entity_kg_num_interval", "relation_kg_num_interval"),
    }
)
"""Options whose value is text as it stands, such as ``5678``, ``0,1`` or ``[5,inf)``."""

_SHORT = {"-m": "model", "-d": "dataset", "-h": "help"}
_FLAGS = frozenset({"help", "debug"})
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_NUMBER = re.compile(r"-\.?\d")


# YAML


class _Loader(yaml.SafeLoader):
    """YAML as RecBole's configuration files mean it: ``1e-3`` is a number, ``None`` is null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing a key that stands in it twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    problem = f"{key.value!r} stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# PyYAML's own pattern asks for a dot in every float; this is the one RecBole puts in its place.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:
         [-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


def _load_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        raise OptionError(f"{where}{line}: not valid YAML ({problem})") from error


# Our defaults


@functools.cache
def _properties() -> Path:
    """Find the folder of defaults: installed with the package, or beside it in a checkout."""
    spec = importlib.util.find_spec("recbole_adrrec.properties")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else Path(__file__).resolve().parents[2] / "properties"


def _property_text(kind: Kind, name: str) -> str:
    if not name or not re.fullmatch(r"[\w.+ -]+", name):
        return ""
    folder = _properties() if kind == "overall" else _properties() / kind
    file = folder / ("overall.yaml" if kind == "overall" else f"{name}.yaml")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@functools.cache
def _parsed_properties(kind: Kind, name: str) -> dict[str, Any]:
    text = _property_text(kind, name)
    return _load_yaml(text, f"properties of {name}") or {}


def load_properties(kind: Kind, name: str = "overall") -> dict[str, Any]:
    """Read our defaults from ``properties/``.

    Parameters
    ----------
    kind : {"overall", "model", "dataset"}
        Which defaults.
    name : str
        Name of the model or data set; without meaning for ``"overall"``.

    Returns
    -------
    dict
        Option to default, a fresh copy; empty where there is no such file.
    """
    return copy.deepcopy(_parsed_properties(kind, "overall" if kind == "overall" else name))


@functools.cache
def property_names(kind: Kind) -> list[str]:
    """Names of the models or data sets whose defaults are ours, sorted."""
    folder = _properties() if kind == "overall" else _properties() / kind
    files = [file.name for file in folder.iterdir() if file.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in files)


def comments(kind: Kind, name: str = "overall") -> dict[str, str]:
    """What each option of a file in ``properties/`` means, from the comment beside it."""
    return _comments(_property_text(kind, name))


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
    """Options that a model has beyond those of every run: name, default and meaning.

    Parameters
    ----------
    model : str
        One of ``model_names()``.
    """
    if model in MODEL_RULES:
        defaults, meanings = load_properties("model", model), comments("model", model)
    else:
        file = _model_yaml(model)
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        defaults, meanings = _load_yaml(text, str(file)) or {}, _comments(text)
    return [(name, default, meanings.get(name, "")) for name, default in defaults.items()]


# RecBole's names


@functools.cache
def _recbole() -> Path:
    """RecBole's folder, found without importing it."""
    spec = importlib.util.find_spec("recbole")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        script = Path(".venv", "bin", "activate")
        remedy = f"it may be in .venv: run . {script}" if script.is_file() else "run pip install . in a checkout"
        raise OptionError(f"recbole is not installed for {sys.executable}; {remedy}")
    return Path(places[0])


_READ = re.compile(
    r"""config(?:_dict)?\s*(?:\[|\.get\()\s*["'](\w+)["']   # config["name"], config.get("name")
      | ["'](\w+)["']\s+(?:not\s+)?in\s+(?:self\.)?config\b(?!\[)  # "name" in config
    """,
    re.VERBOSE,
)
_YAML_KEY = re.compile(r"^(\w+)\s*:", re.MULTILINE)


@functools.cache
def _names_read(file: Path) -> frozenset[str]:
    """Names of the options that a file of RecBole's source reads."""
    return frozenset(first or second for first, second in _READ.findall(file.read_text(encoding="utf-8")))


@functools.cache
def _yaml_keys(file: Path) -> frozenset[str]:
    return frozenset(_YAML_KEY.findall(file.read_text(encoding="utf-8")))


@functools.cache
def _general_options() -> frozenset[str]:
    """RecBole's options that belong to no model."""
    root = _recbole()
    properties = root / "properties"
    found: set[str] = set()
    for file in [
        properties / "overall.yaml",
        *(properties / "dataset" / name for name in ("sample.yaml", "ml-100k.yaml")),
        *(properties / "quick_start_config").glob("*.yaml"),
    ]:
        found |= _yaml_keys(file)
    for file in root.rglob("*.py"):
        # Models are told apart below; hyper_tuning.py has search spaces, not options.
        if file.relative_to(root).parts[0] != "model" and file.name != "hyper_tuning.py":
            found |= _names_read(file)
    arguments = (root / "utils" / "argument_list.py").read_text(encoding="utf-8")
    found.update(re.findall(r"'(\w+)'", arguments))
    # RecBole lists config_file and reads it nowhere: who writes it means config_files.
    return (frozenset(found) | RUN_OPTIONS) - {"config_file"}


@functools.cache
def _recbole_models() -> dict[str, Path]:
    """RecBole's models by name, with the files that hold them."""
    found = {}
    for file in sorted(_recbole().glob("model/*/*.py")):
        for name in re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE):
            if name.lower() == file.stem:
                found[name] = file
    return found


def _model_sources(name: str) -> Iterator[Path]:
    """Files that define a RecBole model: its own, and those of the models it builds upon."""
    root = _recbole()
    waiting = [_recbole_models()[name], *(root / "model").glob("*.py")]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        yield file
        text = file.read_text(encoding="utf-8")
        for module in re.findall(r"^from recbole\.(model\.\w+\.\w+) import", text, re.MULTILINE):
            waiting.append(root.joinpath(*module.split(".")).with_suffix(".py"))


@functools.cache
def _model_options(model: str) -> frozenset[str] | None:
    """Options that ``model`` itself reads, or None where its source is somebody else's."""
    if model in MODEL_RULES:
        return frozenset(load_properties("model", model))
    if model not in _recbole_models():
        return None
    found = set(_yaml_keys(file)) if (file := _model_yaml(model)).is_file() else set()
    for source in _model_sources(model):
        found |= _names_read(source)
    return frozenset(found)


def _model_yaml(model: str) -> Path:
    return _recbole() / "properties" / "model" / f"{model}.yaml"


@functools.cache
def _recbole_options() -> frozenset[str]:
    """Every option that RecBole or one of its models reads."""
    root = _recbole()
    found = set(_general_options())
    for file in (root / "properties" / "model").glob("*.yaml"):
        found |= _yaml_keys(file)
    for file in (root / "model").rglob("*.py"):
        found |= _names_read(file)
    return frozenset(found)


@functools.cache
def _our_options() -> frozenset[str]:
    models = (set(load_properties("model", name)) for name in property_names("model"))
    return frozenset(load_properties("overall")).union(*models)


def model_names() -> list[str]:
    """Names of all models that can be run, ours and RecBole's, sorted."""
    return sorted({*property_names("model"), *_recbole_models()})


def check_model(name: Any) -> str:
    """Refuse a model that nobody knows, naming the nearest one that exists.

    Raises
    ------
    OptionError
        If ``name`` is neither one of our models nor one of RecBole's.
    """
    names = model_names()
    if name in names:
        return name
    near = suggestion(str(name), names, cutoff=0.5)
    ours = ", ".join(property_names("model"))
    raise OptionError(f"model: there is no model {name!r}{near} (ours: {ours}; RecBole's others)")


def known_options(model: str | None = None) -> set[str]:
    """Every option name that may stand on our command line or in a file given to it.

    RecBole's options, those of its models, and ours; a file is often shared between models, so
    options of other models than ``model`` are known too.
    """
    own = _model_options(model) if model else None
    return {*_recbole_options(), *_our_options(), *(own or ())}


# Checks of names


def _distance(left: str, right: str) -> int:
    """Edits (a letter more, less, other, or two swapped) that turn one word into the other."""
    rows = [list(range(len(right) + 1))]
    for i, a in enumerate(left, 1):
        row = [i]
        for j, b in enumerate(right, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def _misspelt(name: str, candidates: set[str]) -> str | None:
    """The candidate that ``name`` is a slip of: two edits at most, one in short names."""
    wanted = name.lower().replace("-", "_")
    for candidate in sorted(candidates):
        allowed = 2 if len(candidate) > 7 else 1
        if abs(len(wanted) - len(candidate)) <= allowed and _distance(wanted, candidate) <= allowed:
            return candidate
    return None


def check_names(given: Mapping[str, Any], model: str, strict: bool, where: str, warn: bool = True) -> None:
    """Refuse misspelt option names, and warn of options that the model doesn't read.

    Parameters
    ----------
    given : Mapping
        Options as the user gave them, without defaults.
    model : str
        Name of the model that runs.
    strict : bool
        True for our own command line and the files given to it: an unknown name is refused.
        False inside other programs, which may have options of their own: only slips of the
        names of our own options are refused.
    where : str
        Where the options stood, for the message: ``"command line"``, ``"config file a.yaml"``.
    warn : bool
        Whether options that the model doesn't read are named in a warning.

    Raises
    ------
    OptionError
        Naming the option, where it stood and the nearest right name, if one is near.
    """
    known = known_options(model)
    own = _model_options(model)
    read = {*_general_options(), *OVERALL_RULES, *(own or ())}
    ours = set(OVERALL_RULES)
    if model in MODEL_RULES:
        ours |= set(MODEL_RULES[model])
    for name in given:
        if name in known or not isinstance(name, str):
            continue
        if strict:
            near = nearest(name, read) or nearest(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise OptionError(f"{where}: unknown option {name}{hint}")
        near = _misspelt(name, ours - _recbole_options())
        if near:
            raise OptionError(f"{where}: unknown option {name}; did you mean {near}?")
    if warn:
        _warn_unread(given, model, read, own, where)


def _warn_unread(
    given: Mapping[str, Any],
    model: str,
    read: set[str],
    own: frozenset[str] | None,
    where: str,
) -> None:
    if own is None:
        return
    # What a RecBole model makes of RecBole's options is RecBole's matter; ours are ours.
    concerned = known_options(model) if model in MODEL_RULES else _our_options()
    unread = sorted(name for name in given if name in concerned and name not in read)
    if unread:
        getLogger().warning("warning: %s: %s does not read %s (no effect)", where, model, ", ".join(unread))


# Values as a command line writes them


def parse_value(text: str, name: str = "") -> Any:
    """Read one value as YAML.

    Parameters
    ----------
    text : str
        The value: ``1e-3``, ``[sinusoid, log1p]``, ``2024-10-11``, ``None``; a Python tuple
        ``(1, 2)`` becomes a list, and an interval such as ``[5,inf)`` stays text.
    name : str
        The option, for the message.

    Raises
    ------
    OptionError
        If the text is not YAML.
    """
    stripped = text.strip()
    where = f"{name}: {text!r}" if name else repr(text)
    if stripped.startswith("#") or _is_interval(stripped):
        return stripped
    if stripped.startswith("(") and stripped.endswith(")") and "," in stripped:
        return _parse_tuple(stripped, where)
    value = _load_yaml(stripped, where)
    _refuse_missing_space(value, where)
    return value


def _is_interval(text: str) -> bool:
    """Whether this is a half-open interval of RecBole, whose brackets no YAML would match."""
    return bool(re.fullmatch(r"\[[^\[\]()]*,[^\[\]()]*\)|\([^\[\]()]*,[^\[\]()]*\]", text))


def _parse_tuple(text: str, where: str) -> list[Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(value, tuple):
        return list(value)
    return _load_yaml(f"[{text[1:-1]}]", where)


def _refuse_missing_space(value: Any, where: str) -> None:
    """YAML reads ``{sample_num:5}`` as one long key without a value: not what anybody means."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if entry is None and isinstance(key, str) and re.fullmatch(r"\w+:\S+", key):
                raise OptionError(f"{where}: put a space after the colon of {key!r}")
            _refuse_missing_space(entry, where)
    elif isinstance(value, list):
        for entry in value:
            _refuse_missing_space(entry, where)


def _parse_option(name: str, text: str) -> Any:
    if name not in TEXT_OPTIONS:
        return parse_value(text, name)
    if text in ("~", "null", "None"):
        return None
    if text[:1] in ("'", '"'):
        return str(parse_value(text, name))
    if name == "gpu_id":
        return text.strip("()[] ")
    return text


def _as_files(text: str) -> list[str]:
    """Files of one ``--config_files``: one path, a YAML list, or several with spaces between."""
    if Path(text).is_file():
        return [text]
    if text.startswith("["):
        return [str(file) for file in parse_value(text, "config_files")]
    return text.split()


# The command line

CommandLine = dict[str, Any]
"""Options by name; ``config_files`` is a list of paths."""


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read a command line: ``--key=value``, ``--key value``, ``--flag``, ``-m`` and ``-d``.

    Parameters
    ----------
    argv : sequence of str
        The arguments after the program's name.

    Returns
    -------
    dict
        Option to value, in the order given. ``config_files`` holds a list of paths; ``help`` and
        ``debug`` are true if asked for.

    Raises
    ------
    OptionError
        For an argument that belongs to no option, a value that is not YAML, or an option given
        twice with different values.
    """
    given: CommandLine = {}
    rest = list(argv)
    while rest:
        name, text = _split_argument(rest.pop(0))
        if name == "config_files":
            texts = [text] if text is not None else []
            while rest and not rest[0].startswith("-"):
                texts.append(rest.pop(0))
            if not texts:
                raise OptionError("config_files: no file is named")
            files = [file for each in texts for file in _as_files(each)]
            given["config_files"] = [*given.get("config_files", []), *files]
            continue
        if text is None and name not in _FLAGS and rest and _is_value(rest[0]):
            text = rest.pop(0)
        value = True if text is None else _parse_option(name, text)
        if text is None and (name in TEXT_OPTIONS or _needs_value(name)):
            raise OptionError(f"{name}: no value is given")
        if name in given and (type(given[name]), given[name]) != (type(value), value):
            raise OptionError(f"{name}: given twice on the command line, as {given[name]!r} and {value!r}")
        given[name] = value
    return given


def _split_argument(argument: str) -> tuple[str, str | None]:
    """Name of the option that an argument starts, and the value in the same argument, if any."""
    short = _SHORT.get(argument[:2])
    if short and not argument.startswith("--"):
        text = argument[2:].removeprefix("=")
        return short, text or None
    name, equals, text = argument.removeprefix("--").partition("=")
    if not argument.startswith("--") or not _NAME.fullmatch(name):
        raise OptionError(f"command line: {argument!r} belongs to no option; write --key=value or --key value")
    return name, text if equals else None


def _needs_value(name: str) -> bool:
    """Whether an option, where its rule is known, can't be true."""
    rules = [rules[name] for rules in (OVERALL_RULES, RECBOLE_RULES, *MODEL_RULES.values()) if name in rules]
    return bool(rules) and all(rule.fault(True) for rule in rules)


def _is_value(argument: str) -> bool:
    return not argument.startswith("-") or bool(_NUMBER.match(argument))


# Files


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a configuration file of RecBole's form.

    Raises
    ------
    OptionError
        If the file is missing, is not YAML, or holds anything but a mapping of option names.
    """
    where = f"config file {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OptionError(f"{where}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{where}: cannot be read ({error})") from error
    options = _load_yaml(text, where)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise OptionError(f"{where}: holds no options of the form 'name: value'")
    for name in options:
        if not isinstance(name, str):
            raise OptionError(f"{where}: {name!r} is not the name of an option")
    return options


_PAGES = {
    "ml-": "https://grouplens.org/datasets/movielens/",
    "amazon-": "https://jmcauley.ucsd.edu/data/amazon/",
}
_RECBOLE_PAGE = "https://github.com/RUCAIBox/RecDatasets"


def _download_links() -> dict[str, str]:
    links = yaml.safe_load((_recbole() / "properties/dataset/url.yaml").read_text(encoding="utf-8"))
    return links or {}


def missing_data(dataset: str, folder: str | Path) -> str:
    """Say which file of a data set is wanted, where, and from which public page.

    Parameters
    ----------
    dataset : str
        Name of the data set.
    folder : str or Path
        The data set's own folder, ``<data_path>/<dataset>``.
    """
    wanted = Path(folder, f"{dataset}.inter")
    link = _download_links().get(dataset)
    if link is None:
        near = suggestion(dataset, {*_download_links(), *property_names("dataset")}, 0.75)
        return (
            f"dataset: there is no file {wanted}, and RecBole knows no download named {dataset!r}"
            f"{near}; put the file there (columns user_id:token, item_id:token, timestamp:float) "
            f"or set data_path; data sets that RecBole knows: {_RECBOLE_PAGE}"
        )
    page = next((page for start, page in _PAGES.items() if dataset.startswith(start)), _RECBOLE_PAGE)
    return (
        f"dataset: there is no file {wanted}; download {link} (data from {page}), unpack it and "
        f"give the file that name, or set data_path to a folder that holds {dataset}/{wanted.name}"
    )


def check_data(dataset: str, folder: str | Path, benchmark: Sequence[str] | None = None) -> None:
    """Refuse a data set that is neither there nor to be downloaded by RecBole.

    Parameters
    ----------
    dataset, folder : str
        As for :func:`missing_data`.
    benchmark : sequence of str, optional
        Names of the parts, where the events are split into ``<dataset>.<part>.inter``.

    Raises
    ------
    DataError
        Saying which file is wanted, where, and from which page.
    """
    if not Path(folder).exists() and dataset in _download_links():
        return
    names = [f"{dataset}.{part}.inter" for part in benchmark] if benchmark else [f"{dataset}.inter"]
    if not all(Path(folder, name).is_file() for name in names):
        raise DataError(missing_data(dataset, folder))
