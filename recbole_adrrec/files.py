"""Files that are either whole or not there."""

from __future__ import annotations

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
