"""Results on disk: whole files only, so that a run that is killed loses nothing that was written before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recbole_adrrec.files import AtomicFile


def write_json(path: Path, content: Any) -> None:
    """Put ``content`` in place of the file, or leave the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def write_text(path: Path, text: str) -> None:
    """Put ``text`` in place of the file, or leave the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as file:
        file.write(text.encode())


def insert(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the lines ``<!-- begin name -->`` and ``<!-- end name -->`` of a Markdown file.

    Raises
    ------
    ValueError
        The file has no such lines.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    whole = path.read_text(encoding="utf-8")
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"--docs: {path} has no lines {begin} and {end}")
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")


def read_json(path: Path) -> Any:
    """What the file holds; None if there is no such file, or it holds no JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
