"""Measurements in one JSON file, written after each: what was measured is neither lost nor repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from measure.store import read_json, write_json

FORMAT = 1


@dataclass
class Job:
    """One measurement to make: arguments of :meth:`Ledger.measure`, and what its child is given."""

    kind: str
    variant: str
    given: dict[str, Any]
    run: int
    work: Callable[[], dict[str, Any]]
    child: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Measurements of one machine.

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
        for one in self.measurements:
            if _key(one["kind"], one["variant"], one["given"], one["run"]) == key and one["result"] is not None:
                return one
        return None

    def measure(
        self, kind: str, variant: str, given: dict[str, Any], run: int, work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Give a measurement that is there already, or make it and keep it.

        Parameters
        ----------
        kind, variant : str
            What is measured and the name of the row.
        given : dict
            All that the result depends on.
        run : int
            Number of the repetition.
        work : callable
            Makes the result. What it raises as ``RuntimeError`` is kept as ``error``, and tried again next time.

        Returns
        -------
        dict
            ``kind``, ``variant``, ``run``, ``given``, ``started``, ``result`` (null if it failed), ``error``.
        """
        known = self.find(kind, variant, given, run)
        if known is not None:
            return known
        one: dict[str, Any] = {
            "kind": kind,
            "variant": variant,
            "run": run,
            "given": given,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "result": None,
            "error": None,
        }
        try:
            one["result"] = work()
        except RuntimeError as error:
            one["error"] = str(error)
        key = _key(kind, variant, given, run)
        kept = [old for old in self.measurements if _key(old["kind"], old["variant"], old["given"], old["run"]) != key]
        self.content["measurements"] = [*kept, one]
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
