"""Tools to patch RecBole alone, leaving the libraries it shares with everyone as they are."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Patch:
    """One fault of RecBole and the function that repairs it."""

    name: str
    where: str
    """RecBole's file and line, of version 1.2.1."""
    fault: str
    """The fault, and the versions that have it."""
    needed: Callable[[], bool]
    """Tells whether the libraries installed here have the fault."""
    apply: Callable[[], None]


PATCHES: list[Patch] = []
"""Every patch, in the order they are applied."""


def patch(
    name: str, where: str, fault: str, needed: Callable[[], bool] = lambda: True
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Add the decorated function to ``PATCHES``."""

    def add(apply: Callable[[], None]) -> Callable[[], None]:
        PATCHES.append(Patch(name, where, fault, needed, apply))
        return apply

    return add


class Overlay(ModuleType):
    """A module with some names replaced, to stand where one module of RecBole looks.

    ``trainer.amp = Overlay(amp, GradScaler=...)`` changes what ``amp.GradScaler`` means in RecBole's trainer, nowhere
    else.
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
    """
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "recbole" and isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)


def original(function: Any) -> Any:
    """The function that ``function`` replaced by :func:`override`; ``None`` if it replaced nothing."""
    return getattr(function, "__wrapped__", None)


def override(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function in the place of ``owner.name``, which it gets as its first argument.

    Where ``owner`` is a module, other modules of RecBole that took the function by name get the new one too.
    """

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        old = getattr(owner, name)

        @functools.wraps(old, updated=())
        def new(*args: Any, **kwargs: Any) -> Any:
            return function(old, *args, **kwargs)

        if isinstance(owner, ModuleType):
            replace_everywhere(old, new)
        setattr(owner, name, new)
        return function

    return put
