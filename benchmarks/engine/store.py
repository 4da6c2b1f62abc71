"""Results on disk: whole files only, so that whatever is killed loses nothing that was written before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from recbole_adrrec.errors import OptionError
from recbole_adrrec.files import AtomicFile

FORMAT = 1
KEY = ("kind", "variant", "given", "run")
"""Entries that tell two measurements from each other."""


def write_text(path: Path, text: str) -> None:
    """Put ``text`` in place of the file, or leave the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Put ``content`` in place of the file, or leave the file as it was."""
    write_text(path, json.dumps(content, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def read_json(path: Path) -> Any:
    """Content of the file; None if there is no such file, or it holds no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Hold a folder for this process alone; ``key`` is the option that names it.

    Raises
    ------
    OptionError
        Another process is at work in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; two processes in one folder are then the user's care.
        yield
        return
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise OptionError(f"{key}: {folder} is in use by process {lock.read().strip() or '?'}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def owned(
    folder: Path, file: Path, content: Mapping[str, Any], read: Callable[[Any], Mapping[str, Any]], key: str, kind: str
) -> Iterator[None]:
    """Hold a folder for one piece of work, such as a study, and this process alone.

    ``file`` in it states the work: ``content`` is what it says of this one, ``read`` takes the statement out of that
    of another. ``key`` is the option that names the folder, ``kind`` a word for the work.

    Raises
    ------
    OptionError
        The folder holds another work, or something else, or a process is at work in it.
    """
    check_owner(folder, file, content, read, key, kind)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, key):
        check_owner(folder, file, content, read, key, kind)
        if not file.is_file():
            write_json(file, content)
        yield


def check_owner(
    folder: Path, file: Path, content: Mapping[str, Any], read: Callable[[Any], Mapping[str, Any]], key: str, kind: str
) -> None:
    """Refuse a folder that is neither this work's nor new; parameters and errors as for :func:`owned`."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{key}: {folder} is not a folder; choose another")
    if file.is_file():
        stated = read(content)
        try:
            held = read(read_json(file))
        except (KeyError, TypeError):
            raise OptionError(f"{key}: {file} can't be read as a {kind}; choose another folder") from None
        if json.dumps(held, sort_keys=True) != json.dumps(stated, sort_keys=True):
            what = "; ".join(differences(stated, held)) or "the type of a number"
            raise OptionError(
                f"{key}: {folder} holds another {kind}, which differs in {what}; choose another folder by --{key}, "
                f"or state the same {kind}"
            )
    elif folder.is_dir() and any(each.name != ".lock" for each in folder.iterdir()):
        raise OptionError(f"{key}: {folder} is not empty and holds no {kind}; choose another folder")


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two mappings differ, each with both values shortened."""

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 80 else f"{text[:77]}..."

    return [
        f"{key} ({short(theirs.get(key))} there, {short(ours.get(key))} here)"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]


class MeasurementStore:
    """Measurements of one machine in one JSON file, written after each; in memory alone without a path.

    ``machine`` has ``hardware`` and ``versions``: what figures must share to stand side by side.

    Raises
    ------
    ValueError
        The file holds measurements of another machine or other versions, or something else.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": FORMAT, **machine, "measurements": [], "tables": {}}
        if path is None or not path.exists():
            return
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"--json: {path} holds something else; name another file")
        for part in ("hardware", "versions"):
            if found.get(part) != machine[part]:
                raise ValueError(
                    f"--json: {path} was measured with other {part} ({found.get(part)}); name another file"
                )
        self.content = {**found, **machine}

    def measure(
        self, kind: str, variant: str, given: dict[str, Any], run: int, work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return a measurement that succeeded with the same arguments, or make it and keep it.

        It is a dict of ``kind`` of measurement, ``variant`` (the row), number of the ``run``, ``given`` (all that the
        result depends on), ``started``, ``result`` (null if it failed) and ``error``: a ``RuntimeError`` of the work,
        which is tried again next time.
        """
        given = json.loads(json.dumps(given))  # as it stands in the file
        one: dict[str, Any] = {"kind": kind, "variant": variant, "run": run, "given": given, "started": now()}
        same = [known for known in self.content["measurements"] if all(known[key] == one[key] for key in KEY)]
        if same and same[0]["result"] is not None:
            return same[0]
        try:
            one |= {"result": work(), "error": None}
        except RuntimeError as error:
            one |= {"result": None, "error": str(error)}
        others = [known for known in self.content["measurements"] if known not in same]
        self.content["measurements"] = [*others, one]
        self._write()
        return one

    def note(self, name: str, table: Any) -> None:
        """Keep a table of what was measured."""
        self.content["tables"][name] = table
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_json(self.path, self.content)
