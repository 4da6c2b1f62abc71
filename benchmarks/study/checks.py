"""Checks of what users give: each raises an ``OptionError`` that names the key, the value and what would be right."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options import suggestion


def one_of(value: Any, known: Collection[str], key: str) -> Any:
    """Refuse a value that is none of the known ones."""
    if value not in known:
        listed = f"is none of {', '.join(known)}" if len(known) < 40 else "is unknown"
        raise OptionError(f"{key}: {value!r} {listed}{suggestion(str(value), known, 0.5)}")
    return value


def keys(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a mapping with an unknown key."""
    for key in given:
        if key not in known:
            near = suggestion(str(key), known, 0.5) or f"; known are {', '.join(known)}"
            raise OptionError(f"{where}: unknown key {key}{near}")


def whole(value: Any, key: str, low: int = 1, high: int = 2**32 - 1) -> int:
    """Refuse what is no whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bounds = f"of at least {low}" if high >= 2**32 - 1 else f"from {low} to {high}"
        raise OptionError(f"{key}: {value!r} is not a whole number {bounds}")
    return value


def number(value: Any, key: str, above: float = 0.0, high: float = float("inf")) -> float:
    """Refuse what is no number above one bound and up to another."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= high:
        bounds = f"above {above:g}" + (f" and of at most {high:g}" if high < float("inf") else "")
        raise OptionError(f"{key}: {value!r} is not a number {bounds}")
    return float(value)


def flag(value: Any, key: str) -> bool:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise OptionError(f"{key}: {value!r} is neither true nor false")
    return value


def text(value: Any, key: str) -> str:
    """Refuse what is no text."""
    if not isinstance(value, str) or not value:
        raise OptionError(f"{key}: {value!r} is not a text")
    return value


def mapping(value: Any, key: str) -> dict[str, Any]:
    """Refuse what is no mapping; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise OptionError(f"{key}: {value!r} is not a mapping such as {{epochs: 20}}")
    return dict(value or {})


def listed(value: Any, key: str, example: str) -> list[Any]:
    """A list with at least one entry; a single value is one of one."""
    values = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    if not values:
        raise OptionError(f"{key}: nothing is named; give at least one, as in {key}: [{example}]")
    return values


def distinct(values: Iterable[Any], key: str) -> None:
    """Refuse a value that is listed twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise OptionError(f"{key}: {value} is listed twice")
        seen.add(value)
