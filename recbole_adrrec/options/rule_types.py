"""Rules: each says which values one option may have, and what is wrong with another."""

import math
import numbers
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options.names import suggestion


class Rule(ABC):
    """Values that one option may have."""

    @abstractmethod
    def fault(self, value: Any) -> str | None:
        """Say what is wrong with ``value`` (``"0 is not a whole number of at least 1"``), if anything is."""

    def check(self, name: str, value: Any) -> None:
        """Raise an ``OptionError`` that begins with ``name`` if ``value`` is refused."""
        fault = self.fault(value)
        if fault:
            raise OptionError(f"{name}: {fault}")


@dataclass(frozen=True)
class Number(Rule):
    """A finite number within bounds; a bool is none. ``above`` and ``below`` leave the bound itself out."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        kind = numbers.Integral if self.whole else numbers.Real
        fits = isinstance(value, kind) and not isinstance(value, bool)
        fits = fits and abs(value) <= sys.float_info.max  # no NaN, and no whole number beyond floats
        fits = fits and (value > self.low if self.above else value >= self.low)
        fits = fits and (value < self.high if self.below else value <= self.high)
        return None if fits else f"{value!r} is not {self._wanted()}"

    def _wanted(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if max(-self.low, self.high) < math.inf and not self.above and not self.below:
            return f"{kind} from {self.low} to {self.high}"
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'of at least'} {self.low}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.below else 'of at most'} {self.high}")
        return f"{kind} {' and '.join(bounds)}".strip()


@dataclass(frozen=True)
class Kind(Rule):
    """A value of certain types; bool counts as none but itself."""

    types: tuple[type, ...]
    otherwise: str

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        fits = isinstance(value, self.types) and (bool in self.types or not isinstance(value, bool))
        return None if fits else f"{value!r} {self.otherwise}"


@dataclass(frozen=True)
class Choice(Rule):
    """One of a few names."""

    names: Sequence[str]
    any_case: bool = False

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        if not isinstance(value, str):
            return f"{value!r} is none of {', '.join(self.names)}"
        if (value.lower() if self.any_case else value) in self.names:
            return None
        return f"{value!r} is none of {', '.join(self.names)}{suggestion(value, self.names, cutoff=0.6)}"


@dataclass(frozen=True)
class ListOf(Rule):
    """A list whose entries all follow one rule."""

    entry: Rule
    or_one: bool = False
    distinct: bool = False
    filled: bool = False

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        if not isinstance(value, list | tuple):
            return self.entry.fault(value) if self.or_one else f"{value!r} is not a list; write it as [a, b]"
        if self.filled and not value:
            return "the list is empty"
        for place, each in enumerate(value, 1):
            fault = self.entry.fault(each)
            if fault:
                return f"entry {place}: {fault}"
            if self.distinct and each in value[: place - 1]:
                return f"{each!r} is listed twice"
        return None


@dataclass(frozen=True)
class Unset(Rule):
    """Another rule, or no value at all."""

    rule: Rule

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        return None if value is None else self.rule.fault(value)


COUNT = Number(low=1, whole=True)
NATURAL = Number(low=0, whole=True)
POSITIVE = Number(low=0, above=True)
FLAG = Kind((bool,), "is neither true nor false")
TEXT = Kind((str,), "is not text")
TOKEN = Kind((str, numbers.Integral), "is not a name")
ENTRIES = Kind((Mapping,), "is not a mapping such as {name: value}")
ANYTHING = Kind((object, bool), "")


def rule_of(hint: Any) -> Rule:
    """Rule of a type hint: the one it is annotated with, or that of ``bool``, ``Literal``, ``tuple`` or ``| None``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        rule: Rule = arguments[1]
        return rule
    if origin is Literal:
        return Choice(arguments)
    if origin in (Union, UnionType):
        return Unset(rule_of(arguments[0]))
    if origin is tuple:
        return ListOf(rule_of(arguments[0]))
    return {bool: FLAG, str: TEXT}[hint]
