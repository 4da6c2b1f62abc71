"""The command lines of ``compare.py``, ``tune.py`` and ``ablate.py``: flags, keys of a study, options of the runs."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.options import suggestion
from study import checks
from study.plan import Plan
from study.study_file import KEYS

EXIT_FAILED, EXIT_USER_ERROR, EXIT_UNFINISHED, EXIT_INTERRUPTED = 1, 2, 3, 130

FLAGS: dict[str, str] = {
    "config": "study file (YAML); what follows goes above it",
    "jobs": "how many runs at a time on this machine",
    "minutes": "stop after so many minutes; given again, the command goes on from each run's last whole epoch",
}
"""Flags of every program."""

ONLY: dict[str, str] = {
    "only": "entries to run now, by words out of their labels, separated by ; (the others are left for later)",
    "only_data": "data sets to run now, by their labels, separated by ; (the others are left for later)",
}
"""Flags of programs that can do a part of a study."""

SWITCHES = ("retry_failed", "dry_run")
TEXTS = ("config", "space", "name", "results", "data_path", "tuned", "valid_metric", "only", "only_data")
LISTS = ("models", "datasets", "metrics", "protocols", "groups", "backbones", "baselines")
NUMBERS = ("seeds", "topk", "lengths", "shares")
WITHOUT_VALUE = {"ray": True, "keep_models": True, "test": True}
"""Values of those that may stand without one."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"command line: {message}")


class _Once(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        value = _value(self.dest, values) if isinstance(values, str) else values
        held = getattr(namespace, self.dest, value)
        if held != value:
            raise OptionError(f"{self.dest}: given twice on the command line, as {held!r} and {value!r}")
        setattr(namespace, self.dest, value)


def _value(name: str, text: str) -> Any:
    if name in TEXTS or name == "ray":
        return text
    if name in LISTS and not text.lstrip().startswith(("[", "{")):
        return [each.strip() for each in text.split(",") if each.strip()]
    if name in NUMBERS and "," in text and not text.startswith("["):
        text = f"[{text}]"
    return options.parse_value(text, name)


def parser_of(program: str, description: str, flags: Mapping[str, str]) -> argparse.ArgumentParser:
    """Parser of a program's own flags and the keys of a study; ``-`` and ``_`` mean the same in names."""
    parser = _Parser(
        prog=f"python benchmarks/{program}",
        description=description,
        epilog="Any option of RecBole or of these models, such as --epochs 20, holds for every run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        usage="%(prog)s [--config FILE] [--key value ...]",
    )
    for title, listed in (("flags", flags), ("keys of a study file; the command line goes above the file", KEYS)):
        group = parser.add_argument_group(title)
        for name, meaning in listed.items():
            given: dict[str, Any] = {"action": "store_true"} if name in SWITCHES else {"action": _Once, "metavar": ""}
            if name in WITHOUT_VALUE:
                given |= {"nargs": "?", "const": WITHOUT_VALUE[name]}
            names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
            group.add_argument(*names, dest=name, help=meaning.replace("%", "%%"), **given)
    return parser


def parse(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[dict[str, Any], dict[str, Any]]:
    """A program's own flags, and the keys of a study; options of RecBole's and ours stand there under ``options``.

    Raises
    ------
    OptionError
        For a name that is none of them, with the nearest that is.
    """
    space, rest = parser.parse_known_args(arguments)
    found = vars(space)
    given = options.parse_command_line(rest)
    known = options.known_options()
    own = {action.dest for action in parser._actions}
    for name in given:
        if name not in known:
            near = suggestion(name, own, 0.6) or suggestion(name, known)
            raise OptionError(f"command line: unknown option {name}{near}")
    overrides = {name: value for name, value in found.items() if name in KEYS}
    if given:
        overrides["options"] = {**overrides.get("options", {}), **given}
    return {name: value for name, value in found.items() if name not in KEYS}, overrides


def run_program(
    program: str,
    description: str,
    flags: Mapping[str, str],
    argv: Sequence[str] | None,
    work: Callable[[dict[str, Any], dict[str, Any], str], int],
) -> int:
    """Parse a command line, or print the help text, and return the exit code of the work.

    ``work`` takes flags, overrides and the command. 2 where the user gave something wrong, 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = parser_of(program, description, flags)
    if not arguments or {"--help", "-h"} & set(arguments):
        parser.print_help()
        return 0
    try:
        return work(*parse(arguments, parser), command_of(program, arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        return EXIT_INTERRUPTED


def command_of(program: str, arguments: Sequence[str]) -> str:
    """The command as results name it: whole paths by their last part, since results leave the machine."""

    def shown(argument: str) -> str:
        name, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        return f"{name}{sign}{Path(value).name}" if Path(value).is_absolute() else argument

    return shlex.join(["python", f"benchmarks/{program}", *map(shown, arguments)])


def deadline_of(flags: Mapping[str, Any]) -> float | None:
    """The moment (``time.monotonic``) at which ``--minutes`` from now are over; None without."""
    if "minutes" not in flags:
        return None
    return time.monotonic() + 60 * checks.number(flags["minutes"], "minutes")


def only_of(flags: Mapping[str, Any], plan: Plan) -> frozenset[tuple[str, str]] | None:
    """Data sets and labels of the entries that ``--only`` and ``--only_data`` name; None where neither is given.

    Raises
    ------
    OptionError
        A word is in no label.
    """
    if "only" not in flags and "only_data" not in flags:
        return None
    data, labels = list(plan.datasets), [entry.label for entry in plan.models]
    chosen = (_named(flags, "only_data", data, exact=True), _named(flags, "only", labels))
    return frozenset(itertools.product(*chosen))


def _named(flags: Mapping[str, Any], name: str, labels: Sequence[str], exact: bool = False) -> set[str]:
    """Labels that a flag's words name: equal ones, else those that hold the word; all without the flag."""
    if name not in flags:
        return set(labels)
    found = set()
    for word in (word.strip() for word in flags[name].split(";")):
        named = [label for label in labels if label == word] or [
            label for label in labels if word in label and not exact
        ]
        if not named:
            raise OptionError(f"{name}: {word!r} is in no label of the study; there are {'; '.join(labels)}")
        found.update(named)
    return found
