"""Rules: each says what is wrong with a value that one option may not have."""

import math
import numbers
import sys
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options.names import suggestion

Rule = Callable[[Any], str | None]
"""From a value to what is wrong with it (``"0 is not a whole number of at least 1"``), if anything is."""


def check(rule: Rule, name: str, value: Any) -> None:
    """Raise an ``OptionError`` that begins with ``name`` if ``value`` is refused."""
    if fault := rule(value):
        raise OptionError(" ".join(f"{name}: {fault}".split("\n")))


def number(
    low: float = -math.inf, high: float = math.inf, whole: bool = False, above: bool = False, below: bool = False
) -> Rule:
    """A finite number within bounds; a bool is none. ``above`` and ``below`` leave the bound itself out."""
    kind: Any = numbers.Integral if whole else numbers.Real
    wanted = "a whole number" if whole else "a number"
    if max(-low, high) < math.inf and not above and not below:
        wanted += f" from {low} to {high}"
    else:
        bounds = [f" {'above' if above else 'of at least'} {low}"] if low > -math.inf else []
        bounds += [f" {'below' if below else 'of at most'} {high}"] if high < math.inf else []
        wanted += " and".join(bounds)

    def fault(value: Any) -> str | None:
        fits = isinstance(value, kind) and not isinstance(value, bool)
        fits = fits and abs(value) <= sys.float_info.max  # no NaN, and no whole number beyond floats
        fits = fits and (value > low if above else value >= low) and (value < high if below else value <= high)
        return None if fits else f"{value!r} is not {wanted}"

    return fault


def of_type(types: tuple[type, ...], otherwise: str) -> Rule:
    """A value of certain types; bool counts as none but itself."""

    def fault(value: Any) -> str | None:
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        return None if fits else f"{value!r} {otherwise}"

    return fault


def choice(*names: str, any_case: bool = False) -> Rule:
    """One of a few names."""

    def fault(value: Any) -> str | None:
        is_text = isinstance(value, str)
        if is_text and (value.lower() if any_case else value) in names:
            return None
        return f"{value!r} is none of {', '.join(names)}{suggestion(value, names, cutoff=0.6) if is_text else ''}"

    return fault


def list_of(entry: Rule, or_one: bool = False, distinct: bool = False, filled: bool = False) -> Rule:
    """A list whose entries all follow one rule."""

    def fault(value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            return entry(value) if or_one else f"{value!r} is not a list; write it as [a, b]"
        if filled and not value:
            return "the list is empty"
        for place, each in enumerate(value, 1):
            if wrong := entry(each):
                return f"entry {place}: {wrong}"
            if distinct and each in value[: place - 1]:
                return f"{each!r} is listed twice"
        return None

    return fault


def unset_or(rule: Rule) -> Rule:
    """Another rule, or no value at all."""
    return lambda value: None if value is None else rule(value)


COUNT = number(low=1, whole=True)
NATURAL = number(low=0, whole=True)
POSITIVE = number(low=0, above=True)
FLAG = of_type((bool,), "is neither true nor false")
TEXT = of_type((str,), "is not text")
TOKEN = of_type((str, numbers.Integral), "is not a name")
ENTRIES = of_type((Mapping,), "is not a mapping such as {name: value}")
ANYTHING = of_type((object, bool), "")


def rule_of(hint: Any) -> Rule:
    """Rule of a type hint: the one it is annotated with, or that of ``bool``, ``Literal``, ``tuple`` or ``| None``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        rule: Rule = arguments[1]
        return rule
    if origin is Literal:
        return choice(*arguments)
    if origin in (Union, UnionType):
        return unset_or(rule_of(arguments[0]))
    if origin is tuple:
        return list_of(rule_of(arguments[0]))
    return {bool: FLAG, str: TEXT}[hint]
