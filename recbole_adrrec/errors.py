"""Errors that a user can correct. Each message names the option or file, the value and the remedy."""

import importlib.util


class UserError(ValueError):
    """Something the user gave is wrong; the command line prints the message alone."""


class OptionError(UserError):
    """An option is unknown, of a wrong type, out of range, or at odds with another."""


class DataError(UserError):
    """A data file is missing, malformed or unfit for sequential recommendation."""


class CheckpointError(UserError):
    """A saved file is truncated, tampered with or made for something else."""


def require(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Refuse with an OptionError what needs packages of an extra, where some are missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise OptionError(f"{what} needs {' and '.join(missing)}: pip install 'recbole_adrrec[{extra}]'")
