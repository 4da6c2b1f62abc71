"""Documents of headings, texts, tables and figures, and their forms: Markdown, HTML and LaTeX."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import jinja2

from study.plots import Picture

NONE = "–"
LONG = 40
"""Letters from which a cell of an HTML table may break into lines."""


@dataclass(frozen=True)
class Heading:
    """A heading; ``anchor`` names it for links."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of plain texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Text in rows; ``name`` is a label for references, ``words`` the columns that hold no numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    name: str
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Provenance:
    """Origin of a figure: pairs of a word and its meaning, such as the command and the commit."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption, a text in its place, and its origin; ``first`` names an earlier figure of it."""

    name: str
    caption: str
    alt: str
    picture: Picture
    provenance: Provenance
    first: str = ""


Block = Heading | Paragraph | Items | Table | Figure


def shown_once(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks; a figure with the picture of an earlier one refers to it."""
    first: dict[bytes, str] = {}
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Figure):
            name = first.setdefault(block.picture.light, block.name)
            block = block if name == block.name else replace(block, first=name)
        found.append(block)
    return found


# Numbers as text


def number(value: float | None, places: int = 4) -> str:
    """A number with fixed places; ``–`` for none."""
    return NONE if value is None else f"{value:.{places}f}"


def signed(value: float | None, places: int = 4) -> str:
    """The same with its sign."""
    return NONE if value is None else f"{value:+.{places}f}"


def p_value(value: float | None) -> str:
    """A p value as papers write it."""
    return NONE if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in percent, with its sign."""
    return NONE if value is None else f"{100 * value:+.1f} %"


def duration(seconds: float) -> str:
    """Seconds in the largest fitting units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, word: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


# Forms

LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "†": r"$\dagger$", "–": "--", "<": r"$<$", ">": r"$>$", "−": "$-$"},
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands; a sign before a number becomes a minus of mathematics."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown shows as it stands."""
    return re.sub(r"([\\`*_|<>#])", r"\\\1", " ".join(text.split()))


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": escape_markdown, "tex": escape_latex, "inline": _inline}
    environment.globals |= {"LONG": LONG}
    return environment


def render(template: str, blocks: Sequence[Block]) -> str:
    """Fill a template, ``report.md``, ``report.html`` or ``tables.tex``, with a document."""
    # Figures beside each other share a row of the page.
    parts = [(kind.__name__, list(part)) for kind, part in groupby(blocks, type)]
    headings = [block for block in blocks if isinstance(block, Heading)]
    title = next((block.text for block in headings if block.level == 1), "Report")
    return _environment().get_template(template).render(parts=parts, title=title, headings=headings)
