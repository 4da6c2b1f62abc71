"""Files that are written whole or not at all, and faults of atomic files."""

from __future__ import annotations

import math
import os
import tempfile
from typing import IO


class AtomicFile:
    """A binary file that takes its place when it is closed without an error, and leaves no trace otherwise.

    Parameters
    ----------
    path : str or path-like
        Where the file shall be. What stands there remains until the new file is complete and on the disk.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A link keeps pointing where it points: the file behind it is replaced.
        self.path = os.path.realpath(path)
        folder, name = os.path.split(self.path)
        handle, self._temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
        self._file = os.fdopen(handle, "wb")

    def __enter__(self) -> IO[bytes]:
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.chmod(self._temporary, self._mode())
                os.replace(self._temporary, self.path)
        finally:
            self._file.close()
            if os.path.exists(self._temporary):
                os.unlink(self._temporary)

    def _mode(self) -> int:
        """Permissions as ``open`` would have given; ``mkstemp`` lets the owner alone read."""
        if os.path.exists(self.path):
            return os.stat(self.path).st_mode & 0o777
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def unreadable_line(path: str | os.PathLike[str], field: str, separator: str, encoding: str | None) -> str | None:
    """Line and text (``"line 17, 'yesterday'"``) of the first value of a number column that is no number, if any.

    Parameters
    ----------
    path : str or path-like
        An atomic file: a header of ``name:type`` columns, then a line for each event.
    field : str
        Name of the column.
    separator, encoding : str
        Of the file.
    """
    with open(path, encoding=encoding) as lines:
        names = [column.split(":")[0] for column in lines.readline().rstrip("\n").split(separator)]
        if field not in names:
            return None
        column = names.index(field)
        for number, line in enumerate(lines, start=2):
            parts = line.rstrip("\n").split(separator)
            text = parts[column] if column < len(parts) else ""
            try:
                value = float(text or "nan")
            except ValueError:
                return f"line {number}, {text!r}"
            if math.isinf(value) and any(map(str.isdigit, text)):  # 1e400, which pandas 2 refuses
                return f"line {number}, {text!r}"
    return None


def has_quotes(path: str | os.PathLike[str]) -> bool:
    """True if a file holds a double quote anywhere, as few atomic files do."""
    with open(path, "rb") as file:
        return any(b'"' in block for block in iter(lambda: file.read(1 << 24), b""))


def broken_name(path: str | os.PathLike[str], field: str, name: object) -> str:
    """Message on a name that goes over lines: an unclosed quote turns the rows up to the next quote into one name."""
    return (
        f"{path}: a double quote begins the {field} {str(name).splitlines()[0][:40]!r} and does not end there; remove "
        'it, or double it within quotes, as in """name"'
    )
