"""Commands of ``python -m recbole_adrrec`` beside training.

Each is a module with ``EXAMPLES``, ``add_arguments(add)`` and ``run(given)``, which gives the exit code. Nothing heavy
is imported before a command has read its arguments, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options import nearest

COMMANDS = {
    "recommend": "top items of users at a moment, from a checkpoint alone",
    "explain": "a picture of what one user's recommendation attends to",
    "serve": "recommendations over HTTP, from a checkpoint alone",
    "export": "a trained model as an ONNX graph, for serving without torch and RecBole",
    "doctor": "check the environment: versions, RecBole, devices, data sets",
    "convert": "raw CSV, MovieLens, JSON or Parquet files to RecBole's atomic files, or Parquet, with exact times",
    "upgrade-checkpoint": "a trusted checkpoint of version 0.1, or of RecBole alone, to today's format",
}
"""Descriptions of the commands by name; the first word of each is a module of this package."""


def run(name: str, argv: Sequence[str]) -> int:
    """Run one of ``COMMANDS`` with the arguments after it, and give the exit code; warnings are notes."""
    module = importlib.import_module(f"recbole_adrrec.cli.{name.partition('-')[0]}")
    parser = Parser(name, COMMANDS[name], module.EXAMPLES)
    module.add_arguments(parser.add_argument)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    try:
        given = parser.parse_args(argv)
    except SystemExit:  # --help
        return 0
    notes = logging.StreamHandler()
    notes.setFormatter(logging.Formatter("note: %(message)s"))
    logging.getLogger().addHandler(notes)
    try:
        return int(module.run(given))
    finally:
        logging.getLogger().removeHandler(notes)


class Parser(argparse.ArgumentParser):
    """Arguments of a command; mistakes are raised as OptionError, with the nearest right name."""

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"python -m recbole_adrrec {command}",
            description=f"{description[0].upper()}{description[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        """Raise an OptionError."""
        near = None
        if message.startswith("unrecognized arguments: "):
            first = message.partition(": ")[2].split()[0].partition("=")[0]
            near = nearest(first.lstrip("-"), (action.dest for action in self._actions if action.option_strings))
        raise OptionError(f"{self.command}: {message}{f'; did you mean --{near}?' if near else ' (--help shows all)'}")


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as an interruption everywhere."""


@contextmanager
def terminable() -> Iterator[None]:
    """While this lasts, SIGTERM raises :class:`Terminated`, so that files under way are cleared up."""

    def stop(*_: object) -> NoReturn:
        for child in multiprocessing.active_children():
            child.terminate()
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # signals belong to the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_output(path: Path | None) -> None:
    """Refuse a file that can't be written with an OptionError, before any long work."""
    if path is None:
        return
    if path.is_dir():
        raise OptionError(f"--output: {path} is a folder; name a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OptionError(f"--output: there is no folder {folder}; make it, or choose another place")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"--output: {folder} can't be written; choose another place")


def write(data: str | bytes, path: Path | None) -> None:
    """Write a command's result to a file, whole or not at all, or to the standard output."""
    if path is None:
        print(data, flush=True)
        return
    from recbole_adrrec.files import AtomicFile

    try:
        with AtomicFile(path) as file:
            file.write(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise OptionError(f"--output: {path} can't be written ({error.strerror}); choose another place") from error


def add_checkpoint(add: Any) -> None:
    """The argument of all commands that load a trained model."""
    add("--checkpoint", "-c", type=Path, required=True, help="a model saved by training, as saved/ADRRec-....pth")


def add_device(add: Any) -> None:
    """Where to compute."""
    add("--device", default="cpu", help="where to compute, as cpu or cuda (default: cpu)")


def add_query_arguments(add: Any) -> None:
    """Arguments that ``recommend`` and ``explain`` have in common."""
    add_checkpoint(add)
    add(
        "--at",
        help="the moment: 2024-05-01, 2024-05-01T12:00, ...T12:00+02:00 (UTC without an offset), @1714564800 or now; "
        "later events aren't used (default: the time of the last event known)",
    )
    add(
        "--events", type=Path, action="append", default=[], help="file of new events, of known or new users; repeatable"
    )
    add("--time_unit_in", choices=("s", "ms", "us"), help="unit of numbers in --events (default: as in training)")
    add(
        "--item_file",
        type=Path,
        help="atomic .item file with titles (default: that of the data set, where it is there)",
    )
    add_device(add)
