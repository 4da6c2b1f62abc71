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
    folder: Path,
    file: Path,
    stated: Mapping[str, Any],
    content: Callable[[], Mapping[str, Any]],
    read: Callable[[Any], Mapping[str, Any]],
    key: str,
    kind: str,
) -> Iterator[None]:
    """Hold a folder for one piece of work, such as a study, and this process alone.

    Parameters
    ----------
    folder, file : Path
        The folder, and the file in it that states its work.
    stated : mapping
        Statement of the work, as plain data.
    content : callable
        Content of the file where it is to be written.
    read : callable
        Statement in the content of a file.
    key, kind : str
        The option that names the folder, and a word for the work.

    Raises
    ------
    OptionError
        The folder holds another work, or something else, or a process is at work in it.
    """
    check_owner(folder, file, stated, read, key, kind)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, key):
        check_owner(folder, file, stated, read, key, kind)
        if not file.is_file():
            write_json(file, content())
        yield


def check_owner(
    folder: Path, file: Path, stated: Mapping[str, Any], read: Callable[[Any], Mapping[str, Any]], key: str, kind: str
) -> None:
    """Refuse a folder that is neither this work's nor new; parameters and errors as for :func:`owned`."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{key}: {folder} is not a folder; choose another")
    if file.is_file():
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
    """Measurements of one machine in one JSON file, written after each.

    Parameters
    ----------
    path : Path, optional
        Where they are kept; None keeps them in memory alone.
    machine : dict
        ``hardware`` and ``versions``: what figures must share to stand side by side.

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

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """All of them, in the order they were made."""
        return self.content["measurements"]

    def find(self, kind: str, variant: str, given: dict[str, Any], run: int) -> dict[str, Any] | None:
        """A measurement that succeeded with the same arguments; None if there is none."""
        key = _key(kind, variant, given, run)
        return next((one for one in self.measurements if _key_of(one) == key and one["result"] is not None), None)

    def measure(
        self, kind: str, variant: str, given: dict[str, Any], run: int, work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return a measurement that is there already, or make it and keep it.

        Parameters
        ----------
        kind, variant : str
            What is measured and the name of the row.
        given : dict
            All that the result depends on.
        run : int
            Number of the repetition.
        work : callable
            Makes the result. A ``RuntimeError`` is kept as ``error``, and the work is tried again next time.

        Returns
        -------
        dict
            ``kind``, ``variant``, ``run``, ``given``, ``started``, ``result`` (null if it failed), ``error``.
        """
        known = self.find(kind, variant, given, run)
        if known is not None:
            return known
        one: dict[str, Any] = {"kind": kind, "variant": variant, "run": run, "given": given, "started": now()}
        try:
            one |= {"result": work(), "error": None}
        except RuntimeError as error:
            one |= {"result": None, "error": str(error)}
        key = _key_of(one)
        self.content["measurements"] = [*(old for old in self.measurements if _key_of(old) != key), one]
        self.write()
        return one

    def note(self, name: str, table: Any) -> None:
        """Keep a table of what was measured."""
        self.content["tables"][name] = table
        self.write()

    def write(self) -> None:
        """Put the file in place."""
        if self.path is not None:
            write_json(self.path, self.content)


def _key(kind: str, variant: str, given: dict[str, Any], run: int) -> str:
    return json.dumps([kind, variant, given, run], sort_keys=True)


def _key_of(one: dict[str, Any]) -> str:
    return _key(one["kind"], one["variant"], one["given"], one["run"])
