"""Sphinx roles of docstrings, ``:func:`name```, as links of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Replaces roles by cross-references; names that the site has no page for stay as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the roles in one docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_link, obj.docstring.value)


def _link(role: re.Match[str]) -> str:
    name = role[1]
    full = name.startswith("recbole_adrrec.")
    return f"[`{name}`][{name}]" if full else f"`{name}`"
