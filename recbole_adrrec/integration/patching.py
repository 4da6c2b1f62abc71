"""Tools to mend RecBole alone, leaving the libraries it shares with everyone as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Mend:
    """One fault of RecBole and what mends it."""

    name: str
    """Short name, as a table shows it."""
    where: str
    """RecBole's file and line, of version 1.2.1."""
    fault: str
    """What goes wrong, and with which versions."""
    needed: Callable[[], bool]
    """Whether the libraries installed here have the fault; reads versions and attributes only."""
    apply: Callable[[], None]
    """The mend. Does nothing where it isn't needed, nor when repeated."""


class Overlay(ModuleType):
    """A module with some names replaced, to stand where one module of RecBole looks.

    ``trainer.torch = Overlay(torch, save=...)`` changes what ``torch.save`` means in RecBole's trainer, nowhere else.
    """

    def __init__(self, module: ModuleType, **names: Any) -> None:
        super().__init__(module.__name__, f"{module.__name__}, with {', '.join(names)} of our own")
        self.__dict__.update(names, __overlaid__=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["__overlaid__"], name)


def overlay(module: ModuleType, name: str, **names: Any) -> None:
    """Lay ``names`` over what ``module`` knows as ``name``; a second overlay adds to the first."""
    current = getattr(module, name)
    if isinstance(current, Overlay):
        current.__dict__.update(names)
    else:
        setattr(module, name, Overlay(current, **names))


def replace_everywhere(old: Any, new: Any) -> None:
    """Rebind ``old`` to ``new`` in every loaded module of RecBole that has it under any name.

    ``from recbole.utils import get_model`` copies the name, so replacing it in one module reaches that module alone.

    Parameters
    ----------
    old, new : object
        Compared by identity. Modules that are loaded later and take the name from one already mended get ``new``.
    """
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "recbole" and isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)


def original(function: Any) -> Any:
    """What ``function`` replaced by :func:`override`; ``None`` if it replaced nothing."""
    return getattr(function, "__recbole_original__", None)


def _replacement(before: Any, make: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any] | None:
    """What ``make`` makes of ``before``, unless it did so already."""
    made = before
    while original(made) is not None:
        if made.__recbole_maker__ is make.__code__:
            return None
        made = original(made)
    function: Any = make(before)
    function.__recbole_original__, function.__recbole_maker__ = before, make.__code__
    return function


def override(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Set ``owner.name`` to ``make(what it was)``, once."""
    function = _replacement(getattr(owner, name), make)
    if function is not None:
        setattr(owner, name, function)


def override_everywhere(module: ModuleType, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """The same for a function that other modules of RecBole took by name."""
    before = getattr(module, name)
    function = _replacement(before, make)
    if function is not None:
        replace_everywhere(before, function)
