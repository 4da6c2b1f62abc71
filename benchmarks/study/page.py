"""The report as one HTML page that needs nothing else: styles and pictures inside, no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from study.report import Block, Heading, Items, Paragraph, Shown, Table

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --quiet: #595959; --line: #d0d4da; --shade: #f3f5f8;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --quiet: #a9afb8; --line: #3a4049; --shade: #1f2329; --link: #8cc3ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, nav details { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
main { padding-bottom: 4rem; }
nav { border-bottom: 1px solid var(--line); background: var(--shade); padding: .5rem 0; }
nav details { margin: 0 auto; color: inherit; }
nav ul { list-style: none; margin: .25rem 0 .5rem; padding: 0; } nav li { max-width: none; }
nav a { display: inline-block; padding: .2rem 0; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .5rem; z-index: 1; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.25rem; line-height: 1.3; margin-top: 2.5rem; }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 1rem; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; min-width: 100%;
  font-variant-numeric: tabular-nums; }
.caption { color: var(--quiet); font-size: .9rem; margin: 1.5rem 0 .25rem; }
th, td { padding: .35rem .75rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { background: var(--shade); font-weight: 600; }
thead th { border-top: 0; }
td.word, th.word { text-align: left; } td.long { white-space: normal; min-width: 16rem; }
tbody th { background: none; position: sticky; left: 0; background: var(--paper); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem;
  align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 4px; padding: .75rem; min-width: 0; }
figure img { display: block; width: 100%; max-width: 36rem; height: auto; margin: 0 auto; }
figcaption { font-size: .9rem; margin-top: .5rem; }
details { margin-top: .5rem; color: var(--quiet); } summary { cursor: pointer; padding: .25rem 0; }
dl { margin: .25rem 0; font-size: .85rem; } dt { font-weight: 600; } dd { margin: 0 0 .25rem; overflow-wrap: anywhere; }
@media print { nav { display: none; } .scroll { overflow: visible; } }
"""

LONG = 40
"""Letters from which a cell may break into lines."""


def html_page(blocks: Sequence[Block]) -> str:
    """The whole page."""
    title = next((block.text for block in blocks if isinstance(block, Heading) and block.level == 1), "Report")
    links = "".join(
        f'<li><a href="#{escape(block.anchor)}">{escape(block.text)}</a></li>'
        for block in blocks
        if isinstance(block, Heading) and block.level == 2
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon, or browsers ask a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#top">To the report</a>\n'
        f'<nav aria-label="Contents"><details><summary>Contents</summary><ul>{links}</ul></details></nav>\n'
        f"<main>\n{_body(blocks)}\n</main>\n</body>\n</html>\n"
    )


def _body(blocks: Sequence[Block]) -> str:
    parts: list[str] = []
    figures: list[str] = []
    for block in (*blocks, None):
        if isinstance(block, Shown):
            figures.append(_figure(block))
            continue
        if figures:
            parts.append('<div class="figures">\n' + "\n".join(figures) + "\n</div>")
            figures = []
        if isinstance(block, Heading):
            anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
            parts.append(f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>")
        elif isinstance(block, Paragraph):
            parts.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Items):
            parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in block.texts) + "</ul>")
        elif isinstance(block, Table):
            parts.append(_table(block))
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_class(place in table.words)}>{escape(name)}</th>' for place, name in enumerate(table.header)
    )
    rows = []
    for row in table.rows:
        cells = [f'<th scope="row" class="word">{escape(row[0])}</th>']
        for place, cell in enumerate(row[1:], 1):
            cells.append(f"<td{_class(place in table.words, len(cell) > LONG)}>{escape(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    name = escape(f"table-{table.name}")
    # A region that scrolls must be reachable by keyboard; the caption stays outside, or a phone would cut it.
    return (
        f'<p class="caption" id="{name}">{escape(table.caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}"><table aria-labelledby="{name}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class(word: bool, long: bool = False) -> str:
    names = " ".join(name for name, on in (("word", word), ("long", long)) if on)
    return f' class="{names}"' if names else ""


def _figure(shown: Shown) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in shown.made.facts)
    return (
        f'<figure id="figure-{escape(shown.name)}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_inline(shown.picture.dark)}">'
        f'<img src="{_inline(shown.picture.light)}" alt="{escape(shown.alt)}"></picture>'
        f"<figcaption>{escape(shown.caption)}"
        f"<details><summary>How this figure was made</summary><dl>{facts}</dl></details></figcaption></figure>"
    )


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
