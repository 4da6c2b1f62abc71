"""Docstrings as the site reads them: Sphinx roles become links, examples in running text become blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)(>>> .*(?:\n\1\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|mod|meth|data):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites each docstring; names that the site has no page for stay as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            linked = ROLE.sub(_link, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\1\2\n\1```", linked)


def _link(role: re.Match[str]) -> str:
    name = role[1]
    full = name.startswith("recbole_adrrec.")
    return f"[`{name}`][{name}]" if full else f"`{name}`"
