"""Command lines of the form ``--key=value``, and values as they are written there."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options.properties import load_yaml
from recbole_adrrec.options.rules import MODEL_RULES, OVERALL_RULES, RECBOLE_RULES

TEXT_OPTIONS = frozenset(
    {
        *("model", "dataset", "ip", "port", "gpu_id", "data_path", "checkpoint_dir", "resume", "init_from"),
        *("field_separator", "seq_separator"),
        *("user_inter_num_interval", "item_inter_num_interval"),
        *("entity_kg_num_interval", "relation_kg_num_interval"),
    }
)
"""Options whose value is text as it stands, such as ``5678``, ``0,1`` or ``[5,inf)``."""

_SHORT = {"-m": "model", "-d": "dataset", "-h": "help"}
_FLAGS = frozenset({"help", "debug"})
_INTERVAL = re.compile(r"\[[^\[\]()]*,[^\[\]()]*\)|\([^\[\]()]*,[^\[\]()]*\]")

CommandLine = dict[str, Any]
"""Options by name; ``config_files`` is a list of paths."""


def parse_value(text: str, name: str = "") -> Any:
    """Value of a text, read as YAML: ``1e-3``, ``[sinusoid, log1p]``, ``2024-10-11``, ``None``.

    A Python tuple ``(1, 2)`` becomes a list, and an interval such as ``[5,inf)``, whose brackets no YAML would match,
    stays text. An OptionError, where it is no YAML, begins with ``name``.
    """
    text = text.strip()
    where = f"{name}: {text!r}" if name else repr(text)
    if text.startswith("#") or _INTERVAL.fullmatch(text):
        return text
    if text.startswith("(") and text.endswith(")") and "," in text:
        try:
            return list(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            text = f"[{text[1:-1]}]"
    return load_yaml(text, where)


def _parse_option(name: str, text: str) -> Any:
    if name not in TEXT_OPTIONS:
        return parse_value(text, name)
    if text in ("~", "null", "None"):
        return None
    if text[:1] in ("'", '"'):
        return str(parse_value(text, name))
    return text.strip("()[] ") if name == "gpu_id" else text


def _as_files(text: str) -> list[str]:
    """Files of one ``--config_files``: one path, a YAML list, or several with spaces between."""
    if Path(text).is_file():
        return [text]
    if text.startswith("["):
        return [str(file) for file in parse_value(text, "config_files")]
    return text.split()


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Options of a command line: ``--key=value``, ``--key value``, ``--flag``, ``-m`` and ``-d``.

    In the order given; ``config_files`` holds a list of paths; ``help`` and ``debug`` are true if they are given. An
    argument that belongs to no option, a value that is not YAML, or a second value of an option is an OptionError.
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
        if text is None and name not in _FLAGS and rest and re.match(r"[^-]|-\.?\d|$", rest[0]):
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
    if short:
        return short, argument[2:].removeprefix("=") or None
    name, equals, text = argument.removeprefix("--").partition("=")
    if not argument.startswith("--") or not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        raise OptionError(f"command line: {argument!r} belongs to no option; write --key=value or --key value")
    return name, text if equals else None


def _needs_value(name: str) -> bool:
    """True for an option whose rule, in every model that has it, refuses true."""
    known = [rules[name] for rules in (RECBOLE_RULES, OVERALL_RULES, *MODEL_RULES.values()) if name in rules]
    return bool(known) and all(rule(True) for rule in known)
